"""A light audio codec: short-time spectra in, ConvNeXt blocks, residual vector quantization, inverse STFT out.

It stands in for SEANet under the contracts of SpeechTokenizer and Encodec where training time is short: all its
layers run at the frame rate of the codes. Sources: ConvNeXt blocks and the inverse-STFT head, Vocos (Siuzdak 2023,
section 3); residual quantization whose first level carries what is said, SpeechTokenizer (Zhang et al. 2023,
section 3.2).

Shape suffixes: B batch, T frames, L samples, C channels, F features, K levels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anygpt.config import from_dict
from anygpt.errors import CodeError, ConfigError
from anygpt.tokenizers.rvq import ResidualVectorQuantizer
from anygpt.tokenizers.streams import Stage, Windowed

_POWER_FLOOR = 1e-6
"""Power added before every logarithm of an input feature: about 40 dB below quiet speech."""
_MAX_LOG_MAGNITUDE = 6.0
"""Upper bound of the head's log-magnitudes, so that an untrained or confused head can't overflow."""


@dataclass(frozen=True, kw_only=True)
class SpectralConfig:
    """Sizes of a `SpectralCodec`; windows and hops are in samples."""

    sample_rate: int = 16_000
    hop_length: int = 320
    codebook_size: int = 256
    n_q: int = 8
    dimension: int = 32
    """Width of the quantized vectors."""
    analysis: tuple[tuple[int, int], ...] = ((1280, 320), (640, 160))
    """(window, hop) of the spectra that the encoder sees; hops divide `hop_length`."""
    synthesis: tuple[int, int] = (1280, 320)
    """(window, hop) of the inverse STFT; the hop divides `hop_length` and the window."""
    encoder_width: int = 192
    encoder_depth: int = 3
    decoder_width: int = 208
    decoder_depth: int = 6
    expansion: int = 3
    kernel_size: int = 7
    """Frames that a block of the decoder and of the semantic branch sees."""
    encoder_kernel_size: int = 7
    """The same of the acoustic encoder: small, equal sounds get equal codes whatever is around them."""
    semantic: bool = False
    """Whether a branch of its own makes the first level; otherwise a plain residual quantizer."""
    semantic_width: int = 160
    semantic_depth: int = 3
    semantic_mels: int = 80
    semantic_analysis: tuple[int, int] = (400, 160)

    def __post_init__(self) -> None:
        for window, hop in (*self.analysis, self.synthesis, self.semantic_analysis):
            if self.hop_length % hop or window < hop or (window - hop) % 2:
                raise ConfigError(
                    f"spectral codec: window {window} with hop {hop}: the hop must divide hop_length "
                    f"({self.hop_length}), and the window exceed it by an even number"
                )
        if self.kernel_size % 2 == 0 or self.encoder_kernel_size % 2 == 0:
            raise ConfigError("spectral codec: kernel sizes must be odd, for as much context on both sides")
        if self.synthesis[0] % self.synthesis[1]:
            raise ConfigError(f"spectral codec: synthesis {self.synthesis}: the hop must divide the window")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return asdict(self)


class _DepthwiseConv(torch.autograd.Function):
    """Same-padded depthwise convolution over [B, T, C]: as `conv1d` by groups, about five times faster on a CPU."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, weight_KC: Tensor, bias_C: Tensor) -> Tensor:
        taps, frames = len(weight_KC), x_BTC.shape[1]
        padded = F.pad(x_BTC, (0, 0, taps // 2, taps // 2))
        y = torch.addcmul(bias_C, padded[:, :frames], weight_KC[0])
        for k in range(1, taps):
            y.addcmul_(padded[:, k : k + frames], weight_KC[k])
        ctx.save_for_backward(padded, weight_KC)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor]:
        (grad_BTC,) = grads
        padded, weight_KC = ctx.saved_tensors
        taps, frames = len(weight_KC), grad_BTC.shape[1]
        padded_grad = F.pad(grad_BTC, (0, 0, taps // 2, taps // 2))
        grad_x = padded_grad[:, :frames] * weight_KC[taps - 1]
        for k in range(1, taps):
            grad_x.addcmul_(padded_grad[:, k : k + frames], weight_KC[taps - 1 - k])
        grad_weight = torch.stack([(padded[:, k : k + frames] * grad_BTC).sum((0, 1)) for k in range(taps)])
        return grad_x, grad_weight, grad_BTC.sum((0, 1))


class DepthwiseConv(nn.Module):
    """Depthwise convolution over time of [B, T, C], zero-padded to the same length."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernel_size, width) / kernel_size**0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTC: Tensor) -> Tensor:
        if x_BTC.device.type == "cpu":
            return _DepthwiseConv.apply(x_BTC, self.weight, self.bias)
        kernel_C1K = self.weight.t().unsqueeze(1)
        y_BCT = F.conv1d(
            x_BTC.transpose(1, 2), kernel_C1K, self.bias, padding=len(self.weight) // 2, groups=len(self.bias)
        )
        return y_BCT.transpose(1, 2)


def _apply(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)` computed in the dtype of its weights, returned in that of `x`."""
    return linear(x.to(linear.weight.dtype)).to(x.dtype)


class _Block(nn.Module):
    """ConvNeXt block on [B, T, C]."""

    def __init__(self, width: int, expansion: int, kernel_size: int, scale: float):
        super().__init__()
        self.conv = DepthwiseConv(width, kernel_size)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width * expansion)
        self.down = nn.Linear(width * expansion, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x_BTC: Tensor) -> Tensor:
        hidden = self.norm(self.conv(x_BTC)).to(self.up.weight.dtype)
        return torch.addcmul(x_BTC, self.down(F.gelu(self.up(hidden))).to(x_BTC.dtype), self.scale)


class ConvNeXtStack(nn.Module):
    """Linear in, ConvNeXt blocks, LayerNorm, linear out, all on [B, T, C].

    A block looks `kernel_size // 2` frames to each side. Matrix products run in the dtype of their weights,
    everything else in float32.
    """

    def __init__(self, in_width: int, width: int, out_width: int, *, depth: int, expansion: int, kernel_size: int):
        super().__init__()
        self.linear_in = nn.Linear(in_width, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(_Block(width, expansion, kernel_size, depth**-0.5) for _ in range(depth)))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, out_width)

    def forward(self, x_BTF: Tensor) -> Tensor:
        x_BTC = self.blocks(self.norm_in(_apply(self.linear_in, x_BTF)))
        return _apply(self.linear_out, self.norm_out(x_BTC))


def mel_filters(num_mels: int, window: int, sample_rate: int, *, warp: float = 1.0) -> Tensor:
    """Triangular filters on the mel scale (O'Shaughnessy 1987), float32 [window // 2 + 1, num_mels], of unit sum.

    `warp` multiplies the filters' frequencies: above 1 the spectrum seems lower, as of a longer vocal tract.
    """
    top_mel = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    edges_hz = 700 * (10 ** (torch.linspace(0, 1, num_mels + 2, dtype=torch.float64) * top_mel / 2595) - 1)
    edges_bin = edges_hz * warp * window / sample_rate
    bins = torch.arange(window // 2 + 1, dtype=torch.float64)[:, None]
    # Low filters are narrower than a bin: at least one bin each side, so that none is empty.
    left, centre, right = edges_bin[:-2], edges_bin[1:-1], edges_bin[2:]
    rising = (bins - centre) / (centre - left).clamp(min=1) + 1
    falling = (centre - bins) / (right - centre).clamp(min=1) + 1
    weights = torch.minimum(rising, falling).clamp(min=0)
    return (weights / weights.sum(0).clamp(min=1e-3)).float()


def power_spectra(wav_BL: Tensor, window: Tensor, hop: int) -> Tensor:
    """Power of the frames of `wav_BL`, float32 [B, L / hop, bins]; frame t is centred on sample t * hop + hop / 2.

    L must be a multiple of `hop`; the signal is taken to be zero outside. Normalised so that white noise keeps its
    variance.
    """
    assert wav_BL.shape[-1] % hop == 0, (wav_BL.shape, hop)
    size = len(window)
    frames = F.pad(wav_BL, ((size - hop) // 2,) * 2).unfold(-1, size, hop)
    parts = torch.view_as_real(torch.fft.rfft(frames * (window / window.square().sum().sqrt())))
    return parts[..., 0].square().addcmul(parts[..., 1], parts[..., 1])


class _InverseFFT(torch.autograd.Function):
    """Real signals [..., 2 * (F - 1)] of spectra given as log-magnitude and phase [..., F].

    As `irfft(polar(exp(log_magnitude), phase))`, whose backward pass takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, log_magnitude: Tensor, phase: Tensor) -> Tensor:
        spectrum = torch.polar(log_magnitude.exp(), phase)
        ctx.save_for_backward(spectrum)
        return torch.fft.irfft(spectrum)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        (spectrum,) = ctx.saved_tensors
        size = grads[0].shape[-1]
        grad = torch.fft.rfft(grads[0]) * spectrum.conj()
        # Inner bins stand for two, their own and the conjugate one; the imaginary part of the outer ones is ignored.
        scale = torch.full((spectrum.shape[-1],), 2.0 / size, device=grad.device)
        scale[0] = scale[-1] = 1.0 / size
        parts = torch.view_as_real(grad) * scale[:, None]
        return parts[..., 0], parts[..., 1]


def overlap_add(frames_BTS: Tensor, window: Tensor, hop: int) -> Tensor:
    """Signal [B, T * hop] of which `frames_BTS` are the unwindowed frames, placed as in `power_spectra`.

    Frames that disagree are averaged by the squared window (Griffin and Lim 1984, equation 6). The window's length
    must be a multiple of `hop`.
    """
    size = len(window)
    batch, frames, _ = frames_BTS.shape
    overlap = size // hop
    pieces = (frames_BTS * window).view(batch, frames, overlap, hop)
    weights = window.square().view(1, 1, overlap, hop).expand(1, frames, overlap, hop)
    both = torch.cat([pieces, weights])
    total = sum(F.pad(both[:, :, i], (0, 0, i, overlap - 1 - i)) for i in range(overlap))
    assert isinstance(total, Tensor)
    trim = (size - hop) // 2
    total = total.flatten(1)[:, trim : trim + frames * hop]
    return total[:batch] / total[batch:]


class _Encoder(nn.Module):
    """The acoustic stack and, if there is one, the semantic stack, with what they see."""

    semantic: ConvNeXtStack | None

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        features = 0
        for window, hop in config.analysis:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)
            features += (window // 2 + 1) * (config.hop_length // hop)
        self.acoustic = _stack(
            config,
            features,
            config.encoder_width,
            config.dimension,
            config.encoder_depth,
            kernel_size=config.encoder_kernel_size,
        )
        self.semantic = None
        if config.semantic:
            window, hop = config.semantic_analysis
            self.register_buffer("window_semantic", torch.hann_window(window), persistent=False)
            filters = mel_filters(config.semantic_mels, window, config.sample_rate)
            self.register_buffer("filters_semantic", filters, persistent=False)
            features = config.semantic_mels * (config.hop_length // hop)
            self.semantic = _stack(config, features, config.semantic_width, config.dimension, config.semantic_depth)

    def acoustic_latent(self, wav_BL: Tensor) -> Tensor:
        parts = []
        for window, hop in self.config.analysis:
            power = power_spectra(wav_BL, self.get_buffer(f"window_{window}"), hop)
            parts.append(_per_frame(_log_feature(power), self.config.hop_length // hop))
        return self.acoustic(torch.cat(parts, dim=-1))

    def semantic_power(self, wav_BL: Tensor) -> Tensor:
        return power_spectra(wav_BL, self.get_buffer("window_semantic"), self.config.semantic_analysis[1])

    def semantic_latent(self, power_BSF: Tensor, filters: Tensor | None = None) -> Tensor:
        assert self.semantic is not None, "this codec has no semantic branch"
        mel = power_BSF @ (self.get_buffer("filters_semantic") if filters is None else filters)
        features = _per_frame(_log_feature(mel), self.config.hop_length // self.config.semantic_analysis[1])
        return F.normalize(self.semantic(features), dim=-1)


class SpectralCodec(nn.Module):
    """Codec of `SpectralConfig`'s sizes.

    With `semantic`, level 1 quantizes the unit vectors of a branch of its own (meant to be distilled from a semantic
    teacher), and the other levels code what a projection of its entries leaves over of the acoustic encoder's
    output. Either way the decoder gets the sum of the levels' vectors.
    """

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self.codebook_size = config.codebook_size
        self.n_q = config.n_q
        self.encoder = _Encoder(config)
        self.quantizer = ResidualVectorQuantizer(config.dimension, config.codebook_size, config.n_q)
        if config.semantic:
            self.semantic_projection = nn.Linear(config.dimension, config.dimension, bias=False)
        window, hop = config.synthesis
        self.register_buffer("window_out", torch.hann_window(window), persistent=False)
        bins_out = 2 * (window // 2 + 1) * (config.hop_length // hop)
        self.decoder = _stack(config, config.dimension, config.decoder_width, bins_out, config.decoder_depth)

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], source: str) -> Self:
        """Build the codec with fresh weights from plain data. Raises ConfigError that begins with `source`."""
        return cls(from_dict(SpectralConfig, mapping, source))

    @torch.no_grad()
    def encode(self, wav_B1T: Tensor, n_q: int | None = None) -> Tensor:
        """Codes int64 [n_q, B, frames] of `wav_B1T` float32 [B, 1, samples], frames = ceil(samples / hop_length).

        `n_q` defaults to all levels; with `semantic`, the first one alone needs no acoustic encoder. The end is
        zero-padded to a full frame. Raises CodeError for an empty signal.
        """
        samples = wav_B1T.shape[-1]
        if samples == 0:
            raise CodeError("encode: the signal is empty")
        wav_BL = F.pad(wav_B1T[:, 0].float(), (0, -samples % self.hop_length))
        if not self.config.semantic:
            return self.quantizer.encode(self.encoder.acoustic_latent(wav_BL).transpose(1, 2), n_q=n_q)
        semantic_BTC = self.encoder.semantic_latent(self.encoder.semantic_power(wav_BL))
        first_1BT = self.quantizer.encode(semantic_BTC.transpose(1, 2), n_q=1)
        if (self.n_q if n_q is None else n_q) == 1:
            return first_1BT
        residual_BTC = self.encoder.acoustic_latent(wav_BL) - self.vectors(first_1BT)
        return torch.cat([first_1BT, self.quantizer.encode(residual_BTC.transpose(1, 2), n_q=n_q, st=1)])

    @torch.no_grad()
    def decode(self, codes_KBT: Tensor) -> Tensor:
        """Signal float32 [B, 1, frames * hop_length] of the first K levels, 1 <= K <= n_q.

        Raises CodeError for another number of levels or for codes out of range.
        """
        if codes_KBT.ndim != 3 or not 1 <= len(codes_KBT) <= self.n_q or not codes_KBT.numel():
            raise CodeError(f"decode: codes of shape {tuple(codes_KBT.shape)}; need [1 to {self.n_q}, batch, frames]")
        low, high = int(codes_KBT.min()), int(codes_KBT.max())
        if low < 0 or high >= self.codebook_size:
            raise CodeError(f"decode: codes from {low} to {high}; need 0 to {self.codebook_size - 1}")
        return self.synthesize(self.vectors(codes_KBT)).unsqueeze(1)

    def decode_stages(self) -> list[Stage]:
        """`decode` as one window: every block looks half a kernel to each side, the frames of the inverse STFT reach
        as far as their window."""
        window, hop = self.config.synthesis
        overlap = -(-(window - hop) // (2 * self.hop_length))
        context = self.config.decoder_depth * (self.config.kernel_size // 2) + overlap
        return [Windowed(self.decode, context, self.hop_length)]

    def vectors(self, codes_KBT: Tensor) -> Tensor:
        """Sum of the vectors of the first K levels, [B, T, dimension]."""
        if not self.config.semantic:
            return self.quantizer.decode(codes_KBT).transpose(1, 2)
        total_BTC = self.semantic_projection(self.quantizer.decode(codes_KBT[:1]).transpose(1, 2))
        if len(codes_KBT) > 1:
            total_BTC = total_BTC + self.quantizer.decode(codes_KBT[1:], st=1).transpose(1, 2)
        return total_BTC

    def synthesize(self, latent_BTC: Tensor) -> Tensor:
        """Signal [B, T * hop_length] of a sum of the levels' vectors."""
        window, hop = self.config.synthesis
        batch, frames, _ = latent_BTC.shape
        repeats = self.hop_length // hop
        head = self.decoder(latent_BTC).float().view(batch, frames * repeats, 2, window // 2 + 1)
        signals = _InverseFFT.apply(head[:, :, 0].clamp(max=_MAX_LOG_MAGNITUDE), head[:, :, 1])
        return overlap_add(signals, self.get_buffer("window_out"), hop)


def _stack(
    config: SpectralConfig, in_width: int, width: int, out_width: int, depth: int, kernel_size: int | None = None
) -> ConvNeXtStack:
    return ConvNeXtStack(
        in_width,
        width,
        out_width,
        depth=depth,
        expansion=config.expansion,
        kernel_size=kernel_size or config.kernel_size,
    )


def _log_feature(power: Tensor) -> Tensor:
    """Logarithm of a power, brought to about unit range."""
    return 0.25 * ((power + _POWER_FLOOR).log() + 8.0)


def _per_frame(x_BSF: Tensor, repeats: int) -> Tensor:
    """[B, T * repeats, F] -> [B, T, repeats * F]."""
    batch, steps, features = x_BSF.shape
    return x_BSF.reshape(batch, steps // repeats, repeats * features)


def keeps_float32(name: str) -> bool:
    """Whether a codec's parameter stays float32 in bfloat16 training: all but the stacks' matrices and their biases.

    Convolutions, norms and scales work on the float32 residual stream.
    """
    return not any(part in name for part in (".up.", ".down.", ".linear_in.", ".linear_out."))


def uses_muon(name: str) -> bool:
    """Whether Muon trains a codec's parameter: the blocks' matrices, not those that read features or write spectra."""
    return name.endswith((".up.weight", ".down.weight"))
