"""What a file of instruction data holds: turns, modalities, combinations of question and answer, scenarios."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path

from anygpt.data.instructions import messages_of
from anygpt.data.jsonl import JsonlFile
from anygpt.media import atomic_write
from anygpt.modality import MODALITIES
from anygpt.prompts.templates import load_templates

TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Counts over the conversations of one file."""

    dialogues: int
    turns: int
    rounds: dict[int, int] = field(default_factory=dict)
    """Number of rounds -> conversations of that length."""
    media: dict[str, int] = field(default_factory=dict)
    """Modality -> pictures or sounds."""
    modalities: dict[str, dict[str, int]] = field(default_factory=dict)
    """Role -> what a message holds, such as `text+image` -> messages."""
    pairs: dict[str, dict[str, int]] = field(default_factory=dict)
    """Modality of the question -> modality of the answer -> rounds. Text counts only where nothing else is."""
    scenarios: dict[str, int] = field(default_factory=dict)
    topics: dict[str, int] = field(default_factory=dict)


def read_report(path: Path) -> Report:
    """Count what `path` holds. Raises AnyGPTError that names the line of a row of another form."""
    rows = JsonlFile(path, command="anygpt synth")
    rounds: Counter[int] = Counter()
    media: Counter[str] = Counter()
    modalities: dict[str, Counter[str]] = {"user": Counter(), "assistant": Counter()}
    pairs: Counter[tuple[str, str]] = Counter()
    labels = {"scenario": Counter[str](), "topic": Counter[str]()}
    for number in range(len(rows)):
        row = rows[number]
        messages = messages_of(row, f"{path}: line {number + 1}")
        rounds[len(messages) // 2] += 1
        question: list[str] = []
        for role, message in messages:
            counts = {name: message.count(spec.start) for name, spec in MODALITIES.items() if spec.start in message}
            media.update(counts)
            modalities[role]["+".join(([TEXT] if _has_text(message) else []) + list(counts))] += 1
            held = list(counts) or [TEXT]
            if role == "assistant":
                pairs.update(product(question, held))
            question = held
        for name, counter in labels.items():
            if isinstance(row.get(name), str):
                counter[row[name]] += 1
    return Report(
        dialogues=len(rows),
        turns=2 * sum(count * length for length, count in rounds.items()),
        rounds=dict(sorted(rounds.items())),
        media={name: media[name] for name in MODALITIES if media[name]},
        modalities={role: dict(counter.most_common()) for role, counter in modalities.items()},
        pairs=_table(pairs),
        scenarios=dict(labels["scenario"].most_common()),
        topics=dict(labels["topic"].most_common()),
    )


def write_report(report: Report, path: Path) -> Path:
    """Write a report as JSON; returns the path."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
    return path


def format_report(report: Report) -> str:
    """The report as tables of text."""
    lines = [f"{report.dialogues} dialogues, {report.turns} turns", ""]
    lines += _columns([("media", "count"), *((name, str(count)) for name, count in report.media.items())])
    lines += _columns([("rounds", "dialogues"), *((str(n), str(count)) for n, count in report.rounds.items())])
    for role, counts in report.modalities.items():
        lines += _columns([(f"{role}'s turn", "turns"), *((name, str(count)) for name, count in counts.items())])
    names = [TEXT, *(name for name in MODALITIES if name in report.media)]
    grid = [[name, *(str(report.pairs.get(name, {}).get(other, 0)) for other in names)] for name in names]
    lines += _columns([["question, answer", *names], *grid])
    if report.scenarios:
        lines += _columns([("scenario", "dialogues"), *((n, str(count)) for n, count in report.scenarios.items())])
    return "\n".join(lines).rstrip()


@cache
def _not_text() -> re.Pattern[str]:
    """Spans, and the requests that stand in every message of a kind."""
    spans = [f"{re.escape(spec.start)}.*?{re.escape(spec.end)}" for spec in MODALITIES.values()]
    return re.compile("|".join([*spans, *map(re.escape, load_templates().message.requests.values())]))


def _has_text(message: str) -> bool:
    return bool(_not_text().sub("", message).strip())


def _table(pairs: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    names = (TEXT, *MODALITIES)
    rows = {name: {other: pairs[name, other] for other in names if pairs.get((name, other))} for name in names}
    return {name: row for name, row in rows.items() if row}


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns under each other, and a blank line."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]))
    return [*lines, ""]
