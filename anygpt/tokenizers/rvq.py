"""Residual vector quantization with the training method of SoundStream and Encodec.

State-dict names are the released SpeechTokenizer's: `vq.layers.<i>._codebook.{inited,cluster_size,embed,embed_avg}`.

Shape suffixes: B batch, C channels (dimension), T frames, K levels, N vectors (B * T), E codebook entries.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from anygpt.errors import CodeError

_SMOOTHING = 1e-5
"""Added to every entry's count before dividing, so that an entry without members keeps a finite mean."""


class Codebook(nn.Module):
    """One level's entries, learned as exponential moving averages of the vectors that chose them.

    Source: van den Oord et al. 2017, appendix A.1; dead-code restarts: Zeghidour et al. 2021, section III-C.
    """

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(
        self, dimension: int, codebook_size: int, *, decay: float, kmeans_iterations: int, restart_below: float
    ):
        super().__init__()
        self.decay = decay
        self.kmeans_iterations = kmeans_iterations
        self.restart_below = restart_below
        embed_EC = torch.randn(codebook_size, dimension)
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.register_buffer("embed", embed_EC)
        self.register_buffer("embed_avg", embed_EC.clone())

    def nearest(self, x_NC: Tensor) -> Tensor:
        """Index of the entry with the smallest Euclidean distance to each row, int64 [N]."""
        return _nearest(x_NC, self.embed.float())

    def lookup(self, codes: Tensor) -> Tensor:
        """Entries of `codes` [...], float32 [..., C]."""
        return F.embedding(codes, self.embed.float())

    @torch.no_grad()
    def initialize(self, x_NC: Tensor, generator: torch.Generator | None) -> None:
        """Place the entries by k-means over the rows of `x_NC`, which may be fewer than the entries."""
        size = len(self.embed)
        if len(x_NC) >= size:
            means_EC = x_NC[torch.randperm(len(x_NC), generator=generator)[:size].to(x_NC.device)]
        else:
            means_EC = _random_rows(x_NC, size, generator)
        counts_E, sums_EC = _members(x_NC, _nearest(x_NC, means_EC), size)
        for _ in range(self.kmeans_iterations):
            means_EC = torch.where(counts_E[:, None] > 0, sums_EC / counts_E[:, None].clamp(min=1), means_EC)
            counts_E, sums_EC = _members(x_NC, _nearest(x_NC, means_EC), size)
        self.embed.copy_(means_EC)
        self.embed_avg.copy_(means_EC * counts_E[:, None])
        self.cluster_size.copy_(counts_E)
        self.inited.fill_(1)

    @torch.no_grad()
    def update(self, x_NC: Tensor, codes_N: Tensor, generator: torch.Generator | None) -> None:
        """Move the entries towards their members and restart those that hardly anything chooses."""
        size = len(self.embed)
        counts_E, sums_EC = _members(x_NC, codes_N, size)
        self.cluster_size.lerp_(counts_E, 1 - self.decay)
        self.embed_avg.lerp_(sums_EC, 1 - self.decay)
        mean_count = len(x_NC) / size
        dead_E = self.cluster_size < self.restart_below * mean_count
        num_dead = int(dead_E.sum())
        if num_dead:
            # A restarted entry gets the count of an average one: time to gather members before it is judged again.
            self.cluster_size[dead_E] = mean_count
            self.embed_avg[dead_E] = _random_rows(x_NC, num_dead, generator) * mean_count
        total = self.cluster_size.sum()
        smoothed_E = (self.cluster_size + _SMOOTHING) / (total + size * _SMOOTHING) * total
        self.embed.copy_(self.embed_avg / smoothed_E[:, None])


class _Level(nn.Module):
    """Holds the codebook under the released name."""

    def __init__(self, codebook: Codebook):
        super().__init__()
        self._codebook = codebook


class _Levels(nn.Module):
    """Holds the levels under the released name."""

    def __init__(self, codebooks: Sequence[Codebook]):
        super().__init__()
        self.layers = nn.ModuleList(_Level(codebook) for codebook in codebooks)


