"""Installing this package in tests: offline, into environments that borrow their dependencies from this one."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert done.returncode == 0, done.stderr


def make_venv(venv: Path) -> Path:
    """Makes a virtual environment without this package, and returns its folder of commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    # A path that a .pth file adds has its own .pth files left alone, so this checkout stays out of it.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"
