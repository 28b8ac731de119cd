"""Training SEED's image tokenizer at small size: pictures through 32 quantized causal queries and back.

The method is SEED's (Ge et al. 2023, section 3): queries that see only earlier queries read the image, their
features are quantized, and what the codes keep is decided by reconstruction together with the meaning that text
gives the picture; SEED aligns with captions by contrast, here the caption's attributes are classified from the
decoded codes, which in a world of known captions says the same and is cheaper.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from anygpt.config import from_dict
from anygpt.tokenizers.seed.blocks import Block
from anygpt.tokenizers.seed.config import SeedConfig
from anygpt.tokenizers.seed.model import SeedModel
from anygpt.tokenizers.seed.pixels import SmallPixelConfig, SmallPixelDecoder
from anygpt.tokenizers.seed.preprocess import PreprocessConfig
from anygpt.tokenizers.seed.qformer import QformerLayer
from anygpt.tokenizers.seed.tokenizer import SeedTokenizer
from anygpt.training.tokenizer_loop import TokenizerRecipe
from anygpt.world.images import (
    ATTRIBUTES,
    IMAGE_SIZE,
    ImageSample,
    ImageWorld,
    attributes,
    background_pixels,
)


def attribute_labels(sample: ImageSample) -> list[int]:
    """Class index of each of `ATTRIBUTES`."""
    return [ATTRIBUTES[name].index(value) for name, value in attributes(sample.scene).items()]


@dataclass(frozen=True, kw_only=True)
class SeedRecipeConfig:
    """The `recipe` section of the YAML file."""

    model: dict[str, Any]
    """`SeedConfig`, nested."""
    pixels: SmallPixelConfig
    batch_size: int = 64
    seed: int = 0
    continuous_steps: int = 200
    """Steps before the codebook is made (k-means on the features); until then features pass unquantized."""
    ema_decay: float = 0.95
    restart_every: int = 10
    """Steps between searches for dead codes."""
    restart_below: float = 0.3
    """A code is dead when its moving count per batch is below this fraction of an even share."""
    restart_until: float = 0.7
    """Fraction of `freeze_codes_at` (or of all steps seen) after which no code is moved by restart any more."""
    freeze_codes_at: int | None = None
    """Step from which encoder and codebook stay as they are and only the decoder goes on."""
    codebook_batches: int = 8
    """Batches whose features k-means starts from."""
    commitment: float = 0.25
    attributes: float = 0.05
    perceptual: float = 0.0
    """Weight of how differently the frozen encoder sees picture and reconstruction, from `freeze_codes_at` on."""
    object_weight: float = 3.0
    """How much more an object's pixels count than the background's."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    validation_images: int = 256


