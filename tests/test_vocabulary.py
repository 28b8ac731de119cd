"""Blocks, control tokens, and exact round trips between content and ids."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt.added_tokens import build_added_tokens, plan_expansion
from anygpt.errors import CheckpointError, CodeError
from anygpt.modality import MODALITIES
from anygpt.text_tokenizer import TextTokenizer
from anygpt.vocabulary import Control, Span, Text, Vocabulary

SMALL = {
    "image": replace(MODALITIES["image"].with_codebooks(codebook_size=64, num_codebooks=1), frames=4),
    "speech": MODALITIES["speech"].with_codebooks(codebook_size=32, num_codebooks=1),
    "music": MODALITIES["music"].with_codebooks(codebook_size=16, num_codebooks=4),
    "audio": MODALITIES["audio"].with_codebooks(codebook_size=8, num_codebooks=2),
}
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\N{LOWER ONE EIGHTH BLOCK}"), min_size=1, max_size=30
) | st.sampled_from(["<soim>", "[Human]", "<👀1>", "</s>", "say <eoh> now", "<-Ins->", " ", "\n"])


@pytest.fixture(scope="module")
def model_path(golden_dir: Path) -> Path:
    return golden_dir / "prompts/toy_tokenizer.model"


@pytest.fixture(scope="module")
def vocab(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary.create(tmp_path_factory.mktemp("checkpoint"), model_path, SMALL.values())


def items_of(vocab: Vocabulary):
    def span(name: str) -> st.SearchStrategy[Span]:
        spec = vocab.specs[name]
        frames = st.just(spec.frames) if spec.frames else st.integers(1, 6)
        row = frames.flatmap(
            lambda n: st.lists(
                st.lists(st.integers(0, spec.codebook_size - 1), min_size=n, max_size=n),
                min_size=spec.num_codebooks,
                max_size=spec.num_codebooks,
            )
        )
        return row.map(lambda codes: Span(spec, torch.tensor(codes)))

    controls = st.sampled_from(sorted(vocab.controls)).map(Control)
    return st.lists(st.one_of(TEXTS.map(Text), controls, *map(span, vocab.specs)), max_size=8).filter(
        lambda items: (
            not any(isinstance(a, Text) and isinstance(b, Text) for a, b in zip(items, items[1:], strict=False))
        )
    )


def encode(vocab: Vocabulary, items) -> list[int]:
    ids: list[int] = []
    for item in items:
        if isinstance(item, Text):
            ids += vocab.encode_text(item.text)
        elif isinstance(item, Span):
            ids += vocab.encode_codes(item.spec, item.codes_KT)
        else:
            ids.append(vocab.control_id(item.token))
    return ids


@settings(deadline=None, derandomize=True, max_examples=80)
@given(data=st.data())
def test_any_content_comes_back_exactly(vocab: Vocabulary, data):
    items = data.draw(items_of(vocab))
    assert vocab.decode_ids(encode(vocab, items)) == items


@settings(deadline=None, derandomize=True, max_examples=80)
@given(data=st.data())
def test_a_marked_string_has_the_ids_of_its_content(vocab: Vocabulary, data):
    marker_free = items_of(vocab).filter(
        lambda items: not any(isinstance(i, Text) and ("<" in i.text or "[" in i.text or ">" in i.text) for i in items)
    )
    items = data.draw(marker_free)
    ids = encode(vocab, items)
    string = vocab.decode_text(ids)
    assert vocab.encode_marked(string) == ids
    assert vocab.split_marked(string) == items


@settings(deadline=None, derandomize=True, max_examples=80)
@given(text=st.text(alphabet="<>[]/👀🗣️0123456789 soimeohHuman", max_size=60) | TEXTS)
def test_typed_markers_stay_text(vocab: Vocabulary, text: str):
    ids = vocab.encode_text(text)
    assert all(vocab.is_text(i) for i in ids)
    assert vocab.decode_text(ids) == text


def test_every_block_by_its_row(vocab: Vocabulary):
    for name, spec in SMALL.items():
        block = vocab.block(name)
        assert block.spec == spec
        assert vocab.encode_marked(spec.start + spec.code_token(0) + spec.end) == [
            vocab.start_id(name),
            block.first_id,
            vocab.end_id(name),
        ]
        levels = [i for level in range(spec.num_codebooks) for i in block.level_ids(level)]
        assert levels == list(block.ids)
        assert len(block.ids) == block.size == spec.codebook_size * spec.num_codebooks
        assert not vocab.is_text(block.first_id)


def test_controls_are_what_is_neither_text_nor_code(vocab: Vocabulary):
    assert list(vocab.controls) == ["[Human]", "[MMGPT]", "<eoh>", "<eos>", "<eom>", "[AnyGPT]", "<-Res->", "<-Ins->"]
    assert vocab.size == vocab.text.size + 8 + sum(spec.num_tokens + 2 for spec in SMALL.values())
    assert vocab.decode_ids([vocab.bos_id, vocab.text_eos_id]) == [Control("<s>"), Control("</s>")]
    with pytest.raises(CheckpointError, match="no control token '<eot>'"):
        vocab.control_id("<eot>")
    with pytest.raises(CheckpointError, match=r"no modality 'musik' \(did you mean 'music'\?\)"):
        vocab.block("musik")


def test_codes_outside_the_block_are_text_and_the_rest_of_the_run_is_not(vocab: Vocabulary):
    string = "<sosp><🗣️3><🗣️32><🗣️07><🗣️4><eosp>"
    first = vocab.block("speech").first_id
    ids = vocab.encode_marked(string)
    assert ids[:2] == [vocab.start_id("speech"), first + 3]
    assert ids[2:-2] == vocab.encode_text("<🗣️32><🗣️07>")
    assert ids[-2:] == [first + 4, vocab.end_id("speech")]
    assert vocab.decode_text(ids) == string


def test_malformed_spans_are_placed(vocab: Vocabulary):
    image, music, speech = (vocab.block(name) for name in ("image", "music", "speech"))
    code, text = image.first_id, vocab.encode_text("a")[-1]
    for ids, message in [
        (
            [text, image.start_id, *[code] * 3, image.end_id],
            "image: 3 frames of codes, at position 2; expected exactly 4",
        ),
        ([text, image.start_id, *[code] * 4], "image: the span that starts at position 1 has no <eoim>"),
        ([image.start_id, code, music.first_id], r"image: id \d+ \(<🎶0>\) at position 2 is no image code"),
        ([image.start_id, code, text], "at position 2 is no image code"),
        ([text, code], r"\(<👀0>\) at position 1 stands outside a span"),
        ([text, image.end_id], r"\(<eoim>\) at position 1 stands outside a span"),
        ([music.start_id, music.first_id, music.first_id], "has no <eomu>"),
        ([music.start_id, music.first_id, music.first_id, music.end_id], "level 0 where level 1 is due"),
        ([music.start_id, music.first_id, music.end_id], "1 codes end inside a frame of 4, at position 2"),
        ([speech.start_id, speech.end_id], "speech: no codes, at position 1"),
        ([vocab.size], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
    ]:
        with pytest.raises(CodeError, match=message):
            vocab.decode_ids(ids)
    with pytest.raises(CodeError, match="<sosp>|speech"):
        vocab.split_marked("see <sosp><🗣️1> hm")


def test_a_broken_span_can_still_be_written_for_logs(vocab: Vocabulary):
    string = "<eoim>a<👀1><somu>"
    assert vocab.decode_text(vocab.encode_marked(string)) == string
    with pytest.raises(CodeError, match="outside the vocabulary"):
        vocab.decode_text([vocab.size])


def checkpoint(folder: Path, model_path: Path, tokens: dict[str, int], settings: dict | None = None) -> Path:
    shutil.copyfile(model_path, folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    if settings is not None:
        (folder / "anygpt.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_sizes_come_from_anygpt_json_or_from_the_blocks(model_path: Path, tmp_path: Path):
    tokens = build_added_tokens(640, SMALL.values())
    assert Vocabulary.from_pretrained(checkpoint(tmp_path, model_path, tokens)).block("music").spec.codebook_size == 16
    sizes = {"music": {"codebook_size": 32, "num_codebooks": 2, "tokenizer": "x"}}
    vocab = Vocabulary.from_pretrained(
        checkpoint(tmp_path, model_path, tokens, {"format": 1, "modalities": sizes, "template": "AnyGPT"})
    )
    assert (vocab.block("music").spec.codebook_size, vocab.block("music").spec.num_codebooks) == (32, 2)
    assert vocab.block("speech").spec == SMALL["speech"]
    assert vocab.template == "AnyGPT"


def test_a_checkpoint_without_some_modalities_loads(model_path: Path, tmp_path: Path):
    tokens = build_added_tokens(640, [SMALL["speech"]], trailing=())
    vocab = Vocabulary.from_pretrained(checkpoint(tmp_path, model_path, tokens))
    assert list(vocab.blocks) == ["speech"]
    assert vocab.template == "MMGPT"
    assert vocab.encode_marked("<soim>") == vocab.encode_text("<soim>")


def test_damaged_checkpoints_say_what_is_wrong(model_path: Path, tmp_path: Path):
    good = build_added_tokens(640, SMALL.values())

    def without(*names: str) -> dict[str, int]:
        return {token: i for token, i in good.items() if token not in names}

    swapped = {**good, "<👀3>": good["<👀5>"], "<👀5>": good["<👀3>"]}
    for tokens, settings_, message in [
        (without("<👀3>"), None, r"image codes are not in one block; expected <👀3> at id \d+"),
        (swapped, None, "image codes are not in one block"),
        (without("<eoim>"), None, "'<eoim>' of modality 'image' is missing"),
        (without("<👂15>"), None, "15 audio codes in a row"),
        ({**good, "<eoh>": 5}, None, "'<eoh>' has id 5, which belongs to the text vocabulary of 640 pieces"),
        ({**good, "<eoh>": good["<eos>"]}, None, "share id"),
        ({**good, "<eoh>": "one"}, None, "expected a map of token to id"),
        (good, {"modalities": {"music": {"codebook_size": 5, "num_codebooks": 4}}}, "5 each, as anygpt.json says"),
        (good, {"modalities": {"smell": {"codebook_size": 5, "num_codebooks": 4}}}, "no codes of modality 'smell'"),
        (good, {"modalities": {"music": 3}}, "must map each name to a codebook_size"),
        (good, {"template": 3}, "'template' must be the name"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            Vocabulary.from_pretrained(checkpoint(tmp_path, model_path, tokens, settings_ or {}))
    (tmp_path / "anygpt.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"anygpt\.json: not readable as JSON"):
        Vocabulary.from_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: missing"):
        Vocabulary.from_pretrained(tmp_path)


def test_a_created_folder_needs_only_two_files(vocab: Vocabulary, tmp_path: Path):
    source = vocab.text.model_path.parent
    assert {path.name for path in source.iterdir()} == {
        "tokenizer.model",
        "added_tokens.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copyfile(source / name, tmp_path / name)
    again = Vocabulary.from_pretrained(tmp_path, modalities=SMALL)
    assert again.specs == vocab.specs
    assert again.fingerprint == vocab.fingerprint


def test_transformers_loads_a_created_folder_with_the_same_added_ids(vocab: Vocabulary):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vocab.text.model_path.parent)
    assert len(tokenizer) == vocab.size
    assert tokenizer.convert_tokens_to_ids(list(vocab.tokens)) == list(vocab.tokens.values())


def test_expansion_of_a_text_checkpoint(model_path: Path, tmp_path: Path):
    shutil.copyfile(model_path, tmp_path / "tokenizer.model")
    plan = plan_expansion(tmp_path, SMALL.values())
    assert plan.old_rows == 640
    assert plan.tokens == build_added_tokens(640, SMALL.values())
    assert plan.rows == 640 + len(plan.tokens)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 640}), encoding="utf-8")
    plan = plan_expansion(tmp_path, SMALL.values())
    assert (plan.old_rows, plan.tokens["<pad>"], plan.tokens["[Human]"]) == (641, 640, 641)


def test_fingerprint_tells_vocabularies_apart(model_path: Path):
    text = TextTokenizer(model_path)
    one, other = (Vocabulary(text, build_added_tokens(640, [SMALL[name]])) for name in ("speech", "audio"))
    assert one.fingerprint != other.fingerprint


def test_loading_takes_under_a_second(golden_dir: Path):
    """22,320 rows take about 0.1 s; processor time, because test machines are busy."""
    start = time.process_time()
    Vocabulary.from_pretrained(golden_dir / "tokenization/checkpoint")
    assert time.process_time() - start < 1.0
