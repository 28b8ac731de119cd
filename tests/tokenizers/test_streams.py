"""Sound decoded piece by piece is the sound decoded at once, for every codec network."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anygpt.errors import AnyGPTError
from anygpt.media import Audio
from anygpt.paths import resource
from anygpt.tokenizers.audio_codec import AudioCodecModel, as_module, build_codec
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.encodec.hf import HFEncodec
from anygpt.tokenizers.streams import ChunkDecoder, CodecStream, Conv, Upsample, context_frames, lookahead_frames

LEVELS, ENTRIES = 3, 16
SEANET = {
    "n_filters": 2,
    "strides": [4, 3, 2],
    "dimension": 8,
    "semantic_dimension": 8,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 2,
    "lstm_layers": 2,
    "activation": "Snake",
    "codebook_size": ENTRIES,
    "n_q": LEVELS,
    "sample_rate": 16_000,
}
SPECTRAL = {
    "hop_length": 40,
    "analysis": [[160, 40]],
    "synthesis": [160, 40],
    "semantic_analysis": [60, 20],
    "semantic_mels": 4,
    "codebook_size": ENTRIES,
    "n_q": LEVELS,
    "dimension": 8,
    "encoder_width": 8,
    "encoder_depth": 1,
    "decoder_width": 16,
    "decoder_depth": 2,
    "semantic_width": 8,
    "semantic_depth": 1,
}


def seanet(**changes: Any) -> AudioCodecModel:
    codec: Any = loud(build_codec("seanet", {**SEANET, **changes}, "test"))
    with torch.no_grad():
        # A fresh network's output is far from zero, or hardly moves; then all sound would be equal.
        last = codec.decoder.model[-1].conv["conv"]
        wave = codec.decode(some_codes(codec, 50)[:, None])
        gain = 0.1 / wave.std()
        last.bias.sub_(wave.mean()).mul_(gain)
        last.weight_g.mul_(gain)
    return cast(AudioCodecModel, codec)


def spectral(**changes: Any) -> AudioCodecModel:
    return loud(build_codec("spectral", {**SPECTRAL, **changes}, "test"))


def encodec(**changes: Any) -> AudioCodecModel:
    from transformers import EncodecConfig, EncodecModel

    shape = {"num_filters": 2, "hidden_size": 8, "codebook_dim": 8, "codebook_size": ENTRIES, "num_lstm_layers": 2}
    rates = {"sampling_rate": 24_000, "upsampling_ratios": [4, 3, 2], "target_bandwidths": [12.0]}
    model = EncodecModel(EncodecConfig(**{**shape, **rates, **changes})).eval()
    return loud(HFEncodec(model, int(model.quantizer.get_num_quantizers_for_bandwidth(12.0)), "test").eval())


def loud(codec: AudioCodecModel) -> AudioCodecModel:
    """With entries that differ: those of some fresh networks are all zero."""
    for name, buffer in as_module(codec).named_buffers():
        if name.endswith("embed"):
            nn.init.normal_(buffer)
    as_module(codec).eval()
    return codec


NETWORKS: dict[str, Callable[[], AudioCodecModel]] = {
    "spectral": spectral,
    "spectral, long window": lambda: spectral(synthesis=[240, 20], semantic=True),
    "seanet": seanet,
    "seanet, odd strides": lambda: seanet(strides=[5, 3], residual_kernel_size=5, activation="ELU"),
    "encodec, causal": encodec,
    "encodec, not causal": lambda: encodec(use_causal_conv=False),
    "encodec, trimmed on both sides": lambda: encodec(trim_right_ratio=0.5, dilation_growth_rate=3),
    "encodec, normalised over time": lambda: encodec(norm_type="time_group_norm"),
}


@cache
def network(name: str) -> AudioCodecModel:
    torch.manual_seed(0)
    return NETWORKS[name]()


def some_codes(codec: AudioCodecModel, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.codebook_size, (codec.n_q, frames), generator=generator)


def whole(codec: AudioCodecModel, codes_KT: Tensor) -> Tensor:
    with torch.inference_mode():
        return codec.decode(codes_KT[:, None])[0].clamp(-1, 1)


def in_pieces(decoder: ChunkDecoder, codes_KT: Tensor, lengths: Sequence[int]) -> list[Audio]:
    """What comes when the codes are pushed in pieces of these lengths, in turn."""
    pieces: list[Audio] = []
    at = number = 0
    while at < codes_KT.shape[1]:
        length = lengths[number % len(lengths)]
        pieces += decoder.push(codes_KT[:, at : at + length])
        at, number = at + length, number + 1
    return [*pieces, *decoder.finish()]


def joined(pieces: Sequence[Audio]) -> Tensor:
    return torch.cat([torch.from_numpy(piece.wave) for piece in pieces], dim=-1)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=15)
@given(
    frames=st.integers(1, 70),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    sizes=st.tuples(st.integers(1, 12), st.integers(0, 20)),
)
def test_joined_pieces_are_the_whole(name: str, frames: int, lengths: list[int], sizes: tuple[int, int]) -> None:
    codec = network(name)
    codes_KT = some_codes(codec, frames)
    assert float(whole(codec, codes_KT).std()) > 0.01
    stream = CodecStream(codec, first_frames=sizes[0], piece_frames=sum(sizes))
    torch.testing.assert_close(
        joined(in_pieces(stream, codes_KT, lengths)), whole(codec, codes_KT), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", [name for name in NETWORKS if "normalised" not in name])
def test_the_lookahead_is_just_what_the_network_needs(name: str) -> None:
    """A frame's sound changes with the frame `lookahead` later at most, and one frame less would not do."""
    codec = network(name)
    ahead = lookahead_frames(codec.decode_stages())
    assert ahead is not None and CodecStream(codec).lookahead_frames == ahead
    frames = ahead + 45
    codes_KT = some_codes(codec, frames)
    later = codes_KT.clone()
    later[:, 40:] = (later[:, 40:] + 7) % codec.codebook_size
    difference = (whole(codec, codes_KT) - whole(codec, later)).abs()[0].view(frames, codec.hop_length).amax(1)
    changed = difference.gt(1e-6).nonzero()[:, 0]
    assert 40 - ahead <= int(changed[0])
    # Causal convolutions look ahead at the very beginning only, where the signal is reflected.
    if name != "encodec, causal" and not name.startswith("encodec, trimmed"):
        assert int(changed[0]) <= 40 - ahead + 1


