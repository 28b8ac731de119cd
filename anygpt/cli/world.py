"""`anygpt world`: the synthetic world as training data."""

import logging
from pathlib import Path


def world(
    modality: str,
    *,
    out: Path,
    count: int,
    raw: bool = False,
    boxes: bool = False,
    tokenizer: str | None = None,
    split: str = "train",
    seed: int = 0,
    batch_size: int = 64,
) -> None:
    """Make COUNT tokenized pairs of the synthetic world's MODALITY (image, speech, music, audio, video or `text`).

    Writes <modality>_captions.jsonl and <modality>_prompts.jsonl, in the published pre-training format; with --raw
    pictures, sounds or videos under media/ and manifest.jsonl, which `anygpt tokenize` takes; with --boxes
    image_pointing.jsonl, with questions about where things are. `text` instead learns the small model's text tokenizer
    from the world's texts: COUNT pieces, into tokenizer.model.

    Args:
        modality: What to make.
        out: Output folder.
        count: Number of pairs (of pieces, for text).
        raw: Write the pictures, sounds or videos themselves.
        boxes: Write pictures with tagged instructions, boxes in them or in their answers.
        tokenizer: Tokenizer folder or name under tokenizers/; without it the shipped one of the modality.
        split: train or heldout.
        seed: The same seed gives the same pairs.
        batch_size: Items tokenized at once.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from anygpt.errors import AnyGPTError

    if split not in ("train", "heldout"):
        raise AnyGPTError(f"--split is '{split}', expected train or heldout")
    if boxes and (raw or modality != "image"):
        raise AnyGPTError("--boxes goes with image, and without --raw")
    if modality == "text":
        from anygpt.world.texts import learn_text_tokenizer

        print(learn_text_tokenizer(out / "tokenizer.model", pieces=count, seed=seed).model_path)
        return
    from anygpt.tokenizers.base import load_tokenizer
    from anygpt.tokenizers.sources import find_tokenizer
    from anygpt.world.pairs import world_pairs, write_pairs, write_pointing
    from anygpt.world.samples import write_samples

    world_pairs(modality)
    if raw:
        print(write_samples(modality, out, count=count, split=split, seed=seed))
        return
    loaded = load_tokenizer(find_tokenizer(modality, tokenizer))
    if boxes:
        print(write_pointing(loaded, out, count=count, split=split, seed=seed, batch_size=batch_size))
        return
    for path in write_pairs(loaded, out, count=count, split=split, seed=seed, batch_size=batch_size):
        print(path)
