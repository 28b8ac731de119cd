"""The vocabulary and model that the tests of generation share."""

from pathlib import Path

import pytest
from fixtures_tiny import MODEL

from anygpt.generation.grammar import Grammar
from anygpt.generation.llama import LlamaDecoder, load_decoder
from anygpt.vocabulary import Vocabulary

HEARD, REPLY = "<-Ins->", "<-Res->"


@pytest.fixture(scope="session")
def model_folder(tiny_home: Path) -> Path:
    return tiny_home / "models" / MODEL


@pytest.fixture(scope="session")
def vocabulary(model_folder: Path) -> Vocabulary:
    return Vocabulary.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def grammar(vocabulary: Vocabulary) -> Grammar:
    ends = [vocabulary.control_id("<eos>"), vocabulary.text_eos_id]
    return Grammar(vocabulary, end_ids=ends, heard_ids=(vocabulary.control_id(HEARD), vocabulary.control_id(REPLY)))


@pytest.fixture(scope="session")
def decoder(model_folder: Path) -> LlamaDecoder:
    return load_decoder(model_folder)
