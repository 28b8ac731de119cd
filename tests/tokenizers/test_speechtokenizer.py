"""The speech tokenizer as a whole: folders, released files, voices, bad input."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anygpt.errors import CheckpointError, CodeError, ConfigError, MediaError
from anygpt.media import Audio, save_audio
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.soundstorm import (
    SoundStorm,
    SoundStormConfig,
    codec_fingerprint,
    load_soundstorm,
    save_soundstorm,
)
from anygpt.tokenizers.speechtokenizer.model import SpeechTokenizerModel
from anygpt.tokenizers.speechtokenizer.seanet import fold_weight_norm
from anygpt.tokenizers.speechtokenizer.tokenizer import SpeechTokenizer

RATE = 16_000
SMALL: dict[str, Any] = {
    "n_filters": 2,
    "strides": [8, 5, 4, 2],
    "dimension": 8,
    "semantic_dimension": 8,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "lstm_layers": 1,
    "activation": "Snake",
    "codebook_size": 16,
    "n_q": 8,
    "sample_rate": RATE,
}


def make_model(seed: int = 0, **changes: Any) -> SpeechTokenizerModel:
    torch.manual_seed(seed)
    model = SpeechTokenizerModel.from_config({**SMALL, **changes}, source="test").eval()
    with torch.no_grad():
        model.quantizer.train()(model.encoder(torch.from_numpy(tone(1.0).wave)[None]))
        # Entries are now where the latents are, so that codes vary; the noise keeps the late levels from near ties.
        for codebook in model.quantizer.codebooks:
            codebook.embed += torch.randn(codebook.embed.shape) * model.quantizer.codebooks[0].embed.std() * 0.3
    return model.eval()


def tone(seconds: float = 0.3, rate: int = RATE, channels: int = 1, pitch: float = 220.0) -> Audio:
    time = np.arange(int(seconds * rate)) / rate
    wave = np.stack([0.5 * np.sin(2 * np.pi * pitch * (c + 1) * time * (1 + time)) for c in range(channels)])
    return Audio(wave.astype(np.float32), rate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A speech tokenizer folder with SoundStorm beside it."""
    root = tmp_path_factory.mktemp("tokenizers")
    torch.manual_seed(1)
    sizes = SoundStormConfig(
        dim=16, depth=1, heads=1, dim_head=8, codebook_size=16, num_semantic_token_ids=16, semantic_pad_id=16, pad_id=16
    )
    save_soundstorm(SoundStorm(sizes), root / "storm")
    own = root / "speech"
    own.mkdir()
    save_file(make_model().state_dict(), own / "model.safetensors")
    config = {"class": "speechtokenizer", "modality": "speech", "backbone": "seanet", "model": SMALL}
    (own / "config.json").write_text(json.dumps({**config, "soundstorm": "../storm"}), encoding="utf-8")
    return own


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> SpeechTokenizer:
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, SpeechTokenizer)
    return loaded


