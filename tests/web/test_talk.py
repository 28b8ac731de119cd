"""A visitor's conversation without a browser: answers, undo, stop, archive, several at a time."""

import dataclasses
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures_web import drawing

from anygpt import AnyGPT, engine
from anygpt.boxes import find_boxes
from anygpt.candidates import candidate_seed
from anygpt.conversation import load_conversation
from anygpt.errors import AnyGPTError
from anygpt.media import load_audio, load_image
from anygpt.prompts.segments import Media
from anygpt.serving.media import MediaLimits, MediaReader
from anygpt.web.batch import SharedBatch, Stopped
from anygpt.web.examples import CHAT, SINGLE, usable
from anygpt.web.talk import Exchange, Question, Talk


@pytest.fixture(scope="module")
def batch(web_model: AnyGPT) -> Iterator[SharedBatch]:
    with drawing(web_model) as running:
        yield running


NewTalk = Callable[..., Talk]


@pytest.fixture
def new_talk(web_model: AnyGPT, batch: SharedBatch, tmp_path: Path) -> Iterator[NewTalk]:
    talks: list[Talk] = []

    def new(*, is_chat: bool = True) -> Talk:
        reader = MediaReader(web_model, MediaLimits())
        talks.append(Talk(web_model, batch, reader, is_chat=is_chat, folder=tmp_path / f"talk{len(talks)}"))
        return talks[-1]

    yield new
    for talk in talks:
        talk.close()
    deadline = time.monotonic() + 30
    while batch.unfinished:
        assert time.monotonic() < deadline, "an answer kept its place"
        time.sleep(0.02)


def ask(talk: Talk, text: str = "", **question: object) -> Exchange:
    """The complete exchange."""
    for _ in talk.ask(Question(text=text, **question)):  # type: ignore[arg-type]
        pass
    return talk.exchanges[-1]


def files(exchange: Exchange) -> list[tuple[str, Path]]:
    return [(part.modality, part.path) for part in exchange.parts if part.path is not None]


def text(exchange: Exchange) -> str:
    return "".join(part.text for part in exchange.parts if part.kind == "text")


def test_answers_have_what_was_asked_for(new_talk: NewTalk, picture: Path, sound: Path) -> None:
    talk = new_talk()
    assert text(ask(talk, "a red apple", answer="text"))
    ((name, path),) = files(ask(talk, "what is it?", answer="image", files=[("image", picture)]))
    assert name == "image" and load_image(path).size == (32, 32)
    ((name, path),) = files(ask(talk, answer="speech", files=[("speech", sound)], voice=sound))
    assert name == "speech" and load_audio(path).duration_s > 0.1
    assert [exchange.status for exchange in talk.exchanges] == [""] * 3


def test_an_answer_comes_in_parts(new_talk: NewTalk) -> None:
    talk = new_talk()
    texts, states = [], []
    for exchange in talk.ask(Question(text="a red apple", answer="music", seed=3)):
        texts.append(text(exchange))
        states.append(exchange.status)
    assert texts == sorted(texts, key=len) and states[0] == "…" and states[-1] == ""
    # How far it is when a state is read depends on how busy the machine is.
    assert any(state.startswith("music: ") for state in states)


