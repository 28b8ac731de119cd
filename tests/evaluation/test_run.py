"""Running tasks: resuming, what is computed again, failures, and the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from anygpt.errors import AnyGPTError
from anygpt.evaluation.bench import Bench, Case
from anygpt.evaluation.metrics import Scores
from anygpt.evaluation.report import (
    compare_with_base,
    markdown,
    markers,
    read_summary,
    summarise,
    write_report,
)
from anygpt.evaluation.run import Origin, run_tasks
from anygpt.evaluation.tasks import COLUMNS, MODEL, REAL, REBUILT, TASKS, Column, Row, Task

BEGIN, END = markers()


class Counter:
    """Makes a task about numbers, and counts what is computed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        columns = {name: Column(get=self.getter(name), score=self.score, asks=name == MODEL) for name in COLUMNS}
        rows = (Row(measure="even", title="even numbers", target=0.4), Row(measure="sum", title="a sum"))
        self.task = Task(
            name="numbers",
            title="numbers",
            modalities=("image",),
            judges=("image",),
            cases=lambda bench: lambda index: Case(index=index, seed=bench.case_seed(index), media=index, text="x"),
            columns=columns,
            rows=rows,
        )

    def getter(self, name: str) -> Any:
        def get(bench: Bench, case: Case) -> int:
            self.calls.append((name, case.index))
            if name == MODEL and case.index == 3:
                raise AnyGPTError("three is too much")
            return case.index

        return get

    @staticmethod
    def score(bench: Bench, case: Case, got: int | None) -> Scores:
        return {"even": (float(got is not None and got % 2 == 0), 1.0), "sum": (float(got or 0), 2.0)}


def bench(tmp_path: Path, model: Any = True) -> Bench:
    return Bench(tokenizer=lambda name: None, judges=tmp_path, model=model)  # type: ignore[arg-type, return-value]


def origin(**changes: Any) -> Origin:
    return Origin(**{"seed": 0, "judges": {"image": "j"}, "tokenizers": {"image": "t"}, "model": "m", **changes})


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    counter = Counter()
    run_tasks([counter.task], bench(tmp_path), cases=3, out=tmp_path, origin=origin())
    assert sorted(counter.calls) == sorted((name, i) for name in COLUMNS for i in range(3))
    counter.calls.clear()
    results = run_tasks([counter.task], bench(tmp_path), cases=5, out=tmp_path, origin=origin())
    assert sorted(counter.calls) == sorted((name, i) for name in COLUMNS for i in (3, 4))
    assert [scores["even"][0] for scores in results["numbers"][REAL].scores] == [1, 0, 1, 0, 1]
    counter.calls.clear()
    fewer = run_tasks([counter.task], bench(tmp_path), cases=2, out=tmp_path, origin=origin())
    assert not counter.calls and len(fewer["numbers"][REAL].scores) == 2


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"model": "other"}, {MODEL}),
        ({"tokenizers": {"image": "other"}}, {REBUILT, MODEL}),
        ({"judges": {"image": "other"}}, set(COLUMNS)),
        ({"tokenizers": {"image": "t", "music": "other"}}, set()),
    ],
)
def test_scores_are_kept_while_their_origin_is(tmp_path: Path, changes: dict[str, Any], again: set[str]) -> None:
    counter = Counter()
    run_tasks([counter.task], bench(tmp_path), cases=2, out=tmp_path, origin=origin())
    counter.calls.clear()
    run_tasks([counter.task], bench(tmp_path), cases=2, out=tmp_path, origin=origin(**changes))
    assert {name for name, _ in counter.calls} == again


def test_half_a_line_is_done_again(tmp_path: Path) -> None:
    counter = Counter()
    whole = run_tasks([counter.task], bench(tmp_path), cases=4, out=tmp_path, origin=origin())
    path = tmp_path / f"numbers.{REAL}.jsonl"
    path.write_text(path.read_text()[:-9])
    counter.calls.clear()
    assert run_tasks([counter.task], bench(tmp_path), cases=4, out=tmp_path, origin=origin()) == whole
    assert counter.calls == [(REAL, 3)]


def test_force_computes_everything(tmp_path: Path) -> None:
    counter = Counter()
    for _ in range(2):
        run_tasks([counter.task], bench(tmp_path), cases=2, out=tmp_path, origin=origin(), force=True)
    assert len(counter.calls) == 2 * 2 * len(COLUMNS)


def test_a_failed_answer_is_wrong_and_counted(tmp_path: Path) -> None:
    counter = Counter()
    results = run_tasks([counter.task], bench(tmp_path), cases=4, out=tmp_path, origin=origin())
    assert results["numbers"][MODEL].errors == ["three is too much"]
    assert results["numbers"][MODEL].scores[3]["sum"] == (0.0, 2.0)
    again = run_tasks([counter.task], bench(tmp_path), cases=4, out=tmp_path, origin=origin())
    assert again == results


def test_without_a_model_only_tokenizers_are_judged(tmp_path: Path) -> None:
    counter = Counter()
    results = run_tasks([counter.task], bench(tmp_path, None), cases=2, out=tmp_path, origin=origin(model=None))
    assert set(results["numbers"]) == {REAL, REBUILT}
    with pytest.raises(AnyGPTError, match="at least 1"):
        run_tasks([counter.task], bench(tmp_path), cases=0, out=tmp_path, origin=origin())


def summary_of(counter: Counter, tmp_path: Path) -> dict[str, Any]:
    results = run_tasks([counter.task], bench(tmp_path), cases=4, out=tmp_path / "out", origin=origin())
    rows = summarise([counter.task], results, seed=0)
    return {"model": "m", "command": "anygpt eval", "seed": 0, "judges": {"image": {"all": 0.98}}, "rows": rows}