class ResidualVectorQuantizer(nn.Module):
    """Quantizes vectors by levels, each level coding what the levels before it left over.

    In train mode `forward` learns the codebooks: k-means placement from the first batch, moving averages with
    `decay`, and a restart from a random vector of the batch for entries whose average count falls below
    `restart_below` times the count of uniform use. With probability `quantizer_dropout` a batch item is rebuilt from
    its first n levels only, n uniform. In eval mode, and in `encode` and `decode` always, nothing changes. All
    arithmetic is float32, under autocast too. Random numbers come from the CPU generator `generator`, or from
    torch's default one.

    Source: SoundStream (Zeghidour et al. 2021, section III-C); SpeechTokenizer (Zhang et al. 2023, section 3.2).
    """

    def __init__(
        self,
        dimension: int,
        codebook_size: int,
        num_quantizers: int,
        *,
        decay: float = 0.99,
        kmeans_iterations: int = 10,
        restart_below: float = 0.1,
        quantizer_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.dimension = dimension
        self.codebook_size = codebook_size
        self.num_quantizers = num_quantizers
        self.quantizer_dropout = quantizer_dropout
        self.generator = generator
        self.vq = _Levels(
            [
                Codebook(
                    dimension,
                    codebook_size,
                    decay=decay,
                    kmeans_iterations=kmeans_iterations,
                    restart_below=restart_below,
                )
                for _ in range(num_quantizers)
            ]
        )

    @property
    def codebooks(self) -> list[Codebook]:
        return [level._codebook for level in self.vq.layers]  # type: ignore[misc]

    def codebook_tensors(self) -> list[tuple[str, Tensor]]:
        """The names and entries of all codebooks: the only state that decides codes."""
        return [(f"vq.layers.{i}._codebook.embed", book.embed) for i, book in enumerate(self.codebooks)]

    @torch.no_grad()
    def encode(self, x_BCT: Tensor, n_q: int | None = None, st: int = 0) -> Tensor:
        """Codes int64 [K, B, T] of levels `st` up to, not including, `n_q` (default: all).

        The first level used sees `x_BCT` itself, whatever `st`, as in the released model. Raises CodeError when no
        level is left.
        """
        end = self.num_quantizers if n_q is None else n_q
        if not 0 <= st < end <= self.num_quantizers:
            raise CodeError(f"levels st={st} to n_q={end}: need 0 <= st < n_q <= {self.num_quantizers}")
        batch, _, frames = x_BCT.shape
        with torch.autocast(x_BCT.device.type, enabled=False):
            residual_NC = _to_rows(x_BCT)
            codes = []
            for codebook in self.codebooks[st:end]:
                codes_N = codebook.nearest(residual_NC)
                residual_NC = residual_NC - codebook.lookup(codes_N)
                codes.append(codes_N.view(batch, frames))
        return torch.stack(codes)

    def decode(self, codes_KBT: Tensor, st: int = 0) -> Tensor:
        """Sum of the entries, float32 [B, C, T]; `codes_KBT[0]` belongs to level `st`."""
        books = self.codebooks[st : st + len(codes_KBT)]
        if not books or len(books) < len(codes_KBT):
            raise CodeError(f"{len(codes_KBT)} levels from level {st} on: the quantizer has {self.num_quantizers}")
        x_BTC = books[0].lookup(codes_KBT[0])
        for codebook, codes_BT in zip(books[1:], codes_KBT[1:], strict=True):
            x_BTC = x_BTC + codebook.lookup(codes_BT)
        return x_BTC.transpose(1, 2)

    def forward(
        self, x_BCT: Tensor, n_q: int | None = None, layers: Sequence[int] | None = None, st: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Quantize with gradients passed straight through to `x_BCT`.

        Runs levels `st` up to, not including, `n_q` (default: all), the first of them on `x_BCT` itself. Returns the
        sum of their entries [B, C, T], the codes int64 [K, B, T], the commitment loss (mean over levels; 0 in eval
        mode) and, for every level in `layers` (default: each one that ran), that level's own entries [B, C, T].
        Raises CodeError when no level is left or `layers` names one that doesn't run.
        """
        end = self.num_quantizers if n_q is None else n_q
        wanted = range(st, end) if layers is None else layers
        if not 0 <= st < end <= self.num_quantizers or not all(st <= i < end for i in wanted):
            raise CodeError(f"n_q {n_q} from {st} with layers {layers}: the quantizer has {self.num_quantizers} levels")
        batch, _, frames = x_BCT.shape
        codes: list[Tensor] = []
        per_level: list[Tensor] = []
        with torch.autocast(x_BCT.device.type, enabled=False):
            x_NC = _to_rows(x_BCT)
            keep_KN1 = self._levels_kept(batch, frames, end - st, x_NC.device)
            residual_NC, total_NC = x_NC, torch.zeros_like(x_NC)
            loss = x_NC.new_zeros(())
            for level, codebook in enumerate(self.codebooks[st:end]):
                entries_NC, codes_N = self._quantize(codebook, residual_NC.detach())
                codes.append(codes_N.view(batch, frames))
                if self.training:
                    loss = loss + F.mse_loss(residual_NC, entries_NC)
                per_level.append(_to_frames(_straight_through(entries_NC, residual_NC), batch, x_BCT.dtype))
                total_NC = total_NC + (entries_NC if keep_KN1 is None else entries_NC * keep_KN1[level])
                residual_NC = residual_NC - entries_NC
            quantized_BCT = _to_frames(_straight_through(total_NC, x_NC), batch, x_BCT.dtype)
        return quantized_BCT, torch.stack(codes), loss / (end - st), [per_level[i - st] for i in wanted]

    @torch.no_grad()
    def _quantize(self, codebook: Codebook, x_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Entries and codes of the rows; in train mode the codebook then learns from them."""
        if self.training and not codebook.inited.item():
            codebook.initialize(x_NC, self.generator)
        codes_N = codebook.nearest(x_NC)
        # The lookup copies, so the entries stay those before the update.
        entries_NC = codebook.lookup(codes_N)
        if self.training:
            codebook.update(x_NC, codes_N, self.generator)
        return entries_NC, codes_N

    def _levels_kept(self, batch: int, frames: int, end: int, device: torch.device) -> Tensor | None:
        """Quantizer dropout's mask of 0 and 1 by level and row, or None when every level counts."""
        if not self.training or self.quantizer_dropout == 0 or end == 1:
            return None
        dropped_B = torch.rand(batch, generator=self.generator) < self.quantizer_dropout
        random_B = torch.randint(1, end + 1, (batch,), generator=self.generator)
        levels_N = torch.where(dropped_B, random_B, end).repeat_interleave(frames)
        return (torch.arange(end)[:, None] < levels_N).float()[..., None].to(device)


def _nearest(x_NC: Tensor, embed_EC: Tensor) -> Tensor:
    # |x - e|^2 without its |x|^2, which is the same for every entry: one matrix product and one argmin.
    return torch.addmm(embed_EC.square().sum(1), x_NC, embed_EC.t(), alpha=-2).argmin(1)


def _members(x_NC: Tensor, codes_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number [E] and sum [E, C] of the rows that chose each entry."""
    counts_E = torch.bincount(codes_N, minlength=size).to(x_NC.dtype)
    return counts_E, x_NC.new_zeros(size, x_NC.shape[1]).index_add_(0, codes_N, x_NC)


def _random_rows(x_NC: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    return x_NC[torch.randint(len(x_NC), (count,), generator=generator).to(x_NC.device)]


def _straight_through(quantized: Tensor, x: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of `x`; without a gradient to pass, `quantized` to the bit."""
    return x + (quantized - x).detach() if x.requires_grad else quantized


def _to_rows(x_BCT: Tensor) -> Tensor:
    return rearrange(x_BCT.float(), "b c t -> (b t) c")


def _to_frames(x_NC: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    return rearrange(x_NC, "(b t) c -> b c t", b=batch).to(dtype)
