"""SpeechTokenizer's network: SEANet, residual quantizer and the projection to the semantic teacher.

Shape suffixes: B batch, C channels (dimension), K levels, T frames or samples, S semantic dimension.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from torch import Tensor, nn

from anygpt.config import from_dict
from anygpt.tokenizers.rvq import ResidualVectorQuantizer
from anygpt.tokenizers.speechtokenizer.config import SpeechTokenizerConfig
from anygpt.tokenizers.speechtokenizer.seanet import SEANetDecoder, SEANetEncoder
from anygpt.tokenizers.streams import Stage


class SpeechTokenizerModel(nn.Module):
    """Waveform -> codes -> waveform; parameter names are those of the released checkpoints.

    Source: SpeechTokenizer (Zhang et al. 2023, section 3).
    """

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self.codebook_size = config.codebook_size
        self.n_q = config.n_q
        shape: dict[str, Any] = {
            "n_filters": config.n_filters,
            "strides": config.strides,
            "dimension": config.dimension,
            "n_residual_layers": config.n_residual_layers,
            "residual_kernel_size": config.residual_kernel_size,
            "dilation_base": config.dilation_base,
            "lstm_layers": config.lstm_layers,
            "activation": config.activation,
        }
        self.encoder = SEANetEncoder(**shape, bidirectional=config.bidirectional)
        self.transform = (
            nn.Identity()
            if config.dimension == config.semantic_dimension
            else nn.Linear(config.dimension, config.semantic_dimension)
        )
        self.quantizer = ResidualVectorQuantizer(config.dimension, config.codebook_size, config.n_q)
        self.decoder = SEANetDecoder(**shape)

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], source: str) -> Self:
        """Build from the fields of `SpeechTokenizerConfig`; ConfigError messages begin with `source`."""
        return cls(from_dict(SpeechTokenizerConfig, mapping, source=source))

    def forward(
        self, wav_B1T: Tensor, n_q: int | None = None, layers: Sequence[int] = (0,)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rebuild through the first `n_q` levels: waveform [B, 1, T rounded up to whole frames], commitment loss
        (0 in eval mode) and the semantic feature [B, T, S] of the first level in `layers`.
        """
        quantized_BCT, _, commitment, per_level = self.quantizer(self.encoder(wav_B1T), n_q=n_q, layers=layers)
        return self.decoder(quantized_BCT), commitment, self.transform(per_level[0].transpose(1, 2))

    def forward_feature(self, wav_B1T: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """The quantized vectors [B, C, T] of each level in `layers` (default: all)."""
        return cast(list[Tensor], self.quantizer(self.encoder(wav_B1T), layers=layers)[3])

    def encode(self, wav_B1T: Tensor, n_q: int | None = None, st: int = 0) -> Tensor:
        """Codes int64 [K, B, ceil(T / hop_length)] of levels `st` up to, not including, `n_q`.

        With `st` > 0 that level sees the encoder's output itself, not what the levels before it left over.
        """
        return self.quantizer.encode(self.encoder(wav_B1T), n_q=n_q, st=st)

    def decode(self, codes_KBT: Tensor, st: int = 0) -> Tensor:
        """Waveform [B, 1, T * hop_length]; `codes_KBT[0]` belongs to level `st`."""
        return cast(Tensor, self.decoder(self.quantizer.decode(codes_KBT, st=st)))

    def decode_stages(self) -> list[Stage]:
        """`decode` in parts: the LSTM runs forward, and convolutions look a few frames to both sides."""
        return self.decoder.stages(self.quantizer.decode)
