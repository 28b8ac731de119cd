"""Int8 weights in FBGEMM's layout, multiplied in whole numbers: what is fastest on x86 (`benchmarks/RESULTS.md`).

Activations stay as good as floats: each row becomes whole numbers of 14 bits, in two pieces of 7, which take their
turns with a weight while it is at hand. Reading the weights once takes most of the time, so that the second piece costs
little. Shape suffixes: N rows of activations, I inputs, O outputs.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_OUTPUTS = 32768
"""Outputs of a packed block: a product for some of a matrix's outputs goes through whole blocks."""
PIECE = 128
"""Weight of the high piece. Pieces are -64 to 64: without VNNI, FBGEMM adds up two products in 16 bits, which holds
those of 7 bits by 8."""


def is_available(device: torch.device) -> bool:
    # torch will drop tensors of type qint8 some day, and with them this way to FBGEMM (pytorch/pytorch#184982).
    return (
        device.type == "cpu"
        and "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch, "_make_per_channel_quantized_tensor")
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    )


@dataclass(frozen=True)
class PackedMatrix:
    """Some neighbouring outputs of a matrix that is packed in blocks."""

    blocks: tuple[Any, ...]
    """Packed weights, `BLOCK_OUTPUTS` outputs each but the last."""
    shown: range
    """Which outputs of these."""
    inputs: int

    @classmethod
    def pack(cls, weights_OI: Tensor, scales_O: Tensor) -> "PackedMatrix":
        """From int8 weights with a scale for each output; nothing of them is kept."""
        pairs = zip(weights_OI.split(BLOCK_OUTPUTS), scales_O.split(BLOCK_OUTPUTS), strict=True)
        return cls(tuple(_packed(*pair) for pair in pairs), range(len(weights_OI)), weights_OI.shape[1])

    def times(self, rows_NI: Tensor) -> Tensor:
        """Products [N, O] in the type of the activations; those of a row don't depend on its neighbours."""
        count = len(rows_NI)
        largest_N1 = torch.linalg.vector_norm(rows_NI, math.inf, dim=1, keepdim=True, dtype=torch.float32)
        steps_N1 = largest_N1.clamp_min_(torch.finfo(torch.float32).tiny).div_(64 * PIECE)
        whole_NI = rows_NI / steps_N1
        pieces = whole_NI.new_empty(2 * count, self.inputs)
        high_NI = torch.div(whole_NI, PIECE, out=pieces[:count]).round_()
        torch.sub(whole_NI, high_NI, alpha=PIECE, out=pieces[count:])  # which FBGEMM rounds
        times = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        products = [times(pieces, 1.0, 64, block) for block in self.blocks]
        high_NO, low_NO = (products[0] if len(products) == 1 else torch.cat(products, dim=1)).split(count)
        sums_NO = low_NO.add_(high_NO, alpha=PIECE).mul_(steps_N1).to(rows_NI.dtype)
        return sums_NO[:, self.shown.start : self.shown.stop]

    def outputs(self, some: range) -> "PackedMatrix":
        """The part that makes some of these outputs; nothing is copied."""
        within = self.shown[some.start : some.stop]
        first, stop = within.start // BLOCK_OUTPUTS, -(-within.stop // BLOCK_OUTPUTS)
        skipped = first * BLOCK_OUTPUTS
        return PackedMatrix(self.blocks[first:stop], range(within.start - skipped, within.stop - skipped), self.inputs)

    def dequantised(self) -> Tensor:
        """The weights that the integers stand for, float32 [O, I]."""
        weights = [torch.ops.quantized.linear_unpack(block)[0].dequantize() for block in self.blocks]
        return torch.cat(weights)[self.shown.start : self.shown.stop]


def _packed(weights_OI: Tensor, scales_O: Tensor) -> Any:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # see `is_available`
            zeros_O = torch.zeros(len(weights_OI), dtype=torch.long)
            block = torch._make_per_channel_quantized_tensor(weights_OI, scales_O.float(), zeros_O, 0)
            return torch.ops.quantized.linear_prepack(block, None)
    finally:
        torch.backends.quantized.engine = engine
