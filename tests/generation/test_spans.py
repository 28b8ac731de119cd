"""Spans made of others: whatever is drawn is a well-formed video, and all of its forms say the same."""

import random

import pytest
import torch
from fixtures_tiny import SPECS_WITH_AUDIO, SPECS_WITH_VIDEO, build_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from anygpt.code_strings import codes_to_string, join_codes, sound_frames, split_codes, string_to_codes
from anygpt.errors import CheckpointError, CodeError
from anygpt.generation.grammar import Grammar, Request
from anygpt.generation.policies import Policy
from anygpt.generation.rules import base_grammar
from anygpt.modality import MODALITIES
from anygpt.vocabulary import Span, Text, Vocabulary

NAMES = sorted(SPECS_WITH_VIDEO)
VIDEO = SPECS_WITH_VIDEO["video"]
REQUESTS = st.sampled_from(
    [Request.only("video"), Request.chat(None, NAMES), Request.chat("video", NAMES), Request.chat("image", NAMES)]
)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return build_vocabulary(tmp_path_factory.mktemp("checkpoint"), SPECS_WITH_VIDEO)


@pytest.fixture(scope="module")
def rules(vocab: Vocabulary) -> Grammar:
    return base_grammar(vocab)


def a_video(frames: int, *, sound: bool = False, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.randint(24, (1, 32), generator=generator) for _ in range(frames)]
    wave = torch.randint(8, (2, sound_frames(VIDEO, frames)), generator=generator) if sound else None
    return join_codes(VIDEO, pictures, wave)


@given(
    request=REQUESTS,
    most=st.integers(1, 260),
    least=st.integers(0, 200),
    room=st.integers(0, 400),
    seed=st.integers(0, 2**32),
)
def test_every_video_is_well_formed(
    rules: Grammar, vocab: Vocabulary, request: Request, most: int, least: int, room: int, seed: int
) -> None:
    """From a context that just holds one frame to one with plenty, for any limits."""
    rng = random.Random(seed)
    policies = {name: Policy(max_new_tokens=most, min_new_tokens=min(least, most)) for name in ("text", *NAMES)}
    context = 1 + rules.shortest_answer(request) + room
    automaton = rules.start(request, policies, prompt_length=1, context=context)
    ids = list(automaton.forced_ids)
    while not automaton.is_done:
        ids.append(rng.choice(rng.choice(automaton.allowed())))
        automaton.push(ids[-1])
    longest = rules.longest_answer(request, policies)
    assert len(ids) <= min(context - 1, longest or context)
    videos = [span for span in vocab.decode_ids(ids) if isinstance(span, Span) and span.spec.name == "video"]
    assert videos or request.required != "video" and request.forced != "video"
    for span in videos:
        assert span.codes_KT.numel() <= max(most, 32)
        frames, sound = split_codes(VIDEO, span.codes_KT)
        assert sound is None or sound.shape == (2, sound_frames(VIDEO, len(frames)))


@given(frames=st.integers(1, 5), sound=st.booleans(), seed=st.integers(0, 999))
def test_codes_ids_and_strings_are_one(vocab: Vocabulary, frames: int, sound: bool, seed: int) -> None:
    codes = a_video(frames, sound=sound, seed=seed)
    ids, string = vocab.encode_codes("video", codes), codes_to_string(VIDEO, codes)
    assert vocab.decode_ids([*vocab.encode_text("see"), *ids, *ids]) == [Text("see"), *[Span(VIDEO, codes)] * 2]
    assert torch.equal(string_to_codes(VIDEO, string), codes)
    assert vocab.encode_marked(string) == ids and vocab.decode_text(ids) == string
    assert vocab.split_marked(f"at 0.5{string}1{string}") == [
        Text("at 0.5"),
        Span(VIDEO, codes),
        Text("1"),
        Span(VIDEO, codes),
    ]
    pictures, wave = split_codes(VIDEO, codes)
    assert len(pictures) == frames and (wave is not None) == sound
    assert torch.equal(join_codes(VIDEO, pictures, wave), codes)


