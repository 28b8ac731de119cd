"""`anygpt base --input`: answers in order, once each, whatever happens in between."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures_cli import Ran, environment
from PIL import Image

from anygpt.media import load_audio, load_image

pytestmark = pytest.mark.usefixtures("home", "in_tmp_path")

SECONDS = 120
"""A run of the tiny model that takes longer hangs."""


def write(rows: Sequence[Any], name: str = "prompts.jsonl") -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_all_kinds_of_answers_in_order() -> None:
    Image.linear_gradient("L").save("picture.png")
    rows = [
        {"prompt": "text|image|a red apple", "id": "An apple!"},
        {"prompt": "image|text|picture.png", "seed": 3},
        "",
        {"prompt": "text|speech|hello", "id": 77},
        {"prompt": "text|smell|roses"},
        {"prompt": "image|text|nowhere.png"},
        {"prompt": "text|music|calm", "n": 2, "seed": 9},
    ]
    ran = Ran("base", "--input", write(rows), "--batch-size", "2", "--seed", "40", "--output-dir", "out")
    assert ran.code == 2 and ran.out == ["out/prompts.answers.jsonl"]
    assert ran.err[-1] == "7 answers, 2 failed" and "7/7" in "\n".join(ran.err)
    answers = read(ran.out[0])
    assert [answer["id"] for answer in answers] == ["An apple!", 2, 77, 5, 6, 7, 7]
    assert [answer["seed"] for answer in answers] == [40, 3, 42, 43, 44, 9, 10]
    assert [answer.get("path") for answer in answers] == [
        "out/prompts.answers/an-apple.jpg",
        None,
        "out/prompts.answers/77.wav",
        None,
        None,
        "out/prompts.answers/7-1.wav",
        "out/prompts.answers/7-2.wav",
    ]
    assert load_image(answers[0]["path"]).size == (32, 32)
    assert load_audio(answers[2]["path"]).duration_s == pytest.approx(answers[2]["duration_s"])
    assert isinstance(answers[1]["text"], str) and answers[1]["modality"] == "text" and answers[1]["seconds"] > 0
    assert "unknown form" in answers[3]["error"] and answers[4]["error"] == "nowhere.png: no such file"
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "prompts.answers",
        "prompts.answers.jsonl",
        "prompts.answers.jsonl.progress.json",
    ]


def test_answers_are_those_of_single_prompts() -> None:
    seeded = ["--n", "2", "--seed", "3"]
    ran = Ran("base", "--input", write([{"prompt": "text|image|x"}]), "--output", "a/b.jsonl", *seeded)
    assert (ran.code, ran.out) == (0, ["a/b.jsonl"])
    single = Ran("base", "--prompt", "text|image|x", "--json", *seeded)
    for answer, other in zip(read("a/b.jsonl"), map(json.loads, single.out), strict=True):
        assert answer["path"].startswith("infer_output/base/b/1-") and answer["seed"] == other["seed"]
        assert Path(answer["path"]).read_bytes() == Path(other["path"]).read_bytes()


def test_a_killed_run_ends_like_an_undisturbed_one() -> None:
    """No line is lost, doubled or half-written, and a run without a seed goes on with the one that it had drawn."""
    prompts = write([{"prompt": f"text|{'image' if i % 3 else 'speech'}|number {i}"} for i in range(150)])
    words = ["base", "--input", prompts, "--batch-size", "4", "--output-dir"]
    command = [sys.executable, "-m", "anygpt", *words, "killed"]
    with Path("killed.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
    partial, deadline = Path("killed/prompts.answers.jsonl.partial"), time.monotonic() + SECONDS
    try:
        while not partial.is_file() or partial.read_bytes().count(b"\n") < 20:
            assert process.poll() is None and time.monotonic() < deadline, Path("killed.log").read_text()
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait(timeout=SECONDS)
    with partial.open("ab") as file:  # a line that was being written, and a picture
        file.write(b'{"id": 21, "prom')
    Path("killed/prompts.answers/.22.jpg.abc.tmp.jpg").write_bytes(b"half")
    done = read_whole_lines(partial)
    assert 16 <= len(done) < 150  # the last lines may not be recorded yet
    resumed = Ran(*words, "killed")
    assert resumed.code == 0 and resumed.err[-1] == "150 answers" and f"{len(done)}/150" in "\n".join(resumed.err)
    answers = read("killed/prompts.answers.jsonl")
    assert answers[: len(done)] == done and [answer["id"] for answer in answers] == list(range(1, 151))
    Ran(*words, "whole", "--seed", str(answers[0]["seed"]))
    for answer, other in zip(answers, read("whole/prompts.answers.jsonl"), strict=True):
        assert Path(answer["path"]).read_bytes() == Path(other["path"]).read_bytes()
    assert not partial.exists() and len(os.listdir("killed/prompts.answers")) == 150


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """Of a killed run: up to its last recorded step."""
    progress = json.loads(Path("killed/prompts.answers.jsonl.progress.json").read_text())
    return [json.loads(line) for line in path.read_bytes()[: progress["output_bytes"]].splitlines()]


def test_a_finished_run_is_left_alone_and_another_refused() -> None:
    words = ["base", "--input", write([{"prompt": "text|image|x"}, {"prompt": "image|text|no.png"}])]
    first = Ran(*words, "--seed", "1")
    before = Path(first.out[0]).read_bytes()
    again = Ran(*words)
    assert (again.code, again.out) == (2, first.out) and "nothing to do" in again.err[0]
    assert again.err[-1] == "2 answers, 1 failed" and Path(first.out[0]).read_bytes() == before
    for changed, message in ((["--seed", "2"], "with --seed 1"), (["--n", "2"], "with --n 1")):
        assert_mistake([*words, *changed], f"prompts.answers.jsonl: was made {message}; remove it")
    write([{"prompt": "text|image|y"}])
    assert_mistake(words, "was made from other prompts")
    assert_mistake(
        [*words, "--output", "other/prompts.answers.jsonl"], "infer_output/base/prompts.answers: holds files"
    )


def assert_mistake(words: Sequence[str], message: str) -> None:
    ran = Ran(*words)
    assert ran.code == 2 and ran.out == []
    assert len(ran.err) == 1 and ran.err[0].startswith("anygpt: ") and message in ran.err[0], ran.err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"prompt": '], "prompts.jsonl: line 1 is not JSON"),
        ([{"prompt": "text|image|x"}, "[1]"], "line 2 is not a JSON object"),
        ([{"promt": "x"}], "line 1: unknown key 'promt' (did you mean 'prompt'?)"),
        ([{"id": 3}], "line 1: missing key 'prompt'"),
        ([{"prompt": "x", "id": ""}], "line 1: 'id' is empty"),
        ([{"prompt": " "}], "line 1: 'prompt' is empty"),
        (['{"prompt": "\\ud800"}'], "line 1: 'prompt' holds half a surrogate pair"),
        ([{"prompt": "x", "seed": -1}], "line 1: 'seed' is -1"),
        ([{"prompt": "x", "seed": "1"}], "line 1: 'seed' is '1', expected int"),
        ([{"prompt": "x", "n": 0}], "line 1: 'n' is 0"),
        ([{"prompt": "x", "id": "a b"}, {"prompt": "y", "id": "A/B"}], "line 2: id 'A/B' gives files named 'a-b', as"),
        (
            [{"prompt": "x", "n": 2, "id": "a"}, {"prompt": "y", "id": "a 2"}],
            "id 'a 2' gives files named 'a-2'",
        ),
        ([""], "prompts.jsonl: has no prompts"),
    ],
)
def test_bad_rows_are_named_before_anything_is_made(rows: list[Any], message: str) -> None:
    assert_mistake(["base", "--input", write(rows), "--output-dir", "out"], message)
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "nowhere.jsonl"], "nowhere.jsonl: no such file; expected prompts"),
        (["--input", "."], ".: is a directory"),
        (["--input", "p.jsonl", "--prompt", "text|image|x"], "--prompt doesn't go with --input"),
        (["--input", "p.jsonl", "--json"], "--json doesn't go with --input"),
        (["--input", "p.jsonl", "--batch-size", "0"], "--batch-size is 0"),
        (["--input", "p.jsonl", "--output", "p.jsonl"], "p.jsonl: is the file of prompts"),
        (["--prompt", "text|image|x", "--output", "x.jsonl"], "--output goes with --input"),
        (["--prompt", "text|image|x", "--batch-size", "2"], "--batch-size goes with --input"),
        (["--prompt", "text|image|x", "--n", "0"], "--n is 0"),
    ],
)
def test_flags_that_do_not_go_together(words: list[str], message: str) -> None:
    write([{"prompt": "text|image|x"}], "p.jsonl")
    assert_mistake(["base", *words], message)


def test_several_answers_to_a_prompt() -> None:
    ran = Ran("base", "--n", "3", stdin="text|image|one\nimage|text|nowhere.png\n")
    assert ran.code == 2 and len(set(ran.out)) == 3 and len(ran.err) == 1
    assert all(load_image(path).size == (32, 32) for path in ran.out)
