"""Conversations of the world: what they cover, what they hold out, and whether their checks are right."""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt.data.dialogue import Dialogue, MediaRef, Message, check_messages
from anygpt.errors import AnyGPTError
from anygpt.paths import resource
from anygpt.vocabulary import Vocabulary
from anygpt.world import images, music, speech
from anygpt.world.dialogues import SCENARIOS, DialogueWorld
from anygpt.world.dialogues.facts import BACKGROUND_MUSIC, COLOURS, KIND_OF, OBJECTS_OF
from anygpt.world.emoji import OBJECTS
from anygpt.world.sentences import is_held_out, normalise

SPLITS = ("train", "heldout")
MODALITIES = ("text", "image", "speech", "music")
indices = st.integers(0, 2**40)


@cache
def first(split: str, count: int = 700) -> tuple[Dialogue, ...]:
    world = DialogueWorld(split, seed=5)
    return tuple(world.dialogue(index) for index in range(count))


def media(dialogue: Dialogue) -> list[MediaRef]:
    return [ref for message in dialogue.messages for ref in message.media]


def held(message: Message) -> list[str]:
    return sorted({ref.modality for ref in message.media}) or ["text"]


def rounds(dialogue: Dialogue) -> Iterator[tuple[Message, Message]]:
    return zip(dialogue.messages[::2], dialogue.messages[1::2], strict=True)


def scene_of(ref: MediaRef) -> images.Scene:
    scene = images.parse_caption(ref.caption)
    assert scene is not None, ref
    return scene


def clip_of(ref: MediaRef) -> music.MusicAttributes:
    attributes = music.parse_caption(ref.caption)
    assert attributes is not None, ref
    return attributes


