"""Lists the data folders for packaging; everything else stands in setup.cfg.

setup.cfg can only name files one by one or flatten a folder, so the tree is walked here.
"""

import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
DATA_FOLDERS = ("models", "tokenizers", "config", "task_prompts", "data")


def data_files() -> list[tuple[str, list[str]]]:
    """(target folder under the prefix, files) for every folder below the data folders; hidden files stay out."""
    by_folder: dict[str, list[str]] = {}
    for top in DATA_FOLDERS:
        for path in sorted((ROOT / top).rglob("*")):
            relative = path.relative_to(ROOT)
            is_hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.is_file() and not is_hidden:
                by_folder.setdefault(f"share/anygpt/{relative.parent.as_posix()}", []).append(relative.as_posix())
    return sorted(by_folder.items())


# An editable install finds the data in the checkout; a copy under the prefix would only go stale.
setup(data_files=[] if "editable_wheel" in sys.argv else data_files())
