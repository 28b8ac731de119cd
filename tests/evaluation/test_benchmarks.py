"""The public benchmarks from flags to report, on sets in miniature, with a tiny model and tiny scorers."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures_benchmarks import build_scorers, build_sets
from fixtures_tiny import MODEL, link_home

from anygpt.cli.evaluate import evaluate
from anygpt.engine import AnyGPT
from anygpt.errors import AnyGPTError
from anygpt.evaluation.bench import Bench, Question
from anygpt.evaluation.benchmarks.tasks import BENCHMARKS
from anygpt.evaluation.metrics import Scores
from anygpt.evaluation.run import Origin, Outcome, pool, run_tasks
from anygpt.evaluation.tasks import MODEL as ANSWERS
from anygpt.evaluation.tasks import REAL, REBUILT
from anygpt.prompts.render import render_pretrain
from anygpt.prompts.segments import Media


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [f"{kind}={folder}" for kind, folder in build_scorers(tmp_path_factory.mktemp("scorers")).items()]


def rows(path: str = "docs/quality.json") -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["task"], row["measure"]): row for row in json.loads(Path(path).read_text())["rows"]}


WITHOUT_JAVA = [name for name in BENCHMARKS if name != "coco-caption"]


@pytest.mark.usefixtures("in_tmp_path")
def test_all_benchmarks_end_in_a_report(
    data: Path, scorers: list[str], tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("ANYGPT_HOME", str(link_home(tiny_home, tmp_path / "home", max_new_tokens=30)))  # a box's ids
    tasks = list(BENCHMARKS) if shutil.which("java") else WITHOUT_JAVA
    flags: dict[str, Any] = {"tasks": tasks, "data": data, "scorer": scorers, "n": 4, "batch_size": 3}
    evaluate(**flags)
    found = rows()
    assert {task for task, _ in found} == set(tasks)
    for (name, measure), row in found.items():
        assert set(row["columns"]) == set(BENCHMARKS[name].columns), (name, measure)
        assert not row["failed"], row
    assert found["vctk", "speaker"]["columns"][REAL]["cases"] == 2
    assert found["coco-image", "picture"]["columns"][REAL]["value"] == pytest.approx(1, abs=1e-5)
    assert "perception, points" in Path("docs/quality.md").read_text()
    logs = {path.name: path.read_text() for path in Path("runs/eval").glob("*.jsonl")}
    answer = json.loads(logs["coco-image.model.jsonl"].splitlines()[1])["answer"]
    assert Path("runs/eval", answer[0]["file"]).is_file()
    evaluate(**flags)
    assert {path.name: path.read_text() for path in Path("runs/eval").glob("*.jsonl")} == logs
    assert rows() == found


@pytest.mark.usefixtures("home", "in_tmp_path")
def test_a_chat_model_is_asked_in_messages_and_other_data_again(data: Path, tiny_home: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_home / "models" / MODEL, tmp_path / "tiny-chat")
    flags: dict[str, Any] = {"tasks": ["gqa"], "data": data, "model_name_or_path": str(model)}
    log = Path("runs/eval/tiny-chat/gqa.model.jsonl")

    def origin() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(log.read_text().splitlines()[0])["origin"]
        return found

    evaluate(**flags)
    chat = origin()
    assert chat["chat"] and "messages of a conversation" in Path("docs/quality.md").read_text()
    evaluate(**flags, single_questions=True)
    assert "chat" not in origin() and "prompts of the base form" in Path("docs/quality.md").read_text()
    copy = shutil.copytree(data / "gqa", tmp_path / "other" / "gqa").parent
    path = copy / "gqa" / "testdev_balanced_questions.json"
    path.write_text(path.read_text().replace("What?", "Who?"))
    evaluate(**{**flags, "data": copy})
    assert origin()["data"] != chat["data"]


@pytest.mark.usefixtures("home", "in_tmp_path")
def test_several_seeds_are_averaged(data: Path, scorers: list[str]) -> None:
    evaluate(tasks=["coco-image"], data=data, scorer=scorers, seeds=3)
    row = rows()["coco-image", "caption"]
    answers, real = row["columns"][ANSWERS], row["columns"][REAL]
    assert len(answers["seeds"]) == 3 and len(set(answers["seeds"])) > 1
    assert answers["value"] == pytest.approx(sum(answers["seeds"]) / 3) and answers["cases"] == 3
    assert real["seeds"] == pytest.approx([real["value"]] * 3)
    assert Path("runs/eval/seed-2/coco-image.model.jsonl").is_file()
    assert "3 seeds" in Path("docs/quality.md").read_text()


@pytest.mark.usefixtures("home", "in_tmp_path")
def test_mistakes_are_named_before_anything_is_asked(data: Path) -> None:
    with pytest.raises(AnyGPTError, match="--scorer is 'clop=x', did you mean|--scorer is 'clop=x'.*expected KIND"):
        evaluate(tasks=["coco-image"], data=data, scorer=["clop=x"])
    with pytest.raises(AnyGPTError, match="--scorer clip=FOLDER"):
        evaluate(tasks=["coco-image"], data=data)
    with pytest.raises(AnyGPTError, match="--data FOLDER, with pope"):
        evaluate(tasks=["pope"])
    for flag in ("seeds", "batch_size"):
        with pytest.raises(AnyGPTError, match=f"--{flag.replace('_', '-')} is 0"):
            evaluate(tasks=["pope"], **{flag: 0})


@pytest.mark.usefixtures("home", "in_tmp_path")
def test_choices_are_ranked_by_the_models_likelihood(data: Path, tiny_home: Path) -> None:
    """A base model's prompts against one forward pass for each choice; a chat model's against its own ranking."""
    model = AnyGPT.from_pretrained(tiny_home / "models" / MODEL)
    bench = Bench(tokenizer=model.tokenizers.get, judges=Path(), model=model)
    picture = data / "gqa" / "images" / "n1.jpg"
    question = Question(source="image", target="text", content=picture, words="How many?", seed=0)
    choices = ["one", "two dogs", "a red apple"]
    codes = Media("image", model.encode("image", picture))

    def alone(text: str) -> float:
        ids, mask = render_pretrain("x2text", "How many?", text, codes, model.vocabulary, train_question=False)
        ids, mask = ids[:-1], mask[:-1]
        cache = model.decoder.new_cache(slots=len(ids))
        total = 0.0
        for before, (index, counts) in enumerate(zip(ids[1:], mask[1:], strict=True)):
            logits = model.decoder.forward([ids[before]], cache)
            total += float(logits.log_softmax(-1)[index]) if counts else 0.0
        return total

    assert bench.log_likelihoods(question, choices) == pytest.approx([alone(text) for text in choices], abs=1e-3)
    chat = replace(bench, is_chat=True).log_likelihoods(question, choices)
    own = model.score("How many?", choices, media=[("image", picture)])
    assert chat == pytest.approx([score.log_likelihood for score in own])
    with pytest.raises(AnyGPTError, match="more than the model's context"):
        bench.log_likelihoods(question, ["one", "a red apple " * 200])


class Parrot:
    """Answers questions by a table, and counts how many wait."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def prepare(self, source: str, target: str, content: Any, seed: int, settings: Any) -> Any:
        raise AssertionError("questions have words")

    def run_tasks(self, tasks: Iterable[Any], *, batch_size: int) -> Iterator[Any]:
        for task in tasks:
            self.asked.append(task)
            yield SimpleNamespace(text=self.answers[task], media=None, error=None)


