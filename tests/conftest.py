"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
