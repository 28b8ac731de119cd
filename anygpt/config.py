"""Configuration files: YAML or JSON to frozen dataclasses, strictly."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from anygpt.errors import AnyGPTError, ConfigError, nearest

T = TypeVar("T")


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice, where plain YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' given twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_mapping(path: Path | str) -> dict[str, Any]:
    """The mapping that a `.yaml`, `.yml` or `.json` file holds (an empty file: no keys).

    Raises ConfigError for a missing file, broken syntax, a key given twice, or a top level that is no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a text file ({error.__class__.__name__})") from None
    try:
        if path.suffix == ".json":
            loaded = json.loads(text or "{}", object_pairs_hook=_unique_pairs)
        else:
            loaded = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader subclass: builds plain data only
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}: {error.msg}") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path}: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: got a {type(loaded).__name__} at the top level, expected keys and values")
    return loaded


def load_config(cls: type[T], path: Path | str) -> T:
    """Read a YAML or JSON file into the dataclass `cls`; see `from_dict` for the checks and errors."""
    return from_dict(cls, read_mapping(path), source=str(path))


def from_dict(cls: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Build the dataclass `cls` from plain data, nested dataclasses included.

    Fields may be bool, int, float, str, Path, Literal, unions such as `int | None`, list, tuple, dict and
    dataclasses. `source` (a file name) begins every message. Raises ConfigError for an unknown key (naming the
    nearest known one), a missing field, a value of the wrong type, or a value that `cls.__post_init__` refuses.
    """
    return _build(cls, mapping, source, "")


def _build(cls: type[T], mapping: Mapping[str, Any], source: str, prefix: str) -> T:
    assert dataclasses.is_dataclass(cls), cls
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            known = "" if nearest(str(key), fields) else f"; known: {', '.join(fields)}"
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'{nearest(str(key), fields)}{known}")
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in mapping and not has_default:
            raise ConfigError(f"{source}: missing key '{prefix}{name}', expected {_describe(hints[name])}")
    values = {key: _convert(hints[key], value, source, f"{prefix}{key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except AnyGPTError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(source) else f"{source}: {message}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as `hint` wants it, or ConfigError."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, source, key)
    if origin is Literal:
        if value in args:
            return value
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return _build(hint, value, source, f"{key}.")
    elif origin in (list, tuple) or hint in (list, tuple):
        if isinstance(value, (list, tuple)):
            return _convert_items(hint, value, source, key)
    elif origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            item = args[1] if args else Any
            return {k: _convert(item, v, source, f"{key}.{k}") for k, v in value.items()}
    else:
        converted = _convert_scalar(hint, value)
        if converted is not None or value is None is hint:
            return converted
    near = nearest(value, [str(arg) for arg in args]) if origin is Literal and isinstance(value, str) else ""
    raise ConfigError(f"{source}: '{key}' is {value!r}{near}, expected {_describe(hint)}")


def _convert_union(hint: Any, value: Any, source: str, key: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:  # the error then speaks of the one thing that was expected, with its own position
        return _convert(options[0], value, source, key)
    # An exact type match first, so that 3 stays an int under `float | int`.
    for option in sorted(options, key=lambda option: type(value) is not option):
        try:
            return _convert(option, value, source, key)
        except ConfigError:
            continue
    raise ConfigError(f"{source}: '{key}' is {value!r}, expected {_describe(hint)}")


def _convert_items(hint: Any, value: Any, source: str, key: str) -> Any:
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise ConfigError(f"{source}: '{key}' has {len(value)} values, expected {len(args)}")
        return tuple(_convert(args[i], item, source, f"{key}[{i}]") for i, item in enumerate(value))
    item_hint = args[0] if args else Any
    return origin(_convert(item_hint, item, source, f"{key}[{i}]") for i, item in enumerate(value))


def _convert_scalar(hint: Any, value: Any) -> Any:
    """The converted value, or None where it doesn't fit."""
    if hint is bool:
        return value if isinstance(value, bool) else None
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML 1.1 reads `1e-4` as a string
            try:
                return float(value)
            except ValueError:
                return None
        return None
    if hint is str:
        return value if isinstance(value, str) else None
    if hint is Path:
        return Path(value) if isinstance(value, (str, Path)) else None
    return value if isinstance(hint, type) and isinstance(value, hint) else None


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(arg) for arg in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in get_args(hint))
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return "keys and values"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key '{key}' given twice")
    return dict(pairs)