def test_the_string_shows_times_and_parts() -> None:
    string = codes_to_string(VIDEO, a_video(3, sound=True))
    assert string.startswith("<sovi>0<soim><👀") and string.endswith("<eoau><eovi>")
    assert [part.split(">")[-1] for part in string.split("<soim>")[:-1]] == ["0", "0.5", "1"]
    assert string.count("<eoim>") == 3 and string.count("<soau>") == 1


def test_broken_videos_are_refused_with_their_place(vocab: Vocabulary) -> None:
    ids = vocab.encode_codes("video", a_video(2, sound=True))
    image, end = vocab.start_id("image"), vocab.end_id("video")
    second = ids.index(image, ids.index(image) + 1)
    sound = ids.index(vocab.start_id("audio"))
    time = len(vocab.time_ids(VIDEO, 1))
    broken = {
        "has no <eovi>": ids[:-1],
        "begins neither frame 0 at 0 s": [ids[0], image, *ids[second + 1 :]],
        "begins neither frame 1 at 0.5 s": [*ids[: second - time], *ids[1:second], *ids[second:]],
        "begins neither frame 2 at 1 s": [*ids[:-1], *ids[second - time : sound], end],
        "expected at least one frame": [ids[0], end],
        "has no <eoim>": ids[: second + 5],
        "<eovi>": [*ids[: second + 5], end],
    }
    for message, wrong in broken.items():
        with pytest.raises(CodeError, match=message):
            vocab.decode_ids(wrong)
    string = codes_to_string(VIDEO, a_video(2, sound=True))
    for wrong_string in (string.replace("0.5", "0.7"), string[:-6], string.replace("<sovi>0", "<sovi>"), string + "1"):
        with pytest.raises(CodeError, match="at character"):
            string_to_codes(VIDEO, wrong_string)


def test_rows_of_codes_are_checked() -> None:
    row = a_video(2, sound=True)
    for wrong in (row[:, 5:], row.flip(1), row[:, 64:], row[:, :-1], row + 40):
        with pytest.raises(CodeError, match="video|audio"):
            codes_to_string(VIDEO, wrong)
    silent = MODALITIES["video"].with_parts({"image": SPECS_WITH_AUDIO["image"]})
    assert silent.codebook_size == 24 and torch.equal(split_codes(silent, row[:, :64])[0][1], row[:, 32:64])
    with pytest.raises(CodeError, match="code 31 at level 0, frame 64 is outside 0..23"):
        codes_to_string(silent, row)


def test_a_checkpoint_says_what_its_videos_are_made_of(vocab: Vocabulary) -> None:
    assert vocab.specs["video"] == VIDEO and [part.name for part in VIDEO.parts] == ["image", "audio"]
    sizes = {"codebook_size": 24, "num_codebooks": 1, "frame_rate_hz": 1.0}
    silent = Vocabulary(vocab.text, vocab.tokens, modalities=SPECS_WITH_VIDEO, sizes={"video": sizes})
    assert silent.specs["video"].parts == (SPECS_WITH_AUDIO["image"],) and silent.specs["video"].frame_rate_hz == 1.0
    for tokens, message in (
        ({k: v for k, v in vocab.tokens.items() if k != "<eovi>"}, "'<eovi>' of modality 'video' is missing"),
        ({k: v for k, v in vocab.tokens.items() if "👀" not in k and "im>" not in k}, "made of 'image' codes"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Vocabulary(vocab.text, tokens, modalities=SPECS_WITH_VIDEO)
    with pytest.raises(CheckpointError, match="have 40 codes together, anygpt.json says 41"):
        Vocabulary(
            vocab.text, vocab.tokens, modalities=SPECS_WITH_VIDEO, sizes={"video": {**sizes, "codebook_size": 41}}
        )
