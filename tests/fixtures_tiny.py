"""A tiny random model with its tokenizers, laid out as an ANYGPT_HOME: for tests of everything that runs one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anygpt.manifest import Manifest, write_manifest
from anygpt.modality import MODALITIES, ModalitySpec
from anygpt.paths import checkout_root
from anygpt.text_tokenizer import train_text_tokenizer
from anygpt.tokenizers.audio_codec import as_module, build_codec
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.seed.config import BlocksConfig, QformerConfig, SeedConfig, VitConfig
from anygpt.tokenizers.seed.model import SeedModel
from anygpt.tokenizers.seed.pixels import SmallPixelConfig, SmallPixelDecoder
from anygpt.tokenizers.seed.preprocess import PreprocessConfig
from anygpt.tokenizers.seed.tokenizer import SeedTokenizer
from anygpt.tokenizers.soundstorm import SoundStorm, SoundStormConfig, save_soundstorm
from anygpt.vocabulary import Vocabulary

MODEL = "anygpt-mini-base"
CONTEXT = 320
SPECS = {
    "image": MODALITIES["image"].with_codebooks(codebook_size=24, num_codebooks=1),
    "speech": MODALITIES["speech"].with_codebooks(codebook_size=16, num_codebooks=1),
    "music": MODALITIES["music"].with_codebooks(codebook_size=8, num_codebooks=3),
}
SPECS_WITH_AUDIO = {
    **SPECS,
    "audio": MODALITIES["audio"].with_codebooks(codebook_size=8, num_codebooks=2, frame_rate_hz=25.0),
}
SPECS_WITH_VIDEO = {
    **SPECS_WITH_AUDIO,
    "video": MODALITIES["video"].with_parts(SPECS_WITH_AUDIO),
}
TEXTS = ["a red apple on a blue table", "the quick brown fox jumps over the lazy dog", "slow piano, calm and soft"] * 4
POLICIES = {
    "text": {"do_sample": False, "max_new_tokens": 12},
    "image": {"temperature": 1.0, "max_new_tokens": 32},
    "speech": {"temperature": 1.0, "max_new_tokens": 40, "min_new_tokens": 5, "vc_steps": 2},
    "music": {"temperature": 1.0, "max_new_tokens": 31, "min_new_tokens": 7},
    "audio": {"max_new_tokens": 40},
    "video": {"max_new_tokens": 256},
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def build_home(home: Path, specs: Mapping[str, ModalitySpec] = SPECS) -> Path:
    """Write `models/`, `tokenizers/`, `config/` and `task_prompts/` under `home`, and return it."""
    torch.manual_seed(0)
    names = {name: "seed-tiny" if name == "image" else f"{name}-tiny" for name in specs}
    for name, folder in names.items():
        _TOKENIZERS[name](home / "tokenizers" / folder)
    model = home / "models" / MODEL
    vocabulary = build_vocabulary(model, specs)
    build_llama(model, vocabulary.size)
    tokenizers = {name: load_tokenizer(home / "tokenizers" / name) for name in names.values()}
    write_manifest(model, Manifest.of(tokenizers, template="AnyGPT"))
    (home / "config").mkdir()
    for name, policy in POLICIES.items():
        (home / "config" / f"{name}_generate_config.json").write_text(json.dumps(policy))
    (home / "config" / "generate_config.json").write_text(json.dumps(POLICIES["text"]))
    root = checkout_root()
    assert root is not None
    shutil.copytree(root / "task_prompts", home / "task_prompts")
    return home


def link_home(tiny_home: Path, home: Path, **text: Any) -> Path:
    """The home built at `tiny_home` once more at `home`, with other settings of text; returns `home`."""
    for name in ("models", "tokenizers", "task_prompts"):
        (home / name).symlink_to(tiny_home / name)
    shutil.copytree(tiny_home / "config", home / "config")
    for name in ("generate_config.json", "text_generate_config.json"):
        (home / "config" / name).write_text(json.dumps({**POLICIES["text"], **text}))
    return home


def build_vocabulary(folder: Path, specs: Mapping[str, ModalitySpec] = SPECS) -> Vocabulary:
    """Train a text tokenizer of some 300 pieces and write the tokenizer files of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    train_text_tokenizer(TEXTS, folder / "tokenizer.model", pieces=300)
    return Vocabulary.create(folder, folder / "tokenizer.model", specs.values())


