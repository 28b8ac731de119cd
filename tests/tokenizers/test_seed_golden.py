"""The image tokenizer against the reference implementation's numbers (tests/golden/seed)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from anygpt.tokenizers.seed.config import SeedConfig
from anygpt.tokenizers.seed.model import SeedModel, quantize_loss
from anygpt.tokenizers.seed.preprocess import PreprocessConfig, preprocess, resize
from anygpt.tokenizers.seed.tokenizer import SeedTokenizer


@pytest.fixture(scope="module")
def seed_dir(golden_dir: Path) -> Path:
    return golden_dir / "seed"


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny_config(seed_dir: Path) -> SeedConfig:
    return SeedConfig.from_dict(read_json(seed_dir / "tiny_config.json"))


@pytest.fixture(scope="module")
def tiny_model(seed_dir: Path, tiny_config: SeedConfig) -> SeedModel:
    model = SeedModel(tiny_config).eval()
    model.load_state_dict(load_file(seed_dir / "tiny_weights.safetensors"), strict=True)
    return model


@pytest.fixture(scope="module")
def expected(seed_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(seed_dir / "tiny_io.npz"))


def recorded(modules: dict[str, nn.Module], run: Callable[[], Any]) -> dict[str, Tensor]:
    """The output of each module during `run`."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return outputs


