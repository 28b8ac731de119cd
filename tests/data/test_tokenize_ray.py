"""The Ray engine gives what the local one gives, whatever is killed on the way.

`pytest tests/data/test_tokenize_ray.py` takes half a minute on a free core; `-m "not slow"` leaves Ray out.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures_media import samples, tar_bytes, tree_bytes

from anygpt.cli.main import main
from anygpt.data.tokenize_shards import find_engine, tokenize_shards
from anygpt.errors import AnyGPTError
from anygpt.paths import checkout_root

pytest.importorskip("ray", reason="Ray is not installed; pip install 'anygpt[ray]'")

DEADLINE_S = 400

pytestmark = pytest.mark.usefixtures("home", "in_tmp_path")


@pytest.fixture(autouse=True)
def ray_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(checkout_root()))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default: on a busy machine tests would wait for ever


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    """What the local engine makes of three tars, one of which has a picture that is cut off and ends too early."""
    for number in range(3):
        whole = tar_bytes(samples(60 * number, 60, bad=[67]))
        Path(f"{number}.tar").write_bytes(whole[: len(whole) // 2] if number == 1 else whole)
    result = tokenize_shards("*.tar", "local", tokenizer="seed-tiny", batch_size=1)
    assert result.skipped == 2 and result.written > 120
    return tree_bytes(Path("local"))


def start(out: str) -> subprocess.Popen[bytes]:
    words = ["*.tar", "--out", out, "--format", "jsonl", "--engine", "ray", "--tokenizer", "seed-tiny"]
    log = Path(f"{out}.log").open("wb")
    return subprocess.Popen(
        [sys.executable, "-m", "anygpt", "tokenize", *words, "--batch-size", "1", "--workers", "1"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def descendants(pid: int) -> list[int]:
    """Processes below `pid`."""
    below: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = [int(child) for child in children.read_text().split()]
        except OSError:
            continue
        for child in found:
            below += [child, *descendants(child)]
    return below


def encoders(pid: int) -> Iterator[int]:
    for process in descendants(pid):
        try:
            if b"ray::Encoder" in Path(f"/proc/{process}/cmdline").read_bytes():
                yield process
        except OSError:
            continue


def size_of(name: str) -> int:
    path = Path(name)
    return path.stat().st_size if path.is_file() else 0


def wait_for(is_true: Callable[[], bool], process: subprocess.Popen[bytes], deadline: float) -> None:
    """Until something has happened, while `process` runs."""
    while not is_true():
        log = Path("out.log").read_text(errors="replace")
        assert process.poll() is None and time.monotonic() < deadline, f"it has not happened: {log}"
        time.sleep(0.01)


def stop(processes: list[int]) -> None:
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.slow
@pytest.mark.timeout(DEADLINE_S + 60)
def test_killed_encoders_and_drivers_cost_nothing(expected: dict[str, bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    process = start("out")
    try:
        wait_for(lambda: size_of("out/.progress/0.jsonl.partial") > 500, process, deadline)
        (encoder,) = encoders(process.pid)
        os.kill(encoder, signal.SIGKILL)
        assert not Path("out/0.jsonl").exists(), "the shard was finished before the encoder could be killed"
        wait_for(lambda: size_of("out/.progress/2.jsonl.partial") > 500, process, deadline)
        below = descendants(process.pid)
        process.kill()
        stop(below)
        process.wait(timeout=30)
    finally:
        stop([*descendants(process.pid), process.pid])
    assert Path("out/0.jsonl").exists() and not Path("out/manifest.json").exists()
    again = start("out")
    try:
        again.wait(timeout=deadline - time.monotonic())
    finally:
        stop([*descendants(again.pid), again.pid])
    assert again.returncode == 0, Path("out.log").read_text(errors="replace")
    assert "1 of them new" in Path("out.log").read_text(errors="replace")
    assert tree_bytes(Path("out")) == expected


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.tar").write_bytes(tar_bytes(samples(0, 1)))
    words = ["tokenize", "a.tar", "--out", "out", "--format", "jsonl", "--tokenizer", "seed-tiny", "--engine", "ray"]
    with pytest.raises(SystemExit):
        main([*words, "--ray-address", "127.0.0.1:1"])
    assert "--ray-address is '127.0.0.1:1': no cluster is reached there" in capsys.readouterr().err
    with pytest.raises(AnyGPTError, match="expected local or ray"):
        find_engine("spark")