def test_context_of_layers_by_hand() -> None:
    assert context_frames([Conv(3)]) == 3
    assert context_frames([Upsample(8, 4, 2)]) == 1  # the two inputs on both sides of a sample
    assert context_frames([Upsample(8, 4, 0)]) == 1
    assert context_frames([Upsample(4, 4, 0)]) == 0
    assert context_frames([Conv(3), Upsample(8, 4, 2), Conv(4)]) == 5
    assert context_frames([Upsample(4, 2, 1), Upsample(4, 2, 1), Conv(3)]) == 2


def test_a_normalisation_over_time_leaves_everything_to_the_end() -> None:
    codec = network("encodec, normalised over time")
    stream = CodecStream(codec)
    assert stream.lookahead_frames is None and stream.push(some_codes(codec, 200)) == []
    (piece,) = stream.finish()
    assert piece.samples == 200 * codec.hop_length


def test_the_first_piece_comes_early_and_pieces_grow() -> None:
    codec = network("spectral")
    stream = CodecStream(codec, first_frames=3, piece_frames=10)
    assert stream.lookahead_frames == 2 * 3 + 2
    codes_KT = some_codes(codec, 60)
    arrivals = [
        (frame, piece.samples // codec.hop_length)
        for frame in range(60)
        for piece in stream.push(codes_KT[:, frame : frame + 1])
    ]
    assert arrivals[:4] == [(10, 3), (16, 6), (26, 10), (36, 10)]


def test_nothing_pushed_is_no_sound() -> None:
    assert CodecStream(network("seanet")).finish() == []


@pytest.mark.parametrize("name", ["encodec-mini", "speechtokenizer-mini"])
def test_shipped_codecs_join_without_clicks(name: str) -> None:
    try:
        folder = resource("tokenizers", name)
    except AnyGPTError:
        pytest.skip("the tokenizer is not in this tree")
    codec: Any = load_tokenizer(folder).model  # type: ignore[attr-defined]
    codes_KT = some_codes(codec, 120)
    expected = whole(codec, codes_KT)
    for lengths in ([1], [7, 13], [50], [120]):
        pieces = in_pieces(CodecStream(codec), codes_KT, lengths)
        wave = joined(pieces)
        assert float((wave - expected).abs().max()) < 1e-4
        # A click is a step between two samples: at the seams they are those of the whole, no larger.
        steps, expected_steps = wave.diff()[0], expected.diff()[0]
        seam = 0
        for piece in pieces[:-1]:
            seam += piece.samples
            assert abs(float(steps[seam - 1] - expected_steps[seam - 1])) < 1e-4