def assert_close(name: str, got: Tensor, want: np.ndarray, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(
        np.broadcast_to(got.numpy(), want.shape), want, atol=atol, rtol=1e-4, err_msg=name, strict=True
    )


def test_golden_encode_path(tiny_model: SeedModel, expected: dict[str, np.ndarray]) -> None:
    vit, bert = tiny_model.visual_encoder, tiny_model.Qformer.bert
    modules: dict[str, nn.Module] = {
        "vit_patch_embed": vit.patch_embed,
        **{f"vit_block{i}_out": block for i, block in enumerate(vit.blocks)},
        "vit_output": vit,
        "ln_vision_output": tiny_model.ln_vision,
        "qformer_embedding_out": bert.embeddings,
        **{f"qformer_layer{i}_out": layer for i, layer in enumerate(bert.encoder.layer)},
        "qformer_output": tiny_model.Qformer,
        "encode_task_output": tiny_model.encode_task_layer,
    }
    outputs = recorded(modules, lambda: tiny_model.encode_features(torch.from_numpy(expected["image"])))
    for name in modules:
        assert_close(name, outputs[name], expected[name])


def test_golden_quantizer(tiny_model: SeedModel, expected: dict[str, np.ndarray]) -> None:
    image = torch.from_numpy(expected["image"])
    with torch.no_grad():
        features = tiny_model.encode_features(image)
        indices, quantized = tiny_model.quantize(features)
        distances = tiny_model.quantize.squared_distances(features).flatten(0, 1)
    np.testing.assert_array_equal(indices.numpy(), expected["indices"])
    np.testing.assert_array_equal(indices.flatten().numpy(), expected["indices_flat_from_quantizer"])
    np.testing.assert_array_equal(tiny_model.encode(image).numpy(), expected["indices"])
    assert_close("codebook_distance_squared", distances, expected["codebook_distance_squared"], atol=1e-4)
    assert_close("quantized_vectors", quantized, expected["quantized_vectors"])
    assert_close("quantize_loss", quantize_loss(features, quantized), expected["quantize_loss"])
    assert_close("decode_task_output", tiny_model.decode_task_layer(quantized).detach(), expected["decode_task_output"])


@pytest.mark.parametrize(("source", "prefix"), [("indices", "entry_"), ("random_indices", "entry_random_")])
def test_golden_decode_path(tiny_model: SeedModel, expected: dict[str, np.ndarray], source: str, prefix: str) -> None:
    modules: dict[str, nn.Module] = {
        "decode_task_output": tiny_model.decode_task_layer,
        **{f"block_image{i}_out": block for i, block in enumerate(tiny_model.blocks_image)},
        "image_down_out": tiny_model.image_down,
        "embedding": tiny_model.distill_image_proj,
    }
    indices = torch.from_numpy(expected[source])
    outputs = recorded(modules, lambda: tiny_model.embed(indices))
    for name in modules:
        assert_close(prefix + name, outputs[name], expected[prefix + name])
    with torch.no_grad():
        hidden, embedding = tiny_model.embed(tiny_model.quantize.embedding(indices))
    assert_close("hidden", hidden, expected[f"{prefix}block_image{len(tiny_model.blocks_image) - 1}_out"])
    assert_close("embedding", embedding, expected[f"{prefix}embedding"])


def test_golden_every_tensor_is_compared(tiny_model: SeedModel, expected: dict[str, np.ndarray]) -> None:
    """The names in the three tests above are all that the reference stored for a network of this depth."""
    config = tiny_model.config
    names = {"image", "random_indices", "indices", "indices_flat_from_quantizer", "quantized_vectors", "quantize_loss"}
    names |= {"vit_patch_embed", "vit_output", "ln_vision_output", "qformer_embedding_out", "qformer_output"}
    names |= {"encode_task_output", "decode_task_output", "codebook_distance_squared"}
    names |= {f"vit_block{i}_out" for i in range(config.vit.depth)}
    names |= {f"qformer_layer{i}_out" for i in range(config.qformer.num_hidden_layers)}
    for prefix in ("entry_", "entry_random_"):
        names |= {prefix + name for name in ("decode_task_output", "image_down_out", "embedding")}
        names |= {f"{prefix}block_image{i}_out" for i in range(config.decode_blocks.depth)}
    assert set(expected) == names


def test_golden_full_size_has_exactly_the_manifest(seed_dir: Path) -> None:
    manifest = read_json(seed_dir / "full_state_dict.json")
    config = SeedConfig.from_dict(read_json(seed_dir / "full_config.json"))
    with torch.device("meta"):
        state = SeedModel(config).state_dict()
        used = SeedModel(config.without_dead_weight()).state_dict()
    assert [(name, list(tensor.shape)) for name, tensor in state.items()] == [
        (name, shape) for name, (shape, _) in manifest["keys"].items()
    ]
    assert len(state) == manifest["n_keys"]
    assert {name for name, tensor in state.items() if not tensor.is_floating_point()} == set(manifest["buffers"])
    assert state.keys() - used.keys() == set(manifest["keys_not_used_by_encode_or_decode"])


def test_golden_defaults_are_the_released_network(seed_dir: Path) -> None:
    released = SeedConfig.from_dict(read_json(seed_dir / "full_config.json")).without_dead_weight()
    with torch.device("meta"):
        shapes = [
            {name: tensor.shape for name, tensor in SeedModel(config).state_dict().items()}
            for config in (released, SeedConfig())
        ]
    assert shapes[0] == shapes[1]
    stated = read_json(seed_dir / "full_config.json")["preprocess"]
    assert PreprocessConfig() == PreprocessConfig(
        image_size=stated["image_size"], mean=tuple(stated["mean"]), std=tuple(stated["std"])
    )


def test_golden_preprocessing(seed_dir: Path) -> None:
    arrays = np.load(seed_dir / "preprocess_io.npz")
    cases = {name.partition("/")[0] for name in arrays}
    assert cases
    for case in cases:
        image = Image.fromarray(arrays[f"{case}/input_uint8_hwc"])
        resized = arrays[f"{case}/resized_uint8_hwc"]
        size = resized.shape[0]
        np.testing.assert_array_equal(np.asarray(resize(image, size)), resized, err_msg=case)
        pixels = preprocess([image], PreprocessConfig(image_size=size))[0].numpy()
        if f"{case}/normalised_f32_chw" in arrays:
            want = arrays[f"{case}/normalised_f32_chw"]
        else:
            want, pixels = arrays[f"{case}/normalised_f32_chw_every_7th_row_col"], pixels[:, ::7, ::7]
        np.testing.assert_allclose(pixels, want, atol=1e-6, rtol=0, err_msg=case)


@pytest.mark.parametrize("old_format", [False, True])
def test_golden_released_checkpoint(
    seed_dir: Path, tiny_config: SeedConfig, expected: dict[str, np.ndarray], tmp_path: Path, old_format: bool
) -> None:
    """A file as others saved it: without position ids, with keys of other modules, in either format of torch."""
    state = load_file(seed_dir / "tiny_weights.safetensors")
    del state["Qformer.bert.embeddings.position_ids"]
    state["logit_scale"] = torch.zeros(())
    path = tmp_path / "seed_quantizer.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    tokenizer = SeedTokenizer.from_released(path, config=tiny_config)
    image = torch.from_numpy(expected["image"])
    np.testing.assert_array_equal(tokenizer.model.encode(image).numpy(), expected["indices"])
    assert_close("embedding", tokenizer.embed(torch.from_numpy(expected["indices"])), expected["entry_embedding"])


def test_golden_released_checkpoint_in_half_precision(
    seed_dir: Path, tiny_config: SeedConfig, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    state = load_file(seed_dir / "tiny_weights.safetensors")
    path = tmp_path / "seed_quantizer.pt"
    torch.save({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path)
    tokenizer = SeedTokenizer.from_released(path, config=tiny_config)
    assert {parameter.dtype for parameter in tokenizer.model.parameters()} == {torch.float32}
    codes = tokenizer.model.encode(torch.from_numpy(expected["image"])).numpy()
    assert (codes == expected["indices"]).mean() > 0.9
