"""Where the shipped data folders are, in a checkout as well as in an installed wheel."""

import os
import sys
from pathlib import Path

from anygpt.errors import AnyGPTError, nearest

KINDS = ("models", "tokenizers", "config", "task_prompts", "data")
"""Data folders at the top of a checkout; packaging puts the same ones under `<prefix>/share/anygpt`."""

HOME_VARIABLE = "ANYGPT_HOME"

_PACKAGE = Path(__file__).resolve().parent


def checkout_root() -> Path | None:
    """The source tree that this package is imported from, or None for an installed copy."""
    root = _PACKAGE.parent
    # site-packages also holds a folder `tokenizers` (Hugging Face's), so a folder's name alone proves nothing.
    return root if (root / "setup.cfg").is_file() else None


def installed_root() -> Path:
    """`<prefix>/share/anygpt` of the installation that this package belongs to."""
    # The prefix is found from the package's own place: `pip install --user` and Debian's dist-packages
    # install under a prefix that is not `sys.prefix`.
    for folder in list(_PACKAGE.parents)[:5]:
        if (folder / "share" / "anygpt").is_dir():
            return folder / "share" / "anygpt"
    return Path(sys.prefix) / "share" / "anygpt"


def search_roots() -> list[tuple[str, Path | None]]:
    """(description, root) of the places that `resource` looks in, in order; None where a place doesn't exist here."""
    home = os.environ.get(HOME_VARIABLE)
    return [
        (f"${HOME_VARIABLE}", Path(home).expanduser() if home else None),
        ("the checkout", checkout_root()),
        ("the installation", installed_root()),
    ]


def resource(kind: str, name: str | None = None) -> Path:
    """Path of a shipped folder (`resource("config")`) or of something in it (`resource("models", "anygpt-mini-base")`).

    Looks in `$ANYGPT_HOME`, then the checkout, then `<prefix>/share/anygpt`, and returns the first that exists.
    Raises AnyGPTError naming all three places when none has it.
    """
    assert kind in KINDS, (kind, KINDS)
    wanted = Path(kind) / name if name else Path(kind)
    looked: list[str] = []
    siblings: set[str] = set()
    for description, root in search_roots():
        if root is None:
            looked.append(f"{description} ({'not set' if description.startswith('$') else 'none'})")
            continue
        if (root / wanted).exists():
            return root / wanted
        looked.append(f"{description} ({root / wanted})")
        if (root / kind).is_dir():
            siblings.update(path.name for path in (root / kind).iterdir())
    hint = nearest(name, siblings) if name else ""
    raise AnyGPTError(
        f"{wanted} not found{hint}; looked in {', '.join(looked)}; "
        f"set {HOME_VARIABLE} to a folder that holds {kind}/, or reinstall anygpt"
    )