class Questions(Bench):
    def _prepare(self, question: Question) -> Any:
        if "break" in question.words:  # type: ignore[operator]
            raise AnyGPTError("can't be asked")
        return question.words


def scored(data: Path, name: str, out: Path, answer: Any) -> tuple[Outcome, list[str]]:
    """The outcome of a benchmark whose questions `answer` answers."""

    class Table(dict[str, str]):
        def __missing__(self, words: str) -> str:
            return str(answer(words))

    model: Any = Parrot(Table())
    bench = Questions(tokenizer=lambda name: None, judges=out, model=model, data=data)  # type: ignore[arg-type, return-value]
    origin = Origin(seed=0, judges={}, tokenizers={"image": "t"}, model="m")
    results = run_tasks([BENCHMARKS[name]], bench, cases=99, out=out, origin=origin)
    return results[name][ANSWERS], model.asked


def total(outcome: Outcome, measure: str) -> tuple[float, float]:
    pairs = [scores[measure] for scores in outcome.scores if measure in scores]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def test_always_the_same_letter_fails_when_choices_rotate(data: Path, tmp_path: Path) -> None:
    outcome, asked = scored(data, "mmbench", tmp_path, lambda words: "A")
    assert total(outcome, "circular") == (0, 2) and total(outcome, "first") == (1, 2)
    assert len(asked) == 3 + 2 and asked[0] != asked[1]

    def right(words: str) -> str:
        lines = dict(reversed(line.split(". ", 1)) for line in words.splitlines() if line[1:3] == ". ")  # type: ignore[arg-type]
        return next(lines[text] for text in ("dog", "up") if text in lines)

    outcome, _ = scored(data, "mmbench", tmp_path / "right", right)
    assert total(outcome, "circular") == (2, 2)


