"""Running commands in tests: in this process, in one of their own, and on a pseudo-terminal."""

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from anygpt.cli.main import main


class Ran:
    """Exit code and what was printed by a command that ran in this process."""

    def __init__(self, *words: str, stdin: str = "") -> None:
        out, err = io.StringIO(), io.StringIO()
        before, sys.stdin = sys.stdin, io.StringIO(stdin)
        self.code: object = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(list(words))
        except SystemExit as error:
            self.code = error.code
        finally:
            sys.stdin = before
        self.out, self.err = out.getvalue().splitlines(), err.getvalue().splitlines()


def run_module(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "anygpt", *words], capture_output=True, text=True, check=False, env=environment()
    )


def environment(**more: str) -> dict[str, str]:
    """Of a command that runs in a process of its own; without word of its cursor, as a pipe can't answer."""
    root = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": str(root), "TERM": "dumb", "PROMPT_TOOLKIT_NO_CPR": "1", **more}


class Terminal:
    """The command on a pseudo-terminal, as someone sits before it."""

    def __init__(self, *words: str, first: str = "", **more: str) -> None:
        """`first` is code that runs before the command, `more` are variables of its environment."""
        run = f"{first}\nimport sys; from anygpt.cli.main import main; main(sys.argv[1:])"
        self._child, self._fd = pty.fork()
        if self._child == 0:
            # A test run in the background of a shell ignores or blocks Ctrl-C, and would hand that on.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.execve(sys.executable, [sys.executable, "-c", run, *words], environment(**more))
        self.text = ""

    def wait_for(self, pattern: str, *, seconds: float = 200) -> str:
        """Read until `pattern` shows up behind what was read before; returns what came."""
        begin, deadline = len(self.text), time.monotonic() + seconds
        while not re.search(pattern, self.text[begin:]):
            assert time.monotonic() < deadline, self.text
            self._read()
        return self.text[begin:]

    def type(self, line: str) -> None:
        self.press(f"{line}\r")

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def interrupt_until(self, pattern: str, *, tries: int = 20) -> None:
        """Press Ctrl-C until `pattern` shows up: one that comes while reading only just begins has no effect before the
        next key, a person would press again."""
        for _ in range(tries):
            os.kill(self._child, signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.wait_for(pattern, seconds=3)
                return
        raise AssertionError(self.text)

    def exit_code(self, *, seconds: float = 60) -> int:
        """Of the command, once it has ended; what it still prints is read, as nobody else would make room for it."""
        deadline = time.monotonic() + seconds
        while not (ended := os.waitpid(self._child, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, f"still running after {seconds} s: {self.text}"
            self._read()
        return os.waitstatus_to_exitcode(ended[1])

    def _read(self) -> None:
        if select.select([self._fd], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):
                self.text += os.read(self._fd, 65536).decode(errors="replace")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.close(self._fd)
