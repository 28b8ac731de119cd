"""Behaviour of the image tokenizer at a very small size: contract, files, bad input."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from anygpt.config import from_dict
from anygpt.errors import AnyGPTError, CheckpointError, CodeError, ConfigError
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.seed.blocks import attend
from anygpt.tokenizers.seed.config import BlocksConfig, QformerConfig, SeedConfig, VitConfig
from anygpt.tokenizers.seed.model import SeedModel
from anygpt.tokenizers.seed.pixels import SmallPixelConfig, SmallPixelDecoder
from anygpt.tokenizers.seed.preprocess import PreprocessConfig
from anygpt.tokenizers.seed.tokenizer import SeedTokenizer

SMALL = SeedConfig(
    vit=VitConfig(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, mlp_ratio=2.0, hidden_act="relu"),
    qformer=QformerConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32),
    n_embed=64,
    codebook_embed_dim=8,
    decode_blocks=BlocksConfig(depth=1, num_heads=4),
    image_down_dims=(16, 4),
    image_features_dim=128,
)
SMALL_PIXELS = SmallPixelConfig(
    embed_dim=128, num_queries=32, width=16, depth=1, num_heads=2, patch_size=4, image_size=16
)


def make_tokenizer(seed: int = 0) -> SeedTokenizer:
    torch.manual_seed(seed)
    model = SeedModel(SMALL)
    # Entries as far apart as the features, so that random weights give varied codes.
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.3)
    return SeedTokenizer(model, SmallPixelDecoder(SMALL_PIXELS), PreprocessConfig(image_size=32))


@pytest.fixture(scope="module")
def tokenizer() -> SeedTokenizer:
    return make_tokenizer()


@pytest.fixture
def folder(tokenizer: SeedTokenizer, tmp_path: Path) -> Path:
    tokenizer.save_pretrained(tmp_path / "seed")
    return tmp_path / "seed"


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def test_encode_gives_codes_of_the_contract(tokenizer: SeedTokenizer) -> None:
    pictures = [picture(i, (20 + 7 * i, 50 - i)) for i in range(35)]
    codes = tokenizer.encode(pictures)
    assert len(codes) == 35
    assert all(code.shape == (1, 32) and code.dtype == torch.int64 and code.device.type == "cpu" for code in codes)
    together = torch.cat(codes)
    assert 0 <= together.min() and together.max() < tokenizer.codebook_size
    assert len(together.unique()) > 8
    assert torch.equal(tokenizer.encode(pictures[34:])[0], codes[34]), "a picture's codes depend on its batch"
    assert tokenizer.encode([]) == []


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_encode_takes_any_image_mode(tokenizer: SeedTokenizer, mode: str) -> None:
    image = picture(0).convert(mode)
    assert torch.equal(tokenizer.encode([image])[0], tokenizer.encode([image.convert("RGB")])[0])


def test_decode_paints_the_same_picture_each_time(tokenizer: SeedTokenizer) -> None:
    codes = tokenizer.encode([picture(1)])[0]
    image = tokenizer.decode(codes)
    assert image.size == (16, 16) and image.mode == "RGB"
    assert image.tobytes() == tokenizer.decode(codes, generator=torch.Generator().manual_seed(5)).tobytes()
    assert image.tobytes() != tokenizer.decode((codes + 1) % 64).tobytes()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 31, dtype=torch.int64), r"shape \[1, 32\], got torch.int64 \[1, 31\]"),
        (torch.zeros(32, dtype=torch.int64), r"got torch.int64 \[32\]"),
        (torch.zeros(1, 32), r"got torch.float32 \[1, 32\]"),
        (torch.arange(40, 72)[None], r"image code 64 at position 24 is outside \[0, 64\)"),
        (torch.arange(-1, 31)[None], r"image code -1 at position 0 is outside"),
    ],
)
def test_decode_refuses_bad_codes(tokenizer: SeedTokenizer, codes: Tensor, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        tokenizer.decode(codes)


def test_decode_refuses_unknown_settings_and_a_missing_decoder(tokenizer: SeedTokenizer) -> None:
    codes = torch.zeros(1, 32, dtype=torch.int64)
    with pytest.raises(AnyGPTError, match="no setting 'voice'"):
        tokenizer.decode(codes, voice="x")
    with pytest.raises(AnyGPTError, match="no pixel decoder is loaded; give"):
        SeedTokenizer(tokenizer.model, None, PreprocessConfig(image_size=32)).decode(codes)


def test_queries_are_causal(tokenizer: SeedTokenizer) -> None:
    """Query i must not see queries after i: the language model reads codes from left to right."""
    model, image = tokenizer.model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.encode_features(image)
        model.query_tokens[:, 20] *= -1.0
        after = model.encode_features(image)
        model.query_tokens[:, 20] *= -1.0
    assert torch.equal(before[:, :20], after[:, :20])
    assert (before[:, 20:] - after[:, 20:]).abs().amax((0, 2)).min() > 1e-6


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    model, pixels = SeedModel(SMALL), SmallPixelDecoder(SMALL_PIXELS)
    z = model.encode_features(torch.randn(2, 3, 32, 32))
    _, quantized = model.quantize(z)
    hidden, embedding = model.embed(z + (quantized - z).detach())
    (pixels(embedding).square().mean() + hidden.mean() + F.mse_loss(quantized, z.detach())).backward()
    # A key's bias shifts all scores of a row alike and so has no gradient but rounding noise.
    for name, parameter in [*model.named_parameters(), *pixels.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("causal", "queries", "keys", "query_batch"),
    [(True, 1, 1, 3), (True, 5, 5, 3), (True, 5, 5, 1), (False, 5, 5, 3), (False, 4, 9, 1), (False, 4, 9, 3)],
)
def test_attention_equals_torch(causal: bool, queries: int, keys: int, query_batch: int) -> None:
    generator = torch.Generator().manual_seed(queries * keys)
    q = torch.randn(query_batch, queries, 12, generator=generator)
    k, v = (torch.randn(3, keys, 12, generator=generator) for _ in range(2))
    heads = [x.expand(3, -1, -1).unflatten(-1, (4, 3)).transpose(1, 2) for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*heads, is_causal=causal).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(q, k, v, 4, causal=causal), want)


def test_saved_tokenizer_loads_the_same(tokenizer: SeedTokenizer, folder: Path) -> None:
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, SeedTokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    codes = tokenizer.encode([picture(2)])[0]
    assert torch.equal(loaded.encode([picture(2)])[0], codes)
    assert loaded.decode(codes).tobytes() == tokenizer.decode(codes).tobytes()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "pixels.safetensors"]


def test_sixteen_bit_weights_become_float32(tokenizer: SeedTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = SeedTokenizer.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.query_tokens, stored["query_tokens"].float())


def test_fingerprint_follows_the_codes_only() -> None:
    tokenizer = make_tokenizer()
    before = tokenizer.fingerprint
    with torch.no_grad():
        tokenizer.model.distill_image_proj.weight.add_(1)
        tokenizer.model.pos_embed_image.add_(1)
        assert tokenizer.fingerprint == before
        tokenizer.model.quantize.embedding.weight[3, 0] += 1e-3
    assert tokenizer.fingerprint != before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pixels.safetensors"])
def test_missing_and_damaged_files(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AnyGPTError, match=name):
        SeedTokenizer.from_pretrained(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        SeedTokenizer.from_pretrained(folder)


def test_weights_must_fit_the_configuration(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "stray": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: weight 'stray' is not part of the model"):
        SeedTokenizer.from_pretrained(folder)
    save_file({name: value for name, value in state.items() if not name.startswith("ln_vision")}, path)
    with pytest.raises(CheckpointError, match=r"2 weights \('ln_vision.bias', ...\) are missing"):
        SeedTokenizer.from_pretrained(folder)
    save_file({**state, "query_tokens": torch.zeros(1, 8, 16)}, path)
    with pytest.raises(CheckpointError, match=r"'query_tokens' has shape \[1, 8, 16\].*needs \[1, 32, 16\]"):
        SeedTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"modell": {}}, "unknown key 'modell'.*did you mean 'model'"),
        ({"model": None}, "'model' is missing"),
        ({"model": {"vit": {"depht": 2}}}, "vit.depht.*did you mean 'depth'"),
        ({"pixels": {"kind": "large"}}, "'kind' is 'large', expected 'small' or 'unclip'"),
        ({"pixels": {"kind": "small", "colour": 3}}, "unknown key 'colour'"),
        ({"preprocess": {"image_size": 64}}, "preprocess.image_size is 64, but model.vit.img_size is 32"),
    ],
)
def test_config_errors_name_the_field(folder: Path, edit: dict[str, object], message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(ConfigError, match=message):
        SeedTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"vit": {"num_heads": 7}}, "vit: width 1408 can't be split over 7 heads"),
        ({"vit": {"img_size": 100}}, "img_size 100 is not a multiple of patch_size 14"),
        ({"qformer": {"hidden_act": "swish"}}, "qformer.hidden_act: 'swish' is unknown; use one of gelu, relu"),
        ({"qformer": {"cross_attention_freq": 0}}, "cross_attention_freq: 0; give 1 or more"),
        ({"decode_blocks": {"num_heads": 5}}, "decode_blocks: width 768 can't be split over 5 heads"),
        ({"use_qformer_image": True}, "never released"),
        ({"image_down_dims": []}, "image_down_dims: empty"),
    ],
)
def test_impossible_shapes_are_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SeedConfig.from_dict(mapping)


def test_decoder_of_another_tokenizer_is_refused() -> None:
    pixels = SmallPixelDecoder(from_dict(SmallPixelConfig, {"width": 16, "num_heads": 2, "depth": 1}, "test"))
    with pytest.raises(ConfigError, match="takes embeddings of 1024 values, but the tokenizer gives 128"):
        SeedTokenizer(SeedModel(SMALL), pixels, PreprocessConfig(image_size=32))


def test_released_checkpoint_errors(tmp_path: Path) -> None:
    path = tmp_path / "seed_quantizer.pt"
    with pytest.raises(CheckpointError, match="no such file; give the path of SEED's seed_quantizer.pt"):
        SeedTokenizer.from_released(path, config=SMALL)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="seed_quantizer.pt: damaged"):
        SeedTokenizer.from_released(path, config=SMALL)
    torch.save({"path": Path("/")}, path)
    with pytest.raises(CheckpointError, match="holds more than weights"):
        SeedTokenizer.from_released(path, config=SMALL)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="not a table of weights"):
        SeedTokenizer.from_released(path, config=SMALL)
    torch.save({"query_tokens": torch.zeros(1, 32, 768)}, path)
    with pytest.raises(CheckpointError, match=r"\d+ weights \('Qformer.*', ...\) are missing"):
        SeedTokenizer.from_released(path, config=SMALL)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="seed_quantizer.pt"):
        SeedTokenizer.from_released(path, config=SMALL)
