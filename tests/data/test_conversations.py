"""Conversations as training data: what is learned, splits, scenarios, long rows, shares beside pairs; and parity."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_tiny import SPECS, build_vocabulary

from anygpt.added_tokens import build_added_tokens
from anygpt.code_strings import codes_to_string
from anygpt.data.conversations import ConversationConfig, ConversationSource
from anygpt.data.instructions import instruction_row
from anygpt.data.mixture import PackedMixture, PairSource, SourceConfig, check_labels
from anygpt.data.packing import PackingConfig
from anygpt.errors import AnyGPTError, CheckpointError, ConfigError
from anygpt.modality import MODALITIES
from anygpt.prompts.render import render
from anygpt.prompts.segments import Media, Turn, segments_from_marked
from anygpt.prompts.tasks import TaskPrompts
from anygpt.text_tokenizer import TextTokenizer
from anygpt.vocabulary import Text, Vocabulary

LONGEST = 400


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return build_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def _picture(code: int) -> Media:
    return Media("image", torch.full((1, 32), code))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    with path.open("w") as file:
        for number in range(80):
            turns = [
                Turn("user", [Text(f"a red apple {number}")]),
                Turn("assistant", [Text("Here. "), _picture(number % 24)]),
                Turn("user", [_picture(3), Text(" and this?")]),
                Turn("assistant", [Text("a blue table")]),
            ]
            row = instruction_row(number, turns, SPECS) | {"scenario": f"kind {number % 3}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def _source(path: Path, vocab: Vocabulary, *, scenario_limit: int = 0, **settings: Any) -> ConversationSource:
    config = ConversationConfig(path=path, **settings)
    return ConversationSource(config, vocab, validation_fraction=0.25, longest=LONGEST, scenario_limit=scenario_limit)


def test_answers_alone_are_learned_with_their_weights(chat: Path, vocab: Vocabulary) -> None:
    source = _source(chat, vocab, text_weight=2.5)
    example = source.example(1)
    learned = [(index, weight) for index, weight in zip(example.ids, example.weights, strict=True) if weight]
    start, *codes = vocab.encode_codes("image", _picture(1).codes_KT)
    end = vocab.control_id("<eos>")
    assert [index for index, weight in learned if weight == 1.0] == codes
    rest = [index for index, weight in learned if weight == 2.5]
    assert len(rest) + len(codes) == len(learned)
    assert [index for index in rest if not vocab.is_text(index)] == [start, end, end, vocab.text_eos_id]
    assert vocab.text.decode([index for index in rest if vocab.is_text(index)]).split() == "Here. a blue table".split()
    assert set(source.example(1, answer_only=True).weights) == {0.0, 1.0}


def test_codes_are_weighed_by_level(chat: Path, vocab: Vocabulary) -> None:
    source = _source(chat, vocab, text_weight=2.0, level_weights={"image": (0.5,)})
    example = source.example(1)
    codes = vocab.encode_codes("image", _picture(1).codes_KT)[1:-1]
    assert [index for index, weight in zip(example.ids, example.weights, strict=True) if weight == 0.5] == codes
    assert set(example.weights) == {0.0, 0.5, 1.0, 2.0}
    assert set(source.example(1, answer_only=True).weights) == {0.0, 1.0}
    with pytest.raises(ConfigError, match=r"level_weights is \[1.0, 1.0\], expected 1 numbers of 0 or more for image"):
        _source(chat, vocab, level_weights={"image": (1.0, 1.0)})


def test_splits_and_scenarios(chat: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    source = _source(chat, vocab, scenario_limit=2)
    train, validation = source.split
    assert sorted(train + validation) == list(range(80)) and 8 < len(validation) < 32
    sets = source.validation_sets(5)
    assert {name: len(examples) for name, examples in sets.items()} == {
        "chat": 5, "chat/kind_0": 2, "chat/kind_1": 2, "chat/kind_2": 2,
    }  # fmt: skip
    shuffled = chat.read_text().splitlines()
    random.Random(0).shuffle(shuffled)
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(shuffled) + "\n")
    lines = chat.read_text().splitlines()
    moved = {shuffled[line] for line in _source(other, vocab).split[1]}
    assert moved == {lines[line] for line in validation}, "a conversation is on one side whatever file it stands in"


def test_long_conversations_are_an_error_or_dropped(
    chat: Path, vocab: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "long.jsonl"
    turns = [Turn("user", [Text("more")]), Turn("assistant", [_picture(1)] * 20)]
    long = json.dumps(instruction_row(0, turns, SPECS), ensure_ascii=False)
    path.write_text("\n".join([*chat.read_text().splitlines()[:5], long]) + "\n")
    with pytest.raises(ConfigError, match=r"long.jsonl: line 6 has \d+ ids, the longest row .* 400; .*too_long: drop"):
        _ = _source(path, vocab).split
    split = _source(path, vocab, too_long="drop").split
    assert sorted(split[0] + split[1]) == list(range(5))
    assert "1 of 6 conversations have more than 400 ids" in caplog.text


def test_long_conversations_can_be_cut_to_their_beginning(
    chat: Path, vocab: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _source(chat, vocab)
    full = whole.example(1)
    answer = next(at for at, weight in enumerate(full.weights) if weight)
    cut = _source(chat, vocab, too_long="cut", longest=answer + 5).example(1)
    assert (cut.ids, cut.weights) == (full.ids[: answer + 5], full.weights[: answer + 5])
    path = tmp_path / "shown.jsonl"
    shown = [Turn("user", [_picture(1), Text(" what is it?")]), Turn("assistant", [Text("a table")])]
    path.write_text(
        "\n".join([chat.read_text().splitlines()[0], json.dumps(instruction_row(1, shown, SPECS), ensure_ascii=False)])
    )
    config = ConversationConfig(path=path, too_long="cut", longest=answer + 5)
    source = ConversationSource(config, vocab, validation_fraction=0.0, longest=LONGEST)
    assert source.split == ([0], [])
    assert f"1 of 2 conversations have no answer in their first {answer + 5} ids" in caplog.text
    with pytest.raises(ConfigError, match="longest is -1, expected 0 or more"):
        _source(chat, vocab, longest=-1)


def test_a_bad_row_is_known_before_training(chat: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(chat.read_text().splitlines()[0] + '\n{"conversation": []}\n')
    with pytest.raises(AnyGPTError, match="bad.jsonl: line 2: field 'conversation'"):
        _ = _source(path, vocab).split
    with pytest.raises(ConfigError, match="anygpt synth"):
        _source(tmp_path / "none.jsonl", vocab)


def test_all_labels_masked_is_an_error(chat: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    row = instruction_row(0, [Turn("user", [Text("hi")]), Turn("assistant", [Text("yes")])], SPECS)
    path.write_text(json.dumps(row) + "\n")
    config = ConversationConfig(path=path, text_weight=0.0)
    source = ConversationSource(config, vocab, validation_fraction=0.0, longest=LONGEST)
    check_labels([_source(chat, vocab, text_weight=0.0)])
    with pytest.raises(ConfigError, match="text.jsonl: every label is masked"):
        check_labels([_source(chat, vocab), source])


def test_pairs_and_conversations_share_the_tokens(chat: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    codes = codes_to_string(SPECS["music"], torch.zeros(3, 20, dtype=torch.int64))
    pairs.write_text("".join(json.dumps({"text": f"piano {n}", "music": codes}) + "\n" for n in range(40)))
    pair_config = SourceConfig(path=pairs, modality="music", weight=0.3)
    sources = [
        _source(chat, vocab, weight=0.7),
        PairSource(pair_config, vocab, TaskPrompts.load(), validation_fraction=0.1),
    ]
    packing = PackingConfig(row_lengths=(192, LONGEST), tokens_per_micro_batch=800)
    mixture = PackedMixture(sources, packing, length=150, seed=0, chunk_examples=128)
    tokens: Counter[str] = Counter()
    for number in range(len(mixture)):
        batch = mixture[number]
        for row, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
            for segment in range(1, int(segments.max()) + 1):
                ids = row[segments == segment].tolist()
                tokens["pairs" if vocab.start_id("music") in ids else "chat"] += len(ids)
    assert tokens["chat"] / sum(tokens.values()) == pytest.approx(0.7, abs=0.08)


# The golden images are shorter than 32 codes.
ANY_LENGTH = {name: replace(spec, frames=None) for name, spec in MODALITIES.items() if not spec.parts}


def _golden(golden_dir: Path, name: str) -> Any:
    return json.loads((golden_dir / "prompts" / name).read_text(encoding="utf-8"))


def _golden_vocabulary(golden_dir: Path, **trailing: Any) -> Vocabulary:
    text = TextTokenizer(golden_dir / "prompts" / "toy_tokenizer.model")
    tokens = build_added_tokens(text.size, ANY_LENGTH.values(), **trailing)
    return Vocabulary(text, tokens, modalities=ANY_LENGTH, template="AnyGPT")


def _golden_turns(case: dict[str, Any], vocab: Vocabulary) -> list[Turn]:
    return [Turn(turn["role"], segments_from_marked(turn["message"], vocab)) for turn in case["conversation"]]


def test_golden_ids_and_labels_of_training_files(golden_dir: Path, tmp_path: Path) -> None:
    """The reference's labels, all the way from a row of a file: -100 where ours has weight 0."""
    vocab = _golden_vocabulary(golden_dir)
    cases = {case["id"]: case for case in _golden(golden_dir, "cases.json")}
    compared = 0
    for wanted in _golden(golden_dir, "token_cases.json")["sft"]:
        turns = _golden_turns(cases[wanted["case"]], vocab)
        if turns[0].role == "assistant":  # no round; `render` itself leaves such an opening out
            turns = turns[1:]
        path = tmp_path / f"{compared}.jsonl"
        path.write_text(json.dumps(instruction_row(0, turns, ANY_LENGTH), ensure_ascii=False) + "\n")
        config = ConversationConfig(path=path, text_weight=3.0)
        example = ConversationSource(config, vocab, validation_fraction=0.0, longest=1000).example(0)
        labels = [index if weight else -100 for index, weight in zip(example.ids, example.weights, strict=True)]
        assert (example.ids, labels) == (wanted["input_ids"], wanted["labels"]), wanted["case"]
        compared += 1
    assert compared == 6


def test_golden_tokenizer_without_the_assistants_tokens(golden_dir: Path) -> None:
    """The reference then masks every label and trains on nothing; ours refuses."""
    vocab = _golden_vocabulary(golden_dir, trailing=())
    cases = {case["id"]: case for case in _golden(golden_dir, "cases.json")}
    for wanted in _golden(golden_dir, "token_cases.json")["sft_with_tokenizer_lacking_assistant_tokens"]:
        assert wanted["n_trained"] == 0
        with pytest.raises(CheckpointError, match=r"no control token '\[AnyGPT\]'"):
            render(_golden_turns(cases[wanted["case"]], vocab), "AnyGPT", vocab, end_of_text=True)
