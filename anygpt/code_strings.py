"""Media codes as numbers in a row and as the strings of the training files, both ways.

Shape suffixes: K levels that the language model sees, T frames. A row of indices runs frame by frame, level
fastest; the code of level k is shifted by k * codebook_size.
"""

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


def codes_to_string(spec: ModalitySpec, codes_KT: Tensor) -> str:
    """The span as the training files write it, for example `<soim><👀12>...<eoim>`. Raises CodeError."""
    return spec.start + "".join(map(spec.code_token, codes_to_indices(spec, codes_KT))) + spec.end


def string_to_codes(spec: ModalitySpec, string: str) -> Tensor:
    """The inverse of `codes_to_string`: int64 [K, T]. Raises CodeError with the character position of the fault."""
    if not string.startswith(spec.start):
        raise CodeError(f"{spec.name}: expected {spec.start} at character 0, got {_excerpt(string, 0)}")
    code = re.compile(f"<{re.escape(spec.prefix)}(0|[1-9][0-9]{{0,8}})>")
    at, indices = len(spec.start), []
    while (match := code.match(string, at)) is not None:
        indices.append(int(match[1]))
        at = match.end()
    if not string.startswith(spec.end, at):
        expected = f"{spec.code_token(0)}..{spec.code_token(spec.num_tokens - 1)} or {spec.end}"
        raise CodeError(f"{spec.name}: expected {expected} at character {at}, got {_excerpt(string, at)}")
    at += len(spec.end)
    if at != len(string):
        raise CodeError(f"{spec.name}: nothing may follow {spec.end}; got {_excerpt(string, at)} at character {at}")
    return indices_to_codes(spec, indices)


def _check_frames(spec: ModalitySpec, frames: int, where: str) -> None:
    if spec.frames is not None and frames != spec.frames:
        raise CodeError(f"{spec.name}: {frames} frames of codes{where}; expected exactly {spec.frames}")
    if frames == 0:
        raise CodeError(f"{spec.name}: no codes{where}; expected at least one frame")


def _excerpt(string: str, at: int) -> str:
    return repr(string[at : at + 16]) if at < len(string) else "the end"