def write_released(folder: Path, model: SpeechTokenizerModel, **changes: Any) -> Path:
    config = {**SMALL, "num_mels": 80, "distill_type": "d_axis", **changes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(model.state_dict(), folder / "speech.pt")
    return folder / "speech.pt"


def test_codes_have_one_level_and_fifty_frames_a_second(tokenizer: SpeechTokenizer) -> None:
    (codes,) = tokenizer.encode([tone(0.51)])
    assert codes.shape == (1, math.ceil(0.51 * 50)) and codes.dtype == torch.int64
    assert len(codes.unique()) > 1
    everything = tokenizer.encode_all_levels(tone(0.51))
    assert everything.shape == (8, codes.shape[1]) and torch.equal(everything[:1], codes)
    assert (tokenizer.modality, tokenizer.codebook_size, tokenizer.num_codebooks) == ("speech", 16, 1)


def test_codes_do_not_depend_on_the_batch(tokenizer: SpeechTokenizer) -> None:
    items = [tone(0.3), tone(0.2), tone(0.3, pitch=440), tone(0.01)]
    together = tokenizer.encode(items)
    for item, codes in zip(items, together, strict=True):
        assert torch.equal(tokenizer.encode([item])[0], codes)
    assert tokenizer.encode([]) == []


def test_first_channel_is_understood_at_the_codec_rate(tokenizer: SpeechTokenizer) -> None:
    stereo = tone(0.3, rate=48_000, channels=2)
    left = Audio(stereo.wave[:1], stereo.rate_hz)
    assert torch.equal(tokenizer.encode([stereo])[0], tokenizer.encode([left.resample(RATE)])[0])
    assert not torch.equal(tokenizer.encode_all_levels(stereo, how="mean"), tokenizer.encode_all_levels(stereo))


def test_decode_lasts_as_long_as_its_frames(tokenizer: SpeechTokenizer) -> None:
    codes = tokenizer.encode([tone(0.3)])[0]
    audio = tokenizer.decode(codes)
    assert audio.rate_hz == RATE and audio.wave.shape == (1, codes.shape[1] * 320)
    assert np.isfinite(audio.wave).all() and np.abs(audio.wave).max() <= 1


def test_all_levels_are_decoded_as_given(tokenizer: SpeechTokenizer) -> None:
    codes = tokenizer.encode_all_levels(tone(0.3))
    with torch.no_grad():
        expected = tokenizer.model.decode(codes[:, None])[0].clamp(-1, 1).numpy()
    assert np.array_equal(tokenizer.decode(codes).wave, expected)


def test_voice_prompt_changes_the_sound_and_seeds_repeat_it(tokenizer: SpeechTokenizer) -> None:
    codes = tokenizer.encode([tone(0.3)])[0]

    def speak(seed: int, voice: Audio | None) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return tokenizer.decode(codes, voice=voice, vc_steps=3, generator=generator).wave

    one, other = tone(0.6, pitch=100), tone(0.6, pitch=900)
    assert np.array_equal(speak(0, one), speak(0, one))
    assert not np.array_equal(speak(0, one), speak(0, other))
    assert not np.array_equal(speak(0, one), speak(0, None))


def test_voice_prompt_is_the_mean_channel_of_three_seconds(tokenizer: SpeechTokenizer) -> None:
    stereo = tone(4.0, channels=2)
    mean = Audio(stereo.wave.mean(axis=0, keepdims=True)[:, : 3 * RATE], RATE)
    assert torch.equal(tokenizer.encode_voice(stereo), tokenizer.encode_all_levels(mean))
    assert tokenizer.encode_voice(tone(4.0, rate=44_100)).shape == (8, 150)


def test_short_voice_prompt_is_refused(tokenizer: SpeechTokenizer) -> None:
    codes = tokenizer.encode([tone(0.3)])[0]
    with pytest.raises(MediaError, match="0.40 s: need at least 0.5 s"):
        tokenizer.decode(codes, voice=tone(0.4))


def test_without_soundstorm_level_one_alone_is_decoded() -> None:
    tokenizer = SpeechTokenizer(make_model())
    codes = tokenizer.encode([tone(0.3)])[0]
    with torch.no_grad():
        expected = tokenizer.model.decode(codes[:, None])[0].numpy()
    assert np.array_equal(tokenizer.decode(codes).wave, np.clip(expected, -1, 1))


def test_default_voice_is_read_from_the_folder(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"soundstorm": str(folder.parent / "storm"), "default_voice": "voice.wav"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    save_audio(tmp_path / "voice.wav", tone(0.6, pitch=330))
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path)
    assert tokenizer.default_voice is not None
    codes = tokenizer.encode([tone(0.3)])[0]
    implied = tokenizer.decode(codes, vc_steps=1)
    assert np.array_equal(implied.wave, tokenizer.decode(codes, vc_steps=1, voice=tokenizer.default_voice).wave)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([[1, 2, 16]]), "code 16 at level 0, frame 2: expected 0 to 15"),
        (torch.tensor([[1, -1]]), "code -1 at level 0, frame 1"),
        (torch.zeros(9, 4, dtype=torch.long), "shape"),
        (torch.zeros(1, 0, dtype=torch.long), "frames > 0"),
        (torch.zeros(4, dtype=torch.long), "shape"),
        (torch.zeros(1, 4), "expected integers"),
    ],
)
def test_wrong_codes_are_refused(tokenizer: SpeechTokenizer, codes: torch.Tensor, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        tokenizer.decode(codes)


def test_recording_without_samples_is_refused(tokenizer: SpeechTokenizer) -> None:
    with pytest.raises(MediaError, match="without samples"):
        tokenizer.encode([Audio(np.zeros((1, 0), dtype=np.float32), RATE)])


def test_fingerprint_is_of_the_encoder_and_level_one_only() -> None:
    reference = SpeechTokenizer(make_model()).fingerprint
    changed = make_model()
    changed.decoder.model[0].conv["conv"].bias.data += 1
    changed.quantizer.codebooks[1].embed += 1
    assert SpeechTokenizer(changed).fingerprint == reference
    changed.quantizer.codebooks[0].embed += 1
    assert SpeechTokenizer(changed).fingerprint != reference
    assert SpeechTokenizer(make_model(seed=5)).fingerprint != reference


def test_released_checkpoint_gives_the_same_codes(tmp_path: Path, folder: Path, tokenizer: SpeechTokenizer) -> None:
    checkpoint = write_released(tmp_path, make_model())
    released = SpeechTokenizer.from_released(checkpoint, soundstorm_path=folder.parent / "storm")
    assert released.fingerprint == tokenizer.fingerprint
    assert torch.equal(released.encode([tone()])[0], tokenizer.encode([tone()])[0])
    elsewhere = tmp_path / "elsewhere.json"
    (tmp_path / "config.json").rename(elsewhere)
    assert SpeechTokenizer.from_released(checkpoint, elsewhere).fingerprint == tokenizer.fingerprint


def test_released_checkpoint_must_fit_its_config(tmp_path: Path) -> None:
    checkpoint = write_released(tmp_path, make_model(), activation="ELU")
    with pytest.raises(CheckpointError, match=r"speech.pt: \d+ unknown keys, first 'encoder.model.1.block.0.alpha'"):
        SpeechTokenizer.from_released(checkpoint)
    checkpoint = write_released(tmp_path, make_model(), codebook_size=32)
    with pytest.raises(CheckpointError, match=r"another shape, first .*\(16,\), the configuration gives \(32,\)"):
        SpeechTokenizer.from_released(checkpoint)
    checkpoint = write_released(tmp_path, make_model(), lstm_layers=2)
    with pytest.raises(CheckpointError, match="missing keys, first 'encoder.model.13.lstm.weight_ih_l1'"):
        SpeechTokenizer.from_released(checkpoint)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    checkpoint = write_released(tmp_path, make_model())
    with pytest.raises(CheckpointError, match="nowhere.pt: no such file"):
        SpeechTokenizer.from_released(tmp_path / "nowhere.pt", tmp_path / "config.json")
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a readable"):
        SpeechTokenizer.from_released(checkpoint)
    checkpoint.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a readable"):
        SpeechTokenizer.from_released(checkpoint)
    torch.save({"model": {"a": torch.zeros(1)}}, checkpoint)
    with pytest.raises(CheckpointError, match="bare state dict"):
        SpeechTokenizer.from_released(checkpoint)
    with pytest.raises(CheckpointError, match="storm.pt: no such SoundStorm"):
        SpeechTokenizer.from_released(write_released(tmp_path, make_model()), soundstorm_path=tmp_path / "storm.pt")


@pytest.mark.parametrize("name", SMALL)
def test_released_config_needs_every_field(tmp_path: Path, name: str) -> None:
    checkpoint = write_released(tmp_path, make_model())
    config = {key: value for key, value in SMALL.items() if key != name}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"config.json: missing key '{name}'"):
        SpeechTokenizer.from_released(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "seenet"}, "unknown backbone 'seenet'.*did you mean 'seanet'"),
        ({"model": {**SMALL, "n_filter": 2}}, "unknown key 'n_filter'.*did you mean 'n_filters'"),
        ({"model": {**SMALL, "activation": "ReLU"}}, "'activation' is 'ReLU'"),
        ({"model": {**SMALL, "strides": []}}, "'strides' is empty"),
        ({"model": {**SMALL, "n_q": 0}}, "'n_q' is 0"),
        ({"soundstrom": None}, "unknown key 'soundstrom'.*did you mean 'soundstorm'"),
        ({"modality": "speach"}, "unknown modality 'speach'"),
        ({"soundstorm": "../gone"}, "no such SoundStorm"),
    ],
)
def test_folder_config_is_strict(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"soundstorm": None} | changes
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message):
        SpeechTokenizer.from_pretrained(tmp_path)


