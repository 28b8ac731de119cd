"""What `anygpt serve` says before it serves."""

import pytest
from fixtures_cli import Ran

from anygpt.serving.gate import read_keys


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--batch-size", "0"], "--batch-size is 0, expected at least 1"),
        (["--request-timeout-s", "-1"], "--request-timeout-s is -1"),
        (["--model-name-or-path", "nothing"], "no such model folder"),
        (["--hots", "x"], "did you mean '--host'"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    ran = Ran("serve", *words)
    assert ran.code == 2 and len(ran.err) == 1 and message in ran.err[0]


def test_help() -> None:
    assert "--allow-remote-media" in "\n".join(Ran("serve", "--help").out)


def test_keys_of_flags_and_environment() -> None:
    assert read_keys(["a"], "b,c d") == ["a", "b", "c", "d"]
    assert read_keys([], None) == read_keys([], " , ") == []
