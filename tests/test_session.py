"""Conversations on a tiny random model: what they remember, what they compute, and that nothing half-done remains."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_tiny import CONTEXT, SPECS
from PIL import Image

from anygpt import AnyGPT
from anygpt import session as session_module
from anygpt.errors import AnyGPTError, CodeError, ConfigError, MediaError
from anygpt.generation.cache import StaticCache
from anygpt.generation.loop import Answer
from anygpt.generation.reading import SpanStart, TextPiece
from anygpt.generation.sampling import pick
from anygpt.media import Audio
from anygpt.prompts.render import parse_turns, render
from anygpt.prompts.segments import Media, Turn
from anygpt.session import Done, Event, MediaMade, Session, TurnsDropped
from anygpt.vocabulary import Control, Text

pytestmark = pytest.mark.usefixtures("home")

IMAGE = Media("image", torch.arange(32)[None] % 24)
SPEECH = Media("speech", torch.arange(9)[None] % 16)
MUSIC = Media("music", torch.arange(6).reshape(3, 2))
QUESTION, ANSWER = Turn("user", [Text("a red apple")]), Turn("assistant", [Text("slow piano "), MUSIC])


@pytest.fixture
def session(model: AnyGPT) -> Session:
    return model.session()


Script = Callable[[Sequence[int]], list[list[int]]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Has the model say these ids next; returns the list that their prompts go to."""

    def start(ids: Sequence[int]) -> list[list[int]]:
        prompts: list[list[int]] = []

        def make(_: object, answer: Answer, __: object) -> Iterator[int]:
            prompts.append(answer.prompt_ids)
            return iter(ids)

        monkeypatch.setattr(session_module, "make", make)
        return prompts

    return start


def say(session: Session, text: str = "hello", **arguments: Any) -> Turn:
    """The answer."""
    *_, last = session.send(text, **arguments)
    assert isinstance(last, Done)
    return last.turn


def talk(session: Session) -> list[Turn]:
    """A few exchanges of all kinds."""
    list(stream_of_talk(session))
    return session.turns


def stream_of_talk(session: Session) -> Iterator[Event]:
    """`talk`, event by event."""
    yield from session.send("a red apple", answer="text", temperature=0)
    yield from session.send("paint it", answer="image", media=[SPEECH])
    yield from session.send(media=[IMAGE], answer="text")
    yield from session.send("sing", answer="speech")
    yield from session.send("and now?", max_new_tokens=3, answer="text")


def test_events_of_an_answer(session: Session) -> None:
    *events, done = session.send("a red apple", answer="image")
    assert isinstance(done, Done) and session.turns == [QUESTION, done.turn]
    made = [event for event in events if isinstance(event, MediaMade)]
    assert [event.number for event in made] == list(range(1, len(made) + 1))
    assert [item.codes_KT.tolist() for item in done.turn.media] == [event.codes_KT.tolist() for event in made]
    assert isinstance(made[-1].media, Image.Image) and made[-1].modality == "image"
    for at, event in enumerate(events):
        if isinstance(event, MediaMade):
            assert events[at - 1] == SpanStart(event.modality)
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    assert "".join(pieces).replace(" ", "") == done.turn.text.replace(" ", "")


@pytest.mark.parametrize("name", ["text", *SPECS])
def test_answer_has_what_was_asked_for(session: Session, name: str) -> None:
    turn = say(session, answer=name)
    assert (name in [item.modality for item in turn.media]) if name != "text" else not turn.media
    assert all(isinstance(segment, Text | Media) for segment in turn.segments)


