"""`anygpt convert`: conversations of other layouts to instruction data."""

import logging
from pathlib import Path

from anygpt.cli.model_flags import SHIPPED, TokenizerFlags


def convert(
    layout: str | None = None,
    source: Path | None = None,
    *,
    out: Path | None = None,
    dataset: str | None = None,
    media: list[Path] | None = None,
    model: str | None = None,
    tokenizers: TokenizerFlags = SHIPPED,
    modality: str | None = None,
    direction: str = "both",
    seed: int = 0,
    workers: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> None:
    """Turn conversations of another LAYOUT into instruction data, media tokenized.

    LAYOUT is anyinstruct (metadata.json of AnyInstruct beside its tars), llava or sharegpt4v (conversations about
    pictures), nextgpt, videochat, alpaca (text only), or pairs (a manifest as for `anygpt tokenize`; each pair becomes
    a question and its answer). The output keeps the order of
    SOURCE, in the published instruction format. Conversations that can't be used are skipped and listed with the reason
    in OUT.errors.jsonl. The same command goes on where a stopped run ended, and the result is the same.

    With --dataset everything comes from an entry of config/datasets.yaml, and OUT may be left out.

    Args:
        layout: anyinstruct, llava, sharegpt4v, nextgpt, videochat, alpaca or pairs.
        source: The JSON, JSONL or (pairs) Parquet file.
        out: The JSONL file to make.
        dataset: A set of conversations by its name in config/datasets.yaml, in place of LAYOUT and SOURCE.
        media: Folder or plain tar with the media, several times for several; without it SOURCE's folder and its tars.
        model: Model whose tokenizers to use, a folder or a name under models/; without it the shipped tokenizers.
        image_tokenizer_path: As for `anygpt base`; goes before --model.
        modality: pairs: image, speech, music or audio, where the manifest has several.
        direction: pairs: x2text asks about media, text2x asks for them, both draws one for each pair.
        seed: pairs: the same seed draws the same directions and wordings.
        workers: Number of processes, each with one thread on a CPU; without it one, or one for each GPU.
        batch_size: Conversations at once; without it 8, or what the stopped run had.
        device: auto, cpu, cuda (all GPUs) or cuda:N.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from anygpt.data.convert import run
    from anygpt.errors import AnyGPTError

    paths = tokenizers.paths()
    if dataset is not None:
        from anygpt.data.catalog import find_dataset, stage_line

        if layout is not None:
            raise AnyGPTError("LAYOUT and --dataset both say what to convert: leave one out")
        entry = find_dataset(dataset, is_pairs=False)
        layout, source, out = entry.importer, Path(entry.source), out or entry.out
        media = media or [Path(path) for path in entry.media]
    if layout is None or source is None or out is None:
        raise AnyGPTError(
            "give LAYOUT, SOURCE and --out, or a data set's name with --dataset; see anygpt convert --help"
        )
    result = run.convert(
        layout,
        source,
        out,
        media=media or [],
        model=model,
        paths=paths,
        modality=modality,
        direction=direction,
        seed=seed,
        workers=workers,
        batch_size=batch_size,
        device=device,
    )
    if result.was_finished:
        logging.info("nothing to do: %s is finished; remove it to make it again", result.out)
    counts = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    skipped = f"; {result.skipped} skipped, see {result.errors}" if result.skipped else ""
    logging.info("%d conversations (%s)%s", result.written, counts, skipped)
    if dataset is not None:
        logging.info("for the data of a stage: %s", stage_line(dataset, result.out))
    print(result.out)
