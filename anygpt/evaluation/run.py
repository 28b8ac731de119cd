"""Runs tasks case by case; every score is on disk as soon as it is known, and is not computed again."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from anygpt.errors import AnyGPTError
from anygpt.evaluation.bench import Bench
from anygpt.evaluation.metrics import Scores
from anygpt.evaluation.tasks import COLUMNS, REAL, Task
from anygpt.media import atomic_write

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One column of one task: the scores of its cases, and why some of them failed."""

    scores: list[Scores]
    errors: list[str]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What scores depend on, as fingerprints; scores of another origin are computed again."""

    seed: int
    judges: Mapping[str, str]
    tokenizers: Mapping[str, str]
    model: str | None = None
    chat: str | None = None
    """Of what decides answers in conversations besides the model: templates, and settings of text."""

    def of(self, task: Task, column: str) -> dict[str, Any]:
        """What the scores of one column depend on: only those of a model change with the model."""
        found: dict[str, Any] = {"task": task.name, "column": column, "seed": self.seed}
        asks = task.columns[column].asks
        if task.judges:
            found["judge"] = "+".join(self.judges[name] for name in task.judges)
        if column != REAL or asks:
            found["tokenizer"] = "+".join(self.tokenizers[name] for name in task.modalities)
        if asks:
            found["model"] = self.model
        if asks and task.talks:
            found["chat"] = self.chat
        return found


def run_tasks(
    tasks: Sequence[Task], bench: Bench, *, cases: int, out: Path, origin: Origin, force: bool = False
) -> dict[str, dict[str, Outcome]]:
    """Score the first `cases` cases of every column of every task: {task: {column: Outcome}}.

    Scores are kept in `out/<task>.<column>.jsonl`; what is there of the same origin is taken as it is, unless `force`.
    Columns that ask a model are left out where the bench has none. An answer that fails with an AnyGPTError counts as
    wrong. Raises AnyGPTError where judges, tokenizers or the world's packages are missing.
    """
    if cases < 1:
        raise AnyGPTError(f"{cases} cases are too few; evaluate at least 1")
    return {task.name: _run_task(task, bench, cases, out, origin, force) for task in tasks}


def _run_task(task: Task, bench: Bench, cases: int, out: Path, origin: Origin, force: bool) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    case_of: Callable[[int], Any] | None = None
    for name in COLUMNS:
        column = task.columns.get(name)
        if column is None or (column.asks and bench.model is None):
            continue
        log = _Log(out / f"{task.name}.{name}.jsonl", origin.of(task, name), force=force)
        if len(log.rows) < cases:
            # Whatever is missing is missed here, not case by case.
            for modality in task.modalities:
                bench.tokenizer(modality)
            case_of = case_of or task.cases(bench)
            progress = tqdm(
                range(len(log.rows), cases), f"{task.name}, {name}", cases, initial=len(log.rows), unit="case"
            )
            for index in progress:
                case, error = case_of(index), None
                try:
                    got = column.get(bench, case)
                except AnyGPTError as mistake:
                    got, error = None, str(mistake)
                    logger.warning("%s, %s, case %d: %s", task.name, name, index, mistake)
                log.add(column.score(bench, case, got), error)
        outcomes[name] = log.outcome(cases)
    return outcomes


class _Log:
    """The scores of one column on disk: a line with their origin, then one line a case."""

    def __init__(self, path: Path, origin: dict[str, Any], *, force: bool) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = []
        header = {"origin": origin}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() and not force else []
        # A killed run may have left half a line.
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if whole and whole[0] == header:
            self.rows = whole[1:]
        elif whole:
            logger.info("%s: judge, tokenizer, model or seed have changed; starting again", path)
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in (header, *self.rows)), encoding="utf-8")

    def add(self, scores: Scores, error: str | None) -> None:
        row: dict[str, Any] = {"scores": scores} if error is None else {"scores": scores, "error": error}
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def outcome(self, cases: int) -> Outcome:
        rows = self.rows[:cases]
        scores = [{name: (score[0], score[1]) for name, score in row["scores"].items()} for row in rows]
        return Outcome(scores=scores, errors=[row["error"] for row in rows if "error" in row])
