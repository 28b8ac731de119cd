"""`anygpt tokenize`: pictures, speech or music with text to training data."""

import logging
from pathlib import Path


def tokenize(
    manifest: Path,
    *,
    out: Path,
    modality: str | None = None,
    tokenizer: str | None = None,
    image_tokenizer_path: str | None = None,
    speech_tokenizer_path: str | None = None,
    speech_tokenizer_config: str | None = None,
    music_tokenizer_path: str | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> None:
    """Turn pictures, speech or music with text into training data.

    MANIFEST is JSONL or Parquet with the columns text and image, speech, music or audio, which holds the path of a
    file, absolute or relative to the manifest's folder; other columns are ignored. The output keeps its order, in the
    published pre-training format. Files that can't be used are skipped and listed in OUT.errors.jsonl. The same
    command goes on where a stopped run ended, and the result is the same.

    Args:
        manifest: The list of files and texts.
        out: The JSONL file to make.
        modality: image, speech, music or audio, where the manifest has several.
        tokenizer: Name under tokenizers/, tokenizer folder, or released weights; without it the shipped one.
        image_tokenizer_path: As for `anygpt base`; the same as --tokenizer for images.
        speech_tokenizer_path: The same for speech.
        speech_tokenizer_config: The config.json of released SpeechTokenizer weights, where it isn't beside them.
        music_tokenizer_path: The same for music.
        workers: Number of processes, each with one thread on a CPU; without it one, or one for each GPU.
        batch_size: Rows tokenized at once; without it 32, or what the stopped run had.
        device: auto, cpu, cuda (all GPUs) or cuda:N.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from anygpt.data.tokenize import tokenize_manifest
    from anygpt.tokenizers.sources import TokenizerPaths

    paths = TokenizerPaths(
        image_tokenizer=image_tokenizer_path,
        speech_tokenizer=speech_tokenizer_path,
        speech_config=speech_tokenizer_config,
        music_tokenizer=music_tokenizer_path,
    )
    result = tokenize_manifest(
        manifest,
        out,
        modality=modality,
        tokenizer=tokenizer,
        paths=paths,
        workers=workers,
        batch_size=batch_size,
        device=device,
    )
    if result.was_finished:
        logging.info("nothing to do: %s is finished; remove it to make it again", result.out)
    skipped = f", {result.skipped} skipped, see {result.errors}" if result.skipped else ""
    logging.info("%d rows%s", result.written, skipped)
    print(result.out)
