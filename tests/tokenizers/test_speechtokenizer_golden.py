"""SpeechTokenizer's network against vectors of the reference implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anygpt.tokenizers.speechtokenizer.config import load_released_config
from anygpt.tokenizers.speechtokenizer.model import SpeechTokenizerModel
from anygpt.tokenizers.speechtokenizer.seanet import ResidualLSTM, fold_weight_norm

TINY = ["tiny", "tiny_snake"]


def load(golden_dir: Path, name: str) -> tuple[SpeechTokenizerModel, dict[str, Tensor]]:
    folder = golden_dir / "speechtokenizer"
    model = SpeechTokenizerModel(load_released_config(folder / f"{name}_config.json"))
    model.load_state_dict(load_file(folder / f"{name}_weights.safetensors"), strict=True)
    with np.load(folder / f"{name}_io.npz") as arrays:
        return model.eval(), {key: torch.from_numpy(array) for key, array in arrays.items()}


def compute(model: SpeechTokenizerModel, io: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything that the vectors may hold, by their names."""
    wav, codes = io["wav"], io["codes"]
    encoder, decoder = model.encoder.model, model.decoder.model
    lstm = next(i for i, layer in enumerate(encoder) if isinstance(layer, ResidualLSTM))
    lstm_in = encoder[:lstm](wav)
    quantized = model.quantizer.decode(codes)
    out, commitment, feature = model(wav)
    out_nq4, _, feature_nq4 = model(wav, n_q=4, layers=[2])
    results = {
        "encoder_first_conv_out_first2000": encoder[0](wav)[..., :2000],
        "encoder_lstm_in": lstm_in,
        "encoder_lstm_out": encoder[lstm](lstm_in),
        "encoder_out": model.encoder(wav),
        "codes": model.encode(wav),
        "codes_nq1": model.encode(wav, n_q=1),
        "codes_nq3": model.encode(wav, n_q=3),
        "codes_st1": model.encode(wav, st=1),
        "codes_st2_nq5": model.encode(wav, st=2, n_q=5),
        "quantized_sum": quantized,
        "decoder_lstm_out": decoder[:2](quantized),
        "decode_all": model.decode(codes),
        "decode_layer0": model.decode(codes[:1]),
        "decode_layers0_2": model.decode(codes[:3]),
        "decode_layers1_7": model.decode(codes[1:], st=1),
        "decode_layers2_4": model.decode(codes[2:5], st=2),
        "forward_feature_all": torch.stack(model.forward_feature(wav)),
        "forward_feature_layers_0_3": torch.stack(model.forward_feature(wav, layers=[0, 3])),
        "forward_out": out,
        "forward_commit_loss": commitment,
        "forward_semantic_feature": feature,
        "forward_nq4_out": out_nq4,
        "forward_nq4_layer2_feature": feature_nq4,
    }
    for name in {"wav_batch", "wav_short", "wav_tiny"} & set(io):
        results[f"codes_{name}"] = model.encode(io[name])
        results[f"decode_{name}"] = model.decode(io[f"codes_{name}"])
    return results


def check(results: dict[str, Tensor], io: dict[str, Tensor]) -> None:
    expected = {name: array for name, array in io.items() if not name.startswith("wav")}
    assert set(expected) <= set(results), "a stored tensor that is not compared"
    assert {"codes", "decode_all", "forward_semantic_feature"} <= set(expected)
    expected.setdefault("forward_out", io["decode_all"])  # in eval mode the same sound, by another way
    for name, array in expected.items():
        got = results[name]
        assert got.shape == array.shape, name
        if array.is_floating_point():
            torch.testing.assert_close(got, array, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert torch.equal(got, array), name


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_golden_tensors(golden_dir: Path, name: str) -> None:
    model, io = load(golden_dir, name)
    check(compute(model, io), io)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_golden_tensors_with_folded_kernels(golden_dir: Path, name: str) -> None:
    model, io = load(golden_dir, name)
    fold_weight_norm(model)
    check(compute(model, io), io)


@pytest.mark.parametrize("suffix", ["", "_snake"])
def test_golden_manifest_of_the_full_model(golden_dir: Path, suffix: str) -> None:
    folder = golden_dir / "speechtokenizer"
    manifest = json.loads((folder / f"full_state_dict{suffix}.json").read_text(encoding="utf-8"))["keys"]
    with torch.device("meta"):
        model = SpeechTokenizerModel(load_released_config(folder / f"full_config{suffix}.json"))
    own = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()}
    assert own == manifest
    assert list(own) == list(manifest), "order of the modules"


def test_golden_published_training_config_describes_the_full_model(golden_dir: Path, tmp_path: Path) -> None:
    folder = golden_dir / "speechtokenizer"
    published = json.loads((folder / "published_training_config.json").read_text(encoding="utf-8"))["values"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(published), encoding="utf-8")
    assert load_released_config(path) == load_released_config(folder / "full_config.json")
