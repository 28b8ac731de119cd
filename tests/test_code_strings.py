"""Codes as rows of indices and as strings, with every fault found and placed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt.code_strings import codes_to_indices, codes_to_string, indices_to_codes, string_to_codes
from anygpt.errors import CodeError
from anygpt.modality import MODALITIES, ModalitySpec

MUSIC = MODALITIES["music"].with_codebooks(codebook_size=10, num_codebooks=4)
IMAGE = replace(MODALITIES["image"].with_codebooks(codebook_size=10, num_codebooks=1), frames=3)


def random_codes(spec: ModalitySpec, frames: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.codebook_size, (spec.num_codebooks, frames), generator=generator)


def plain_indices(spec: ModalitySpec, codes_KT: torch.Tensor) -> list[int]:
    """The obvious way: frame by frame, level by level."""
    levels, frames = codes_KT.shape
    return [int(codes_KT[k, t]) + k * spec.codebook_size for t in range(frames) for k in range(levels)]


@pytest.mark.parametrize("name", [name for name, spec in MODALITIES.items() if not spec.parts])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(frames=st.integers(1, 40), seed=st.integers(0, 2**31), levels=st.integers(1, 8), size=st.integers(1, 9000))
def test_round_trips(name: str, frames: int, seed: int, levels: int, size: int):
    spec = replace(MODALITIES[name].with_codebooks(codebook_size=size, num_codebooks=levels), frames=None)
    codes = random_codes(spec, frames, seed)
    indices = codes_to_indices(spec, codes)
    assert indices == plain_indices(spec, codes)
    assert torch.equal(indices_to_codes(spec, indices), codes)
    assert torch.equal(string_to_codes(spec, codes_to_string(spec, codes)), codes)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(3), "expected whole numbers"),
        (torch.zeros(4, 2), "expected whole numbers"),
        (torch.zeros(3, 2, dtype=torch.int64), "3 levels of codes; expected 4"),
        (torch.zeros(4, 0, dtype=torch.int64), "no codes"),
        (torch.tensor([[0, 0], [0, 0], [0, 10], [0, 0]]), "code 10 at level 2, frame 1 is outside 0..9"),
        (torch.tensor([[-1], [0], [0], [0]]), "code -1 at level 0, frame 0"),
    ],
)
def test_bad_codes(codes: torch.Tensor, message: str):
    with pytest.raises(CodeError, match=message):
        codes_to_indices(MUSIC, codes)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 10, 20, 30, 1, 11, 21], "7 codes end inside a frame of 4, at position 107"),
        ([0, 10, 20, 30, 11, 1, 21, 31], "code 11 at position 104 is of level 1 where level 0 is due"),
        ([10, 20, 30], "code 10 at position 100 is of level 1 where level 0 is due"),
        ([0, 10, 20, 40], "code 40 at position 103 is outside 0..39"),
        ([-1], "code -1 at position 100 is outside"),
        ([], "no codes, at position 100"),
    ],
)
def test_bad_indices_are_placed(indices: list[int], message: str):
    with pytest.raises(CodeError, match=message):
        indices_to_codes(MUSIC, indices, position=100)


def test_a_fixed_number_of_frames_is_required():
    assert indices_to_codes(IMAGE, [1, 2, 3]).tolist() == [[1, 2, 3]]
    with pytest.raises(CodeError, match="2 frames of codes, at position 0; expected exactly 3"):
        indices_to_codes(IMAGE, [1, 2])
    with pytest.raises(CodeError, match="4 frames of codes; expected exactly 3"):
        codes_to_string(IMAGE, torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("", "expected <soim> at character 0, got the end"),
        ("<sosp>", "expected <soim> at character 0, got '<sosp>'"),
        ("<soim><👀1><👀2><👀3>", r"or <eoim> at character 18, got the end"),
        ("<soim><👀1> <👀2><👀3><eoim>", "at character 10, got ' <👀2>"),
        ("<soim><👀01><👀2><👀3><eoim>", "at character 6"),
        ("<soim><👀1><🎶2><👀3><eoim>", "at character 10"),
        ("<soim><👀1><👀2><👀3><eoim> ", "nothing may follow <eoim>"),
        ("<soim><👀1><👀2><👀10><eoim>", "code 10 at position 2 is outside 0..9"),
        ("<soim><👀1><👀2><👀99999999999999999999><eoim>", "at character 14"),
    ],
)
def test_bad_strings_are_placed(string: str, message: str):
    with pytest.raises(CodeError, match=message):
        string_to_codes(IMAGE, string)
