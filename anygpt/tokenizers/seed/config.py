"""Hyper-parameters of the image tokenizer, nested as the published configuration nests them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anygpt.config import from_dict
from anygpt.errors import ConfigError
from anygpt.tokenizers.seed.blocks import check_activation, check_heads


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """The image encoder; the defaults are those of the released tokenizer (EVA-CLIP ViT-g)."""

    img_size: int = 224
    patch_size: int = 14
    in_chans: int = 3
    embed_dim: int = 1408
    depth: int = 39
    num_heads: int = 16
    mlp_ratio: float = 4.3637
    mlp_hidden: int | None = None
    """Width inside the MLP; None means int(embed_dim * mlp_ratio)."""
    qkv_bias: bool = True
    """Whether queries and values have a bias (keys never do)."""
    ln_eps: float = 1e-6
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        check_heads("vit", self.embed_dim, self.num_heads)
        check_activation("vit", self.hidden_act)
        if self.img_size % self.patch_size:
            raise ConfigError(f"vit: img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def num_patches(self) -> int:
        return (self.img_size // self.patch_size) ** 2

    @property
    def mlp_width(self) -> int:
        return int(self.embed_dim * self.mlp_ratio) if self.mlp_hidden is None else self.mlp_hidden


@dataclass(frozen=True, kw_only=True)
class QformerConfig:
    """The causal query transformer (BERT-base shape in the released tokenizer)."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    cross_attention_freq: int = 2
    """Layers 0, f, 2f, ... look at the image."""
    max_position_embeddings: int | None = None
    """Length of the unused `position_ids` buffer in released checkpoints; None leaves the buffer out."""

    def __post_init__(self) -> None:
        check_heads("qformer", self.hidden_size, self.num_attention_heads)
        check_activation("qformer", self.hidden_act)
        if self.cross_attention_freq < 1:
            raise ConfigError(f"qformer.cross_attention_freq: {self.cross_attention_freq}; give 1 or more")


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """The transformer blocks that turn codes into the image embedding."""

    depth: int = 4
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    ln_eps: float = 1e-6
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        check_activation("decode_blocks", self.hidden_act)


@dataclass(frozen=True, kw_only=True)
class SeedConfig:
    """Everything that decides the shapes and the arithmetic of `SeedModel`; the defaults are the released tokenizer."""

    vit: VitConfig = field(default_factory=VitConfig)
    ln_vision_eps: float = 1e-5
    qformer: QformerConfig = field(default_factory=QformerConfig)
    num_query_token: int = 32
    n_embed: int = 8192
    """Entries of the codebook."""
    codebook_embed_dim: int = 32
    decode_blocks: BlocksConfig = field(default_factory=BlocksConfig)
    recon_s: bool = False
    """Carry the second decoder (`pos_embed`, `blocks`), which released checkpoints hold but nothing reads."""
    blocks_for_image: bool = True
    use_qformer_image: bool = False
    image_down_dims: tuple[int, ...] = (256, 128, 32)
    """Widths of the bias-free layers that narrow each query before all are flattened into the embedding."""
    image_features_dim: int = 1024

    def __post_init__(self) -> None:
        check_heads("decode_blocks", self.qformer.hidden_size, self.decode_blocks.num_heads)
        if not self.blocks_for_image or self.use_qformer_image:
            raise ConfigError(
                "blocks_for_image must be true and use_qformer_image false: the other image decoders of SEED were "
                "never released"
            )
        if not self.image_down_dims:
            raise ConfigError("image_down_dims: empty; give at least one width")

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], source: str = "SEED configuration") -> "SeedConfig":
        """Read the nested mapping; a `preprocess` entry belongs to `PreprocessConfig` and is left alone.

        Raises ConfigError on an unknown key or a value that doesn't fit, naming `source`.
        """
        return from_dict(cls, {key: value for key, value in mapping.items() if key != "preprocess"}, source)

    def without_dead_weight(self) -> "SeedConfig":
        """The same network without the tensors that released checkpoints carry and nothing reads."""
        return replace(self, recon_s=False, qformer=replace(self.qformer, max_position_embeddings=None))
