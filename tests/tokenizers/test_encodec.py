"""Encodec through transformers and the small codec behind the same tokenizer."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig, EncodecModel

from anygpt.errors import AnyGPTError, CheckpointError, CodeError
from anygpt.media import Audio
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.encodec.tokenizer import EncodecTokenizer

RATES: dict[int, dict[str, Any]] = {
    # The published models' conventions at small width: 24 kHz causal with several bandwidths, 32 kHz with just one.
    24_000: {"target_bandwidths": [1.5, 3.0, 6.0], "upsampling_ratios": [8, 5, 4, 2], "codebook_size": 1024},
    32_000: {
        "target_bandwidths": [2.2],
        "upsampling_ratios": [8, 5, 4, 4],
        "codebook_size": 2048,
        "use_causal_conv": False,
    },
}
MODALITY = {24_000: "audio", 32_000: "music"}
HOP = {24_000: 320, 32_000: 640}


def make_model(rate: int, **changes: Any) -> EncodecModel:
    torch.manual_seed(rate)
    settings = {"num_filters": 2, "hidden_size": 16, "codebook_dim": 16, "num_lstm_layers": 1, **RATES[rate], **changes}
    model = EncodecModel(EncodecConfig(sampling_rate=rate, **settings)).eval()
    if model.config.audio_channels == 1:
        spread_entries(model, rate)
    return model


@torch.no_grad()
def spread_entries(model: EncodecModel, rate: int) -> None:
    """Put the entries where the latents are, so that codes vary."""
    latents = model.encoder(torch.from_numpy(noise(2.0, rate, seed=9).wave)[None])[0].t()
    size, width = model.quantizer.layers[0].codebook.embed.shape
    for level, layer in enumerate(model.quantizer.layers):
        rows = latents[torch.randint(len(latents), (size,))] * (level == 0)
        layer.codebook.embed.copy_(rows + torch.randn(size, width) * latents.std(0) * 0.3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A tokenizer folder by rate; the model lies inside, under `encodec`."""
    return {rate: write_folder(tmp_path_factory.mktemp(str(rate)), rate) for rate in RATES}


def write_config(folder: Path, **changes: Any) -> Path:
    config = {"class": "encodec", "modality": "music", "backbone": "hf", "model": {"name_or_path": "encodec"}}
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


def write_folder(folder: Path, rate: int) -> Path:
    make_model(rate).save_pretrained(folder / "encodec")
    return write_config(folder, modality=MODALITY[rate])


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> Audio:
    wave = np.random.default_rng(seed).standard_normal((channels, int(seconds * rate))) * 0.3
    return Audio(wave.clip(-1, 1).astype(np.float32), rate)


@pytest.mark.parametrize("rate", RATES)
@torch.no_grad()
def test_equals_transformers(folders: dict[int, Path], rate: int) -> None:
    tokenizer = load_tokenizer(folders[rate])
    assert isinstance(tokenizer, EncodecTokenizer)
    assert (tokenizer.modality, tokenizer.num_codebooks, tokenizer.sample_rate) == (MODALITY[rate], 4, rate)
    assert tokenizer.codebook_size == RATES[rate]["codebook_size"]
    audio = noise(0.51, rate)
    (codes,) = tokenizer.encode([audio])
    assert codes.shape == (4, math.ceil(audio.samples / HOP[rate])) and codes.dtype == torch.int64
    model = EncodecModel.from_pretrained(folders[rate] / "encodec").eval()
    bandwidth = {24_000: 3.0, 32_000: 2.2}[rate]
    direct = model.encode(torch.from_numpy(audio.wave)[None], bandwidth=bandwidth)
    assert torch.equal(codes, direct.audio_codes[0, 0])
    assert len(codes.unique()) > 10
    rebuilt = model.decode(direct.audio_codes, direct.audio_scales).audio_values
    sound = tokenizer.decode(codes)
    assert sound.rate_hz == rate and sound.samples == codes.shape[1] * HOP[rate]
    np.testing.assert_allclose(sound.wave, rebuilt[0].clamp(-1, 1).numpy(), atol=1e-5)


def test_channels_are_mixed_and_the_rate_converted(folders: dict[int, Path]) -> None:
    tokenizer = EncodecTokenizer.from_pretrained(folders[32_000])
    stereo = noise(0.3, 44_100, channels=2)
    mono = stereo.mono(how="mean").resample(32_000)
    assert torch.equal(tokenizer.encode([stereo])[0], tokenizer.encode([mono])[0])


def test_codes_do_not_depend_on_the_batch(folders: dict[int, Path]) -> None:
    tokenizer = EncodecTokenizer.from_pretrained(folders[24_000])
    items = [noise(0.3, 24_000), noise(0.1, 24_000), noise(0.3, 24_000, seed=1)]
    for item, codes in zip(items, tokenizer.encode(items), strict=True):
        assert torch.equal(tokenizer.encode([item])[0], codes)


def test_released_name_may_be_any_folder(folders: dict[int, Path]) -> None:
    folder = folders[32_000]
    released = EncodecTokenizer.from_released(folder / "encodec")
    assert released.fingerprint == EncodecTokenizer.from_pretrained(folder).fingerprint
    assert released.modality == "music"
    fewer = EncodecTokenizer.from_released(folders[24_000] / "encodec", num_codebooks=2)
    assert fewer.num_codebooks == 2