def build_llama(folder: Path, vocab_size: int, **changes: Any) -> None:
    """Write config.json and random weights, large enough for uneven probabilities."""
    config = {**LLAMA, "vocab_size": vocab_size, **changes}
    width, inner = config["hidden_size"], config["intermediate_size"]
    wide_kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocab_size, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab_size, width)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        rows = {"q_proj": width, "k_proj": wide_kv, "v_proj": wide_kv, "o_proj": width}
        shapes |= {f"{prefix}.self_attn.{name}.weight": (count, width) for name, count in rows.items()}
        shapes |= {f"{prefix}.mlp.{name}.weight": (inner, width) for name in ("gate_proj", "up_proj")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (width, inner)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        key: torch.randn(shape, generator=generator) * (0.25 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        for key, shape in shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def build_image_tokenizer(folder: Path) -> None:
    config = SeedConfig(
        vit=VitConfig(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, mlp_ratio=2.0),
        qformer=QformerConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
        n_embed=SPECS["image"].codebook_size,
        codebook_embed_dim=8,
        decode_blocks=BlocksConfig(depth=1, num_heads=2, mlp_ratio=2.0),
        image_down_dims=(16, 4),
        image_features_dim=128,
    )
    pixels = SmallPixelDecoder(
        SmallPixelConfig(embed_dim=128, width=32, depth=1, num_heads=2, patch_size=16, image_size=32)
    )
    SeedTokenizer(SeedModel(config), pixels, PreprocessConfig(image_size=32)).save_pretrained(folder)


def build_speech_tokenizer(folder: Path) -> None:
    spec = SPECS["speech"]
    build_codec_folder(folder, "speechtokenizer", codebook_size=spec.codebook_size, n_q=3, soundstorm="soundstorm")
    soundstorm = SoundStorm(
        SoundStormConfig(
            dim=32,
            depth=1,
            heads=2,
            dim_head=16,
            codebook_size=spec.codebook_size,
            num_quantizers=2,
            num_semantic_token_ids=spec.codebook_size,
            semantic_pad_id=spec.codebook_size,
            pad_id=spec.codebook_size,
        )
    )
    save_soundstorm(soundstorm, folder / "soundstorm")


def build_music_tokenizer(folder: Path) -> None:
    spec = SPECS["music"]
    build_codec_folder(folder, "encodec", codebook_size=spec.codebook_size, n_q=spec.num_codebooks)


def build_audio_tokenizer(folder: Path) -> None:
    spec = SPECS_WITH_AUDIO["audio"]
    sizes = {"codebook_size": spec.codebook_size, "n_q": spec.num_codebooks, "hop_length": 640}
    build_codec_folder(folder, "encodec", **sizes, modality="audio")


def build_video_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    config = {"class": "frames", "frames": str(folder.parent / "seed-tiny"), "sound": str(folder.parent / "audio-tiny")}
    (folder / "config.json").write_text(json.dumps(config))


_TOKENIZERS = {
    "image": build_image_tokenizer,
    "speech": build_speech_tokenizer,
    "music": build_music_tokenizer,
    "audio": build_audio_tokenizer,
    "video": build_video_tokenizer,
}


def build_codec_folder(
    folder: Path, kind: str, *, codebook_size: int, n_q: int, hop_length: int = 320, **fields: Any
) -> None:
    model = {
        "hop_length": hop_length,
        "codebook_size": codebook_size,
        "n_q": n_q,
        "dimension": 8,
        "encoder_width": 16,
        "encoder_depth": 1,
        "decoder_width": 16,
        "decoder_depth": 1,
    }
    codec = as_module(build_codec("spectral", model, "tiny"))
    for name, buffer in codec.named_buffers():
        if name.endswith("embed"):
            torch.nn.init.normal_(buffer)
    folder.mkdir(parents=True)
    save_file(codec.state_dict(), folder / "model.safetensors")
    config = {"class": kind, "backbone": "spectral", "model": model, **fields}
    (folder / "config.json").write_text(json.dumps(config))
