"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of parity vectors: ANYGPT_GOLDEN, else the copy in the repository."""
    return Path(os.environ.get("ANYGPT_GOLDEN", Path(__file__).parent / "golden"))