def test_seed_and_settings_decide_the_answer(new_talk: NewTalk, web_model: AnyGPT) -> None:
    hot = {name: dataclasses.replace(policy, temperature=2.0) for name, policy in web_model.chat_policies.items()}
    questions = [{"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "policies": hot}]
    codes = []
    for question in questions:
        (media,) = (ask(new_talk(), "a red apple", answer="image", **question).turns or ())[1].media
        codes.append(media.codes_KT.tolist())
    assert codes[0] == codes[1] and codes[2] != codes[0] and codes[3] != codes[0]


def test_what_cannot_be_answered_leaves_no_trace(new_talk: NewTalk, tmp_path: Path) -> None:
    talk = new_talk()
    ask(talk, "hello", answer="text")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing of the kind")
    for question in (Question(), Question(files=[("image", broken)]), Question(text="a b c " * 400)):
        with pytest.raises(AnyGPTError):
            list(talk.ask(question))
    assert [exchange.question.text for exchange in talk.exchanges] == ["hello"]
    assert ask(talk, "again", answer="text").turns is not None


def test_undo_and_clear(new_talk: NewTalk) -> None:
    talk, other = new_talk(), new_talk()
    first = ask(talk, "a red apple", answer="text", seed=5)
    ask(talk, "and now?", answer="image")
    undone = talk.undo()
    assert undone is not None and undone.text == "and now?"
    assert talk.exchanges == [first]
    assert talk.undo() is not None and talk.undo() is None
    ask(talk, "more", answer="image")
    talk.clear()
    assert talk.exchanges == [] and talk.archive() is None
    again = [ask(each, "a red apple", answer="text", seed=5).turns for each in (talk, other)]
    assert again == [first.turns, first.turns]


def test_stop_takes_the_question_back(new_talk: NewTalk, web_model: AnyGPT) -> None:
    talk = new_talk()
    long = dataclasses.replace(web_model.chat_policies["speech"], max_new_tokens=250, min_new_tokens=250)
    answer = talk.ask(Question(text="speak", answer="speech", policies={"speech": long}))
    while not next(answer).status.startswith("speech"):
        pass
    with pytest.raises(AnyGPTError, match="being made"):
        talk.undo()
    with pytest.raises(AnyGPTError, match="being made"):
        next(talk.ask(Question(text="more")))
    talk.stop()
    with pytest.raises(Stopped):
        list(answer)
    assert talk.exchanges == [] and not talk.is_answering
    left = talk.ask(Question(text="speak", answer="speech", policies={"speech": long}))
    next(left)
    next(left)
    left.close()  # as when the page is closed
    assert talk.exchanges == [] and not talk.is_answering
    assert ask(talk, "hello", answer="text").turns is not None


def test_an_answer_that_takes_too_long_fails(web_model: AnyGPT, tmp_path: Path) -> None:
    with drawing(web_model, timeout_s=0.01) as batch:
        talk = Talk(web_model, batch, MediaReader(web_model, MediaLimits()), is_chat=True, folder=tmp_path / "talk")
        long = dataclasses.replace(web_model.chat_policies["speech"], max_new_tokens=250, min_new_tokens=250)
        with pytest.raises(AnyGPTError, match=r"longer than 0.01 s"):
            ask(talk, "hello", answer="speech", policies={"speech": long})
        talk.close()


def test_several_visitors_at_a_time_get_what_they_get_alone(new_talk: NewTalk) -> None:
    alone = [ask(new_talk(), f"apple {number}", answer="image", seed=number).turns for number in range(3)]
    talks = [new_talk() for _ in range(3)]

    def work(number: int) -> None:
        ask(talks[number], f"apple {number}", answer="image", seed=number)

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    together = [talk.exchanges[0].turns for talk in talks]
    assert [_codes(turns) for turns in together] == [_codes(turns) for turns in alone]


def _codes(turns: object) -> list[object]:
    assert isinstance(turns, tuple)
    return [item.codes_KT.tolist() for turn in turns for item in turn.media]


def test_the_archive_is_a_conversation_that_loads(
    new_talk: NewTalk, web_model: AnyGPT, picture: Path, tmp_path: Path
) -> None:
    talk = new_talk()
    ask(talk, "what is it?", answer="image", files=[("image", picture)])
    ask(talk, "say so", answer="speech")
    path = talk.archive()
    assert path is not None and path.name == "anygpt-conversation.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    turns = load_conversation(tmp_path / "anygpt-conversation" / "conversation.json", web_model)
    kept = [turn for exchange in talk.exchanges for turn in exchange.turns or ()]
    assert [turn.text for turn in turns] == [turn.text for turn in kept]
    media = [item for turn in turns for item in turn.media]
    assert [item.modality for item in media] == ["image", "image", "speech"]
    assert all(item.path is not None and item.path.is_file() for item in media)
    talk.close()
    assert not path.exists()


@pytest.mark.parametrize("target", ["image", "speech", "music"])
def test_single_questions_in_text(new_talk: NewTalk, sound: Path, target: str) -> None:
    exchange = ask(new_talk(is_chat=False), "a red apple", answer=target, voice=sound)
    ((name, path),) = files(exchange)
    assert name == target and path.is_file() and exchange.turns is not None
    (answer,) = exchange.turns[1].segments
    assert isinstance(answer, Media) and answer.path == path


@pytest.mark.parametrize("source", ["image", "speech", "music"])
def test_single_questions_in_media(new_talk: NewTalk, picture: Path, sound: Path, source: str) -> None:
    path = picture if source == "image" else sound
    exchange = ask(new_talk(is_chat=False), files=[(source, path)], answer="text")
    assert text(exchange) and files(exchange) == []


def test_single_questions_have_candidates(
    new_talk: NewTalk, web_model: AnyGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "best_fit", lambda *_: 2)
    policy = web_model.policies["image"].override({"temperature": 1.5, "best_of": 3})
    exchange = ask(new_talk(is_chat=False), "a red apple", answer="image", seed=5, policies={"image": policy})
    assert exchange.turns is not None
    (shown,) = exchange.turns[1].media
    expected = web_model.run("text|image|a red apple", seed=candidate_seed(5, 2), temperature=1.5, best_of=1)
    assert expected.codes_KT is not None and shown.codes_KT.tolist() == expected.codes_KT.tolist()


def test_single_questions_that_are_none(new_talk: NewTalk, picture: Path) -> None:
    talk = new_talk(is_chat=False)
    mistakes = {
        "has to be text": Question(text="hello", answer="text"),
        "attach a file, or choose": Question(files=[("image", picture)], answer="music"),
        "or one file with a text": Question(files=[("image", picture)] * 2, answer="text"),
        "is empty": Question(answer="image"),
    }
    for message, question in mistakes.items():
        with pytest.raises(AnyGPTError, match=message):
            list(talk.ask(question))
    assert talk.exchanges == []


def test_examples_fit_the_model() -> None:
    assert usable(CHAT, {"image", "speech", "music"}) == list(CHAT)
    assert usable(SINGLE, {"image", "speech", "music"}) == list(SINGLE)
    assert {example.answer for example in usable(SINGLE, {"image"})} == {"image", "text"}


POINTING = {"max_new_tokens": 40, "do_sample": True, "temperature": 1.0}


def test_boxes_are_drawn_on_the_picture_that_was_asked_about(
    new_talk: NewTalk, web_model: AnyGPT, picture: Path
) -> None:
    size = load_image(picture).size
    for is_chat, own in ((True, web_model.chat_policies), (False, web_model.policies)):
        policies = {"text": own["text"].override(POINTING)}
        asked = {"files": [("image", picture)], "answer": "text", "policies": policies}
        talk = new_talk(is_chat=is_chat)
        exchange = ask(talk, "[refer] a red apple", **asked)
        ((name, path),) = files(exchange)
        assert name == "boxes" and find_boxes(text(exchange))
        drawn = load_image(path).size
        assert min(drawn) >= 384 and drawn[0] / size[0] == drawn[1] / size[1]
        assert exchange.turns is not None and exchange.turns[0].text == "[refer] a red apple"
        assert files(ask(talk, "[vqa] what is it?", **asked)) == []
        assert talk.archive() is not None
