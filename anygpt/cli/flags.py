"""From command-line words to the arguments of a function, by its signature, through Fire.

Fire alone is too lenient for users: it runs a command before it complains about a flag that it doesn't know, keeps
only the last of a repeated flag, and reads `--prompt 007` as a number. Here flags are checked first, mistakes are one
line, and every value is converted by the annotation of its parameter. A keyword parameter whose annotation is a
dataclass is a group: its fields are flags, described under "Args:" of its docstring, or of the command's, which counts.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
from fire import docstrings

from anygpt.errors import AnyGPTError, nearest

Command = Callable[..., None]


def bind(command: Command, words: Sequence[str], name: str) -> dict[str, Any]:
    """The keyword arguments that `words` give to `command`, called `name` in messages.

    `--some-flag value`, `--some-flag=value`, and `--flag` alone for booleans; a list parameter takes its flag several
    times; positional parameters take the words without flags. Raises AnyGPTError, one line, for anything else.
    """
    parameters, hints = _parameters(command)
    signature = inspect.Signature(list(parameters.values()))
    joined = _join_flags(words, parameters, hints, name)
    given = {word.partition("=")[0] for word in joined}
    missing = [key for key, item in parameters.items() if _is_required_flag(item) and f"--{key}" not in given]
    if missing:
        raise AnyGPTError(f"{', '.join(map(_flag, missing))} missing; see {name} --help")
    bound: dict[str, Any] = {}

    @functools.wraps(command)
    def record(*args: Any, **kwargs: Any) -> None:
        bound.update(signature.bind(*args, **kwargs).arguments)

    record.__signature__ = signature  # type: ignore[attr-defined]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            fire.Fire(fire.decorators.SetParseFn(str)(record), command=joined, name=name)
    except SystemExit:
        reason = next((line for line in said.getvalue().splitlines() if line.startswith("ERROR: ")), "ERROR: bad usage")
        reason = reason.removeprefix("ERROR: ").replace("Could not consume arg:", "unexpected argument")
        raise AnyGPTError(f"{reason}; see {name} --help") from None
    # Fire gives positional parameters that were left out as their default, None.
    values = {key: _convert(hints[key], value, _flag(key)) for key, value in bound.items() if value is not None}
    for key, group in _groups(command).items():
        members = {field.name: values.pop(field.name) for field in dataclasses.fields(group) if field.name in values}
        if members:
            values[key] = group(**members)
    return values


def describe(command: Command, name: str) -> str:
    """The help text of a command, from its signature and docstring."""
    parameters, hints = _parameters(command)
    doc = docstrings.parse(inspect.getdoc(command))
    described = [docstrings.parse(inspect.getdoc(group)) for group in _groups(command).values()] + [doc]
    about = {arg.name: " ".join((arg.description or "").split()) for docs in described for arg in docs.args or []}
    words = [key.upper() for key, parameter in parameters.items() if _is_positional(parameter)]
    lines = [doc.summary or "", "", f"usage: {' '.join([name, *words, '[flags]'])}"]
    if doc.description:
        lines += ["", doc.description]
    for title, wanted in (("arguments", True), ("flags", False)):
        rows = [(key, item) for key, item in parameters.items() if _is_positional(item) == wanted]
        lines += ["", f"{title}:"] if rows else []
        for key, parameter in rows:
            is_flag_only = hints[key] is bool
            value = "" if is_flag_only or wanted else f" {_value_name(hints[key])}"
            lines.append(f"  {key.upper() if wanted else _flag(key)}{value}")
            default = parameter.default
            has_default = default is not parameter.empty and default is not None and default not in ((), False)
            lines.append(f"      {about.get(key, '')}{f' [{default}]' if has_default else ''}")
    return "\n".join(lines) + "\n"


def _join_flags(
    words: Sequence[str], parameters: typing.Mapping[str, inspect.Parameter], hints: dict[str, Any], name: str
) -> list[str]:
    """`--flag value` as `--flag=value`, checked; the values of a list flag as one JSON list."""
    flags = {_flag(key): key for key in parameters}
    joined: list[str] = []
    lists: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            joined.append(word)
            continue
        given, has_value, value = word.partition("=")
        flag = given.replace("_", "-")
        if flag not in flags:
            raise AnyGPTError(f"unknown flag {given}{nearest(flag, flags)}; see {name} --help")
        key = flags[flag]
        if not has_value and hints[key] is bool:
            value = "True"
        elif not has_value:
            if not rest or rest[0].startswith("--"):
                raise AnyGPTError(f"{flag} needs a value ({flag} VALUE, or {flag}=VALUE if it begins with --)")
            value = rest.pop(0)
        if typing.get_origin(hints[key]) is list:
            lists.setdefault(key, []).append(value)
        else:
            joined.append(f"--{key}={value}")
    return joined + [f"--{key}={json.dumps(values)}" for key, values in lists.items()]


def _convert(hint: Any, text: Any, flag: str) -> Any:
    """The value of a flag as its annotation wants it."""
    if typing.get_origin(hint) is list:
        return [_convert(typing.get_args(hint)[0], item, flag) for item in json.loads(text)]
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise AnyGPTError(f"{flag} takes no value, got '{text}'")
    kinds: dict[Any, tuple[Callable[[str], Any], str]] = {
        int: (int, "a whole number"),
        float: (float, "a number"),
        str: (str, "text"),
        Path: (Path, "a path"),
    }
    convert, expected = kinds[hint]
    try:
        return convert(text)
    except ValueError:
        raise AnyGPTError(f"{flag} is '{text}', expected {expected}") from None


def _groups(command: Command) -> dict[str, type]:
    """The parameters that are groups of flags."""
    hints = typing.get_type_hints(command)
    return {key: hint for key, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def _parameters(command: Command) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The parameters and their types, with the fields of a group in its place."""
    groups, hints = _groups(command), _hints(command)
    parameters: dict[str, inspect.Parameter] = {}
    for key, parameter in inspect.signature(command).parameters.items():
        if key not in groups:
            parameters[key] = parameter
            continue
        hints |= _hints(groups[key])
        for field in dataclasses.fields(groups[key]):
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters[field.name] = inspect.Parameter(field.name, kind, default=field.default)
    return parameters, hints


def _hints(described: Command | type) -> dict[str, Any]:
    """The annotations of parameters or fields, `X | None` as X."""
    hints = typing.get_type_hints(described)
    for key, hint in hints.items():
        if typing.get_origin(hint) in (types.UnionType, typing.Union):
            hints[key] = next(option for option in typing.get_args(hint) if option is not type(None))
    return hints


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind is not inspect.Parameter.KEYWORD_ONLY


def _is_required_flag(parameter: inspect.Parameter) -> bool:
    return not _is_positional(parameter) and parameter.default is parameter.empty


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _value_name(hint: Any) -> str:
    if typing.get_origin(hint) is list:
        return _value_name(typing.get_args(hint)[0]) + " (repeatable)"
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "VALUE")