def test_the_report_has_every_row_with_intervals(tmp_path: Path) -> None:
    summary = summary_of(Counter(), tmp_path)
    text = markdown(summary)
    row = next(line for line in text.splitlines() if "even numbers" in line)
    assert "50.0 (15.0–85.0)" in row and "≥ 40 ✓" in row and row.endswith("| 4 |")
    assert "numbers, model: 1 answers failed" in text and "all 98.0" in text
    assert json.loads(json.dumps(summary)) == summary


def test_the_rest_of_the_document_stays(tmp_path: Path) -> None:
    summary, path = summary_of(Counter(), tmp_path), tmp_path / "docs" / "quality.md"
    write_report(path, summary)
    assert path.read_text().startswith("# Quality\n") and path.read_text().count(BEGIN) == 1
    path.write_text("# Mine\n\nfirst\n\n" + path.read_text().removeprefix("# Quality\n\n") + "\nlast\n")
    written = write_report(path, {**summary, "model": "another"})
    text = path.read_text()
    assert text.startswith("# Mine\n\nfirst\n") and text.endswith("\nlast\n")
    assert text.count(BEGIN) == text.count(END) == 1 and "another" in text
    assert json.loads(written[1].read_text())["model"] == "another"
    path.write_text("# Mine\n")
    write_report(path, summary)
    assert path.read_text().startswith("# Mine\n\n" + BEGIN)


def test_a_measure_of_some_cases_is_estimated_over_these(tmp_path: Path) -> None:
    counter = Counter()
    results = run_tasks([counter.task], bench(tmp_path), cases=4, out=tmp_path / "out", origin=origin())
    for name, outcome in results["numbers"].items():
        for index, scores in enumerate(outcome.scores):
            if name == REAL or index == 0:
                del scores["even"]
    even, total = summarise([counter.task], results, seed=0)
    assert {name: rate["cases"] for name, rate in even["columns"].items()} == {REBUILT: 3, MODEL: 3}
    assert {name: rate["cases"] for name, rate in total["columns"].items()} == dict.fromkeys(COLUMNS, 4)
    assert "| – |" in markdown({"model": "m", "command": "c", "seed": 0, "judges": {}, "rows": [even]})


def test_other_models_have_sections_of_their_own(tmp_path: Path) -> None:
    summary, path = summary_of(Counter(), tmp_path), tmp_path / "quality.md"
    write_report(path, summary)
    main = path.read_text()
    written = write_report(path, {**summary, "model": "chat"}, section="chat")
    text = path.read_text()
    assert text.startswith(main.rstrip()) and "## Quality of chat" in text
    assert [file.name for file in written] == ["quality.md", "quality-chat.json"]
    assert read_summary(tmp_path / "quality.json")["model"] == "m"
    path.write_text(text + "\nlast\n")
    write_report(path, {**summary, "model": "again"}, section="chat")
    assert path.read_text() == text.replace("Quality of chat", "Quality of again") + "\nlast\n"
    write_report(path, {**summary, "model": "base"})
    assert "Quality of again" in path.read_text() and "Quality of base" in path.read_text()


def test_the_loss_against_the_base_model(tmp_path: Path) -> None:
    def rows(even: float, wer: float) -> list[dict[str, Any]]:
        measures = (("even", even, {"kind": "at least", "value": 0.4}), ("wer", wer, {"kind": "at most", "value": 0.1}))
        rate, *_ = (row["columns"][MODEL] for row in summary["rows"])
        return [
            {**summary["rows"][0], "measure": name, "target": target, "columns": {MODEL: {**rate, "value": value}}}
            for name, value, target in measures
        ]

    summary = summary_of(Counter(), tmp_path)
    for changes, met in (((0.46, 0.25), [True, True]), ((0.4, 0.26), [False, False]), ((0.9, 0.0), [True, True])):
        found = rows(*changes)
        compare_with_base(found, {"model": "b", "rows": rows(0.51, 0.2)})
        assert [row["base"]["met"] for row in found] == met
    text = markdown({**summary, "base": "b", "rows": found})
    assert "| base model | cases |" in text and "51.0 (+39.0 ✓)" in text and "20.0 (-20.0 ✓)" in text
    compare_with_base(found := summary["rows"], {"model": "b", "rows": []})
    assert all("base" not in row for row in found)


def test_what_is_no_report_is_named(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    for text in ("{", "[]", "{}", '{"rows": []}'):
        path.write_text(text)
        with pytest.raises(AnyGPTError, match=r"quality.json: not the report"):
            read_summary(path)


def test_targets_look_at_the_right_column() -> None:
    def met(task: str, measure: str, **rates: float) -> bool | None:
        from anygpt.evaluation.metrics import estimate
        from anygpt.evaluation.report import is_met

        row = next(row for row in TASKS[task].rows if row.measure == measure)
        columns = {name: estimate([(100 * rate, 100.0)]) for name, rate in rates.items()}
        return is_met(row, columns, needs_model=MODEL in TASKS[task].columns)

    assert met("image-tokenizer", "scene", real=0.9, reconstruction=0.82) is True
    assert met("image-tokenizer", "scene", real=1.0, reconstruction=0.82) is False
    assert met("speech-to-text-seen", "wer", reconstruction=0.5, model=0.04) is True
    assert met("speech-to-text-seen", "wer", model=0.06) is False
    assert met("text-to-image", "scene", real=1.0, reconstruction=1.0) is None
