"""The Dockerfile's steps in a plain virtual environment. What only a network can do, installing the dependencies, is
left to `scripts/check_container.sh`, which does the rest as well."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from fixtures_install import make_venv, pip

from anygpt import paths

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COPIES = [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
LET_THROUGH = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that is made in the order of the Dockerfile."""
    tree = tmp_path_factory.mktemp("tree")
    *first, rest = COPIES
    for *names, target in first:
        for name in names:
            assert any(name.startswith(path) for path in LET_THROUGH), f"{name} is not let through by .dockerignore"
            (tree / target).mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tree / target)
    commands = make_venv(tmp_path_factory.mktemp("container") / "venv")
    python = str(commands / "python")
    pip("--python", python, "install", "--no-deps", "--no-build-isolation", "--editable", str(tree))
    assert rest == [".", "."]
    for name in LET_THROUGH:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / name, tree / name)
    return commands


def test_what_is_copied_first_is_what_installing_reads(installed: Path) -> None:
    assert {"setup.py", "setup.cfg", "requirements.txt"} <= {name for copy in COPIES[:-1] for name in copy}
    assert (installed / "anygpt").is_file()


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.skipif(not (ROOT / "models" / "anygpt-mini-base").exists(), reason="the model is not in this tree")
@pytest.mark.parametrize("service", SERVICES)
def test_services_become_healthy_and_end(installed: Path, tmp_path: Path, service: str) -> None:
    entry: list[str] = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[0])
    words: list[str] = SERVICES[service]["command"]
    check: list[str] = json.loads(re.findall(r"^ +CMD (.+)$", DOCKERFILE, re.MULTILINE)[0])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = [port if word == "8000" else "127.0.0.1" if word == "0.0.0.0" else word for word in words]
    check = [word.replace("8000", port) for word in check]
    hidden = {"PYTHONPATH", paths.HOME_VARIABLE}
    variables = {key: value for key, value in os.environ.items() if key not in hidden}
    variables |= {"PATH": f"{installed}{os.pathsep}{variables['PATH']}", "HOME": str(tmp_path)}
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        child = subprocess.Popen([*entry, *words], cwd=tmp_path, env=variables, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 240
        while subprocess.run(check, cwd=tmp_path, env=variables, capture_output=True, timeout=60).returncode != 0:
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        child.terminate()
        assert child.wait(60) == 0, log.read_text()
    finally:
        child.kill()
        child.wait(20)
