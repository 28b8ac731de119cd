"""Strict reading of configuration files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anygpt.config import from_dict, load_config
from anygpt.errors import AnyGPTError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr_peak: float = 1e-3
    kind: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.lr_peak <= 0:
            raise ConfigError(f"lr_peak is {self.lr_peak}, expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    steps: int = 10
    out: Path = Path("runs")
    seed: int | None = None
    is_dry: bool = False
    optimizer: Optimizer = field(default_factory=Optimizer)
    mixture: tuple[Optimizer, ...] = ()
    sizes: list[int] = field(default_factory=list)
    size: tuple[int, int] = (96, 96)
    weights: dict[str, float] = field(default_factory=dict)
    limit: int | str = 3


def test_nested_values_get_their_types(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: mini\nout: here\nseed: null\noptimizer: {lr_peak: 1e-4, kind: sgd}\n"
        "mixture: [{lr_peak: 1}, {}]\nsizes: [1, 2]\nsize: [64, 32]\nweights: {a: 1}\nlimit: all\n"
    )
    recipe = load_config(Recipe, path)
    assert recipe == Recipe(
        name="mini",
        out=Path("here"),
        optimizer=Optimizer(lr_peak=1e-4, kind="sgd"),
        mixture=(Optimizer(lr_peak=1.0), Optimizer()),
        sizes=[1, 2],
        size=(64, 32),
        weights={"a": 1.0},
        limit="all",
    )
    assert isinstance(recipe.mixture[0].lr_peak, float)


@pytest.mark.parametrize(
    ("mapping", "parts"),
    [
        ({"name": "a", "step": 1}, ["unknown key 'step'", "did you mean 'steps'"]),
        ({"name": "a", "zzzz": 1}, ["unknown key 'zzzz'", "known: name, steps"]),
        ({"name": "a", "optimizer": {"lr_pek": 1}}, ["unknown key 'optimizer.lr_pek'", "did you mean 'lr_peak'"]),
        ({"steps": 1}, ["missing key 'name'", "expected str"]),
        ({"name": "a", "steps": "ten"}, ["'steps' is 'ten'", "expected int"]),
        ({"name": "a", "steps": True}, ["'steps' is True", "expected int"]),
        ({"name": "a", "steps": 1.5}, ["'steps' is 1.5", "expected int"]),
        ({"name": "a", "steps": None}, ["'steps' is None", "expected int"]),
        ({"name": "a", "is_dry": 1}, ["'is_dry' is 1", "expected bool"]),
        ({"name": 3}, ["'name' is 3", "expected str"]),
        ({"name": "a", "optimizer": {"kind": "adam"}}, ["'optimizer.kind' is 'adam'", "did you mean 'adamw'"]),
        ({"name": "a", "optimizer": [1]}, ["'optimizer' is [1]", "expected keys and values"]),
        ({"name": "a", "mixture": [{}, {"kind": 1}]}, ["'mixture[1].kind' is 1", "one of 'adamw', 'sgd'"]),
        ({"name": "a", "size": [1]}, ["'size' has 1 values", "expected 2"]),
        ({"name": "a", "sizes": "12"}, ["'sizes' is '12'"]),
        ({"name": "a", "weights": {"x": "y"}}, ["'weights.x' is 'y'", "expected float"]),
        ({"name": "a", "limit": 1.5}, ["'limit' is 1.5", "int or str"]),
        ({"name": "a", "optimizer": {"lr_peak": -1}}, ["lr_peak is -1.0", "positive"]),
    ],
)
def test_mistakes_are_one_line_with_file_and_field(mapping: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Recipe, mapping, source="my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ") and "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.yaml", "name: x\nname: y\n", "line 2: key 'name' given twice"),
        ("a.yaml", "name: [1,\n", "line 2"),
        ("a.yaml", "- 1\n", "got a list at the top level"),
        ("a.yaml", "name: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        ("a.json", '{"name": "x", "name": "y"}', "key 'name' given twice"),
        ("a.json", '{"name": ', "line 1"),
        ("a.json", "3", "got a int at the top level"),
        ("a.yaml", "", "missing key 'name'"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, part: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, path)
    message = str(caught.value)
    assert message.startswith(str(path)) and part in message and "\n" not in message


def test_missing_directory_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(ConfigError, match=str(path)):
            load_config(Recipe, path)


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(list(Recipe.__dataclass_fields__)), _plain))
def test_any_value_gives_a_recipe_or_a_one_line_error(mapping: dict[str, Any]) -> None:
    try:
        assert isinstance(from_dict(Recipe, mapping, source="x"), Recipe)
    except AnyGPTError as error:
        assert str(error).startswith("x: ")


@given(st.integers(), st.floats(min_value=1e-9, max_value=1e9), st.text())
def test_yaml_and_json_read_alike(steps: int, lr: float, name: str) -> None:
    mapping = {"name": name, "steps": steps, "optimizer": {"lr_peak": lr}}
    expected = Recipe(name=name, steps=steps, optimizer=Optimizer(lr_peak=lr))
    assert from_dict(Recipe, json.loads(json.dumps(mapping)), source="x") == expected
    assert from_dict(Recipe, yaml.safe_load(yaml.safe_dump(mapping)), source="x") == expected
