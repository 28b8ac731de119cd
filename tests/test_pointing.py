"""Boxes asked for with tags, from the model's API and its commands: in base prompts and in conversations."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_cli import Ran
from fixtures_media import picture_bytes
from fixtures_tiny import MODEL, link_home
from PIL import Image

from anygpt import AnyGPT
from anygpt.boxes import Box, find_boxes, format_boxes
from anygpt.cli.chat import DEFAULT_MODEL
from anygpt.errors import AnyGPTError
from anygpt.media import load_image
from anygpt.prompts.render import render_base
from anygpt.prompts.segments import Media
from anygpt.session import Done, Session

LONG = {"max_new_tokens": 60, "do_sample": True, "temperature": 1.0}


@pytest.fixture(scope="module")
def pointing_home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose texts are long enough for boxes, with a base and a chat model."""
    home = link_home(tiny_home, tmp_path_factory.mktemp("pointing"), **LONG)
    (home / "models").unlink()
    (home / "models").mkdir()
    for name in (MODEL, DEFAULT_MODEL):
        (home / "models" / name).symlink_to(tiny_home / "models" / MODEL)
    return home


@pytest.fixture(autouse=True)
def work(pointing_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home, and a working folder with a picture."""
    monkeypatch.setenv("ANYGPT_HOME", str(pointing_home))
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("photo.png")
    return tmp_path


@pytest.fixture(scope="module")
def model(pointing_home: Path) -> Iterator[AnyGPT]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYGPT_HOME", str(pointing_home))
        yield AnyGPT.from_pretrained(seed=7)


def last_answer(session: Session, text: str, **given: object) -> str:
    *_, done = session.send(text, **given)  # type: ignore[arg-type]
    assert isinstance(done, Done)
    return done.turn.text


def test_a_base_prompt_with_a_tag(model: AnyGPT) -> None:
    result = model.run("image|text|photo.png|[refer] the red apple", seed=1)
    assert result.boxes and result.text == format_boxes(result.boxes) and result.has_file
    drawn = result.draw()
    assert drawn.size == (512, 512) and drawn.tobytes() != load_image("photo.png").resize((512, 512)).tobytes()
    assert model.ask("image", "text", Path("photo.png"), seed=1, instruction="[refer] the red apple") is not None
    (batched,) = model.run_batch([("image|text|photo.png|[refer] the red apple", 1)])
    assert batched.boxes == result.boxes


def test_the_instruction_takes_the_place_of_the_form_s(model: AnyGPT) -> None:
    task = model.task("image|text|photo.png|what is it?")
    media = Media("image", model.encode("image", "photo.png"))
    assert task.ids == render_base("x2text", "what is it?", [media], model.vocabulary)
    pointing = model.task("image|text|photo.png|[grounding]")
    assert pointing.policies["text"].max_new_tokens > task.policies["text"].max_new_tokens == LONG["max_new_tokens"]
    assert task.boxes is None and model.task("image|text|photo.png").ids != task.ids
    plain = model.run("image|text|photo.png|what is it?", seed=1)
    assert plain.boxes == () and not plain.has_file
    assert model.task("image|text|photo.png|[caption] go on").boxes is None
    scored = model.score("image|text|photo.png|what is it?", ["a dog"])
    assert scored[0].log_likelihood != model.score("image|text|photo.png", ["a dog"])[0].log_likelihood


def test_answers_without_a_tag_are_what_they_were(model: AnyGPT) -> None:
    """Text that looks like a box stays text, and the grammar of other answers is the plain one."""
    assert model.rules(model.task("image|text|photo.png"))["request"].boxes is None
    assert model.rules(model.task("text|image|[refer] a dog"))["request"].boxes is None


def test_what_cannot_be_drawn(model: AnyGPT) -> None:
    codes = model.encode("image", "photo.png")
    result = model.ask("image", "text", codes, seed=1, instruction="[refer] a dog")
    assert result.boxes and not result.has_file
    with pytest.raises(AnyGPTError, match="nothing to draw: no picture"):
        result.draw()
    with pytest.raises(AnyGPTError, match="nothing to draw: no boxes"):
        model.run("image|text|photo.png").draw()
    for wrong in ("", " ", 3):
        with pytest.raises(AnyGPTError, match="'instruction' is"):
            model.ask("image", "text", Path("photo.png"), instruction=wrong)
    with pytest.raises(AnyGPTError, match="unknown setting 'instruction'"):
        model.ask("text", "image", "a dog", instruction="x")
    with pytest.raises(AnyGPTError, match="'max_new_tokens' of text is 5, expected at least 14"):
        model.run("image|text|photo.png|[refer] a dog", max_new_tokens=5)


def test_answers_of_conversations(model: AnyGPT, tmp_path: Path) -> None:
    result = model.answer("photo.png", "[refer] the dog", seed=3)
    assert result.boxes and result.text == format_boxes(result.boxes)
    assert result.draw().width == 512 and result.save(tmp_path).name.startswith("refer-the-dog-")
    session = model.session(seed=3)
    text = last_answer(session, "[refer] the dog", media=[("image", "photo.png")])
    assert session.boxes == find_boxes(text) != () and session.turns[-1].media == []
    drawn = session.draw()
    assert drawn is not None and drawn.size == (512, 512)
    text = last_answer(session, "[detection] dog")
    assert text and session.boxes == find_boxes(text)
    last_answer(session, "and now?", answer="text")
    assert session.boxes == () and session.draw() is None


def test_a_picture_that_the_model_made(model: AnyGPT) -> None:
    session = model.session(seed=3)
    last_answer(session, "draw a dog", answer="image")
    last_answer(session, "[refer] the dog")
    drawn = session.draw()
    assert session.boxes and drawn is not None and drawn.size == (384, 384)


def test_a_conversation_without_a_picture_and_another_answer_asked_for(model: AnyGPT) -> None:
    session = model.session(seed=3)
    last_answer(session, "[refer] the dog")
    assert session.boxes and session.draw() is None
    *_, done = session.send("[refer] the dog", answer="image")
    assert isinstance(done, Done) and [item.modality for item in done.turn.media][:1] == ["image"]


def test_the_base_command() -> None:
    prompt = "image|text|photo.png|[refer] the red apple"
    ran = Ran("base", "--seed", "1", "--prompt", prompt)
    assert ran.code == 0 and ran.err == []
    boxes, path = ran.out
    assert find_boxes(boxes) and path.startswith("infer_output/base/refer-the-red-apple-") and path.endswith(".jpg")
    assert load_image(path).size == (512, 512)
    ran = Ran("base", "--json", "--seed", "1", "--prompt", prompt, "--prompt", "image|text|photo.png|[vqa] what?")
    row, plain = map(json.loads, ran.out)
    assert [Box(*each["box"]) for each in row["boxes"]] == list(find_boxes(row["text"])) != []
    assert Path(row["path"]).is_file() and "boxes" not in plain and "path" not in plain
    ran = Ran("base", "--prompt", "image|text|photo.png|", "--prompt", "image|text|photo.png|a|b")
    assert ran.code == 2 and "image|text: the instruction is empty" in ran.err[0]


def test_a_file_of_prompts() -> None:
    Path("in.jsonl").write_text('{"prompt": "image|text|photo.png|[refer] a dog", "id": "dog"}\n')
    ran = Ran("base", "--seed", "1", "--input", "in.jsonl", "--output-dir", "out")
    assert ran.code == 0
    row = json.loads(Path(ran.out[-1]).read_text())
    assert row["boxes"] and Path(row["path"]).name == "dog.jpg" and load_image(row["path"]).width == 512


def test_the_chat_command() -> None:
    Path("photo.jpg").write_bytes(picture_bytes(1))
    flags = ["chat", "--seed", "1", "--prompt", "interleaved|[refer] the dog|text|photo.jpg"]
    ran = Ran(*flags)
    assert ran.code == 0 and ran.err == []
    assert find_boxes(ran.out[0]) and ran.out[1].startswith("infer_output/chat/refer-the-dog-")
    assert min(load_image(ran.out[1]).size) >= 384
    ran = Ran(*flags, "--prompt", "what else?", "--json")
    row, other = map(json.loads, ran.out)
    assert row["answer"][-1]["boxes"] and Path(row["answer"][-1]["path"]).is_file()
    assert not any("boxes" in part for part in other["answer"])