def test_incomplete_folder_names_the_missing_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json: missing"):
        SpeechTokenizer.from_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"soundstorm": None}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="model.safetensors: missing"):
        SpeechTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors: damaged"):
        SpeechTokenizer.from_pretrained(tmp_path)


def test_soundstorm_must_fit_the_codec(folder: Path) -> None:
    tokenizer = SpeechTokenizer(make_model(n_q=4), soundstorm=folder.parent / "storm")
    codes = tokenizer.encode([tone()])[0]
    with pytest.raises(CheckpointError, match="made for 7 acoustic levels of 16 codes, the codec has 3"):
        tokenizer.decode(codes)


def test_soundstorm_must_have_learned_this_codec(folder: Path, tmp_path: Path) -> None:
    storm = load_soundstorm(folder.parent / "storm")
    model = make_model()
    model.quantizer.codebooks[7].embed += 1
    for learned_from, fits in ((make_model(), True), (model, False)):
        storm.config = replace(storm.config, codec_fingerprint=codec_fingerprint(learned_from))
        save_soundstorm(storm, tmp_path)
        tokenizer = SpeechTokenizer(make_model(), soundstorm=tmp_path)
        codes = tokenizer.encode([tone()])[0]
        if fits:
            assert tokenizer.decode(codes).samples == codes.shape[1] * 320
        else:
            with pytest.raises(CheckpointError, match="trained on another codec's codes"):
                tokenizer.decode(codes)


