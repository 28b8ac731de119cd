"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from anygpt import AnyGPT

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The same examples in every run, and no failures because a shared machine was slow for a moment.
settings.register_profile("repo", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repo")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of parity vectors: ANYGPT_GOLDEN, else the copy in the repository."""
    return Path(os.environ.get("ANYGPT_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ANYGPT_HOME with a random model of 2 layers and its tokenizers, policies and task prompts."""
    from fixtures_tiny import build_home

    return build_home(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ANYGPT_HOME is `tiny_home` during the test."""
    monkeypatch.setenv("ANYGPT_HOME", str(tiny_home))
    return tiny_home


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")  # not longer: the variable is for these tests alone
def model(tiny_home: Path) -> "Iterator[AnyGPT]":
    """The model of `tiny_home`."""
    from anygpt import AnyGPT

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYGPT_HOME", str(tiny_home))
        yield AnyGPT.from_pretrained(seed=7)
