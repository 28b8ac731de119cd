"""The weight matrices of a decoder, each kept the way its type and device multiply with it fastest.

`place` brings a matrix from a checkpoint into that form piece by piece, so that beside the result only one tensor of
the checkpoint is in memory; `times` multiplies. What was measured is in `benchmarks/RESULTS.md`. Shape suffixes: N rows
of activations, I inputs, O outputs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anygpt.generation import packed_matrix
from anygpt.generation.packed_matrix import PackedMatrix
from anygpt.generation.weight_memory import WeightMemory

SPLIT_INPUTS = 4096
"""Inputs of a bfloat16 product on a CPU: a row of weights and the activations then fit the first cache together."""
INT8_KERNEL_ROWS = 8
"""Up to so many rows torch's int8 product is faster than a float product with the weights made floats."""
CPU_BLOCK = 512
"""Rows of int8 weights that a CPU turns into floats at a time, to find them in its cache again."""
READ_BLOCK = 256
"""Rows of a checkpoint's matrix that are quantised at a time."""


@dataclass(frozen=True)
class SplitMatrix:
    """A bfloat16 matrix on a CPU, in the layout of the checkpoint, cut along its inputs."""

    parts_OI: tuple[Tensor, ...]

    def times(self, rows_NI: Tensor) -> Tensor:
        """Products in bfloat16 [N, O]."""
        parts = rows_NI.split([part.shape[1] for part in self.parts_OI], dim=1)
        product = _linear(parts[0], self.parts_OI[0])
        if len(parts) == 1:
            return product
        sums_NO = product.float()
        for rows, part_OI in zip(parts[1:], self.parts_OI[1:], strict=True):
            sums_NO += _linear(rows, part_OI)
        return sums_NO.bfloat16()


@dataclass(frozen=True)
class Int8Matrix:
    """Weights as int8, with a scale for each output; activations stay floats.

    A weight is its integer, -127 to 127, times the scale of its row. On x86 it is then packed (`PackedMatrix`).
    """

    weights_OI: Tensor
    scales_O: Tensor
    """In the type of the activations. The integers were made with the scales as rounded to it."""

    def times(self, rows_NI: Tensor) -> Tensor:
        """Products [N, O] in the type of the activations."""
        outputs, inputs = self.weights_OI.shape
        is_cpu = rows_NI.device.type == "cpu"
        # With other numbers of inputs the kernel reads beyond the last row (torch 2.13).
        if is_cpu and len(rows_NI) <= INT8_KERNEL_ROWS and inputs % 16 == 0:
            return torch.ops.aten._weight_int8pack_mm(rows_NI, self.weights_OI, self.scales_O)
        products_NO = rows_NI.new_empty(len(rows_NI), outputs)
        size = CPU_BLOCK if is_cpu else outputs
        for block_OI, out_NO in zip(self.weights_OI.split(size), products_NO.split(size, dim=1), strict=True):
            out_NO.copy_(F.linear(rows_NI, block_OI.to(rows_NI.dtype)))
        return products_NO.mul_(self.scales_O)

    def dequantised(self) -> Tensor:
        """The weights that the integers stand for, float32 [O, I]."""
        return self.weights_OI.float() * self.scales_O.float()[:, None]


Matrix = Tensor | SplitMatrix | Int8Matrix | PackedMatrix
"""A plain tensor is [I, O]."""


def times(rows_NI: Tensor, matrix: Matrix) -> Tensor:
    """Activations [N, I] times a matrix: [N, O] in the type of the activations."""
    return rows_NI @ matrix if isinstance(matrix, Tensor) else matrix.times(rows_NI)


def add_product(sum_NO: Tensor, rows_NI: Tensor, matrix: Matrix) -> None:
    """Add the product to a sum [N, O], in one operation where there is one."""
    if isinstance(matrix, Tensor):
        sum_NO.addmm_(rows_NI, matrix)
    else:
        sum_NO += matrix.times(rows_NI)