def test_yes_to_everything(data: Path, tmp_path: Path) -> None:
    pope, _ = scored(data, "pope", tmp_path, lambda words: "Yes.")
    assert total(pope, "accuracy") == (3, 6) and total(pope, "yes") == (6, 6)
    assert total(pope, "precision") == (3, 6) and total(pope, "recall") == (3, 3)
    counted, out_of = total(pope, "f1")
    assert counted / out_of == pytest.approx(2 * 0.5 * 1 / 1.5)
    mme, asked = scored(data, "mme", tmp_path, lambda words: "yes")
    assert len(asked) == 6
    assert total(mme, "existence") == (1, 2) and total(mme, "existence+") == (0, 1)


def test_what_cannot_be_asked_is_wrong_and_the_rest_keeps_its_place(data: Path, tmp_path: Path) -> None:
    sets = shutil.copytree(data, tmp_path / "sets")
    path = sets / "MME_Benchmark_release_version" / "posters" / "questions_answers_YN" / "tt01.txt"
    path.write_text("Will it break?\tYes\nIs it?\tNo\n")
    outcome, _ = scored(sets, "mme", tmp_path, lambda words: "yes" if "dog" in words else "no")
    assert outcome.errors == ["can't be asked"]
    assert total(outcome, "posters") == (0, 2)
    assert total(outcome, "existence+") == total(outcome, "code_reasoning+") == (1, 1)


def test_a_killed_run_goes_on_after_its_last_answer(data: Path, tmp_path: Path) -> None:
    whole, asked = scored(data, "pope", tmp_path / "whole", lambda words: "Yes.")
    left = 3

    def until_killed(words: str) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return "Yes."

    with pytest.raises(KeyboardInterrupt):
        scored(data, "pope", tmp_path / "killed", until_killed)
    resumed, rest = scored(data, "pope", tmp_path / "killed", lambda words: "Yes.")
    assert resumed == whole and len(asked) == 6 and len(rest) == 3


@pytest.mark.usefixtures("home", "in_tmp_path")
def test_a_missing_picture_costs_its_own_case(data: Path, scorers: list[str], tmp_path: Path) -> None:
    sets = shutil.copytree(data / "coco", tmp_path / "sets" / "coco").parent
    (sets / "coco" / "val2014" / f"COCO_val2014_{2:012d}.jpg").unlink()
    evaluate(tasks=["coco-image"], data=sets, scorer=scorers)
    row = rows()["coco-image", "picture"]
    assert row["failed"] == dict.fromkeys((REAL, REBUILT, ANSWERS), 1)
    assert row["columns"][REAL]["value"] == pytest.approx(2 / 3)


def test_seeds_of_the_world_are_further_cases() -> None:
    def outcome(*values: float) -> Outcome:
        scores: list[Scores] = [{"m": (value, 1.0)} for value in values]
        return Outcome(scores=scores, errors=[], answers=[])

    public = BENCHMARKS["gqa"]
    runs = [{"gqa": {REBUILT: outcome(1, 0)}}, {"gqa": {REBUILT: outcome(0, 0)}}]
    assert pool([public], runs)["gqa"][REBUILT].scores == [{"m": (0.5, 1)}, {"m": (0, 1)}]
    world: Any = SimpleNamespace(name="gqa", is_public=False)
    assert len(pool([world], runs)["gqa"][REBUILT].scores) == 4
