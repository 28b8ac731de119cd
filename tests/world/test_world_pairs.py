"""Pairs of the world as training data."""

from pathlib import Path

import pytest

from anygpt.errors import AnyGPTError
from anygpt.tokenizers.base import load_tokenizer
from anygpt.world.pairs import write_pairs


@pytest.mark.parametrize(
    ("wrong", "message"), [({"count": 0}, "--count is 0"), ({"batch_size": 0}, "--batch-size is 0")]
)
def test_too_few_are_refused(tiny_home: Path, tmp_path: Path, wrong: dict[str, int], message: str) -> None:
    tokenizer = load_tokenizer(tiny_home / "tokenizers" / "seed-tiny")
    with pytest.raises(AnyGPTError, match=message):
        write_pairs(tokenizer, tmp_path / "out", **{"count": 1, **wrong})
    assert not (tmp_path / "out").exists()
