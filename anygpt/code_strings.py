"""Media codes as numbers in a row and as the strings of the training files, both ways.

Shape suffixes: K levels that the language model sees, T frames. A row of indices runs frame by frame, level
fastest; the code of level k is shifted by k * codebook_size. Of a modality that is made of parts the row has those of
its frames, one frame after the other, then those of its sound, shifted by the block of the frames.
"""

import math
import re
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from anygpt.errors import CodeError
from anygpt.modality import ModalitySpec


def codes_to_indices(spec: ModalitySpec, codes_KT: Tensor) -> list[int]:
    """Flatten `codes_KT` (integers [K, T] in [0, codebook_size)) to K*T indices into the modality's block.

    Raises CodeError for a wrong shape, number of levels or frames, or a code out of range, with its position.
    """
    if codes_KT.dim() != 2 or codes_KT.is_floating_point():
        shape = "x".join(map(str, codes_KT.shape))
        raise CodeError(f"{spec.name}: codes are {codes_KT.dtype} {shape}; expected whole numbers, levels x frames")
    if codes_KT.shape[0] != spec.num_codebooks:
        raise CodeError(f"{spec.name}: {codes_KT.shape[0]} levels of codes; expected {spec.num_codebooks}")
    _check_frames(spec, codes_KT.shape[1], "")
    codes_KT = codes_KT.to(dtype=torch.int64, device="cpu")
    wrong = ((codes_KT < 0) | (codes_KT >= spec.codebook_size)).nonzero()
    if len(wrong):
        level, frame = wrong[0].tolist()
        raise CodeError(
            f"{spec.name}: code {int(codes_KT[level, frame])} at level {level}, frame {frame} is outside "
            f"0..{spec.codebook_size - 1}"
        )
    if spec.parts:
        split_codes(spec, codes_KT)
    offsets_K1 = torch.arange(spec.num_codebooks)[:, None] * spec.codebook_size
    return rearrange(codes_KT + offsets_K1, "k t -> (t k)").tolist()


