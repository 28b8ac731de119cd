"""The image tokenizer's recipe at tiny size: it resumes exactly, freezes its codes and exports what it measured."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.seed.tokenizer import SeedTokenizer
from anygpt.training.recipes.seed import SeedRecipe, sincos_positions
from anygpt.training.tokenizer_loop import LoopConfig, TokenizerLoop

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "model": {
        "vit": {"img_size": 96, "patch_size": 24, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "qformer": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        },
        "num_query_token": 32,
        "n_embed": 16,
        "codebook_embed_dim": 4,
        "decode_blocks": {"depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "image_down_dims": [8],
        "image_features_dim": 256,
    },
    "pixels": {"embed_dim": 256, "width": 16, "depth": 1, "num_heads": 2, "patch_size": 24, "image_size": 96},
    "continuous_steps": 2,
    "codebook_batches": 2,
    "freeze_codes_at": 6,
    "perceptual": 1.0,
    "validation_images": 4,
}  # fmt: skip


def _loop(out: Path) -> TokenizerLoop:
    torch.manual_seed(0)
    out.mkdir(exist_ok=True)
    return TokenizerLoop(SeedRecipe(SETTINGS, out), LoopConfig(steps=8, warmup_steps=1), out)


def test_a_resumed_image_recipe_gives_the_same_losses_and_exports_what_it_was(tmp_path: Path) -> None:
    whole, first = _loop(tmp_path / "whole"), _loop(tmp_path / "halves")
    losses = [whole.train_step()["loss"] for _ in range(8)]
    halves = [first.train_step()["loss"] for _ in range(4)]
    first.save()
    second = _loop(tmp_path / "halves")
    assert second.resume()
    assert halves + [second.train_step()["loss"] for _ in range(4)] == losses
    assert {"val_psnr", "val_all_attributes"} <= whole.evaluate(samples=True).keys()
    assert (tmp_path / "whole/samples/000008/reconstructions.png").stat().st_size > 1000

    recipe = whole.recipe
    assert isinstance(recipe, SeedRecipe)
    with whole.weights.in_float32(), torch.no_grad():
        recipe.export(tmp_path / "export")
        tokenizer = load_tokenizer(tmp_path / "export")
        assert isinstance(tokenizer, SeedTokenizer)
        samples = [recipe.world.sample(index) for index in range(6)]
        codes = torch.stack(tokenizer.encode([Image.fromarray(sample.pixels) for sample in samples]))
        assert codes.shape == (6, 1, 32)
        features = recipe._see(recipe._collate(samples)["pixels"])[-1]
        expected = torch.cdist(features, recipe.model.codebook).argmin(-1)
    # The export is in float16, which moves codes that lie between two entries.
    assert (codes[:, 0] == expected).float().mean() > 0.95


def test_frozen_codes_stay_while_the_decoder_learns(tmp_path: Path) -> None:
    loop = _loop(tmp_path)
    recipe = loop.recipe
    assert isinstance(recipe, SeedRecipe)
    for _ in range(6):
        loop.train_step()
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    numbers = [loop.train_step() for _ in range(2)]
    assert all(step["perceptual"] > 0 for step in numbers)
    after = recipe.model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert not any(name.startswith(("seed.visual_encoder", "seed.Qformer", "codebook", "code_")) for name in moved)
    assert {"pixels.head.weight", "seed.image_down.0.weight"} <= moved


def test_positions_tell_places_apart_and_agree_between_grids() -> None:
    fine, coarse = sincos_positions((8, 8), 32, 4), sincos_positions((4, 8), 32, 4)
    assert fine.shape == (64, 32) and coarse.shape == (32, 32)
    distances = torch.cdist(coarse, fine)
    nearest = distances.argmin(1).numpy()
    rows, columns = np.divmod(nearest, 8)
    assert (rows // 2 == np.arange(32) // 8).all() and (columns == np.arange(32) % 8).all()
