"""`anygpt eval` from flags to report, with the tiny model and judges that know nothing."""

import json
import shutil
from pathlib import Path

import pytest
from fixtures_tiny import MODEL

from anygpt.cli.evaluate import evaluate, fingerprint
from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.evaluation.chat_tasks import CHAT_TASKS
from anygpt.evaluation.effect_judge import EffectJudge
from anygpt.evaluation.judges import ImageJudge, MusicJudge, VoiceJudge
from anygpt.evaluation.tasks import TASKS
from anygpt.world.emoji import glyph
from anygpt.world.music import MusicWorld
from anygpt.world.speech import SpeechWorld


@pytest.fixture(autouse=True)
def judges(home: Path, in_tmp_path: Path) -> None:
    for judge in (ImageJudge(), MusicJudge(), VoiceJudge(), EffectJudge()):
        judge.scores = {"all": 0.5}
        judge.save(Path("runs/judges"))


@pytest.fixture
def world() -> None:
    try:
        glyph("dog", 16)
        SpeechWorld("train")
        MusicWorld("train")
    except AnyGPTError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("world")
def test_all_tasks_end_in_a_report(caplog: pytest.LogCaptureFixture) -> None:
    """But those whose modality the model lacks."""
    with caplog.at_level("INFO"):
        evaluate(n=1, seed=5)
    lacking = {task.name: name for task in TASKS.values() for name in ("audio", "video") if name in task.modalities}
    assert set(lacking.values()) == {"audio", "video"}
    assert {f"{task}: left out, no {name} in {MODEL}" for task, name in lacking.items()} <= set(caplog.messages)
    summary = json.loads(Path("docs/quality.json").read_text())
    assert {(row["task"], row["measure"]) for row in summary["rows"]} == {
        (task.name, row.measure) for task in TASKS.values() for row in task.rows if task.name not in lacking
    }
    for row in summary["rows"]:
        assert set(row["columns"]) == set(TASKS[row["task"]].columns)
        assert all(found["cases"] == 1 for found in row["columns"].values())
    before = Path("docs/quality.md").read_text()
    scores = {path: path.read_text() for path in Path("runs/eval").glob("*.jsonl")}
    evaluate(n=1, seed=5)
    assert Path("docs/quality.md").read_text() == before
    assert {path: path.read_text() for path in Path("runs/eval").glob("*.jsonl")} == scores


@pytest.mark.usefixtures("world")
def test_tokenizers_alone(tiny_home: Path) -> None:
    folder = tiny_home / "tokenizers" / "seed-tiny"
    evaluate(n=2, tasks=["image-tokenizer,text-to-image"], tokenizer=[folder], tokenizers_only=True)
    summary = json.loads(Path("docs/quality.json").read_text())
    assert {row["task"] for row in summary["rows"]} == {"image-tokenizer", "text-to-image"}
    assert all(set(row["columns"]) == {"real", "reconstruction"} for row in summary["rows"])


@pytest.mark.usefixtures("world")
def test_a_chat_model_has_its_own_section(tiny_home: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_home / "models" / MODEL, tmp_path / "tiny-chat")
    base_tasks = ["image-to-text"]
    evaluate(n=1, tasks=base_tasks)
    main, scores = Path("docs/quality.md").read_text(), set(Path("runs/eval").glob("*.jsonl"))
    tasks = ["chat-modality,chat-picture-made", *base_tasks]
    evaluate(n=2, tasks=tasks, model_name_or_path=str(model))
    text = Path("docs/quality.md").read_text()
    assert text.startswith(main.rstrip()) and "<!-- anygpt eval tiny-chat: begin -->" in text
    summary = json.loads(Path("docs/quality-tiny-chat.json").read_text())
    assert [task for task in CHAT_TASKS if task in ",".join(tasks)] + base_tasks == list(
        dict.fromkeys(row["task"] for row in summary["rows"])
    )
    assert all(("base" in row) == (row["task"] in base_tasks) for row in summary["rows"])
    assert set(Path("runs/eval").glob("*.jsonl")) == scores
    kept = {path: path.read_text() for path in Path("runs/eval/tiny-chat").glob("*.jsonl")}
    assert {path.name for path in kept} >= {"chat-modality.model.jsonl", "image-to-text.model.jsonl"}
    page, gallery = tmp_path / "page", tmp_path / "gallery"
    evaluate(n=2, tasks=tasks, model_name_or_path=str(model), html=page)
    assert {path: path.read_text() for path in Path("runs/eval/tiny-chat").glob("*.jsonl")} == kept
    assert Path("docs/quality.md").read_text() == text
    assert (page / "index.html").read_text().count('class="case"') == 2 * len(",".join(tasks).split(","))
    evaluate(n=2, tasks=tasks, model_name_or_path=str(model), report=tmp_path / "unwritten.md", gallery=gallery)
    shown = (gallery / "index.md").read_text()
    assert "*user:*" in shown and "## Image to text" in shown and not (tmp_path / "unwritten.md").exists()


def test_mistakes_are_named() -> None:
    with pytest.raises(AnyGPTError, match="unknown task 'image-to-txt'.*did you mean 'image-to-text'"):
        evaluate(tasks=["image-to-txt"])
    with pytest.raises(AnyGPTError, match="^text-to-audio: left out, no audio in anygpt-mini-base$"):
        evaluate(tasks=["text-to-audio"])
    with pytest.raises(AnyGPTError, match="audio-to-text: left out, no audio in the tokenizers"):
        evaluate(tasks=["audio-to-text"], tokenizers_only=True)
    with pytest.raises(CheckpointError, match="no such model"):
        evaluate(model_name_or_path="missing/model", tasks=["image-to-text"])


def test_fingerprints_follow_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    before = fingerprint([one, two])
    assert fingerprint([two, one]) == before != fingerprint([one])
    one.write_text("3")
    assert fingerprint([one, two]) != before
