"""The loss of packed rows: weighted cross-entropy of the next ids, without the logits of all positions at once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES = 2**27
"""Of a chunk's logits in float32: with 53,520 ids the head runs on 512 positions at a time."""

ROWS = 512
"""Chunks are multiples of this many positions, where there are so many."""


class NextIdLoss:
    """Sum of the cross-entropies of the next ids, each times its weight, for one model.

    The output head runs only at positions whose next id has a weight, a chunk at a time, and a chunk's gradients are
    computed with its loss, so that the logits of one chunk exist at any time and none is computed twice (Hsu et al.
    2024, "Liger Kernel", section 3.2). All this happens where the model calls its head, inside its forward pass:
    outside, FSDP and DeepSpeed have put the weights away.

    With weights at 0.3 of the positions, forward and backward pass of the small model take 0.8 of the time in bfloat16,
    with 53,520 ids 0.4 (`benchmarks/train_attention.py --ways plain_matmul weighted`).

    With `compiles`, decoder and chunks go through `torch.compile`: one graph for each shape of `ids`, and a small one
    for each multiple of `ROWS` positions.
    """

    def __init__(self, model: Any, *, compiles: bool = False, chunk_bytes: int = CHUNK_BYTES) -> None:
        """`model` is a causal language model of transformers, or a peft model of one, before it is wrapped."""
        self.head: nn.Module = model.get_output_embeddings()
        self.decoder: nn.Module = model.get_decoder()
        self._chunk_rows = max(1, chunk_bytes // (4 * model.config.vocab_size * ROWS)) * ROWS
        self._unit = ROWS if compiles else 1
        self._decode = torch.compile(self.decoder.forward, dynamic=False) if compiles else None
        self._loss = torch.compile(_chunk_loss, dynamic=False) if compiles else _chunk_loss

    def __call__(self, model: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        """A scalar in float32: `ids`, `positions`, `weights` [B, T], additive `mask` [B, 1, T, T].

        `model` is the model itself or what wraps it for several processes. `weights[:, 0]` is not used.
        """
        with ExitStack() as stack:
            stack.enter_context(_forward(self.head, partial(self._head_loss, self.head.forward, ids, weights)))
            if self._decode is not None:
                stack.enter_context(_forward(self.decoder, self._decode))
            loss: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return loss

    def _head_loss(self, head: Callable[[Tensor], Tensor], ids: Tensor, weights: Tensor, hidden: Tensor) -> Tensor:
        """What stands in for the head's forward: from `hidden` [B, T, D] to the loss."""
        hidden = hidden[:, :-1].flatten(0, 1)
        targets, weights = ids[:, 1:].flatten(), weights[:, 1:].flatten()
        chosen = weights.nonzero().flatten()
        # At least one position, if without weight: every rank has to have a gradient.
        padding = max(1, -(-len(chosen) // self._unit)) * self._unit - len(chosen)
        weights = F.pad(weights[chosen], (0, padding))
        chosen = F.pad(chosen, (0, padding))
        inputs, targets = hidden[chosen], targets[chosen]
        value = weights.new_zeros(())
        gradients: dict[Tensor, Tensor] = {}
        input_gradients = []
        for begin in range(0, len(chosen), self._chunk_rows):
            at = slice(begin, begin + self._chunk_rows)
            chunk = inputs[at].detach().requires_grad_(torch.is_grad_enabled())
            loss = self._loss(head, chunk, targets[at], weights[at])
            value += loss.detach()
            if loss.requires_grad:
                leaves = _leaves(loss)
                for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                    gradients[leaf] = gradients[leaf].add_(gradient) if leaf in gradients else gradient
                input_gradients.append(gradients.pop(chunk))
        if not input_gradients:
            return value
        known = (torch.cat(input_gradients), *gradients.values())
        result: Tensor = _Known.apply(value, inputs, *gradients, *known)
        return result


class _Known(torch.autograd.Function):
    """A value whose gradients are known: `apply(value, *tensors, *their gradients)`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return (None, *(outputs[0] * gradient for gradient in gradients), *[None] * len(gradients))


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that `loss` was computed from and that gradients are asked for.

    More than a head's own parameters: adapters may keep theirs elsewhere.
    """
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _chunk_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(head(hidden).float(), targets, reduction="none") * weights).sum()


@contextmanager
def _forward(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling `module` calls `function`, with the module's hooks around it."""
    own = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