def test_fingerprint_is_of_the_encoder_and_used_levels(folders: dict[int, Path]) -> None:
    tokenizer = EncodecTokenizer.from_pretrained(folders[24_000])
    before = tokenizer.fingerprint
    names = [name for name, _ in tokenizer.code_defining_tensors()]
    assert [name for name in names if "embed" in name] == [f"quantizer.layers.{i}.codebook.embed" for i in range(4)]
    tokenizer.model.decoder.layers[0].conv.bias.data += 1  # type: ignore[attr-defined]
    assert tokenizer.fingerprint == before
    tokenizer.model.encoder.layers[0].conv.bias.data += 1  # type: ignore[attr-defined]
    assert tokenizer.fingerprint != before


def test_unfit_models_are_refused(folders: dict[int, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no bandwidth gives 3 codebooks .*2.2 kbps gives 4"):
        EncodecTokenizer.from_released(folders[32_000] / "encodec", num_codebooks=3)
    make_model(32_000, audio_channels=2, normalize=True).save_pretrained(tmp_path / "stereo")
    with pytest.raises(CheckpointError, match="stereo"):
        EncodecTokenizer.from_released(tmp_path / "stereo")
    with pytest.raises(CheckpointError, match="no Encodec model there or on the hub"):
        EncodecTokenizer.from_released(tmp_path / "nothing")


def test_missing_weights_are_refused(
    folders: dict[int, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By an error of one line; transformers' own report of keys would be a table before it."""
    (tmp_path / "config.json").write_bytes((folders[32_000] / "encodec" / "config.json").read_bytes())
    state = load_file(folders[32_000] / "encodec" / "model.safetensors")
    state.pop(next(name for name in state if name.startswith("encoder")))
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(CheckpointError, match="1 missing keys, first 'encoder"):
        EncodecTokenizer.from_released(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "image"}, "'image' is no sound"),
        ({"modality": "musik"}, "unknown modality 'musik'"),
        ({"model": {"name": "encodec"}}, "unknown key 'name'"),
        ({"model": {}}, "missing key 'name_or_path'"),
        ({"backbone": "spectrum"}, "unknown backbone 'spectrum'"),
        ({"bandwidth": 3}, "unknown key 'bandwidth'"),
    ],
)
def test_folder_config_is_strict(
    folders: dict[int, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    changes = {"model": {"name_or_path": str(folders[32_000] / "encodec")}, **changes}
    with pytest.raises(AnyGPTError, match=message):
        EncodecTokenizer.from_pretrained(write_config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((4, 3), 2048), "music code 2048 at level 0, frame 0"),
        (torch.zeros(3, 5, dtype=torch.long), r"expected \[4, frames\]"),
    ],
)
def test_wrong_codes_are_refused(folders: dict[int, Path], codes: torch.Tensor, message: str) -> None:
    tokenizer = EncodecTokenizer.from_pretrained(folders[32_000])
    with pytest.raises(CodeError, match=message):
        tokenizer.decode(codes)


def test_spectral_backbone_serves_music(tmp_path: Path) -> None:
    from anygpt.tokenizers.spectral import SpectralCodec

    torch.manual_seed(0)
    sizes = {"codebook_size": 32, "n_q": 4, "encoder_width": 16, "decoder_width": 16}
    save_file(SpectralCodec.from_config(sizes, source="test").state_dict(), tmp_path / "model.safetensors")
    config = {"class": "encodec", "modality": "music", "backbone": "spectral", "model": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    (codes,) = tokenizer.encode([noise(0.5, 16_000, channels=2)])
    assert codes.shape == (4, 25) and (tokenizer.codebook_size, tokenizer.num_codebooks) == (32, 4)
    assert tokenizer.decode(codes).samples == 8_000


@torch.no_grad()
def test_reference_package_agrees_on_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("encodec", reason="needs the package encodec: the extra [reference]", exc_type=ImportError)
    from encodec.model import EncodecModel as ReferenceModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    model = make_model(24_000)
    sizes = {"dimension": 16, "n_filters": 2, "causal": True, "lstm": 1}
    reference = ReferenceModel(
        SEANetEncoder(**sizes),
        SEANetDecoder(**sizes),
        ResidualVectorQuantizer(dimension=16, n_q=len(model.quantizer.layers), bins=1024),
        target_bandwidths=[1.5, 3.0, 6.0],
        sample_rate=24_000,
        channels=1,
    ).eval()
    renamed = {
        "encoder.layers.": "encoder.model.",
        "decoder.layers.": "decoder.model.",
        "quantizer.layers.": "quantizer.vq.layers.",
        ".codebook.": "._codebook.",
        ".parametrizations.weight.original0": ".weight_g",
        ".parametrizations.weight.original1": ".weight_v",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        wrapped = {name.replace(".conv.", ".conv.conv."), name.replace(".conv.", ".convtr.convtr."), name}
        (name,) = wrapped & set(reference.state_dict())
        state[name] = tensor
    reference.load_state_dict(state)
    reference.set_target_bandwidth(3.0)
    model.save_pretrained(tmp_path)
    tokenizer = EncodecTokenizer.from_released(tmp_path, modality="audio")
    audio = noise(0.7, 24_000)
    (codes,) = tokenizer.encode([audio])
    frames = reference.encode(torch.from_numpy(audio.wave)[None])
    assert torch.equal(codes, frames[0][0][0])
    np.testing.assert_allclose(tokenizer.decode(codes).wave, reference.decode(frames)[0].clamp(-1, 1), atol=1e-5)
