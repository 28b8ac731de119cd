"""`anygpt synth`: conversations with media, as instruction data."""

import logging
from pathlib import Path

from anygpt.cli.model_flags import SHIPPED, TokenizerFlags


def synth(
    *,
    out: Path,
    count: int,
    split: str = "train",
    seed: int = 0,
    writer: str = "world",
    media: str = "world",
    scenarios: str | None = None,
    option: list[str] | None = None,
    tokenizers: TokenizerFlags = SHIPPED,
    workers: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> None:
    """Make any-to-any conversations of several turns, as instruction data.

    A writer thinks them up, from topics over scenarios to messages that refer to media; generators make the media; the
    tokenizers turn them into codes. What can't be made is listed with the reason in OUT.errors.jsonl; OUT.report.json
    counts what was made. The same command goes on where a stopped run ended, and the result is the same.

    Args:
        out: The JSONL file to make, or a folder for <split>.jsonl.
        count: Number of conversations.
        split: train, or heldout for pictures, sentences and music that training never has.
        seed: The same seed gives the same conversations.
        writer: Who writes them: world (offline) or openai (an OpenAI-compatible endpoint).
        media: Who makes the media: world, openai (pictures), folder, or several with commas; the first that can, does.
        scenarios: Names with commas, to write only these; without it all.
        option: PLUGIN.KEY=VALUE for a writer or generator, such as openai.url=http://localhost:8000/v1.
        workers: Number of processes, each with one thread on a CPU; without it one, or one for each GPU.
        batch_size: Conversations at once; without it 32, or what the stopped run had.
        device: auto, cpu, cuda (all GPUs) or cuda:N.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from anygpt.synth.pipeline import SynthConfig, synthesize
    from anygpt.synth.report import format_report

    config = SynthConfig(
        count=count,
        split=split,
        seed=seed,
        writer=writer,
        media=_names(media),
        scenarios=_names(scenarios or ""),
        options=tuple(option or ()),
    )
    paths = tokenizers.paths()
    path = out if out.suffix == ".jsonl" else out / f"{split}.jsonl"
    result = synthesize(config, path, paths=paths, workers=workers, batch_size=batch_size, device=device)
    if result.was_finished:
        logging.info("nothing to do: %s is finished; remove it to make it again", result.out)
    print(format_report(result.report))
    skipped = f"; {result.skipped} skipped, see {result.errors}" if result.skipped else ""
    logging.info("%d conversations%s; counts in %s", result.written, skipped, result.report_path)
    print(result.out)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))
