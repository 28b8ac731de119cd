"""LLaMA's forward pass for generation, written over the tensors of a Hugging Face checkpoint folder.

It equals `transformers.LlamaForCausalLM` (a test compares the logits) and exists for speed: no module calls, one
matrix product for q, k, v and one for gate and up (`matrices`), a static cache, and none of the seconds that importing
transformers takes. Shape suffixes: T positions of one sequence, R sequences, N ids of either kind, D hidden width,
E the same with what `_embedded` adds, H heads, G key-value heads, C head width, P pairs of its channels, V vocabulary.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anygpt.errors import CheckpointError
from anygpt.generation.adapter import Adapter, is_adapter
from anygpt.generation.cache import BatchCache, StaticCache
from anygpt.generation.matrices import Matrix, activation_type, add_product, outputs, place, times
from anygpt.generation.sampling import pick
from anygpt.generation.weight_memory import WeightMemory

ROTATED = ("q_proj", "k_proj")
"""Matrices whose outputs are rotated by their position."""
PADDING = 1 << 15
"""On a CPU, rows of a batch attend one by one where together they would read more than so many numbers of empty keys
for each row: about what a call for each costs more than one for all (`benchmarks/batch.py`)."""
ATTENTION_BLOCK = 1 << 19
"""Keys or values, counted in numbers, that `_attend_one` multiplies at a time: the products stay in the cache."""
PREFILL_CHUNK = 512
"""Ids of a prompt that are computed at once: what a longer one takes beyond its cache doesn't grow with it."""
MAPPED_BYTES = 1 << 26
"""Weight files up to this size are mapped into memory once, as a whole."""

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer's number and its rotated queries [H, N, C], rotated keys and values [2, G, N, C] what is mixed,
[N, H*C]."""


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The numbers of a LLaMA `config.json` that its forward pass depends on."""

    vocab_size: int
    hidden_size: int
    inner_size: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    context: int
    """Longest sequence, prompt and answer together."""
    norm_eps: float
    rope: Mapping[str, Any]
    """`rope_theta`, `rope_type` and what that type needs."""
    tied_head: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> "LlamaShape":
        """Read a parsed `config.json`, in the layout of any transformers version.

        Raises CheckpointError, prefixed with `source`, for another architecture or an option that isn't implemented.
        """
        if config.get("model_type") != "llama":
            raise CheckpointError(f"{source}: model_type is {config.get('model_type')!r}, only 'llama' is supported")
        for option in ("attention_bias", "mlp_bias"):
            if config.get(option):
                raise CheckpointError(f"{source}: {option} is set; LLaMA models without biases are supported")
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"{source}: hidden_act is {config['hidden_act']!r}, only 'silu' is supported")
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=int(config["hidden_size"]),
                inner_size=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_width=int(config.get("head_dim") or config["hidden_size"] // heads),
                context=int(config.get("max_position_embeddings", 2048)),
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                rope=_rope_parameters(config),
                tied_head=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise CheckpointError(f"{source}: field {error} is missing") from None


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers 5 keeps everything in `rope_parameters`, earlier versions in `rope_theta` and `rope_scaling`."""
    rope = {"rope_theta": config.get("rope_theta") or 10000.0}
    rope |= config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def inverse_frequencies(shape: LlamaShape, source: str) -> Tensor:
    """Rotation speed of each pair of channels, float32 [C/2] (Su et al. 2021; "linear" Chen et al. 2023; "llama3").

    Raises CheckpointError for other kinds of scaling.
    """
    rope = shape.rope
    speeds = 1.0 / rope["rope_theta"] ** (torch.arange(0, shape.head_width, 2, dtype=torch.float32) / shape.head_width)
    kind = rope["rope_type"]
    if kind == "default":
        return speeds
    if kind == "linear":
        return speeds / rope["factor"]
    if kind == "llama3":
        original = rope["original_max_position_embeddings"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        # Turns over the original context decide: many turns stay, few are stretched by the factor, blended between.
        turns = original * speeds / (2 * math.pi)
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return share * speeds + (1 - share) * speeds / rope["factor"]
    raise CheckpointError(f"{source}: rope_type '{kind}' is not supported; known: default, linear, llama3")


@dataclass(frozen=True)
class _Layer:
    """One decoder layer; matrices that share an input are one. A norm is None where its weight is in them."""

    norm_attention: Tensor | None
    qkv: Matrix
    out: Matrix
    norm_mlp: Tensor | None
    gate_up: Matrix
    down: Matrix


class LlamaDecoder:
    """A language model for generation: token ids in, logits of the next token out."""

    def __init__(
        self,
        shape: LlamaShape,
        take: Callable[[str], Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        source: str = "model",
    ) -> None:
        """`take(key)` gives the tensor of a Hugging Face key; each is asked for once, and let go before the next.

        `dtype` is that of the matrices. With `torch.int8` these are rounded while they are read, with a scale for each
        output; all else, the embeddings included, is then bfloat16. Raises CheckpointError when a tensor's shape
        doesn't fit `shape`.
        """
        self.shape = shape
        self.dtype = activation_type(dtype)
        """Of activations and cache."""
        self.device = torch.device(device)
        memory = WeightMemory(self.device)

        def checked(key: str, *size: int) -> Tensor:
            tensor = take(key)
            if tuple(tensor.shape) != size:
                raise CheckpointError(f"{source}: '{key}' has shape {list(tensor.shape)}, expected {list(size)}")
            return tensor

        def get(key: str, *size: int) -> Tensor:
            return checked(key, *size).to(device=self.device, dtype=self.dtype)

        def join(parts: Iterable[Tensor], outputs: int, inputs: int) -> Matrix:
            return place(parts, outputs, inputs, dtype=dtype, memory=memory)

        def pieces(prefix: str, inputs: int, rows: Mapping[str, int]) -> Iterator[Tensor]:
            for name, count in rows.items():
                if name == "lm_head" and shape.tied_head:
                    yield self.embedding
                elif name in ROTATED:
                    for head_CI in checked(f"{prefix}{name}.weight", count, inputs).split(shape.head_width):
                        yield _paired(head_CI)
                else:
                    yield checked(f"{prefix}{name}.weight", count, inputs)

        def matrix(prefix: str, inputs: int, **rows: int) -> Matrix:
            """The matrices of one input as one."""
            return join(pieces(prefix, inputs, rows), sum(rows.values()), inputs)

        def normed_matrix(norm_D: Tensor, prefix: str, **rows: int) -> tuple[Tensor | None, Matrix]:
            """A norm and the matrices behind it. Where rounding allows it they have its weight in them, which is an
            operation less, and don't look at what `_embedded` adds."""
            if not is_norm_within:
                return norm_D, matrix(prefix, width, **rows)
            weighted = (F.pad(piece_OI * norm_D, (0, 1)) for piece_OI in pieces(prefix, width, rows))
            return None, join(weighted, sum(rows.values()), width + 1)

        def norm(key: str) -> Tensor:
            """For `_normed`, which on a CPU divides by a root of a sum, not of a mean."""
            weight_D = get(key, shape.hidden_size)
            return weight_D.float() * math.sqrt(shape.hidden_size) if self.device.type == "cpu" else weight_D

        width, inner = shape.hidden_size, shape.inner_size
        wide_q, wide_kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        is_norm_within = self.device.type == "cpu" and dtype == torch.float32
        self.embedding = get("model.embed_tokens.weight", shape.vocab_size, width)
        self.layers: list[_Layer] = []
        for index in range(shape.layers):
            prefix = f"model.layers.{index}."
            norm_attention, qkv = normed_matrix(
                norm(f"{prefix}input_layernorm.weight"),
                f"{prefix}self_attn.",
                q_proj=wide_q,
                k_proj=wide_kv,
                v_proj=wide_kv,
            )
            norm_mlp, gate_up = normed_matrix(
                norm(f"{prefix}post_attention_layernorm.weight"), f"{prefix}mlp.", gate_proj=inner, up_proj=inner
            )
            self.layers.append(
                _Layer(
                    norm_attention=norm_attention,
                    qkv=qkv,
                    out=matrix(f"{prefix}self_attn.", wide_q, o_proj=width),
                    norm_mlp=norm_mlp,
                    gate_up=gate_up,
                    down=matrix(f"{prefix}mlp.", inner, down_proj=width),
                )
            )
        self.norm, self.head = normed_matrix(norm("model.norm.weight"), "", lm_head=shape.vocab_size)
        self._least_length = math.sqrt(width * shape.norm_eps)
        self._ones_N1 = torch.ones(1, 1, dtype=self.dtype, device=self.device)
        angles = torch.arange(shape.context, dtype=torch.float32)[:, None] * inverse_frequencies(shape, source)
        self._turns = torch.polar(torch.full_like(angles, shape.head_width**-0.25), angles).to(self.device)
        """Rotations of every position as complex numbers, [context, P]. They also scale queries and keys, so that
        scores come out scaled."""

    def new_cache(self, capacity: int | None = None, *, slots: int | None = None) -> StaticCache:
        """An empty cache for `capacity` positions, by default the whole context; see `StaticCache` for `slots`."""
        return StaticCache(
            layers=self.shape.layers,
            kv_heads=self.shape.kv_heads,
            capacity=min(capacity or self.shape.context, self.shape.context),
            head_width=self.shape.head_width,
            dtype=self.dtype,
            device=self.device,
            slots=slots,
        )

    def forward(self, ids: Sequence[int], cache: StaticCache, *, last_only: bool = True) -> Tensor:
        """Append `ids` to the sequence in `cache`.

        Returns float32 logits: [V] of the last position, or [T, V] with `last_only=False`.
        """
        logits_TV = self.logits(self.append(ids, cache, last_only=last_only))
        return logits_TV[0] if last_only else logits_TV

    @torch.inference_mode()
    def append(self, ids: Sequence[int], cache: StaticCache, *, last_only: bool = True) -> Tensor:
        """Append `ids` to the sequence in `cache`, `PREFILL_CHUNK` at a time.

        Returns what `logits` takes: [1, E] of the last position, or [T, E] with `last_only=False`.
        """
        parts: list[Tensor] = []
        for start in range(0, len(ids), PREFILL_CHUNK):
            hidden_TE = self._append(ids[start : start + PREFILL_CHUNK], cache)
            parts = [hidden_TE[-1:]] if last_only else [*parts, hidden_TE]
        return self._normed(parts[0] if len(parts) == 1 else torch.cat(parts), self.norm)

    @torch.inference_mode()
    def logits(self, hidden_NE: Tensor, allowed: Sequence[range] | None = None) -> Tensor:
        """Float32 logits of the ids that may come, [N, all of `allowed`]; of every id without.

        No others are computed but those between the ranges, which ascend.
        """
        if allowed is None:
            return times(hidden_NE, self.head).float()
        every = range(allowed[0].start, allowed[-1].stop)
        logits_NV = times(hidden_NE, outputs(self.head, every)).float()
        return pick(logits_NV, [range(ids.start - every.start, ids.stop - every.start) for ids in allowed])

    @torch.inference_mode()
    def forward_branches(self, branches: Sequence[Sequence[int]], cache: StaticCache) -> list[Tensor]:
        """Continue the sequence in `cache` in several ways that don't see each other, in one pass.

        Returns the float32 logits [T, V] of each. `cache` needs room for all of them together, and stays as it was.
        """
        lengths = torch.tensor([len(ids) for ids in branches])
        if not (count := int(lengths.sum())):
            return [torch.empty(0, self.shape.vocab_size, device=self.device) for _ in branches]
        numbers_N = torch.arange(len(branches)).repeat_interleave(lengths)
        is_seen = (numbers_N[:, None] == numbers_N).tril()
        mask = torch.cat([torch.ones(count, cache.length, dtype=torch.bool), is_seen], dim=1).to(self.device)
        positions_N = cache.length + is_seen.sum(1) - 1

        def attend(layer: int, query_HTC: Tensor, new_2GTC: Tensor) -> Tensor:
            return self._attend(query_HTC, *cache.write(layer, new_2GTC), mask)

        ids = [index for branch in branches for index in branch]
        hidden_NE = self._layers(ids, self._turns[positions_N.to(self.device)], attend)
        return list(self.logits(self._normed(hidden_NE, self.norm)).split(lengths.tolist()))

    @torch.inference_mode()
    def forward_sequences(self, sequences: Sequence[Sequence[int]], *, last: int) -> list[Tensor]:
        """Read whole sequences together, each for itself, in one pass that leaves no cache.

        Returns the float32 logits [last, V] of the last positions of each.
        """
        counts = [len(ids) for ids in sequences]

        def attend(_: int, query_HNC: Tensor, new_2GNC: Tensor) -> Tensor:
            parts = zip(query_HNC.split(counts, dim=1), new_2GNC.split(counts, dim=2), strict=True)
            return torch.cat([self._attend(query_HTC, new_2GTC[0], new_2GTC[1], None) for query_HTC, new_2GTC in parts])

        turns_NP = torch.cat([self._turns[:count] for count in counts])
        hidden_NE = self._layers([index for ids in sequences for index in ids], turns_NP, attend)
        lasts = torch.cat([hidden_TE[-last:] for hidden_TE in hidden_NE.split(counts)])
        return list(self.logits(self._normed(lasts, self.norm)).split(last))

    def _append(self, ids: Sequence[int], cache: StaticCache) -> Tensor:
        """What ids become that follow the sequence in `cache`, before the last norm, [T, E]."""
        turns_TP = self._turns[cache.length : cache.length + len(ids)]
        hidden_TE = self._layers(ids, turns_TP, self._attending(cache, len(ids)))
        cache.advance(ids)
        return hidden_TE

    @torch.inference_mode()
    def append_rows(self, new: Sequence[Sequence[int]], cache: BatchCache, *, first: int = 0) -> Tensor:
        """Append ids to sequences in `cache`, the neighbours from row `first` on, to each one or more, in one pass.

        Those of one id are the first. Returns what `logits` takes, [R, E] of the last position of each row: as of
        `append` up to the order in which products are summed.
        """
        rows = cache.rows[first : first + len(new)]
        counts = [len(ids) for ids in new]
        spans = [range(row.length, row.length + count) for row, count in zip(rows, counts, strict=True)]
        cache.reserve(len(cache.rows), max(span.stop for span in spans))
        singles = sum(1 for _ in takewhile(lambda count: count == 1, counts))
        attends = [self._attending(row, count) for row, count in zip(rows[singles:], counts[singles:], strict=True)]
        if singles:
            counts = [singles, *counts[singles:]]
            attends.insert(0, self._attending_rows(cache, range(first, first + singles)))

        def attend(layer: int, query_HNC: Tensor, new_2GNC: Tensor) -> Tensor:
            if len(attends) == 1:
                return attends[0](layer, query_HNC, new_2GNC)
            parts = zip(attends, query_HNC.split(counts, dim=1), new_2GNC.split(counts, dim=2), strict=True)
            return torch.cat([one(layer, query_HTC, new_2GTC) for one, query_HTC, new_2GTC in parts])

        positions_N = torch.tensor([at for span in spans for at in span], device=self.device)
        hidden_NE = self._layers([index for ids in new for index in ids], self._turns[positions_N], attend)
        for row, ids in zip(rows, new, strict=True):
            row.advance(ids)
        if len(hidden_NE) > len(new):
            hidden_NE = hidden_NE[torch.tensor([len(span) for span in spans]).cumsum(0).to(self.device) - 1]
        return self._normed(hidden_NE, self.norm)

    def _attending(self, cache: StaticCache, count: int) -> Attend:
        """How that many ids attend which follow the sequence in `cache`."""
        mask = None
        if count > 1 and cache.length > 0:
            stop = cache.length + count
            mask = torch.ones(count, stop, dtype=torch.bool, device=self.device).tril(cache.length)

        def attend(layer: int, query_HTC: Tensor, new_2GTC: Tensor) -> Tensor:
            return self._attend(query_HTC, *cache.write(layer, new_2GTC), mask)

        return attend

    def _attending_rows(self, cache: BatchCache, numbers: range) -> Attend:
        """How ids attend that follow neighbouring sequences in `cache`, one each."""
        count = len(numbers)
        if count == 1:
            return self._attending(cache.rows[numbers.start], 1)
        lengths = [row.length for row in cache.rows[numbers.start : numbers.stop]]
        slots = max(lengths) + 1
        lengths_R = torch.tensor(lengths, device=self.device)
        places, (keys, values) = cache.views(numbers, slots)
        ends = torch.arange(count, device=self.device), lengths_R
        empty = (count * slots - sum(lengths) - count) * self.shape.kv_heads * self.shape.head_width
        # One by one also in bfloat16, where torch's kernel is slow for single queries and ours knows one sequence.
        is_each_alone = self.device.type == "cpu" and (empty > PADDING * count or self.dtype == torch.bfloat16)
        mask = None
        if min(lengths) + 1 < slots and not is_each_alone:
            is_empty = torch.arange(slots, device=self.device) > lengths_R[:, None]
            mask = torch.zeros(is_empty.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(is_empty, float("-inf"))[:, None, None]

        def attend(layer: int, query_HRC: Tensor, new_2GRC: Tensor) -> Tensor:
            places[layer].index_put_(ends, new_2GRC.permute(2, 0, 1, 3))
            if is_each_alone:
                rows = zip(query_HRC.split(1, dim=1), keys[layer], values[layer], lengths, strict=True)
                return torch.cat([self._attend(q, k[:, : used + 1], v[:, : used + 1], None) for q, k, v, used in rows])
            # As in `_attend`, heads that share keys stand in as positions.
            query = query_HRC.transpose(0, 1).reshape(count, self.shape.kv_heads, -1, self.shape.head_width)
            mixed = F.scaled_dot_product_attention(query, keys[layer], values[layer], attn_mask=mask, scale=1.0)
            return mixed.reshape(count, -1)

        return attend

    def _layers(self, ids: Sequence[int], turns_NP: Tensor, attend: Attend) -> Tensor:
        """What N ids become on their way through all layers, [N, E]; whose they are only `attend` knows."""
        shape = self.shape
        hidden_NE = self._embedded(ids)
        hidden_ND = hidden_NE[:, : shape.hidden_size]
        for index, layer in enumerate(self.layers):
            normed_NE = self._normed(hidden_NE, layer.norm_attention)
            heads = times(normed_NE, layer.qkv).view(len(ids), -1, shape.head_width).transpose(0, 1)
            _rotate(heads[: shape.heads + shape.kv_heads], turns_NP)
            keys_values = heads[shape.heads :].view(2, shape.kv_heads, len(ids), shape.head_width)
            add_product(hidden_ND, attend(index, heads[: shape.heads], keys_values), layer.out)
            normed_NE = self._normed(hidden_NE, layer.norm_mlp)
            gate, up = times(normed_NE, layer.gate_up).chunk(2, dim=-1)
            add_product(hidden_ND, F.silu(gate).mul_(up), layer.down)
        return hidden_NE

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        """[N, E]: on a CPU with a channel more, which holds what `_normed` adds to the length and never changes."""
        if len(ids) == 1:
            # It needs no tensor of its own, which takes a CPU as long as some product of a small model, a GPU a copy.
            rows_ND = self.embedding.narrow(0, ids[0], 1)
        else:
            rows_ND = F.embedding(torch.tensor(ids, device=self.device), self.embedding)
        return F.pad(rows_ND, (0, 1), value=self._least_length) if self.device.type == "cpu" else rows_ND.clone()

    def _normed(self, hidden_NE: Tensor, weight_D: Tensor | None) -> Tensor:
        """RMSNorm (Zhang and Sennrich 2019), [N, D]; with None [N, E], and the weight is left to what follows."""
        count = len(hidden_NE)
        if self.device.type != "cpu":
            return F.rms_norm(hidden_NE, (self.shape.hidden_size,), weight_D, self.shape.norm_eps)
        # torch's own is a row of kernels on a CPU, but it has one that divides rows by their length.
        ones_N1 = self._ones_N1
        if len(ones_N1) != count:  # of the pass before; a slice of more would take longer than the norm of a row
            ones_N1 = self._ones_N1 = ones_N1.new_ones(count, 1)
        normed_NE, _ = torch._weight_norm_interface(hidden_NE, ones_N1, 0)
        return normed_NE if weight_D is None else (normed_NE[:, :-1] * weight_D).to(self.dtype)

    def _attend(self, query_HTC: Tensor, keys_GSC: Tensor, values_GSC: Tensor, mask_TS: Tensor | None) -> Tensor:
        """Causal attention of the T newest of S positions; [T, H*C]."""
        heads, count, width = query_HTC.shape
        if count == 1:
            if heads == len(keys_GSC) and self.dtype == torch.bfloat16 and self.device.type == "cpu":
                return _attend_one(query_HTC[:, 0], keys_GSC, values_GSC).view(1, heads * width)
            # The heads that share keys stand in as positions: no mask, and no copies of keys and values.
            query = query_HTC.reshape(keys_GSC.shape[0], -1, width)
            if self.dtype == torch.float32 and self.device.type == "cpu":
                # Less to go through than torch's fused kernel, which is made for many queries.
                shares = torch.bmm(query, keys_GSC.mT).softmax(-1)
                return torch.bmm(shares, values_GSC).view(1, heads * width)
            mixed = F.scaled_dot_product_attention(query[None], keys_GSC[None], values_GSC[None], scale=1.0)
            return mixed.reshape(1, heads * width)
        mixed = F.scaled_dot_product_attention(
            query_HTC[None],
            keys_GSC[None],
            values_GSC[None],
            attn_mask=mask_TS,
            is_causal=mask_TS is None,
            scale=1.0,
            enable_gqa=heads != keys_GSC.shape[0],
        )
        return mixed[0].transpose(0, 1).reshape(count, heads * width)


def _attend_one(query_HC: Tensor, keys_HSC: Tensor, values_HSC: Tensor) -> Tensor:
    """Attention of the newest of S positions, [H, C], for bfloat16 on a CPU.

    Products are rounded to bfloat16 and summed in float32. It takes less than half the time of torch's fused kernel
    (2.13), which is made for many queries.
    """
    heads, slots, width = keys_HSC.shape
    mixed_HC = torch.empty_like(query_HC)
    size = max(1, ATTENTION_BLOCK // (slots * width))
    for start in range(0, heads, size):
        some = slice(start, start + size)
        scores_HS = (keys_HSC[some] * query_HC[some, None]).sum(-1, dtype=torch.float32)
        shares_HS = scores_HS.softmax(-1).to(values_HSC.dtype)
        mixed_HC[some] = (values_HSC[some] * shares_HS[..., None]).sum(1)
    return mixed_HC


def _paired(head_CI: Tensor) -> Tensor:
    """Outputs of a head in an order in which the two channels that are rotated together are neighbours.

    In checkpoints they are half a head apart. Scores are the same in any order that queries and keys share.
    """
    return torch.stack(head_CI.chunk(2), dim=1).view(head_CI.shape)


def _rotate(heads_HTC: Tensor, turns_TP: Tensor) -> None:
    """Rotary position embedding in place, of neighbouring channels: as one number, a pair is rotated by a product."""
    floats_HTC = heads_HTC.float()
    torch.view_as_complex(floats_HTC.view(*floats_HTC.shape[:-1], -1, 2)).mul_(turns_TP)
    if heads_HTC.dtype != torch.float32:
        heads_HTC.copy_(floats_HTC)


def load_decoder(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LlamaDecoder:
    """Load a Hugging Face LLaMA folder: `config.json` and safetensors or `pytorch_model*.bin`, one file or sharded.

    Or the folder of a LoRA adapter, which names its base. Raises CheckpointError that names the missing or damaged
    file or key.
    """
    config, getters = open_checkpoint(Path(folder))
    shape = LlamaShape.from_config(config, str(folder))

    def take(key: str) -> Tensor:
        if key not in getters:
            raise CheckpointError(f"{folder}: weights lack '{key}', which config.json calls for")
        return getters[key](key)

    return LlamaDecoder(shape, take, dtype=dtype, device=device, source=str(folder))


def open_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Callable[[str], Tensor]]]:
    """The parsed `config.json` of a model folder, and for each key of its weights the function that reads it.

    Of an adapter's folder: those of its base, with the adapter in them.
    """
    if is_adapter(folder):
        adapter = Adapter(folder)
        adapter.check_weights(weight_files(adapter.base))
        config, getters = open_checkpoint(adapter.base)
        config["vocab_size"] = adapter.rows(int(config["vocab_size"]))
        return config, adapter.apply(getters, tied_head=bool(config.get("tie_word_embeddings", False)))
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{config_path}: missing; a model folder holds config.json and the weights")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config_path}: not valid JSON ({error})") from None
    return config, {key: get for file in weight_files(folder) for key, get in open_weights(file)}


def weight_files(folder: Path, stems: Sequence[str] = ("model.safetensors", "pytorch_model.bin")) -> list[Path]:
    """The files that hold a model's weights, in order: one of `stems`, or its shards. Raises CheckpointError."""
    for stem in stems:
        index_path = folder / f"{stem}.index.json"
        if index_path.is_file():
            names = sorted(set(json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()))
            for name in names:
                if not (folder / name).is_file():
                    raise CheckpointError(f"{folder / name}: missing, although {index_path.name} lists it")
            return [folder / name for name in names]
        if (folder / stem).is_file():
            return [folder / stem]
    raise CheckpointError(f"{folder}: no weights; expected {' or '.join(stems)} (or shards)")


def open_weights(file: Path) -> list[tuple[str, Callable[[str], Tensor]]]:
    """Every key of a weights file with the function that reads its tensor; nothing is read yet."""

    def opened() -> tuple[list[str], Callable[[str], Tensor]]:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            reader = safe_open(file, framework="pt")
            return list(reader.keys()), reader.get_tensor
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return list(tensors), tensors.__getitem__

    try:
        keys, get = opened()
    except Exception as error:  # safetensors and torch raise a different type for every kind of damage
        raise CheckpointError(f"{file}: damaged or not a weights file ({type(error).__name__})") from None
    if file.stat().st_size > MAPPED_BYTES:
        # What has been read of a mapping counts as memory of the process as long as the mapping lives, which is as
        # long as a tensor of it: each gets one of its own.
        return [(key, lambda key: opened()[1](key)) for key in keys]
    return [(key, get) for key in keys]