class SeedTrainingModel(nn.Module):
    """Everything with weights: tokenizer, pixel decoder, attribute heads, and the codebook's moving statistics."""

    code_count: Tensor
    code_sum: Tensor
    has_codebook: Tensor
    codebook: Tensor

    def __init__(self, config: SeedRecipeConfig) -> None:
        super().__init__()
        self.seed = SeedModel(from_dict(SeedConfig, config.model, "recipe.model"))
        self.pixels = SmallPixelDecoder(config.pixels)
        hidden = self.seed.config.qformer.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, len(values)) for name, values in ATTRIBUTES.items()})
        entries, width = self.seed.quantize.embedding.weight.shape
        self.seed.quantize.embedding.weight.requires_grad_(False)
        self.register_buffer("code_count", torch.ones(entries))
        self.register_buffer("code_sum", torch.zeros(entries, width))
        self.register_buffer("has_codebook", torch.zeros(1))
        self.register_buffer("codebook", torch.zeros(entries, width))
        distill = self.seed.distill_image_proj
        if distill.in_features == distill.out_features:
            # The flattening is then transparent to the pixel decoder from the first step on.
            nn.init.eye_(distill.weight)
            nn.init.zeros_(distill.bias)
            distill.requires_grad_(False)
        self._start_with_places()

    @torch.no_grad()
    def _start_with_places(self) -> None:
        """Begin with queries and patches that know where they are, and with queries that look around their own place.

        From plain random weights the first several hundred steps go into finding out that pictures have places.
        """
        vision, pixels, seed = self.seed.visual_encoder, self.pixels, self.seed
        width = vision.pos_embed.shape[-1]
        grid = seed.config.vit.img_size // seed.config.vit.patch_size
        rows = int(seed.config.num_query_token**0.5)
        while seed.config.num_query_token % rows:
            rows -= 1
        cells = (rows, seed.config.num_query_token // rows)
        heads = seed.config.qformer.num_attention_heads
        vision.pos_embed[0, 1:] = sincos_positions((grid, grid), width, heads)
        pixels.patch_queries[0] = sincos_positions((pixels.config.grid,) * 2, pixels.config.width, heads)
        for positions in (seed.query_tokens, seed.pos_embed_image, pixels.pos_embed):
            positions[0] = sincos_positions(cells, positions.shape[-1], heads)
        for layer in seed.Qformer.bert.encoder.layer:
            assert isinstance(layer, QformerLayer)
            if layer.crossattention is not None and seed.config.qformer.hidden_size == width:
                for projection in (layer.crossattention.self.query, layer.crossattention.self.key):
                    projection.weight.copy_(1.2 * torch.eye(width) + 0.5 * projection.weight)
        # Patches, too, first look at the codes of their own place.
        first_block = pixels.blocks[0]
        assert isinstance(first_block, Block)
        qkv = first_block.attn.qkv.weight
        side = pixels.config.width
        for first in (0, side):
            qkv[first : first + side] = 1.2 * torch.eye(side) + 0.5 * qkv[first : first + side]

    @torch.no_grad()
    def scale_to_unit(self, images: Tensor) -> None:
        """Scale the narrow layers between encoder and pixels so that signals have unit variance on `images`."""
        seed, pixels = self.seed, self.pixels
        last_down = [layer for layer in seed.image_down if isinstance(layer, nn.Linear)][-1]
        narrow = (
            seed.encode_task_layer[-1], seed.decode_task_layer[0], seed.decode_task_layer[-1], last_down, pixels.embed
        )  # fmt: skip
        for layer in narrow:
            assert isinstance(layer, nn.Linear)
            seen: list[Tensor] = []
            hook = layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            pixels(seed.embed(seed.encode_features(images))[1])
            hook.remove()
            # What differs between pictures counts, not what is the same in all.
            layer.weight.div_(seen[0].std(0).mean().clamp(min=1e-3))


class SeedRecipe(TokenizerRecipe):
    """Reconstruction through quantized causal queries."""

    def __init__(self, config: dict[str, Any], workdir: Path) -> None:
        self.config = from_dict(SeedRecipeConfig, config, "recipe")
        self.model: SeedTrainingModel = SeedTrainingModel(self.config)
        self.world = ImageWorld("train", seed=self.config.seed)
        self._validation: list[ImageSample] = []
        self._is_frozen = False
        self.model.scale_to_unit(self._normalised(self.batch(0)["pixels"]))

    def keeps_float32(self, name: str) -> bool:
        return name.startswith("heads.")

    def uses_muon(self, name: str, parameter: Tensor) -> bool:
        """Muon moves every direction of a matrix by the same amount: right inside blocks, ruinous in the narrow layers
        between them and in the layer that paints, where few directions matter."""
        return super().uses_muon(name, parameter) and any(part in name for part in ("blocks", "Qformer"))

    def _collate(self, samples: list[ImageSample]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2).float()
        plain = np.stack([background_pixels(sample.scene.background, IMAGE_SIZE) for sample in samples])
        is_object = (pixels - torch.from_numpy(plain).permute(0, 3, 1, 2)).abs().amax(1, keepdim=True) > 3
        labels = torch.tensor([attribute_labels(sample) for sample in samples])
        return {"pixels": pixels / 127.5 - 1, "is_object": is_object, "labels": labels}

    def batch(self, step: int) -> dict[str, Tensor]:
        first = step * self.config.batch_size
        return self._collate([self.world.sample(first + i) for i in range(self.config.batch_size)])

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.config.mean, self.config.std))
        weight = self.model.seed.visual_encoder.patch_embed.proj.weight
        return (((pixels + 1) / 2 - mean) / std).to(weight.dtype)

    def _see(self, pixels: Tensor) -> list[Tensor]:
        """What the encoder sees: patches after every block, each normed, then the features before quantization.

        The features, float32 [B, Q, E], all have norm sqrt(E), as all codes have. The nearest code by squared distance,
        which is what `SeedModel` looks for, is then the nearest by angle, whatever the norm of the raw features: they
        are free to grow, the codes stay put.
        """
        seed = self.model.seed
        layers: list[Tensor] = []
        hooks = [
            block.register_forward_hook(
                lambda module, inputs, tokens: layers.append(F.layer_norm(tokens.float(), tokens.shape[-1:]))
            )
            for block in seed.visual_encoder.blocks
        ]
        z = seed.encode_features(self._normalised(pixels)).float()
        for hook in hooks:
            hook.remove()
        return [*layers, on_sphere(z)]

    def _perceptual_loss(self, image: Tensor, seen: list[Tensor]) -> Tensor:
        """Mean squared distance between what the frozen encoder sees in `image` and what it saw in the pictures.

        A perceptual loss (Johnson et al. 2016) with the network that is at hand: it tells objects apart, and a picture
        made from codes comes to be read as those codes again.
        """
        pairs = zip(self._see(image), seen, strict=True)
        return torch.stack([F.mse_loss(one, other) for one, other in pairs]).mean()

    def _quantize(self, z_BQE: Tensor, step: int) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Straight-through codebook vectors, commitment loss, statistics; moves the codebook while training."""
        model = self.model
        if not model.has_codebook:
            if not model.training or step < self.config.continuous_steps:
                return z_BQE, z_BQE.new_zeros(()), {}
            self._make_codebook(step)
        flat = z_BQE.detach().flatten(0, 1)
        indices = nearest_code(flat, model.codebook)
        if model.training and not self._is_frozen:
            self._move_codebook(flat, indices, step)
        quantized = model.codebook[indices].view_as(z_BQE)
        share = torch.bincount(indices, minlength=len(model.codebook)).float() / len(indices)
        perplexity = float(torch.exp(-(share * (share + 1e-9).log()).sum()))
        commitment = F.mse_loss(z_BQE, quantized)
        numbers = {"perplexity": perplexity, "commit": commitment.item()}
        return z_BQE + (quantized - z_BQE).detach(), commitment, numbers

    @torch.no_grad()
    def _make_codebook(self, step: int) -> None:
        """k-means (Lloyd, 10 rounds) on the features of the next batches."""
        model = self.model
        batches = [self.batch(step + i)["pixels"] for i in range(self.config.codebook_batches)]
        flat = torch.cat([self._see(pixels)[-1].flatten(0, 1) for pixels in batches])
        generator = torch.Generator().manual_seed(self.config.seed)
        codebook = flat[torch.randperm(len(flat), generator=generator)[: len(model.codebook)]].clone()
        for _ in range(10):
            indices = nearest_code(flat, codebook)
            count = torch.bincount(indices, minlength=len(codebook)).float()
            total = torch.zeros_like(codebook).index_add_(0, indices, flat)
            codebook = torch.where(count[:, None] > 0, on_sphere(total), codebook)
        model.codebook.copy_(codebook)
        model.code_count.copy_(count / len(batches))
        model.code_sum.copy_(codebook * model.code_count[:, None])
        model.has_codebook.fill_(1)

    def _move_codebook(self, flat: Tensor, indices: Tensor, step: int) -> None:
        """Exponential moving average of the vectors assigned to each code; dead codes jump to features of the batch."""
        model, decay = self.model, self.config.ema_decay
        count = torch.bincount(indices, minlength=len(model.codebook)).float()
        model.code_count.mul_(decay).add_(count, alpha=1 - decay)
        model.code_sum.mul_(decay).index_add_(0, indices, flat, alpha=1 - decay)
        until = self.config.restart_until * (self.config.freeze_codes_at or float("inf"))
        if step % self.config.restart_every == 0 and step < until:
            even = len(flat) / len(model.codebook)
            dead = (model.code_count < self.config.restart_below * even).nonzero().flatten()
            if len(dead):
                generator = torch.Generator().manual_seed(self.config.seed + step)
                fresh = flat[torch.randperm(len(flat), generator=generator)[: len(dead)]]
                model.code_sum[dead[: len(fresh)]] = fresh * even
                model.code_count[dead[: len(fresh)]] = even
        # An unused code keeps its place: only the direction of its sum counts.
        model.codebook.copy_(on_sphere(model.code_sum))

    def _reconstruct(self, seen: list[Tensor], step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """Of what `_see` saw: reconstruction [B, 3, S, S], decoder states [B, Q, H], commitment loss, statistics."""
        seed = self.model.seed
        quantized, commitment, numbers = self._quantize(seen[-1], step)
        hidden, embedding = seed.embed(quantized.to(seed.pos_embed_image.dtype))
        return self.model.pixels(embedding).float(), hidden.float(), commitment, numbers

    def _freeze(self) -> None:
        self._is_frozen = True
        for name, parameter in self.model.seed.named_parameters():
            if name.startswith(("visual_encoder", "ln_vision", "Qformer", "query_tokens", "encode_task_layer")):
                parameter.requires_grad_(False)

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        if config.freeze_codes_at is not None and step >= config.freeze_codes_at and not self._is_frozen:
            self._freeze()
        pixels = batch["pixels"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_frozen):
            seen = self._see(pixels)
        image, hidden, commitment, numbers = self._reconstruct(seen, step)
        weight = 1 + config.object_weight * batch["is_object"]
        weight = weight / weight.mean()
        error = image - pixels
        flat_error = (weight * error.abs()).mean() + (weight * error.square()).mean()
        edges = multiscale_gradient_loss(error, weight)
        labels, means = batch["labels"], hidden.mean(1)
        named = torch.stack(
            [F.cross_entropy(head(means), labels[:, i]) for i, head in enumerate(self.model.heads.values())]
        )
        total = flat_error + edges + config.commitment * commitment + config.attributes * named.sum()
        if self._is_frozen and config.perceptual:
            perceptual = self._perceptual_loss(image, seen)
            total = total + config.perceptual * perceptual
            numbers["perceptual"] = perceptual.item()
        numbers |= {"pixel": flat_error.item(), "edges": edges.item(), "named": named.sum().item()}
        numbers["psnr"] = float(-10 * (error.detach().square().mean() / 4).log10())
        return total, numbers

    def _validation_samples(self) -> list[ImageSample]:
        if not self._validation:
            world = ImageWorld("heldout", seed=self.config.seed)
            self._validation = [world.sample(i) for i in range(self.config.validation_images)]
        return self._validation

    def validate(self) -> dict[str, float]:
        batch = self._collate(self._validation_samples())
        images, hidden, _, numbers = self._reconstruct(self._see(batch["pixels"]), 0)
        error = (images.clamp(-1, 1) - batch["pixels"]) / 2
        results = {"psnr": float(-10 * error.square().mean((1, 2, 3)).log10().mean())}
        on_object = (error.square() * batch["is_object"]).sum() / (3 * batch["is_object"].sum())
        results["object_psnr"] = float(-10 * on_object.log10())
        heads, means = self.model.heads.values(), hidden.mean(1)
        right = torch.stack([head(means).argmax(-1) == batch["labels"][:, i] for i, head in enumerate(heads)])
        results |= {f"{name}_accuracy": float(right[i].float().mean()) for i, name in enumerate(ATTRIBUTES)}
        results["all_attributes"] = float(right.all(0).float().mean())
        return results | numbers

    def sample_sheet(self, folder: Path) -> None:
        """`reconstructions.png`: held-out pictures above what comes back from their codes."""
        samples = self._validation_samples()[:48]
        batch = self._collate(samples)
        image = self._reconstruct(self._see(batch["pixels"]), 0)[0]
        back = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows = []
        for first in range(0, len(samples), 12):
            rows.append(np.concatenate([sample.pixels for sample in samples[first : first + 12]], axis=1))
            rows.append(np.concatenate(list(back[first : first + 12]), axis=1))
        Image.fromarray(np.concatenate(rows)).save(folder / "reconstructions.png")

    def export(self, folder: Path) -> None:
        """The tokenizer folder, weights in float16, of the pixel decoder in int8."""
        with torch.no_grad():
            self.model.seed.quantize.embedding.weight.copy_(self.model.codebook)
        preprocess = PreprocessConfig(image_size=IMAGE_SIZE, mean=self.config.mean, std=self.config.std)
        tokenizer = SeedTokenizer(self.model.seed, self.model.pixels, preprocess)
        tokenizer.save_pretrained(folder, dtype=torch.float16, pixels_dtype=torch.int8)


def on_sphere(vectors: Tensor) -> Tensor:
    """The directions of vectors [..., E], at norm sqrt(E)."""
    return F.normalize(vectors, dim=-1) * vectors.shape[-1] ** 0.5


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest of `codebook` [entries, E] for each of `vectors` [N, E], int64 [N]."""
    return (codebook.square().sum(-1) - 2 * vectors @ codebook.t()).argmin(-1)