def outputs(matrix: Matrix, some: range) -> Matrix:
    """The part of a matrix that makes some of its outputs; nothing is copied."""
    rows = slice(some.start, some.stop)
    if isinstance(matrix, SplitMatrix):
        return SplitMatrix(tuple(part_OI[rows] for part_OI in matrix.parts_OI))
    if isinstance(matrix, Int8Matrix):
        return Int8Matrix(matrix.weights_OI[rows], matrix.scales_O[rows])
    if isinstance(matrix, PackedMatrix):
        return matrix.outputs(some)
    return matrix[:, rows]


def activation_type(dtype: torch.dtype) -> torch.dtype:
    """The type that a decoder computes in when its matrices are `dtype`: int8 goes with bfloat16."""
    return torch.bfloat16 if dtype == torch.int8 else dtype


def place(weights: Iterable[Tensor], outputs: int, inputs: int, *, dtype: torch.dtype, memory: WeightMemory) -> Matrix:
    """One matrix of `outputs` in all from weights [o, I] of any type that share their input, read one at a time."""
    if dtype == torch.int8 and packed_matrix.is_available(memory.device):
        plain = _quantised(weights, outputs, inputs, WeightMemory(memory.device))
        return PackedMatrix.pack(plain.weights_OI, plain.scales_O)
    if dtype == torch.int8:
        return _quantised(weights, outputs, inputs, memory)
    if dtype == torch.bfloat16 and memory.device.type == "cpu":
        return _split(weights, outputs, inputs, memory)
    # In float32 on a CPU the product of one row runs up to twice as fast with the longer side last: [in, out] in memory
    # where there are more outputs, else with [out, in].
    is_wide = outputs > inputs
    matrix_IO = (
        memory.empty(inputs, outputs, dtype=dtype) if is_wide else memory.empty(outputs, inputs, dtype=dtype).t()
    )
    start = 0
    for weight_OI in weights:
        matrix_IO[:, start : start + len(weight_OI)] = weight_OI.to(device=memory.device).t()
        start += len(weight_OI)
    return matrix_IO


def _split(weights: Iterable[Tensor], outputs: int, inputs: int, memory: WeightMemory) -> SplitMatrix:
    count = math.ceil(inputs / SPLIT_INPUTS)
    widths = [inputs * (n + 1) // count - inputs * n // count for n in range(count)]
    parts_OI = tuple(memory.empty(outputs, width, dtype=torch.bfloat16) for width in widths)
    start = 0
    for weight_OI in weights:
        for part_OI, piece_OI in zip(parts_OI, weight_OI.split(widths, dim=1), strict=True):
            part_OI[start : start + len(piece_OI)] = piece_OI
        start += len(weight_OI)
    return SplitMatrix(parts_OI)


def _quantised(weights: Iterable[Tensor], outputs: int, inputs: int, memory: WeightMemory) -> Int8Matrix:
    """Rounded to int8, symmetrically, with the largest weight of each row at 127."""
    integers_OI = memory.empty(outputs, inputs, dtype=torch.int8)
    scales_O = memory.empty(outputs, dtype=activation_type(torch.int8))
    # One buffer for all: what is allocated and freed between the results would stay in the heap's gaps.
    buffer_OI = torch.empty(min(outputs, READ_BLOCK), inputs, dtype=torch.float32, device=memory.device)
    start = 0
    for weight_OI in weights:
        for block in weight_OI.split(READ_BLOCK):
            rows = slice(start, start + len(block))
            block_OI = buffer_OI[: len(block)].copy_(block)
            least_O, most_O = block_OI.aminmax(dim=1)
            # A row of zeros has any scale but zero.
            scales_O[rows] = (torch.maximum(-least_O, most_O) / 127).clamp_min(torch.finfo(torch.float32).tiny)
            integers_OI[rows] = block_OI.div_(scales_O[rows].float()[:, None]).round_().clamp_(-127, 127)
            start = rows.stop
    return Int8Matrix(integers_OI, scales_O)


def _linear(rows_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """For one row torch has a product of its own that is up to twice as fast as oneDNN's, which it prefers.

    The switch is the whole process's: other threads that multiply meanwhile are slower, with the same results but for
    the order of summation.
    """
    if len(rows_NI) > 1:
        return F.linear(rows_NI, weight_OI)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        return F.linear(rows_NI, weight_OI)
    finally:
        # Not what it was before: another thread may have it off for its own row just now.
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
