"""What the audio codecs' recipes are made of, and one step of each recipe where its world can be rendered."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from anygpt.config import from_dict
from anygpt.tokenizers.base import load_tokenizer
from anygpt.training.recipes import audio
from anygpt.training.recipes.music_codec import MusicCodecConfig
from anygpt.training.recipes.speech_codec import SpeechCodecConfig, SpeechCodecRecipe
from anygpt.training.tokenizer_loop import LoopConfig, TokenizerLoop, load_recipe

CONFIGS = Path(__file__).parents[2] / "config" / "tokenizers"
SMALL_CODEC: dict[str, Any] = {
    "encoder_width": 16,
    "encoder_depth": 1,
    "decoder_width": 16,
    "decoder_depth": 1,
    "semantic_width": 16,
    "semantic_depth": 1,
    "dimension": 8,
    "codebook_size": 16,
}
SMALL: dict[str, Any] = {
    "batch_size": 2,
    "crop_frames": 20,
    "pool_size": 4,
    "fresh_per_step": 1,
    "quantize_from": 1,
    "loss_windows": [256, 512],
}


def small_recipe(name: str, folder: Path) -> Any:
    torch.manual_seed(0)
    own = {"validation_sentences": 2, "semantic_until": 3} if name == "speechtokenizer" else {"validation_clips": 2}
    levels = {"n_q": 8, "semantic": True} if name == "speechtokenizer" else {"n_q": 4}
    return load_recipe(name, {**SMALL, **own, "codec": {**SMALL_CODEC, **levels}}, folder)


needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the speech world needs espeak-ng")
needs_fluidsynth = pytest.mark.skipif(shutil.which("fluidsynth") is None, reason="the music world needs fluidsynth")
RECIPES = [
    pytest.param("speechtokenizer", marks=needs_espeak),
    pytest.param("encodec", marks=needs_fluidsynth),
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_recipe_gives_the_same_losses_and_exports_a_loadable_codec(name: str, tmp_path: Path) -> None:
    """Through all phases: continuous, quantized, level 1 frozen."""

    def run(folder: Path, steps: int) -> tuple[TokenizerLoop, list[float]]:
        folder.mkdir(exist_ok=True)
        loop = TokenizerLoop(small_recipe(name, folder), LoopConfig(steps=6, warmup_steps=2), folder)
        loop.resume()
        losses = [loop.train_step()["loss"] for _ in range(steps)]
        loop.save()
        return loop, losses

    loop, losses = run(tmp_path / "a", 5)
    first, second = run(tmp_path / "b", 2)[1], run(tmp_path / "b", 3)[1]
    assert losses == first + second

    loop.recipe.model.eval()
    with loop.weights.in_float32(), torch.no_grad():
        numbers = loop.recipe.validate()
        loop.recipe.sample_sheet(tmp_path)
        loop.recipe.export(tmp_path / "export")
        codec = getattr(loop.recipe.model, "codec", loop.recipe.model)
        wave = torch.randn(1, 1, 3200)
        again: Any = load_tokenizer(tmp_path / "export").model  # type: ignore[attr-defined]
        # Rounding to 16 bits on disk may flip a close decision, not more.
        assert (again.encode(wave) == codec.encode(wave)).float().mean() > 0.8
    assert {"mel_1", "stoi_1"} <= numbers.keys()
    assert (tmp_path / "spectrograms.png").is_file() and list(tmp_path.glob("*-original.wav"))


@needs_espeak
def test_frozen_level_one_neither_learns_nor_costs_a_loss(tmp_path: Path) -> None:
    recipe: SpeechCodecRecipe = small_recipe("speechtokenizer", tmp_path)
    recipe.model.train()
    recipe.loss(recipe.batch(1), 1)
    book = recipe.model.codec.quantizer.codebooks[0].embed.clone()
    loss, metrics = recipe.loss(recipe.batch(3), 3)
    loss.backward()
    assert torch.equal(recipe.model.codec.quantizer.codebooks[0].embed, book)
    assert "phoneme_loss" not in metrics
    semantic = recipe.model.codec.encoder.semantic
    assert semantic is not None and all(parameter.grad is None for parameter in semantic.parameters())
    assert recipe.model.codec.semantic_projection.weight.grad is not None


@pytest.mark.parametrize(
    ("file", "kind"), [("speechtokenizer-mini.yaml", SpeechCodecConfig), ("encodec-mini.yaml", MusicCodecConfig)]
)
def test_shipped_configurations_are_valid(file: str, kind: type) -> None:
    sections = yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8"))
    from_dict(LoopConfig, sections["loop"], file)
    from_dict(kind, sections["recipe"], file)


def test_rolling_pool_depends_on_the_step_alone() -> None:
    made: list[int] = []

    def make(index: int) -> int:
        made.append(index)
        return index

    pool = audio.RollingPool(make, size=5, fresh=2)
    assert [pool.at(step) for step in (0, 1, 2)] == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8]]
    assert made == list(range(9))
    assert audio.RollingPool(make, size=5, fresh=2).at(2) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(("size", "hop"), [(64, 32), (32, 8)])
def test_loss_spectra_equal_torch_stft_and_so_do_their_gradients(size: int, hop: int) -> None:
    wave = torch.randn(2, 203, dtype=torch.double, requires_grad=True)
    window = torch.hann_window(size, dtype=torch.double)
    fast = audio._PowerSpectra.apply(wave, window, hop)
    plain = torch.stft(wave, size, hop, window=window, center=False, return_complex=True).abs().square().mT
    torch.testing.assert_close(fast, plain)
    gradients = [torch.autograd.grad((power + 1e-3).log().sum(), wave)[0] for power in (fast, plain)]
    torch.testing.assert_close(*gradients)


def test_spectral_loss_is_zero_for_equal_signals_and_grows_with_noise() -> None:
    loss = audio.SpectralLoss((256, 512), sample_rate=16_000)
    torch.manual_seed(0)
    wave, noise = torch.randn(2, 4000) * 0.1, torch.randn(2, 4000)
    values = [float(loss(wave + amount * noise, wave)[0]) for amount in (0, 0.01, 0.1)]
    assert values[0] == 0 < values[1] < values[2]


def test_intelligibility_falls_with_noise() -> None:
    rng = np.random.default_rng(0)
    envelope = np.repeat(rng.uniform(0, 1, 50), 640)
    speech = envelope * rng.standard_normal(len(envelope))
    scores = [
        audio.intelligibility(speech, speech + amount * rng.standard_normal(len(speech)), sample_rate=16_000)
        for amount in (0, 0.3, 3)
    ]
    assert scores[0] > 0.999 > scores[1] > scores[2] and scores[2] < 0.5


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 3, [1, 2, 3]), (2, 3, [3, 4, 0]), (-2, 3, [0, 0, 1]), (-1, 7, [0, 1, 2, 3, 4, 0, 0]), (9, 2, [0, 0])],
)
def test_crop_pads_with_zeros_on_both_sides(start: int, length: int, expected: list[int]) -> None:
    assert audio.crop(torch.tensor([1, 2, 3, 4]), start, length).tolist() == expected


def test_perplexity_and_edit_distance() -> None:
    codes: Tensor = torch.tensor([0, 1, 2, 3])
    assert audio.perplexity(codes, 8) == pytest.approx(4)
    assert audio.perplexity(torch.zeros(5, dtype=torch.long), 8) == pytest.approx(1)
    assert audio.edit_distance("kitten", "sitting") == 3
    assert audio.edit_distance([], [1, 2]) == 2