def test_spectral_backbone_serves_speech(tmp_path: Path) -> None:
    from anygpt.tokenizers.spectral import SpectralCodec

    torch.manual_seed(0)
    sizes = {"codebook_size": 16, "n_q": 8, "encoder_width": 16, "decoder_width": 16, "semantic": True}
    model = SpectralCodec.from_config(sizes, source="test")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"class": "speechtokenizer", "backbone": "spectral", "model": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    (codes,) = tokenizer.encode([tone(0.51)])
    assert codes.shape == (1, 26)
    assert tokenizer.decode(codes).wave.shape == (1, 26 * 320)
    names = dict(tokenizer.code_defining_tensors())
    assert "quantizer.vq.layers.0._codebook.embed" in names and any(name.startswith("encoder.") for name in names)


def test_training_reaches_every_weight() -> None:
    model = make_model(n_filters=4, semantic_dimension=6).train()
    wav = torch.from_numpy(tone(0.1).wave)[None]
    out, commitment, feature = model(wav)
    assert feature.shape == (1, 5, 6)
    (out.square().mean() + commitment + feature.square().mean()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not without


def test_folded_kernels_are_dropped_for_training() -> None:
    model = make_model()
    fold_weight_norm(model)
    model.train()
    wav = torch.from_numpy(tone(0.1).wave)[None]
    model.encoder(wav).sum().backward()
    assert model.encoder.model[0].conv["conv"].weight_v.grad is not None


def test_nothing_deprecated_is_used() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model().encode(torch.zeros(1, 1, 640))


@pytest.mark.parametrize("activation", ["ELU", "Snake"])
@torch.no_grad()
def test_reference_package_agrees_on_the_same_weights(tmp_path: Path, activation: str) -> None:
    reference = pytest.importorskip(
        "speechtokenizer", reason="needs the package speechtokenizer: the extra [reference]", exc_type=ImportError
    )
    model = make_model(activation=activation, semantic_dimension=6)
    checkpoint = write_released(tmp_path, model, activation=activation, semantic_dimension=6)
    other = reference.SpeechTokenizer.load_from_checkpoint(str(tmp_path / "config.json"), str(checkpoint)).eval()
    wav = torch.from_numpy(tone(0.7).wave)[None]
    codes = model.encode(wav)
    assert torch.equal(codes, other.encode(wav))
    torch.testing.assert_close(model.decode(codes), other.decode(codes), atol=2e-5, rtol=1e-4)
    for got, expected in zip(model(wav), other(wav), strict=True):
        torch.testing.assert_close(got.squeeze(), expected.squeeze(), atol=2e-5, rtol=1e-4)
