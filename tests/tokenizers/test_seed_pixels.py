"""The two pixel decoders: our small one, and unCLIP with a tiny random pipeline that is built here."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from anygpt.errors import AnyGPTError, CheckpointError, ConfigError
from anygpt.tokenizers.seed.config import BlocksConfig, QformerConfig, SeedConfig, VitConfig
from anygpt.tokenizers.seed.model import SeedModel
from anygpt.tokenizers.seed.pixels import SmallPixelConfig, SmallPixelDecoder, UnclipConfig, UnclipPixels
from anygpt.tokenizers.seed.preprocess import PreprocessConfig
from anygpt.tokenizers.seed.tokenizer import SeedTokenizer

SMALL = SmallPixelConfig(embed_dim=24, num_queries=4, width=16, depth=1, num_heads=2, patch_size=3, image_size=12)


def test_patches_are_folded_row_by_row() -> None:
    """The permutation against `F.fold`, which wants the colours of a patch before its rows."""
    torch.manual_seed(0)
    decoder = SmallPixelDecoder(SMALL)
    patches: list[torch.Tensor] = []
    decoder.head.register_forward_hook(lambda _, __, output: patches.append(output))
    image = decoder(torch.randn(2, 24))
    assert image.shape == (2, 3, 12, 12)
    columns = patches[0].view(2, 16, 3, 3, 3).permute(0, 4, 2, 3, 1).reshape(2, 27, 16)
    torch.testing.assert_close(image, F.fold(columns, (12, 12), kernel_size=3, stride=3))


def test_drawing_maps_minus_one_to_black_and_clamps() -> None:
    decoder = SmallPixelDecoder(SMALL)
    for value, want in ((-3.0, 0), (-1.0, 0), (0.0, 128), (1.0, 255), (7.0, 255)):
        torch.nn.init.zeros_(decoder.head.weight)
        torch.nn.init.constant_(decoder.head.bias, value)
        image = decoder.draw(torch.zeros(2, 24))[1]
        assert image.getpixel((5, 5)) == (want, want, want), value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "pixels: width 16 can't be split over 3 heads"),
        ({"embed_dim": 25}, "embed_dim 25 is not a multiple of num_queries 4"),
        ({"image_size": 13}, "image_size 13 is not a multiple of patch_size 3"),
        ({"hidden_act": "tanh"}, "use one of gelu, relu"),
    ],
)
def test_impossible_small_decoders_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SmallPixelConfig(**{**vars(SMALL), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete unCLIP pipeline of a few thousand random weights, in the layout of the released one."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    folder = tmp_path_factory.mktemp("unclip")
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=4,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, projection_dim=16
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=32,
        use_linear_projection=True,
    )
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(),
        image_encoder=CLIPVisionModelWithProjection(vision),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=16),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8),
        text_encoder=CLIPTextModel(text),
        unet=unet,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, beta_schedule="scaled_linear"),
        vae=diffusers.AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, **_vae_blocks()),
    )
    pipeline.save_pretrained(folder / "pipeline")
    # The embedding comes from codes: a copy of the pipeline without CLIP's large image encoder must do.
    shutil.rmtree(folder / "pipeline" / "image_encoder")
    return folder / "pipeline"


def _vae_blocks() -> dict[str, object]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
    }


def make_model() -> SeedModel:
    torch.manual_seed(0)
    config = SeedConfig(
        vit=VitConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2),
        qformer=QformerConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8),
        n_embed=16,
        codebook_embed_dim=4,
        decode_blocks=BlocksConfig(depth=1, num_heads=2),
        image_down_dims=(4,),
        image_features_dim=16,
    )
    return SeedModel(config)


def test_unclip_paints_from_codes(pipeline_folder: Path, tmp_path: Path) -> None:
    config = UnclipConfig(path=str(pipeline_folder), num_inference_steps=2)
    tokenizer = SeedTokenizer(make_model(), UnclipPixels.from_pretrained(config), PreprocessConfig(image_size=16))
    tokenizer.save_pretrained(tmp_path)
    codes = torch.arange(32)[None] % 16
    image = tokenizer.decode(codes)
    assert image.size == (64, 64) and image.mode == "RGB"
    loaded = SeedTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded.pixels, UnclipPixels) and loaded.pixels.config == config
    assert loaded.decode(codes).tobytes() == image.tobytes(), "same codes and seed, another picture"


def test_unclip_shows_no_bars(pipeline_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pixels = UnclipPixels.from_pretrained(UnclipConfig(path=str(pipeline_folder), num_inference_steps=1))
    pixels.draw(torch.zeros(1, 16))
    assert capfd.readouterr() == ("", "")


def test_unclip_follows_embedding_and_latent(pipeline_folder: Path) -> None:
    config = UnclipConfig(path=str(pipeline_folder), num_inference_steps=2)
    pixels = UnclipPixels.from_pretrained(config)
    embeddings = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)) * 5
    first, second = pixels.draw(embeddings)
    assert first.tobytes() != second.tobytes()
    other = UnclipPixels.from_pretrained(UnclipConfig(path=str(pipeline_folder), num_inference_steps=2, seed=1))
    assert other.draw(embeddings)[0].tobytes() != first.tobytes()


def test_released_loading_takes_a_pipeline_path(pipeline_folder: Path, tmp_path: Path) -> None:
    model = make_model()
    torch.save(model.state_dict(), tmp_path / "seed_quantizer.pt")
    tokenizer = SeedTokenizer.from_released(
        tmp_path / "seed_quantizer.pt", pixels=str(pipeline_folder), config=model.config
    )
    assert isinstance(tokenizer.pixels, UnclipPixels)
    assert tokenizer.pixels.config.num_inference_steps == 20 and tokenizer.pixels.config.guidance_scale == 10


def test_missing_pipelines_say_what_to_give(tmp_path: Path) -> None:
    for path in (str(tmp_path / "nowhere"), "nobody/no-such-pipeline", str(tmp_path)):
        with pytest.raises(CheckpointError, match="no unCLIP pipeline could be loaded.*give a local folder") as caught:
            UnclipPixels.from_pretrained(UnclipConfig(path=path))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="pixels.path: empty; give the folder"):
        UnclipConfig(path="")


def test_missing_diffusers_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(AnyGPTError, match="pip install 'diffusers"):
        UnclipPixels.from_pretrained(UnclipConfig())