@given(index=indices, split=st.sampled_from(SPLITS), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_a_conversation_depends_on_split_seed_and_index_alone(index: int, split: str, seed: int) -> None:
    world = DialogueWorld(split, seed)
    dialogue = world.dialogue(index)
    world.dialogue(index + 1)
    assert world.dialogue(index) == DialogueWorld(split, seed).dialogue(index) == dialogue
    assert DialogueWorld(split, seed + 1).dialogue(index) != dialogue
    check_messages(dialogue)


@given(index=indices)
@settings(max_examples=150)
def test_training_has_nothing_that_is_held_out(index: int) -> None:
    dialogue = DialogueWorld("train").dialogue(index)
    for ref in media(dialogue):
        if ref.modality == "speech":
            assert not is_held_out(ref.caption), ref
        else:
            assert not (scene_of if ref.modality == "image" else clip_of)(ref).is_held_out, ref


@given(index=indices)
@settings(max_examples=80)
def test_every_held_out_conversation_has_something_that_training_never_has(index: int) -> None:
    dialogue = DialogueWorld("heldout").dialogue(index)
    pictures = [scene_of(ref).is_held_out for ref in media(dialogue) if ref.modality == "image"]
    clips = [clip_of(ref).is_held_out for ref in media(dialogue) if ref.modality == "music"]
    words = [message.text for message in dialogue.messages if message.role == "user"]
    words += [ref.caption for ref in media(dialogue) if ref.modality == "speech"]
    words += [message.check.expected.get("answer", "") for message in dialogue.messages if message.check is not None]
    assert all(pictures)
    assert any([*pictures, *clips, *map(is_held_out, words)])
    for message in dialogue.messages:
        if message.check is not None and message.check.kind == "music" and "music" in dialogue.scenario:
            assert all(clip_of(ref).is_held_out for ref in message.media if ref.modality == "music")


def test_the_splits_share_no_picture_and_no_made_clip() -> None:
    shown = {
        split: {ref.caption for d in first(split) for ref in media(d) if ref.modality == "image"} for split in SPLITS
    }
    assert min(map(len, shown.values())) > 100
    assert not shown["train"] & shown["heldout"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_modality_is_answered_with_every_modality(split: str) -> None:
    found = Counter(
        pair
        for dialogue in first(split)
        for question, answer in rounds(dialogue)
        for pair in product(held(question), held(answer))
    )
    assert set(found) == set(product(MODALITIES, MODALITIES))
    mixed = {tuple(held(answer)) for dialogue in first(split) for _, answer in rounds(dialogue)}
    assert {("image", "speech"), ("image", "music")} <= mixed
    assert any(
        len([ref for ref in q.media if ref.modality == "image"]) == 2 for d in first(split) for q, _ in rounds(d)
    )


def test_all_scenarios_occur_and_can_be_chosen() -> None:
    wanted = {name for name, scenario in SCENARIOS.items() if not scenario.on_request}
    assert {dialogue.scenario for dialogue in first("train")} == wanted
    only = DialogueWorld("heldout", scenarios=("say", "play-and-change", "small-talk"))
    assert {only.dialogue(index).scenario for index in range(20)} == {"say", "play-and-change"}
    with pytest.raises(AnyGPTError, match="did you mean.*'draw'"):
        DialogueWorld(scenarios=("drow",))
    with pytest.raises(AnyGPTError, match="hold nothing out"):
        DialogueWorld("heldout", scenarios=("small-talk",))
    with pytest.raises(AnyGPTError, match="unknown split 'test'"):
        DialogueWorld("test")


def test_rearranging_tells_two_things_apart() -> None:
    """On request alone: what stays is both things, or both sizes, or where they are."""
    world = DialogueWorld("train", scenarios=("rearrange-a-picture",))
    kinds = Counter[str]()
    for dialogue in map(world.dialogue, range(60)):
        (question, answer) = list(rounds(dialogue))[-1]
        before = scene_of((media(dialogue) if question.media else dialogue.messages[1].media)[0])
        after = scene_of(answer.media[0])
        assert before.relation == after.relation is not None and before.background == after.background
        if after.objects == before.objects[::-1]:
            assert after.sizes == before.sizes[::-1]
            kinds["swap"] += 1
        else:
            pairs = zip([*before.objects, *before.sizes], [*after.objects, *after.sizes], strict=True)
            changed = [a != b for a, b in pairs]
            assert sum(changed) == 1
            kinds["replace" if any(changed[:2]) else "size"] += 1
    assert min(kinds[kind] for kind in ("swap", "replace", "size")) > 5


@pytest.mark.parametrize("split", SPLITS)
def test_facts_are_those_of_the_captions_and_checks_those_of_the_answers(split: str) -> None:
    for dialogue in first(split):
        for ref in media(dialogue):
            if ref.modality == "image":
                assert ref.facts == images.attributes(scene_of(ref))
            elif ref.modality == "music":
                assert ref.facts == music.facts(clip_of(ref))
            else:
                assert ref.facts == {"text": normalise(ref.caption)}
                assert ref.voice in {voice.name for voice in speech.TRAIN_VOICES}
        for _, answer in rounds(dialogue):
            check = answer.check
            assert check is not None, dialogue
            if check.kind == "text":
                assert f" {normalise(check.expected['answer'])} " in f" {normalise(answer.text)} "
                continue
            (ref,) = [ref for ref in answer.media if ref.modality == check.kind]
            assert check.expected.items() <= ref.facts.items()
            assert ref.caption in answer.text.lower()


@pytest.mark.parametrize(("scenarios", "kind"), [(("change-a-picture", "draw-and-change"), "image"),
                                                 (("change-a-clip", "play-and-change"), "music")])  # fmt: skip
def test_a_change_keeps_and_changes_what_its_check_says(scenarios: tuple[str, ...], kind: str) -> None:
    changed: Counter[str] = Counter()
    world = DialogueWorld("train", scenarios=scenarios)
    for dialogue in map(world.dialogue, range(150)):
        before: MediaRef | None = None
        for message in dialogue.messages:
            check = message.check
            if check is not None and check.changed:
                assert before is not None
                after = message.media[0]
                names = {*check.kept, *check.changed}
                assert names <= set(after.facts) and not set(check.kept) & set(check.changed)
                assert all(before.facts[name] == after.facts[name] for name in check.kept)
                assert all(before.facts[name] != after.facts[name] for name in check.changed)
                assert kind == "image" or before.key == after.key
                changed.update(check.changed)
            before = next((ref for ref in message.media if ref.modality == kind), before)
    assert set(changed) == set(images.ATTRIBUTES if kind == "image" else ("instrument", "tempo", "mode", "drums"))


def test_texts_fit_the_small_model_and_its_pieces() -> None:
    vocab = Vocabulary.from_pretrained(resource("models", "anygpt-mini-base"))
    unknown = next(index for index in range(10) if vocab.text.piece(index) == "<unk>")
    for dialogue in first("train"):
        count = 0
        for message in dialogue.messages:
            ids = vocab.encode_text(message.text)
            assert unknown not in ids, message.text
            count += len(ids) + len(message.heard or "") // 2 + 6
            count += sum({"image": 34, "music": 602, "speech": 210}[ref.modality] for ref in message.media)
        assert count < 2300, dialogue  # speech counted at its longest


def test_what_is_said_again_has_the_same_codes() -> None:
    world = DialogueWorld("train", scenarios=("say",))
    repeated = [d for d in map(world.dialogue, range(40)) if len(d.messages) > 2]
    assert repeated and all(d.messages[1].parts == d.messages[3].parts for d in repeated)


def test_every_object_has_its_kind_and_every_background_its_music() -> None:
    names = [name for objects in OBJECTS_OF.values() for name in objects]
    assert sorted(names) == sorted(OBJECTS) and set(KIND_OF) == set(OBJECTS)
    coloured = [name for objects in COLOURS.values() for name in objects]
    assert len(coloured) == len(set(coloured)) and set(coloured) <= set(OBJECTS)
    assert set(BACKGROUND_MUSIC) == set(images.BACKGROUNDS)
    assert {tempo for tempo, _ in BACKGROUND_MUSIC.values()} == set(music.BEAT_FRAMES)
