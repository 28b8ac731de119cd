"""Cold start: from the start of `anygpt base --prompt ...` to the end of the process, its file saved.

    python benchmarks/startup.py [--repeats 5] [--threads N]

A process for every run; the prompts take turns, so that other load hits all of them. `on a free core` is the wall-clock
time less what the main thread waited for a core (Linux, /proc/<pid>/schedstat): on a busy machine, what an idle one
would show. `import torch` stands beside the prompts as what no command can go below. Prints medians.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from anygpt.paths import resource

MEDIA = {"image": "000.jpg", "speech": "000.wav", "music": "000.wav"}
ASKED = {"image": "a red apple", "speech": "hello there", "music": "a fast happy piano piece"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        commands = {"`import torch`": ["-c", "import torch"]}
        for prompt, shown in prompts():
            words = ["base", "--prompt", prompt, "--output-dir", folder, "--seed", "1"]
            commands[f"`{shown}`"] = ["-m", "anygpt", *words]
        rounds = [{name: run(words) for name, words in commands.items()} for _ in range(options.repeats)]
    print("| prompt | wall (s) | on a free core (s) | processor (s) |\n| --- | ---: | ---: | ---: |")
    for name in commands:
        columns = zip(*(times[name] for times in rounds), strict=True)
        print(f"| {name.replace('|', chr(92) + '|')} |", " | ".join(f"{median(column):.2f}" for column in columns), "|")


def prompts() -> list[tuple[str, str]]:
    """Every form, and how it is shown."""
    written = [(f"text|{name}|{text}",) * 2 for name, text in ASKED.items()]
    files = [(name, Path(resource("data"), "pretrain", name, "media", file)) for name, file in MEDIA.items()]
    return [*written, *((f"{name}|text|{path}", f"{name}|text|{path.name}") for name, path in files)]


def run(words: Sequence[str]) -> tuple[float, float, float]:
    """Seconds of a process of this Python: wall-clock, those less the wait for a core, and processor."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: its counters can still be read
    wall = time.perf_counter() - began
    waited = int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[1]) / 1e9
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, words
    return wall, wall - waited, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