def indices_to_codes(spec: ModalitySpec, indices: Sequence[int], *, position: int = 0) -> Tensor:
    """The inverse of `codes_to_indices`: int64 [K, T].

    `position` is where the first index stands in its source, for messages. Raises CodeError for an index outside
    the block, one whose level is not due, an incomplete frame or a wrong number of frames.
    """
    levels = spec.num_codebooks
    row_N = torch.tensor(indices, dtype=torch.int64)
    level_N = torch.div(row_N, spec.codebook_size, rounding_mode="floor")
    wrong = (level_N != torch.arange(len(row_N)) % levels).nonzero()
    if len(wrong):
        first = int(wrong[0])
        index, level = int(row_N[first]), int(level_N[first])
        if not 0 <= index < spec.num_tokens:
            fault = f"is outside 0..{spec.num_tokens - 1}"
        else:
            fault = f"is of level {level} where level {first % levels} is due"
        raise CodeError(f"{spec.name}: code {index} at position {position + first} {fault}")
    if len(row_N) % levels:
        end = position + len(row_N)
        raise CodeError(f"{spec.name}: {len(row_N)} codes end inside a frame of {levels}, at position {end}")
    _check_frames(spec, len(row_N) // levels, f", at position {position}")
    return rearrange(row_N % spec.codebook_size, "(t k) -> k t", k=levels).contiguous()


def frame_time(spec: ModalitySpec, number: int) -> str:
    """What stands before frame `number` (from 0) of a span that is made of parts: its time in seconds."""
    assert spec.frame_rate_hz is not None, spec.name
    return f"{number / spec.frame_rate_hz:.2f}".rstrip("0").rstrip(".")


def sound_frames(spec: ModalitySpec, frames: int) -> int:
    """How many frames the sound has that lasts as long as so many frames of the span that it is part of."""
    rate_hz, sound_hz = spec.frame_rate_hz, spec.parts[1].frame_rate_hz
    assert rate_hz is not None and sound_hz is not None, spec.name
    return math.ceil(frames / rate_hz * sound_hz - 1e-6)


def join_codes(spec: ModalitySpec, frames: Sequence[Tensor], sound_KT: Tensor | None = None) -> Tensor:
    """The codes of a span that is made of parts, int64 [1, N], from those of each frame and of the sound.

    Raises CodeError for no frame, and for codes that don't fit their modality.
    """
    indices = [index for codes_KT in frames for index in codes_to_indices(spec.parts[0], codes_KT)]
    if not indices:
        raise CodeError(f"{spec.name}: no codes; expected at least one frame")
    if sound_KT is not None:
        first = spec.parts[0].num_tokens
        indices += [first + index for index in codes_to_indices(_sound_of(spec), sound_KT)]
    return torch.tensor([indices], dtype=torch.int64)


def split_codes(spec: ModalitySpec, codes_1N: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """The inverse of `join_codes`. Raises CodeError for an incomplete frame, and for frames after the sound."""
    row_N = codes_1N[0].to(dtype=torch.int64, device="cpu")
    first = spec.parts[0].num_tokens
    is_sound_N = row_N >= first
    count = int((~is_sound_N).sum())
    if is_sound_N[:count].any():
        raise CodeError(f"{spec.name}: codes of a frame after those of the sound; the sound comes last")
    each = spec.fewest_codes
    if count % each or not count:
        raise CodeError(f"{spec.name}: {count} codes of frames, expected {each} for each")
    frames = [
        indices_to_codes(spec.parts[0], row_N[at : at + each].tolist(), position=at) for at in range(0, count, each)
    ]
    if count == len(row_N):
        return frames, None
    return frames, indices_to_codes(_sound_of(spec), (row_N[count:] - first).tolist(), position=count)


def codes_to_string(spec: ModalitySpec, codes_KT: Tensor) -> str:
    """The span as the training files write it, for example `<soim><👀12>...<eoim>`. Raises CodeError."""
    indices = codes_to_indices(spec, codes_KT)
    if not spec.parts:
        return spec.start + "".join(map(spec.code_token, indices)) + spec.end
    frames, sound_KT = split_codes(spec, codes_KT)
    parts = [frame_time(spec, n) + codes_to_string(spec.parts[0], each_KT) for n, each_KT in enumerate(frames)]
    if sound_KT is not None:
        parts.append(codes_to_string(_sound_of(spec), sound_KT))
    return spec.start + "".join(parts) + spec.end


def string_to_codes(spec: ModalitySpec, string: str) -> Tensor:
    """The inverse of `codes_to_string`: int64 [K, T]. Raises CodeError with the character position of the fault."""
    codes_KT, at = _read_span(spec, string, 0)
    if at != len(string):
        raise CodeError(f"{spec.name}: nothing may follow {spec.end}; got {_excerpt(string, at)} at character {at}")
    return codes_KT


def _read_span(spec: ModalitySpec, string: str, at: int) -> tuple[Tensor, int]:
    """The codes of the span that begins at a character, and where it ends."""
    if not string.startswith(spec.start, at):
        raise CodeError(f"{spec.name}: expected {spec.start} at character {at}, got {_excerpt(string, at)}")
    at += len(spec.start)
    if spec.parts:
        codes_KT, at = _read_parts(spec, string, at)
        _check_end(spec, string, at, "a frame")
        return codes_KT, at + len(spec.end)
    code = re.compile(f"<{re.escape(spec.prefix)}(0|[1-9][0-9]{{0,8}})>")
    indices = []
    while (match := code.match(string, at)) is not None:
        indices.append(int(match[1]))
        at = match.end()
    _check_end(spec, string, at, f"{spec.code_token(0)}..{spec.code_token(spec.num_tokens - 1)}")
    return indices_to_codes(spec, indices), at + len(spec.end)


def _check_end(spec: ModalitySpec, string: str, at: int, due: str) -> None:
    if not string.startswith(spec.end, at):
        raise CodeError(f"{spec.name}: expected {due} or {spec.end} at character {at}, got {_excerpt(string, at)}")


def _read_parts(spec: ModalitySpec, string: str, at: int) -> tuple[Tensor, int]:
    frames: list[Tensor] = []
    while string.startswith((time := frame_time(spec, len(frames))) + spec.parts[0].start, at):
        codes_KT, at = _read_span(spec.parts[0], string, at + len(time))
        frames.append(codes_KT)
    if not frames:
        expected = f"{frame_time(spec, 0)}{spec.parts[0].start}"
        raise CodeError(f"{spec.name}: expected {expected} at character {at}, got {_excerpt(string, at)}")
    sound_KT = None
    if len(spec.parts) > 1 and string.startswith(spec.parts[1].start, at):
        sound_KT, at = _read_span(spec.parts[1], string, at)
    return join_codes(spec, frames, sound_KT), at


def _sound_of(spec: ModalitySpec) -> ModalitySpec:
    if len(spec.parts) < 2:
        raise CodeError(f"{spec.name}: codes of a sound, which this vocabulary's {spec.name} has not")
    return spec.parts[1]


def _check_frames(spec: ModalitySpec, frames: int, where: str) -> None:
    if spec.frames is not None and frames != spec.frames:
        raise CodeError(f"{spec.name}: {frames} frames of codes{where}; expected exactly {spec.frames}")
    if frames == 0:
        raise CodeError(f"{spec.name}: no codes{where}; expected at least one frame")


def _excerpt(string: str, at: int) -> str:
    return repr(string[at : at + 16]) if at < len(string) else "the end"
