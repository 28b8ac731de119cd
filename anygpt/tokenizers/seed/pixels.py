"""From the image embedding to pixels: one interface, a small decoder of ours and the released unCLIP pipeline.

Shape suffixes: B batch, F embedding dimension, C image channels, H and W pixels.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from anygpt.errors import AnyGPTError, CheckpointError, ConfigError
from anygpt.tokenizers.quiet import loading_quietly
from anygpt.tokenizers.seed.blocks import Block, SelfAttention, check_activation, check_heads

RELEASED_UNCLIP = "stabilityai/stable-diffusion-2-1-unclip"
"""The pipeline whose image embedding the released tokenizer was trained to give."""


class PixelDecoder(Protocol):
    """Whatever paints the picture that an image embedding stands for."""

    @property
    def embed_dim(self) -> int:
        """Size of the embedding it takes."""

    def draw(self, embedding_BF: Tensor, *, generator: torch.Generator | None = None) -> list[Image.Image]:
        """One RGB picture per embedding; the same picture for the same embedding and generator state."""


@dataclass(frozen=True, kw_only=True)
class SmallPixelConfig:
    """Shape of `SmallPixelDecoder`; the defaults draw 96x96 pixels from an embedding of 32 queries x 32 values."""

    embed_dim: int = 1024
    num_queries: int = 32
    width: int = 256
    depth: int = 5
    num_heads: int = 8
    patch_size: int = 12
    image_size: int = 96
    mlp_ratio: float = 4.0
    ln_eps: float = 1e-6
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        check_heads("pixels", self.width, self.num_heads)
        check_activation("pixels", self.hidden_act)
        if self.embed_dim % self.num_queries:
            raise ConfigError(f"pixels: embed_dim {self.embed_dim} is not a multiple of num_queries {self.num_queries}")
        if self.image_size % self.patch_size:
            raise ConfigError(f"pixels: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


class SmallPixelDecoder(nn.Module):
    """A transformer over the embedding's tokens and one learned query per image patch, trained by reconstruction."""

    def __init__(self, config: SmallPixelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.embed_dim // config.num_queries, width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_queries, width))
        self.patch_queries = nn.Parameter(torch.empty(1, config.grid**2, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                SelfAttention(width, config.num_heads, qkv_bias=True),
                int(width * config.mlp_ratio),
                ln_eps=config.ln_eps,
                hidden_act=config.hidden_act,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.ln_eps)
        self.head = nn.Linear(width, config.patch_size**2 * 3)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.patch_queries, std=0.02)

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    def forward(self, embedding_BF: Tensor) -> Tensor:
        """Embeddings [B, F] -> images [B, 3, H, W], about [-1, 1], neither squashed nor clamped."""
        config = self.config
        code_tokens = self.embed(embedding_BF.unflatten(1, (config.num_queries, -1))) + self.pos_embed
        tokens = torch.cat([code_tokens, self.patch_queries.expand(len(code_tokens), -1, -1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        patches = self.head(self.norm(tokens[:, config.num_queries :]))
        return rearrange(
            patches,
            "b (rows columns) (y x c) -> b c (rows y) (columns x)",
            rows=config.grid,
            y=config.patch_size,
            x=config.patch_size,
        )

    @torch.inference_mode()
    def draw(self, embedding_BF: Tensor, *, generator: torch.Generator | None = None) -> list[Image.Image]:
        """Pictures of `image_size` pixels a side; nothing here is random, `generator` is not used."""
        pixels = (self(embedding_BF).float() + 1) * 127.5
        pixels_BHWC = pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in pixels_BHWC]


@dataclass(frozen=True, kw_only=True)
class UnclipConfig:
    """Which diffusion pipeline paints the pictures, and how."""

    path: str = RELEASED_UNCLIP
    """A local folder, or a name on the Hugging Face hub."""
    num_inference_steps: int = 20
    guidance_scale: float = 10.0
    noise_level: int = 0
    seed: int = 0
    """Of the starting latent, which is the same for all pictures of one decoder."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                f"pixels.path: empty; give the folder or the hub name of an unCLIP pipeline, "
                f"for example {RELEASED_UNCLIP}"
            )
        if self.num_inference_steps < 1:
            raise ConfigError(f"pixels.num_inference_steps: {self.num_inference_steps}; give 1 or more")


class UnclipPixels:
    """Stable unCLIP (Stable Diffusion 2.1 that is conditioned on a CLIP image embedding) through `diffusers`."""

    def __init__(self, pipeline: Any, config: UnclipConfig) -> None:
        """`pipeline` is a `diffusers.StableUnCLIPImg2ImgPipeline`; its image encoder is not run."""
        self.pipeline = pipeline
        self.config = config
        self.pipeline.set_progress_bar_config(disable=True)
        unet = pipeline.unet.config
        shape = (1, unet.in_channels, unet.sample_size, unet.sample_size)
        generator = torch.Generator().manual_seed(config.seed)
        self.latent = torch.randn(shape, generator=generator).to(pipeline.device, pipeline.unet.dtype)

    @classmethod
    def from_pretrained(
        cls, config: UnclipConfig, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> "UnclipPixels":
        """Load the pipeline; `dtype` None means float16 on a GPU and float32 elsewhere.

        Raises AnyGPTError without `diffusers`, CheckpointError when there is no such pipeline.
        """
        try:
            from diffusers import StableUnCLIPImg2ImgPipeline
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        except ImportError:
            raise AnyGPTError("painting pictures with unCLIP needs diffusers: pip install 'diffusers>=0.30'") from None
        if dtype is None:
            dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
        # The embedding comes from the codes, so CLIP's own encoder (2.5 GB) stays unloaded; the pipeline only asks
        # its type of number.
        tiny = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        image_encoder = CLIPVisionModelWithProjection(tiny)
        try:
            with loading_quietly():
                pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(config.path, image_encoder=image_encoder)
        except Exception as error:  # three libraries read files and ask the network here, each with its own errors
            reason = " ".join(str(error).split())[:150]
            raise CheckpointError(
                f"{config.path}: no unCLIP pipeline could be loaded ({reason}); give a local folder that holds "
                f"model_index.json, such as a copy of {RELEASED_UNCLIP}"
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline.to(device, dtype), config)

    @property
    def embed_dim(self) -> int:
        return int(self.pipeline.image_normalizer.config.embedding_dim)

    @torch.inference_mode()
    def draw(self, embedding_BF: Tensor, *, generator: torch.Generator | None = None) -> list[Image.Image]:
        """Pictures of 8 times the latent's size (768 pixels a side in the released pipeline).

        `generator` draws the little noise that level 0 still adds to the embedding; None draws the same every time.
        """
        config, batch = self.config, len(embedding_BF)
        if generator is None:
            generator = torch.Generator().manual_seed(config.seed)
        return self.pipeline(
            prompt=[""] * batch,
            image_embeds=embedding_BF.to(self.latent.device, self.latent.dtype),
            latents=self.latent.repeat(batch, 1, 1, 1),
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            noise_level=config.noise_level,
            generator=generator,
        ).images
