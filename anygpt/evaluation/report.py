"""Results as JSON and as a Markdown table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anygpt.evaluation.metrics import Estimate, estimate
from anygpt.evaluation.run import Outcome
from anygpt.evaluation.tasks import COLUMNS, MODEL, REAL, REBUILT, SENTENCES, Row, Task
from anygpt.media import atomic_write

BEGIN, END = "<!-- anygpt eval: begin -->", "<!-- anygpt eval: end -->"
"""The command rewrites what is between these lines of a Markdown file and leaves the rest alone."""

_ABOUT = f"""\
Held-out data of the synthetic world: pictures, sentences and pieces that no training run sees. Rates in percent with
their 95% interval (Wilson's for right or wrong, bootstrap over the cases for word errors). *Real media*: the judge on
what the world renders. *Reconstruction*: the judge on the same after the tokenizer, from the codes that the language
model sees (speech: with SoundStorm and, where there is a voice prompt, that prompt). *Model*: the judge on what the
model made, or the model's text against the truth. Captions are read back by rule, and `B right of A` is `A left of B`.
Speech is judged by the model's own recogniser, with its errors on real media in the same row, and by aligning it with
espeak-ng's rendering of {SENTENCES} held-out sentences in two voices that training never has. The judges of pictures,
clips and voices are trained on real renderings of the training split alone (`anygpt eval --train-judges`)."""


def summarise(
    tasks: Sequence[Task], results: Mapping[str, Mapping[str, Outcome]], *, seed: int
) -> list[dict[str, Any]]:
    """One entry a row: task, measure, target, whether it is met, and the estimate of each column."""
    rows = []
    for task in tasks:
        outcomes = results.get(task.name, {})
        for row in task.rows:
            columns = {
                name: estimate([scores[row.measure] for scores in outcomes[name].scores], seed=seed)
                for name in COLUMNS
                if name in outcomes
            }
            if columns:
                rows.append(
                    {
                        "task": task.name,
                        "task_title": task.title,
                        "measure": row.measure,
                        "title": row.title,
                        "target": None if row.target is None else {"kind": row.kind, "value": row.target},
                        "met": is_met(row, columns, needs_model=MODEL in task.columns),
                        "columns": {name: dataclasses.asdict(found) for name, found in columns.items()},
                        "failed": {name: len(outcomes[name].errors) for name in columns if outcomes[name].errors},
                    }
                )
    return rows


def is_met(row: Row, columns: Mapping[str, Estimate], *, needs_model: bool) -> bool | None:
    """Whether the target is reached; None where there is none, or where the column it is about was not run."""
    judged = columns.get(MODEL if needs_model else REBUILT)
    if row.target is None or judged is None:
        return None
    if row.kind == "share of real":
        return judged.value >= row.target * columns[REAL].value
    return judged.value <= row.target if row.kind == "at most" else judged.value >= row.target


def markdown(summary: Mapping[str, Any]) -> str:
    """The section of the report, without its markers."""
    rows: list[dict[str, Any]] = summary["rows"]
    lines = [f"## Quality of {summary['model']}", "", _ABOUT, ""]
    lines += [
        "| task | measure | target | real media | reconstruction | model | cases |",
        "|---|---|---|---|---|---|---|",
    ]
    for index, row in enumerate(rows):
        is_first = index == 0 or rows[index - 1]["task"] != row["task"]
        cells = [row["task_title"] if is_first else "", row["title"], _target(row)]
        cells += [_cell(row["columns"].get(name)) for name in COLUMNS]
        cells.append("/".join(sorted({str(found["cases"]) for found in row["columns"].values()}, key=int)))
        lines.append(f"| {' | '.join(cells)} |")
    failed = {(row["task_title"], name): count for row in rows for name, count in row["failed"].items()}
    for (title, name), count in failed.items():
        lines += ["", f"{title}, {name}: {count} answers failed and count as wrong."]
    if summary["judges"]:
        lines += ["", "| judge | share right on real held-out media |", "|---|---|"]
        for name, scores in summary["judges"].items():
            shown = ", ".join(f"{key.replace('_', ' ')} {100 * share:.1f}" for key, share in scores.items())
            lines.append(f"| {name} | {shown} |")
    lines += ["", f"Seed {summary['seed']}. Command: `{summary['command']}`"]
    return "\n".join(lines) + "\n"


def write_report(path: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Write the summary as JSON beside `path` and as Markdown into `path`, between the markers; returns both."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = f"{text.rstrip()}\n\n" if text.strip() else "# Quality\n\n", "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{markdown(summary)}{END}{after}", encoding="utf-8")
    data = path.with_suffix(".json")
    with atomic_write(data) as temporary:
        temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [path, data]


def _target(row: Mapping[str, Any]) -> str:
    if row["target"] is None:
        return ""
    sign = "≤" if row["target"]["kind"] == "at most" else "≥"
    of = " of real" if row["target"]["kind"] == "share of real" else ""
    mark = {None: "", True: " ✓", False: " ✗"}[row["met"]]
    return f"{sign} {100 * row['target']['value']:g}{of}{mark}"


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{100 * found['value']:.1f} ({100 * found['low']:.1f}–{100 * found['high']:.1f})"
