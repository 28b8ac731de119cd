"""`anygpt tokenize`: pictures, speech or music with text to training data."""

import logging
from pathlib import Path

from anygpt.cli.model_flags import SHIPPED, TokenizerFlags


def tokenize(
    manifest: str | None = None,
    *,
    out: Path | None = None,
    dataset: str | None = None,
    format: str | None = None,
    layout: str | None = None,
    modality: str | None = None,
    tokenizer: str | None = None,
    tokenizers: TokenizerFlags = SHIPPED,
    engine: str = "local",
    ray_address: str | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    device: str = "auto",
) -> None:
    """Turn pictures, speech or music with text into training data.

    MANIFEST is JSONL or Parquet with the columns text and image, speech, music, audio or video, with the path of a
    file, absolute or relative to the manifest's folder, or a URL; or a WebDataset tar, in which 000.jpg goes with
    000.txt. Other columns are ignored. The output keeps its order, in the published pre-training format. Files that
    can't be used are skipped and listed in OUT.errors.jsonl. The same command goes on where a stopped run ended, and
    the result is the same. With --format MANIFEST may be several files (a folder, a pattern such as 's3://b/*.tar' or
    'cc/{00000..00331}.tar'), and OUT becomes a folder of shards, with counts and checksums in manifest.json.

    With --dataset everything comes from an entry of config/datasets.yaml, and OUT may be left out.

    Args:
        manifest: The list of files and texts, here or behind any URL that fsspec reads.
        out: The JSONL file to make, or with --format the folder.
        dataset: A set of pairs by its name in config/datasets.yaml, in place of MANIFEST.
        format: jsonl or parquet; makes a folder of shards.
        layout: MANIFEST is a public data set as published; see docs/data.md for the names.
        modality: image, speech, music, audio or video, where the manifest has several, or for tars with sounds.
        tokenizer: Name under tokenizers/, tokenizer folder, or released weights; without it the shipped one.
        image_tokenizer_path: As for `anygpt base`; the same as --tokenizer for images.
        engine: local, or ray (with --format), which spreads shards over a Ray cluster.
        ray_address: The Ray cluster; without it one on this machine.
        workers: Number of processes, each with one thread on a CPU; without it one, or one for each GPU.
        batch_size: Rows tokenized at once; without it 32, or what the stopped run had.
        shard_rows: With --format, rows of a manifest that make one shard; without it 10000.
        device: auto, cpu, cuda (all GPUs) or cuda:N.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from anygpt.data.tokenize import tokenize_manifest
    from anygpt.data.tokenize_shards import find_engine, tokenize_shards
    from anygpt.errors import AnyGPTError

    paths = tokenizers.paths()
    if dataset is not None:
        from anygpt.data.catalog import find_dataset, stage_line

        for flag, is_given in (("MANIFEST", manifest is not None), ("--layout", layout is not None)):
            if is_given:
                raise AnyGPTError(f"{flag} and --dataset both say what to tokenize: leave one out")
        entry = find_dataset(dataset, is_pairs=True)
        manifest, layout, modality = entry.source, entry.layout, modality or entry.modality
        out = out or (entry.out if format is None else entry.out.with_suffix(""))
    if manifest is None or out is None:
        raise AnyGPTError("give MANIFEST and --out, or a data set's name with --dataset; see anygpt tokenize --help")
    if layout is not None:
        from anygpt.data.layouts import write_manifest

        manifest, modality = write_manifest(layout, manifest, Path(f"{out}.manifest.jsonl"))
    if format is not None:
        shards = tokenize_shards(
            manifest,
            out,
            format=format,
            engine=find_engine(engine, ray_address),
            modality=modality,
            tokenizer=tokenizer,
            paths=paths,
            workers=workers,
            batch_size=batch_size,
            shard_rows=shard_rows,
            device=device,
        )
        logging.info("%d shards, %d of them new", shards.shards, shards.made)
        logging.info("%d rows, %d skipped", shards.written, shards.skipped)
        print(shards.manifest)
        return
    for flag, is_given in (
        ("--engine", engine != "local"),
        ("--ray-address", ray_address is not None),
        ("--shard-rows", shard_rows is not None),
    ):
        if is_given:
            raise AnyGPTError(f"{flag} makes a folder of shards; give --format jsonl or parquet with it")
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
    if dataset is not None:
        logging.info("for the data of a stage: %s", stage_line(dataset, result.out))
    print(result.out)
