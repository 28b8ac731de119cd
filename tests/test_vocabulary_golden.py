"""Parity of ids and strings with the released checkpoints (golden/vocab, golden/tokenization)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anygpt.added_tokens import PRETRAINING_CONTROLS, build_added_tokens
from anygpt.code_strings import codes_to_string, string_to_codes
from anygpt.errors import CodeError
from anygpt.modality import MODALITIES
from anygpt.vocabulary import Vocabulary

FINETUNING_CONTROLS = (*PRETRAINING_CONTROLS, "<-Res->", "<-Ins->")
RELEASED = {name: spec for name, spec in MODALITIES.items() if not spec.parts}
PUBLISHED = [RELEASED[name] for name in ("image", "speech", "music")]
# Several golden examples hold fewer codes than an image has.
ANY_LENGTH = {name: replace(spec, frames=None) for name, spec in RELEASED.items()}


@pytest.fixture(scope="module")
def golden_vocab(golden_dir: Path) -> dict[str, Any]:
    return json.loads((golden_dir / "vocab/vocab.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden_tokenization(golden_dir: Path) -> dict[str, Any]:
    return json.loads((golden_dir / "tokenization/cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def vocab(golden_dir: Path) -> Vocabulary:
    return Vocabulary.from_pretrained(golden_dir / "tokenization/checkpoint")


def order(golden: dict[str, Any], name: str) -> dict[str, int]:
    """Our added tokens in one of the situations that the golden file describes."""
    base = golden["base_vocabulary_size"]
    pretraining = build_added_tokens(base, PUBLISHED, trailing=())
    return {
        "published_pretraining_on_llama": pretraining,
        "published_finetuning_on_a_pretrained_tokenizer": build_added_tokens(
            base, PUBLISHED, controls=FINETUNING_CONTROLS, trailing=(), existing=pretraining
        ),
        "published_finetuning_directly_on_llama": build_added_tokens(
            base, PUBLISHED, controls=FINETUNING_CONTROLS, trailing=()
        ),
        "released_base_checkpoint": build_added_tokens(base, RELEASED.values(), trailing=()),
        "released_chat_checkpoint": build_added_tokens(base, RELEASED.values()),
    }[name]


def test_golden_table_of_modalities(golden_vocab):
    rows = {**golden_vocab["modalities"], "audio": golden_vocab["audio_legacy"]}
    assert set(rows) == set(RELEASED)
    for name, row in rows.items():
        spec = RELEASED[name]
        assert (spec.prefix, spec.start, spec.end) == (row["prefix"], row["start"], row["end"])
        assert [f"U+{ord(character):04X}" for character in spec.prefix] == row["prefix_codepoints"]
        assert (spec.num_tokens, spec.num_codebooks) == (row["vocab_size"], row["codebooks"])
        assert spec.codebook_size == row["codebook_size"]
        assert row.get("tokens_per_item") in (None, spec.frames)
        assert row.get("frame_rate_hz") in (None, spec.frame_rate_hz)


def test_golden_orders_of_added_tokens(golden_vocab):
    for name, wanted in golden_vocab["orders"].items():
        tokens = order(golden_vocab, name)
        size = wanted.get("vocab_size", wanted.get("vocab_size_inferred"))
        assert golden_vocab["base_vocabulary_size"] + len(tokens) == size, name
        for block in wanted["blocks"]:
            if "token" in block:
                assert tokens[block["token"]] == block["id"], name
                continue
            assert tokens[block["first_token"]] == block["first_id"], name
            assert tokens[block["last_token"]] == block["last_id"], name
            codes = [tokens[f"<{block['prefix']}{index}>"] for index in range(block["count"])]
            assert codes == list(range(block["first_id"], block["last_id"] + 1)), name
        for token, index in wanted.get("samples", {}).items():
            assert tokens[token] == index, name


def test_golden_checkpoint_has_the_released_blocks(vocab: Vocabulary, golden_vocab, golden_tokenization):
    wanted = golden_vocab["orders"]["released_chat_checkpoint"]
    shift = golden_tokenization["base_vocab_size"] - golden_vocab["base_vocabulary_size"]
    assert vocab.size == golden_tokenization["total"] == wanted["vocab_size"] + shift
    assert vocab.specs == RELEASED
    blocks = {block["prefix"]: block for block in wanted["blocks"] if "prefix" in block}
    for name, block in vocab.blocks.items():
        row = blocks[block.spec.prefix]
        assert block.ids == range(row["first_id"] + shift, row["last_id"] + 1 + shift)
        assert vocab.start_id(name) == wanted["samples"][block.spec.start] + shift
        assert vocab.end_id(name) == wanted["samples"][block.spec.end] + shift
    for token in golden_vocab["role_and_control_tokens"].values():
        if token in wanted["samples"]:
            assert vocab.controls[token] == wanted["samples"][token] + shift
        else:
            assert token not in vocab.controls


def test_golden_strings_both_ways(vocab: Vocabulary, golden_vocab):
    for name, examples in golden_vocab["examples"].items():
        spec = ANY_LENGTH[name]
        for example in examples:
            codes = torch.tensor(example["codes"] if "codes" in example else [example["tokens"]])
            assert codes_to_string(spec, codes) == example["string"]
            assert torch.equal(string_to_codes(spec, example["string"]), codes)
            if RELEASED[name].frames in (None, codes.shape[1]):
                assert vocab.encode_codes(name, codes) == vocab.encode_marked(example["string"])


def test_golden_inverse_examples_or_an_error_where_the_reference_guesses(golden_vocab):
    """The reference takes any digits, by position and modulo the codebook size. For what isn't exactly one of our
    strings (a code missing, levels out of order, text between, nothing at all) ours raises CodeError instead."""
    refused = 0
    for name, examples in golden_vocab["inverse_examples"].items():
        if name not in RELEASED:
            continue
        spec = ANY_LENGTH[name]
        for example in examples:
            reference = torch.tensor(example["codes"]).reshape(spec.num_codebooks, -1)
            string = f"{spec.start}{example['content']}{spec.end}"
            if reference.shape[1] and codes_to_string(spec, reference) == string:
                assert torch.equal(string_to_codes(spec, string), reference)
            else:
                refused += 1
                with pytest.raises(CodeError, match="position|character"):
                    string_to_codes(spec, string)
    assert refused == 7


def test_golden_ids_of_every_tokenization_case(vocab: Vocabulary, golden_tokenization):
    for case in golden_tokenization["cases"]:
        assert [vocab.bos_id, *vocab.encode_marked(case["text"])] == case["ids"], case["name"]


def test_golden_ids_back_to_the_same_text(vocab: Vocabulary, golden_tokenization):
    for case in golden_tokenization["cases"]:
        assert vocab.decode_text(case["ids"][1:]) == case["text"], case["name"]