def sincos_positions(cells: tuple[int, int], width: int, heads: int) -> Tensor:
    """Sines and cosines of row and column at growing wavelengths, float32 [rows * columns, width], row by row.

    Positions run from 0 to 1 on both axes, whatever the number of cells, so that grids of different fineness match.
    Channels are dealt out so that each of `heads` equal slices has rows and columns at every wavelength.
    """
    frequencies = torch.pi * torch.logspace(0, 1, width // 4, base=8)
    lines = []
    for count in cells:
        phase = ((torch.arange(count) + 0.5) / count)[:, None] * frequencies
        lines.append(torch.cat([phase.sin(), phase.cos()], dim=1))
    rows, columns = lines[0].repeat_interleave(cells[1], 0), lines[1].repeat(cells[0], 1)
    pattern = torch.cat([rows, columns], dim=1)
    return 0.7 * pattern.unflatten(1, (-1, heads)).transpose(1, 2).flatten(1)


def multiscale_gradient_loss(error: Tensor, weight: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute horizontal and vertical differences of the error, at full, half and quarter resolution.

    `error` [B, 3, S, S], `weight` [B, 1, S, S]. Edges count beyond their area: a blurred object has small pixel
    error and is yet unrecognisable.
    """
    total = error.new_zeros(())
    for _ in range(scales):
        across = (error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]
        down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
        total = total + across.mean() + down.mean()
        error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
    return total / scales
