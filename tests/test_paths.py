"""Where shipped folders are found."""

from pathlib import Path

import pytest

from anygpt import paths
from anygpt.errors import AnyGPTError


@pytest.fixture
def three_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    roots = {name: tmp_path / name for name in ("home", "checkout", "prefix")}
    package = roots["checkout"] / "anygpt"
    package.mkdir(parents=True)
    (roots["checkout"] / "setup.cfg").touch()
    monkeypatch.setattr(paths, "_PACKAGE", package)
    monkeypatch.setattr(paths.sys, "prefix", str(roots["prefix"]))
    monkeypatch.setenv("ANYGPT_HOME", str(roots["home"]))
    roots["prefix"] = roots["prefix"] / "share" / "anygpt"
    return roots


def test_order_is_variable_then_checkout_then_prefix(three_roots: dict[str, Path]) -> None:
    for root in reversed(list(three_roots.values())):
        (root / "models" / "mini").mkdir(parents=True)
        assert paths.resource("models", "mini") == root / "models" / "mini"


def test_a_root_without_the_name_is_passed_over(three_roots: dict[str, Path]) -> None:
    (three_roots["home"] / "models" / "other").mkdir(parents=True)
    (three_roots["prefix"] / "models" / "mini").mkdir(parents=True)
    assert paths.resource("models", "mini") == three_roots["prefix"] / "models" / "mini"


def test_error_names_all_three_places_and_the_nearest_name(three_roots: dict[str, Path]) -> None:
    (three_roots["checkout"] / "models" / "anygpt-mini-base").mkdir(parents=True)
    with pytest.raises(AnyGPTError) as caught:
        paths.resource("models", "anygpt-mini-bas")
    message = str(caught.value)
    assert "\n" not in message and "did you mean 'anygpt-mini-base'" in message
    assert all(str(root) in message for root in three_roots.values())


def test_site_packages_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's package `tokenizers` lies beside an installed `anygpt` and must not be taken for our folder."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    (site / "anygpt").mkdir(parents=True)
    (site / "tokenizers").mkdir()
    shipped = tmp_path / "share" / "anygpt" / "tokenizers"
    shipped.mkdir(parents=True)
    monkeypatch.delenv("ANYGPT_HOME", raising=False)
    monkeypatch.setattr(paths, "_PACKAGE", site / "anygpt")
    assert paths.checkout_root() is None
    assert paths.resource("tokenizers") == shipped
