"""The model in the repository: it loads without this package, fits its tokenizers and answers every form."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from anygpt import AnyGPT
from anygpt.code_strings import string_to_codes
from anygpt.data.jsonl import JsonlFile, pair_of
from anygpt.engine import DEFAULT_MODEL
from anygpt.manifest import read_manifest
from anygpt.media import load_audio, load_image
from anygpt.paths import resource
from anygpt.tokenizers.base import load_tokenizer

LOADERS = {"image": load_image, "audio": load_audio}


@pytest.fixture(scope="module")
def folder() -> Path:
    return resource("models", DEFAULT_MODEL)


@pytest.fixture(scope="module")
def model() -> AnyGPT:
    return AnyGPT.from_pretrained(seed=1)


def test_transformers_and_sentencepiece_alone_continue_a_prompt_with_the_same_ids(folder: Path, model: AnyGPT) -> None:
    """No class of this package on this side: weights by transformers, ids by sentencepiece and added_tokens.json."""
    text = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    instruction = model.task_prompts.canonical("image", "text2x")
    words = f": {instruction} This is input: a red apple on a white background"
    prompt = [text.bos_id(), added["[Human]"], *text.encode(words), added["<eoh>"], *text.encode(" ")]
    prompt += [added["[MMGPT]"], *text.encode(": "), added["<soim>"]]
    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    allowed = [i for token, i in added.items() if token.startswith("<\N{EYES}")]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(32):
            logits = llama(ids).logits[0, -1]
            best = allowed[int(logits[allowed].argmax())]
            ids = torch.cat([ids, torch.tensor([[best]])], dim=1)
    theirs = [i - added["<\N{EYES}0>"] for i in ids[0, len(prompt) :].tolist()]
    ours = model.run("text|image|a red apple on a white background", do_sample=False, guidance_scale=1.0).codes_KT
    assert ours is not None and ours[0].tolist() == theirs


def test_weights_are_bfloat16_safetensors(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_every_form_is_answered(model: AnyGPT) -> None:
    for name, spec in model.specs.items():
        captions = {"image": "a red apple", "speech": "hello there", "music": "a fast happy piano piece"}
        made = model.run(f"text|{name}|{captions[name]}", max_new_tokens=100)
        assert made.media is not None and made.codes_KT is not None
        assert made.codes_KT.shape[0] == spec.num_codebooks
        sample = next(Path(resource("data"), "pretrain", name, "media").glob("000.*"))
        read = model.run(f"{name}|text|{sample}")
        assert read.text, name


def test_a_voice_prompt_changes_the_voice_and_not_the_words(model: AnyGPT) -> None:
    voice = Path(resource("data"), "pretrain/speech/media/000.wav")
    plain = model.run("text|speech|hello there", seed=3)
    cloned = model.run(f"text|speech|hello there|{voice}", seed=3)
    assert plain.codes_KT is not None and torch.equal(plain.codes_KT, cloned.codes_KT)
    assert plain.audio is not None and cloned.audio is not None
    assert not torch.equal(torch.from_numpy(plain.audio.wave), torch.from_numpy(cloned.audio.wave))


@pytest.mark.parametrize("name", ["image", "speech", "music"])
def test_the_bundled_samples_are_what_the_shipped_tokenizers_make_of_the_bundled_media(name: str, folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    entry = manifest.modalities[name]
    tokenizer = load_tokenizer(resource("tokenizers", str(entry.tokenizer)))
    assert tokenizer.fingerprint == entry.fingerprint
    from anygpt.modality import MODALITIES

    spec = MODALITIES[name].with_codebooks(codebook_size=entry.codebook_size, num_codebooks=entry.num_codebooks)
    data = Path(resource("data"), "pretrain", name)
    rows, samples = JsonlFile(data / "manifest.jsonl"), JsonlFile(data / "sample.jsonl")
    assert len(rows) == len(samples)
    agree = []
    for index in range(len(rows)):
        text, string = pair_of(samples[index], spec, "sample")
        assert text == rows[index]["text"]
        stored = string_to_codes(spec, string)
        fresh = tokenizer.encode([LOADERS[spec.media](data / rows[index][name])])[0]
        assert fresh.shape == stored.shape
        agree.append((fresh == stored).float().mean().item())
    # Other processors may round a near tie the other way.
    assert sum(agree) / len(agree) > 0.98