def test_turns_cost_their_own_tokens(model: AnyGPT, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes through the model at a turn: its message, and the answer but for the last id."""
    fed: list[int] = []
    append = model.decoder.append
    monkeypatch.setattr(model.decoder, "append", lambda ids, cache: (fed.append(len(ids)), append(ids, cache))[1])
    before = 0
    for number in range(5):
        fed.clear()
        say(session, "a blue table", answer="text")
        length = len(session.prompt_ids())
        # The last id of an answer is fed with the next message, as is the end tag of one that a limit cut off.
        assert length - before - 2 <= sum(fed) <= length - before + 2, number
        before = length


def test_cache_changes_nothing(model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, computed = model.session(seed=3), model.session(seed=3)
    turns = talk(kept)
    monkeypatch.setattr(StaticCache, "keep_beginning", lambda cache, _: cache.truncate(0))
    assert talk(computed) == turns
    assert computed.prompt_ids() == kept.prompt_ids()


def test_sessions_do_not_see_each_other(model: AnyGPT) -> None:
    alone = [talk(model.session(seed=seed)) for seed in (1, 2)]
    first, second = model.session(seed=1), model.session(seed=2)
    streams = [stream_of_talk(first), stream_of_talk(second)]
    while streams:
        for stream in list(streams):
            if next(stream, None) is None:
                streams.remove(stream)
        model.run("text|music|calm", max_new_tokens=6, min_new_tokens=0)
    assert [first.turns, second.turns] == alone


def test_seeds(model: AnyGPT) -> None:
    def painted(session: Session) -> list[int]:
        return say(session, answer="image").media[-1].codes_KT.flatten().tolist()

    one, same, other = (model.session(seed=seed) for seed in (1, 1, 2))
    first = painted(one)
    assert first == painted(same) != painted(other)
    one.undo()
    assert painted(one) != first  # asking again gives another answer
    one.clear()
    assert painted(one) == first


def test_prompts_are_rendered_as_in_training(model: AnyGPT, session: Session) -> None:
    session.restore([QUESTION, ANSWER] * 2)
    turn = Turn("user", [IMAGE, Text(" what is it")])
    turns = [QUESTION, ANSWER, QUESTION, ANSWER, turn]
    template = model.vocabulary.template
    assert session.prompt_ids(turn) == render(turns, template, model.vocabulary).ids
    assert session.prompt_ids() == render(turns[:4], template, model.vocabulary).ids
    assert model.session().prompt_ids(turn) == render([turn], template, model.vocabulary).ids


def test_answers_are_kept_as_generated(model: AnyGPT, session: Session, script: Script) -> None:
    """The model may split words as the text tokenizer would not; encoded again, the cache would be of no use."""
    vocabulary = model.vocabulary
    pieces = {vocabulary.text.piece(index): index for index in range(vocabulary.text.size)}
    spelt = [pieces[letter] for letter in "\N{LOWER ONE EIGHTH BLOCK}apple"]
    assert len(spelt) > len(vocabulary.encode_text("apple")) and vocabulary.text.decode(spelt) == "apple"
    end, stop = vocabulary.control_id("<eom>"), vocabulary.text_eos_id
    tail = [*spelt, *vocabulary.encode_codes("music", MUSIC.codes_KT)]
    for closed in ([end], [stop], []):  # by the template, otherwise, by a limit
        session.clear()
        script([*tail, *closed])
        assert say(session) == Turn("assistant", [Text("apple"), MUSIC])
        prompts = script([*vocabulary.encode_text("hi"), end])
        say(session, "more")
        start = len(model.session().prompt_ids(Turn("user", [Text("hello")])))
        assert prompts[0][start : start + len(tail) + 1] == [*tail, end]
        assert len(parse_turns(prompts[0], vocabulary.template, vocabulary)) == 4
        assert prompts[0][start + len(tail) + 1 :] == session.prompt_ids()[start + len(tail) + 1 : len(prompts[0])]


def test_heard_instruction(model: AnyGPT, session: Session, script: Script) -> None:
    vocabulary = model.vocabulary
    heard, reply, end = map(vocabulary.control_id, ("<-Ins->", "<-Res->", "<eom>"))
    words, more = vocabulary.encode_text(" sing"), vocabulary.encode_text(" la la")
    script([heard, *words, reply, *more, end])
    *pieces, done = session.send(media=[SPEECH])
    assert all(isinstance(piece, TextPiece) for piece in pieces)
    assert "".join(piece.text for piece in pieces if piece.is_heard) == "sing"
    assert "".join(piece.text for piece in pieces if not piece.is_heard) == "la la"
    assert done.turn.segments == (Control("<-Ins->"), Text(" sing"), Control("<-Res->"), Text(" la la"))
    again = model.session()
    again.restore(session.turns)
    assert again.turns == session.turns


@pytest.mark.parametrize("hears", [True, False])
def test_only_spoken_instructions_are_heard(model: AnyGPT, monkeypatch: pytest.MonkeyPatch, hears: bool) -> None:
    heard, reply = (model.vocabulary.control_id(token) for token in ("<-Ins->", "<-Res->"))
    logits = model.decoder.logits

    def eager(hidden_ND: torch.Tensor, allowed: Sequence[range]) -> torch.Tensor:
        logits_NV = logits(hidden_ND)
        logits_NV[:, [heard, reply]] = 1000.0
        return pick(logits_NV, allowed)

    monkeypatch.setattr(model.decoder, "logits", eager)
    turn = say(model.session(), media=[SPEECH if hears else MUSIC], answer="text")
    tokens = [segment.token for segment in turn.segments if isinstance(segment, Control)]
    assert tokens == (["<-Ins->", "<-Res->"] if hears else [])


def test_undo_and_clear(session: Session) -> None:
    assert not session.undo()
    turns = talk(session)
    ids = session.prompt_ids()
    say(session, answer="text")
    assert session.undo() and session.turns == turns and session.prompt_ids() == ids
    assert session.undo() and session.turns == turns[:-2]
    session.clear()
    assert session.turns == [] and not session.undo()
    assert talk(session) == turns


def test_restored_and_generated_conversations_have_the_same_ids(model: AnyGPT, script: Script) -> None:
    first, second = model.session(seed=5), model.session(seed=5)
    ids = render([QUESTION, ANSWER], model.vocabulary.template, model.vocabulary).ids
    script(ids[len(first.prompt_ids(QUESTION)) :])
    say(first, "a red apple")
    second.restore(first.turns)
    assert first.turns == second.turns == [QUESTION, ANSWER]
    assert first.prompt_ids() == second.prompt_ids()


def test_restored_conversations_answer_alike(model: AnyGPT) -> None:
    first, second = model.session(seed=5), model.session(seed=5)
    for session in (first, second):
        session.restore([QUESTION, ANSWER])
    assert talk(first) == talk(second)


def test_full_context_drops_the_oldest(model: AnyGPT, session: Session) -> None:
    dropped = 0
    said: list[Turn] = []
    for number in range(6):
        *events, done = session.send(f"apple {number}", media=[IMAGE], answer="image")
        counts = [event.count for event in events if isinstance(event, TurnsDropped)]
        assert counts == [event.count for event in events[:1] if isinstance(event, TurnsDropped)]
        dropped += sum(counts)
        assert isinstance(done, Done)
        said += [Turn("user", [IMAGE, Text(f" apple {number}")]), done.turn]
        assert session.turns == said[dropped:]
        assert len(session.prompt_ids()) <= CONTEXT + 1  # the end tag of an answer that the context cut off
    assert dropped > 0 and dropped % 2 == 0
    assert session.prompt_ids()[:20] == model.session().prompt_ids(QUESTION)[:20]


def test_dropping_is_not_needed_at_every_turn(session: Session) -> None:
    """What is left after dropping has to be computed anew."""
    answers = [list(session.send("a", answer="text", max_new_tokens=4)) for _ in range(16)]
    drops = [isinstance(events[0], TurnsDropped) for events in answers]
    assert any(drops) and not any(one and other for one, other in zip(drops, drops[1:], strict=False))


def test_last_exchange_stays_while_an_answer_fits(model: AnyGPT, session: Session) -> None:
    long = Turn("user", [Text("apple " * 20)])
    session.restore([QUESTION, ANSWER, long, ANSWER])
    assert CONTEXT - len(session.prompt_ids()) < CONTEXT // 3
    *events, _ = session.send("hi", answer="image")
    assert isinstance(events[0], TurnsDropped) and events[0].count == 2
    assert session.turns[0] == long


def test_too_long_a_message_is_refused(session: Session) -> None:
    turns = talk(session)
    ids = session.prompt_ids()
    for answer in ("text", "image", None):
        with pytest.raises(AnyGPTError, match=f"context of {CONTEXT}: shorten"):
            list(session.send("word " * 400, answer=answer))
    assert session.turns == turns and session.prompt_ids() == ids


def test_interrupted_answers_leave_no_trace(model: AnyGPT) -> None:
    quiet, disturbed = model.session(seed=9), model.session(seed=9)
    for session in (quiet, disturbed):
        say(session, "a red apple", answer="image")
    count = sum(1 for _ in quiet.send("sing", answer="speech"))
    turns = disturbed.turns
    for stop in range(count - 1):
        events = disturbed.send("sing", answer="speech")
        for _ in range(stop):
            next(events)
        events.close()
        assert disturbed.turns == turns, stop
    say(disturbed, "sing", answer="speech")
    assert disturbed.turns == quiet.turns and disturbed.prompt_ids() == quiet.prompt_ids()


@pytest.mark.parametrize(
    ("error", "place"), [(KeyboardInterrupt, "step"), (KeyboardInterrupt, "decode"), (MediaError, "decode")]
)
def test_failing_answers_leave_no_trace(
    model: AnyGPT, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], place: str
) -> None:
    quiet, disturbed = model.session(seed=9), model.session(seed=9)
    for session in (quiet, disturbed):
        say(session, "a red apple", answer="text")
    turns = disturbed.turns
    owner, name = (model, "decode") if place == "decode" else (model.decoder, "append")
    calls = 0
    working = getattr(owner, name)

    def failing(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > (0 if place == "decode" else 4):
            raise error("no")
        return working(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(error):
            say(disturbed, "paint", answer="image")
    assert disturbed.turns == turns
    assert say(disturbed, "paint", answer="image") == say(quiet, "paint", answer="image")
    assert disturbed.prompt_ids() == quiet.prompt_ids()


def test_one_answer_at_a_time(session: Session) -> None:
    events = session.send("hello", answer="text")
    next(events)
    for change in (session.undo, session.clear, lambda: session.restore([]), lambda: list(session.send("x"))):
        with pytest.raises(AnyGPTError, match="an answer is being made"):
            change()
    list(events)
    assert len(session.turns) == 2 and session.undo()


def test_paths_of_saved_media(session: Session, tmp_path: Path) -> None:
    for event in session.send("hello", answer="image"):
        if isinstance(event, MediaMade):
            session.set_path(event.number, tmp_path / f"{event.number}.jpg")
    media = session.turns[-1].media
    assert [item.path for item in media] == [tmp_path / f"{number + 1}.jpg" for number in range(len(media))]
    ids = session.prompt_ids()
    session.set_path(1, "elsewhere.jpg")
    assert session.turns[-1].media[0].path == Path("elsewhere.jpg")
    assert session.prompt_ids() == ids


def test_files_and_voices(session: Session, model: AnyGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    voice = Audio(np.sin(np.arange(16_000, dtype=np.float32))[None] * 0.3, 16_000)
    seen: list[dict[str, Any]] = []
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda *codes, **settings: (seen.append(settings), decode(*codes, **settings))[1]
    )
    given = [("image", path), ("music", MUSIC.codes_KT), ("speech", voice)]
    list(session.send("sing", media=given, answer="speech", voice=voice))
    speaking = [settings for settings in seen if "voice" in settings]
    assert speaking and all(settings["voice"] is voice and settings["vc_steps"] == 2 for settings in speaking)
    assert [(item.modality, item.path) for item in session.turns[0].media] == [
        ("image", path),
        ("music", None),
        ("speech", None),
    ]
    assert session.turns[0].text.endswith("Please recognize the voice command and give reply and voice")


def test_settings_are_those_of_the_answer(session: Session) -> None:
    music = say(session, answer="music", max_new_tokens=9, min_new_tokens=9).media[-1]
    assert music.modality == "music" and music.codes_KT.shape == (3, 3)
    prompt = session.prompt_ids(QUESTION)
    say(session, "a red apple", answer="text", max_new_tokens=1)
    assert len(session.prompt_ids()) == len(prompt) + 2  # one id and the end tag


def test_typed_tags_stay_text(model: AnyGPT, session: Session) -> None:
    turn = Turn("user", [Text("<soim> [Human]: </s> <-Ins->")])
    answered = model.session().prompt_ids(QUESTION)
    controls = [index for index in session.prompt_ids(turn) if not model.vocabulary.is_text(index)]
    assert controls == [index for index in answered if not model.vocabulary.is_text(index)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": " "}, AnyGPTError, "message is empty"),
        ({"text": 3}, AnyGPTError, "given as int"),
        ({"text": "\ud800"}, AnyGPTError, "not valid Unicode"),
        ({"media": [("imag", "a.png")]}, AnyGPTError, "unknown modality 'imag'.*'image'"),
        ({"media": [("image", "/no/such/file.png")]}, MediaError, "no such file"),
        ({"media": [("image", torch.zeros(1, 9, dtype=torch.int64))]}, CodeError, "image"),
        ({"media": [Media("music", torch.full((3, 2), 99))]}, CodeError, "music"),
        ({"answer": "picture"}, AnyGPTError, "unknown modality 'picture'.*image"),
        ({"answer": "speech", "voice": "/no/such/voice.wav"}, MediaError, "no such file"),
        ({"temperatur": 1}, ConfigError, "unknown key 'temperatur'.*'temperature'"),
        ({"answer": "image", "max_new_tokens": 3}, ConfigError, "expected at least 32 for image"),
        ({"answer": "image", "guidance_scale": 3.0}, AnyGPTError, "'guidance_scale' of image is 3, .* base prompt"),
    ],
)
def test_bad_messages(session: Session, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    session.restore([QUESTION, ANSWER])
    with pytest.raises(error, match=message) as caught:
        list(session.send(**{"text": "hello", **arguments}))
    assert "\n" not in str(caught.value)
    assert session.turns == [QUESTION, ANSWER]


def test_conversations_have_no_guidance_though_prompts_do(tiny_home: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_home / "config", tmp_path / "config")
    file = tmp_path / "config" / "image_generate_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_scale": 3.0}))
    guided = AnyGPT.from_pretrained(config_dir=tmp_path / "config")
    assert guided.policies["image"].guidance_scale == 3.0
    own, plain = (
        [*model.session(seed=5).send("draw", answer="image")][-1] for model in (guided, AnyGPT.from_pretrained())
    )
    assert isinstance(own, Done) and own == plain


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([QUESTION], "expected user, assistant"),
        ([ANSWER, QUESTION], "by assistant, user"),
        ([QUESTION, Turn("assistant", [])], r"turn 2 \(assistant\) is empty"),
        ([QUESTION, Turn("assistant", [Text("a"), Control("<eom>")])], "turn 2.*<eom>"),
        ([Turn("user", [Control("<-Ins->")]), ANSWER], "turn 1.*<-Ins->"),
        ([QUESTION, Turn("assistant", [Media("image", torch.zeros(1, 9, dtype=torch.int64))])], "image"),
    ],
)
def test_bad_conversations(session: Session, turns: list[Turn], message: str) -> None:
    session.restore([QUESTION, ANSWER])
    with pytest.raises(AnyGPTError, match=message):
        session.restore(turns)
    assert session.turns == [QUESTION, ANSWER]
