"""What documents and scripts tell people to type has to exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from anygpt.cli import flags, main
from anygpt.forms import describe_forms, parse_form
from anygpt.modality import MODALITIES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SCRIPTS = sorted([ROOT / ".ci" / "run", *(ROOT / "scripts").glob("*.sh")])
RELEASED = ("image", "speech", "music")


def anygpt_commands(path: Path) -> list[list[str]]:
    """The words of every `anygpt …` command in the shell blocks of a document, or in a script."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.S))
    found = []
    for line in text.splitlines():
        called = re.search(r"(?:^|[\s/\"|])(?:-m )?anygpt\"? (?=[a-z])(.*)", line.split(" #")[0])
        if called and not line.lstrip().startswith("#"):
            rest = called[1].replace('"$@"', "")
            # A command named within a longer quoted text ends with that text's quote.
            words = shlex.split(rest if rest.count('"') % 2 == 0 else rest.rstrip('"'))
            found.append(words[: words.index("|")] if "|" in words else words)
    return [words for words in found if words]


@pytest.mark.parametrize("path", [*DOCUMENTS, *SCRIPTS], ids=lambda path: path.name)
def test_commands_have_flags_that_exist(path: Path) -> None:
    for words in anygpt_commands(path):
        name = words[0]
        assert name in main.COMMANDS, f"{path.name}: there is no command anygpt {name}"
        # Placeholders and shell variables stand for values of any type; only names and shape are checked.
        known = flags.describe(main._load(name), name)
        for word in words[1:]:
            if word.startswith("--") and word != "--help":
                assert re.search(rf"{word.split('=')[0]}\b", known), f"{path.name}: anygpt {name} has no {word}"


def test_readme_commands_are_seen_by_this_test() -> None:
    names = {words[0] for words in anygpt_commands(ROOT / "README.md")}
    assert {"base", "train-tokenizer", "world"} <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    named = re.findall(r"`((?:anygpt|scripts|tests|config|docs|task_prompts)/[\w./-]+)`", text)
    released = text.partition("## Coming from")[2]
    assert [name for name in named if not (ROOT / name).exists() and f"`{name}`" not in released] == []


def quickstart_prompts() -> list[str]:
    return re.findall(r'--prompt "([^"]+)"', (ROOT / "scripts" / "quickstart.sh").read_text(encoding="utf-8"))


def test_quickstart_covers_every_form() -> None:
    specs = [MODALITIES[name] for name in RELEASED]
    forms = [parse_form(prompt, specs) for prompt in quickstart_prompts()]
    shapes = {(form.source, form.target, len(form.fields)) for form in forms}
    expected = [line.split("|") for line in describe_forms(specs)]
    assert shapes == {(source, target, len(rest) - 1) for source, target, *rest in expected} and len(forms) == 7


def test_readme_lists_every_form() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\|", "|")
    rows = re.findall(r"^\| `([a-z]+)\|([a-z]+)\|(.*?)` \|", readme, flags=re.M)
    expected = [line.split("|") for line in describe_forms([MODALITIES[name] for name in RELEASED])]
    assert {(source, target, rest.count("|")) for source, target, rest in rows} == {
        (source, target, len(rest) - 1) for source, target, *rest in expected
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_errors(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
