"""The spectral codec: shapes, levels, and each fast function against its obvious version."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from anygpt.errors import CodeError, ConfigError
from anygpt.tokenizers import audio_codec, spectral
from anygpt.tokenizers.audio_codec import AudioCodecModel, code_defining_tensors, encode_waves
from anygpt.tokenizers.spectral import DepthwiseConv, SpectralCodec, SpectralConfig

SMALL = SpectralConfig(
    hop_length=80,
    analysis=((320, 80), (160, 40)),
    synthesis=(320, 80),
    semantic_analysis=(100, 40),
    semantic_mels=10,
    codebook_size=16,
    n_q=4,
    dimension=8,
    encoder_width=16,
    encoder_depth=1,
    decoder_width=16,
    decoder_depth=1,
    semantic_width=16,
    semantic_depth=1,
)


def small_codec(**changes: object) -> SpectralCodec:
    torch.manual_seed(0)
    return SpectralCodec(dataclasses.replace(SMALL, **changes)).eval()


@pytest.mark.parametrize("semantic", [False, True])
@pytest.mark.parametrize("samples", [1, 79, 80, 81, 1000])
def test_frames_are_the_length_over_the_hop_rounded_up(semantic: bool, samples: int) -> None:
    codec = small_codec(semantic=semantic)
    codes = codec.encode(torch.randn(2, 1, samples))
    frames = -(-samples // 80)
    assert codes.shape == (4, 2, frames) and codes.dtype == torch.int64
    assert 0 <= int(codes.min()) and int(codes.max()) < 16
    for levels in (1, 2, 4):
        wave = codec.decode(codes[:levels])
        assert wave.shape == (2, 1, frames * 80) and torch.isfinite(wave).all()


@pytest.mark.parametrize("semantic", [False, True])
def test_fewer_levels_are_the_first_of_all(semantic: bool) -> None:
    codec, wave = small_codec(semantic=semantic), torch.randn(2, 1, 900)
    codes = codec.encode(wave)
    for levels in range(1, 5):
        assert torch.equal(codec.encode(wave, levels), codes[:levels])


def test_level_one_of_semantic_codecs_needs_no_acoustic_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = small_codec(semantic=True)
    monkeypatch.delattr(type(codec.encoder), "acoustic_latent")
    assert codec.encode(torch.randn(1, 1, 900), 1).shape == (1, 1, 12)


def test_waves_get_the_codes_that_each_gets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = small_codec(semantic=True)
    waves = [torch.randn(length) for length in (800, 1600, 800, 900, 800, 1600, 800)]
    for seconds in (0.01, 0.1, 16.0):
        monkeypatch.setattr(audio_codec, "CPU_BATCH_S", seconds)
        for levels in (None, 1, 3):
            codes = encode_waves(codec, waves, n_q=levels, batch_size=3)
            for wave, codes_KT in zip(waves, codes, strict=True):
                assert torch.equal(codes_KT, codec.encode(wave[None, None], levels)[:, 0])


def test_fulfils_the_codec_contract() -> None:
    codec = small_codec(semantic=True)
    contract: AudioCodecModel = codec
    assert (contract.sample_rate, contract.hop_length, contract.codebook_size, contract.n_q) == (16_000, 80, 16, 4)
    names = [name for name, _ in code_defining_tensors(codec, 1)]
    assert any(name.startswith("encoder.semantic") for name in names)
    again = SpectralCodec.from_config(codec.config.to_dict(), "config.json")
    again.load_state_dict(codec.state_dict())
    wave = torch.randn(1, 1, 400)
    assert torch.equal(again.encode(wave), codec.encode(wave))


def test_levels_add_up_to_the_latent_of_training() -> None:
    """`encode` and `vectors` use the same residuals as a training step does."""
    codec = small_codec(semantic=True)
    wave = torch.randn(2, 800)
    codes = codec.encode(wave[:, None])
    semantic = codec.encoder.semantic_latent(codec.encoder.semantic_power(wave))
    first, first_codes, _, _ = codec.quantizer(semantic.transpose(1, 2), n_q=1)
    projected = codec.semantic_projection(first.transpose(1, 2))
    rest, rest_codes, _, _ = codec.quantizer((codec.encoder.acoustic_latent(wave) - projected).transpose(1, 2), st=1)
    assert torch.equal(torch.cat([first_codes, rest_codes]), codes)
    torch.testing.assert_close(projected + rest.transpose(1, 2), codec.vectors(codes))


def test_level_one_does_not_see_the_acoustic_encoder() -> None:
    codec = small_codec(semantic=True)
    wave = torch.randn(1, 1, 800)
    before = codec.encode(wave)
    for parameter in codec.encoder.acoustic.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.equal(codec.encode(wave)[0], before[0])


@pytest.mark.parametrize("codes", [torch.full((1, 1, 3), 16), torch.full((1, 1, 3), -1), torch.zeros(5, 1, 3).long()])
def test_decode_refuses_bad_codes(codes: torch.Tensor) -> None:
    with pytest.raises(CodeError):
        small_codec().decode(codes)


def test_encode_refuses_an_empty_signal() -> None:
    with pytest.raises(CodeError, match="empty"):
        small_codec().encode(torch.zeros(1, 1, 0))


def test_config_refuses_hops_that_do_not_fit_and_unknown_keys() -> None:
    with pytest.raises(ConfigError, match="hop"):
        SpectralConfig(analysis=((1280, 300),))
    with pytest.raises(ConfigError, match="codebook_size"):
        SpectralCodec.from_config({"codebok_size": 4}, "config.json")


def test_depthwise_convolution_equals_conv1d_and_so_do_its_gradients() -> None:
    conv = DepthwiseConv(6, 5).double()
    x = torch.randn(2, 9, 6, dtype=torch.double, requires_grad=True)
    plain = F.conv1d(x.transpose(1, 2), conv.weight.t()[:, None], conv.bias, padding=2, groups=6).transpose(1, 2)
    torch.testing.assert_close(conv(x), plain)
    inputs = (x, conv.weight, conv.bias)
    upstream = torch.randn_like(plain)
    fast = torch.autograd.grad((conv(x) * upstream).sum(), inputs)
    torch.testing.assert_close(fast, torch.autograd.grad((plain * upstream).sum(), inputs))


def test_inverse_fft_equals_irfft_and_so_do_its_gradients() -> None:
    inputs = tuple(torch.randn(3, 9, dtype=torch.double, requires_grad=True) for _ in range(2))
    fast = spectral._InverseFFT.apply(*inputs)
    plain = torch.fft.irfft(torch.polar(inputs[0].exp(), inputs[1]))
    torch.testing.assert_close(fast, plain)
    upstream = torch.randn_like(plain)
    gradients = [torch.autograd.grad((y * upstream).sum(), inputs) for y in (fast, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("window", "hop"), [(64, 16), (64, 64), (32, 16)])
def test_overlap_add_undoes_the_framing_of_power_spectra(window: int, hop: int) -> None:
    # A Hann window without overlap is zero at its first sample, from which nothing comes back.
    weights = torch.hann_window(window) if hop < window else torch.ones(window)
    wave = torch.randn(2, 10 * hop)
    frames = F.pad(wave, ((window - hop) // 2,) * 2).unfold(-1, window, hop)
    torch.testing.assert_close(spectral.overlap_add(frames * weights, weights, hop), wave)
    power = spectral.power_spectra(wave, weights, hop)
    assert power.shape == (2, 10, window // 2 + 1)
    plain = torch.fft.rfft(frames * weights).abs().square() / weights.square().sum()
    torch.testing.assert_close(power, plain)


def test_mel_filters_have_unit_sum_and_follow_the_warp() -> None:
    plain, warped = (spectral.mel_filters(20, 512, 16_000, warp=warp) for warp in (1.0, 1.1))
    torch.testing.assert_close(plain.sum(0), torch.ones(20))
    bins = torch.arange(257.0)
    centres = (bins @ plain)[5:15], (bins @ warped)[5:15]
    torch.testing.assert_close(centres[1] / centres[0], torch.full((10,), 1.1), rtol=0.02, atol=0)


def test_bfloat16_training_keeps_the_residual_stream_in_float32() -> None:
    codec = small_codec(semantic=True)
    for name, parameter in codec.named_parameters():
        if not spectral.keeps_float32(name):
            parameter.data = parameter.data.bfloat16()
    latent = codec.encoder.acoustic_latent(torch.randn(1, 800))
    assert latent.dtype == torch.float32
    codec.synthesize(latent).sum().backward()
    assert all(p.grad is not None for n, p in codec.named_parameters() if n.startswith(("encoder.ac", "decoder")))
