"""Rules that hold for the repository as a whole: layout, imports, sizes, packaging."""

import ast
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_install import make_venv, pip

import anygpt
from anygpt import paths

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "anygpt"

FLOORS = (
    ("cli",),
    ("web",),
    ("serving",),
    (
        "engine",
        "batches",
        "session",
        "streaming",
        "questions",
        "candidates",
        "choices",
        "media_tokenizers",
        "forms",
        "chat_lines",
        "conversation",
    ),
    ("training", "export", "evaluation", "synth"),
    ("generation",),
    ("world",),
    ("data",),
    ("prompts",),
    ("vocabulary", "blocks", "text_tokenizer", "added_tokens", "manifest"),
    ("tokenizers",),
    ("modality", "code_strings"),
    ("media", "video", "containers", "boxes"),
    ("config", "paths", "devices"),
    ("errors",),
)
"""From the top down, as in docs/architecture.md; a new module has to be given its place here."""

UNWANTED = {"torchaudio", "torchvision"}
WEIGHTS = {".safetensors", ".pt", ".bin", ".model", ".npz"}


def tracked_files() -> list[Path]:
    """What a clone holds; without git (an unpacked archive), everything that isn't hidden."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not is_hidden(path.relative_to(ROOT))]


def is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def data_files() -> set[str]:
    """What a wheel has to carry, relative to `share/anygpt`."""
    found = (path for kind in paths.KINDS for path in (ROOT / kind).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if not is_hidden(path.relative_to(ROOT))}


def imported_modules(path: Path) -> Iterator[str]:
    """Full names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module if node.module != "anygpt" else f"anygpt.{node.names[0].name}"


def test_the_data_folder_tokenizers_is_no_package() -> None:
    """A package of that name in the root hides Hugging Face's from everything that runs there."""
    assert not list((ROOT / "tokenizers").rglob("*.py"))
    assert importlib.import_module("tokenizers").__version__


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_unwanted_libraries_are_imported_nowhere() -> None:
    files = [path for path in tracked_files() if path.suffix == ".py"]
    assert len(files) > 50
    found = {(path.name, name) for path in files for name in imported_modules(path) if name.split(".")[0] in UNWANTED}
    assert found == set()


def test_all_modules_import_without_doing_anything(capfd: pytest.CaptureFixture[str]) -> None:
    names = [module.name for module in pkgutil.walk_packages(anygpt.__path__, "anygpt.")]
    assert len(names) > 40
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    assert capfd.readouterr().out == ""


def test_the_command_line_starts_without_torch() -> None:
    """`anygpt --help` and a mistyped flag should not take seconds."""
    code = (
        "import sys, anygpt.cli.main, anygpt.media; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_floors_import_only_from_below() -> None:
    place = {name: index for index, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own in ("__init__", "__main__"):
            continue
        assert own in place, f"{path.name}: give anygpt.{own} a place in FLOORS and in docs/architecture.md"
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] != "anygpt" or parts[1] == "__version__":
                continue
            if place[parts[1]] < place[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_architecture_document_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for floor in FLOORS for name in floor if f"`{name}`" not in text] == []


def test_sizes() -> None:
    files = tracked_files()
    shipped = [path for path in files if path.relative_to(ROOT).parts[0] in ("models", "tokenizers")]
    golden = [path for path in files if path.is_relative_to(ROOT / "tests" / "golden")]
    assert [path.name for path in files if path.stat().st_size >= 20_000_000] == []
    assert sum(path.stat().st_size for path in shipped if path.suffix in WEIGHTS) < 60_000_000
    assert sum(path.stat().st_size for path in golden) < 10_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, so that no build folder is left in it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("anygpt", *paths.KINDS):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "models" / ".hidden").touch()
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_all_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    share = wheel.name.split("-py3")[0] + ".data/data/share/anygpt/"
    assert {name.removeprefix(share) for name in names if name.startswith(share)} == data_files()
    code = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.suffix in (".py", ".typed")}
    assert {name for name in names if name.startswith("anygpt/")} == code
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".data", ".dist-info"))} == {"anygpt"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a virtual environment that holds the wheel, and borrows its dependencies from this one."""
    commands = make_venv(tmp_path_factory.mktemp("installed") / "venv")
    pip("--python", str(commands / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return commands


def run_elsewhere(command: list[str], folder: Path) -> str:
    hidden = {"PYTHONPATH", paths.HOME_VARIABLE}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_wheel_finds_its_data(installed: Path, tmp_path: Path) -> None:
    code = "import anygpt.paths as p; print(p.checkout_root(), *(p.resource(k) for k in p.KINDS), sep='\\n')"
    checkout, *found = run_elsewhere([str(installed / "python"), "-c", code], tmp_path).split()
    share = installed.parent / "share" / "anygpt"
    assert checkout == "None" and [Path(line) for line in found] == [share / kind for kind in paths.KINDS]


def test_installed_wheel_shows_its_help(installed: Path, tmp_path: Path) -> None:
    assert "base" in run_elsewhere([str(installed / "anygpt"), "--help"], tmp_path)
    assert anygpt.__version__ in run_elsewhere([str(installed / "python"), "-m", "anygpt", "--version"], tmp_path)


@pytest.mark.skipif(not (ROOT / "models" / "anygpt-mini-base").exists(), reason="the model is not in this tree")
def test_installed_wheel_runs_the_shipped_model(installed: Path, tmp_path: Path) -> None:
    prompt = "text|image|a large red apple on a white background"
    printed = run_elsewhere([str(installed / "anygpt"), "base", "--prompt", prompt, "--output-dir", "out"], tmp_path)
    assert (tmp_path / printed.strip()).suffix == ".jpg" and (tmp_path / printed.strip()).is_file()
