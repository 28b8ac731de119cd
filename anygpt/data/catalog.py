"""The catalog of data sets, `config/datasets.yaml`: what tokenizing, converting and training select by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from anygpt.config import from_dict, load_config, read_mapping
from anygpt.data.convert.run import JSON_LAYOUTS
from anygpt.data.layouts import LAYOUTS
from anygpt.errors import AnyGPTError, ConfigError, nearest
from anygpt.modality import get_modality
from anygpt.paths import resource

T = TypeVar("T")

AS_IT_IS = "manifest"
"""The importer of what `anygpt tokenize` reads without a layout: manifests and tars."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set. Raises ConfigError, naming the field, for values that can't be meant."""

    importer: str
    """A layout of pairs (`anygpt tokenize --layout`) or of conversations (`anygpt convert`), or `manifest`."""
    source: str
    """The list, folder, pattern or URL that the importer takes, relative to the working directory."""
    media: tuple[str, ...] = ()
    """Of conversations: folders and tars with their media, where these don't lie beside the source."""
    out: Path
    """The training file that is made of it."""
    modality: str | None = None
    """Of a manifest or tars, where they don't tell."""
    direction: Literal["both", "x2text", "text2x"] = "both"
    """Of pairs: which way they are trained."""
    weight: float = 1.0
    """Share of the training tokens, relative to the other data of a stage."""
    licence: str
    homepage: str

    def __post_init__(self) -> None:
        known = (*LAYOUTS, *JSON_LAYOUTS, AS_IT_IS)
        if self.importer not in known:
            raise ConfigError(
                f"'importer' is '{self.importer}'{nearest(self.importer, known)}, known: {', '.join(known)}"
            )
        if self.modality is not None:
            get_modality(self.modality)
        if self.weight <= 0:
            raise ConfigError(f"'weight' is {self.weight:g}, expected more than 0")
        for name in ("source", "licence", "homepage"):
            if not getattr(self, name).strip():
                raise ConfigError(f"'{name}' is empty")
        if self.media and self.is_pairs:
            raise ConfigError("'media' belongs to conversations; lists of pairs have paths of their own")

    @property
    def is_pairs(self) -> bool:
        """Whether it is text with one medium each, for stage 1, instead of conversations, for stage 2."""
        return self.importer not in JSON_LAYOUTS

    @property
    def layout(self) -> str | None:
        """That of the importer, None where there is none to say."""
        return None if self.importer == AS_IT_IS else self.importer

    @property
    def stage_fields(self) -> dict[str, Any]:
        """What an entry of a stage's list of data says about the set; its path may be missing still."""
        # Where `anygpt tokenize --format` puts shards.
        folder = self.out.with_suffix("")
        fields: dict[str, Any] = {"path": folder if folder.is_dir() and not self.out.exists() else self.out}
        if self.is_pairs:
            modality = LAYOUTS[self.importer].modality if self.layout else self.modality
            fields |= {"modality": modality} if modality is not None else {}
            fields |= {"direction": self.direction}
        return fields | {"weight": self.weight}


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The whole file."""

    datasets: dict[str, Dataset] = field(default_factory=dict)


def find_dataset(name: str, *, is_pairs: bool) -> Dataset:
    """The data set called `name` in the catalog, of pairs or of conversations.

    Raises AnyGPTError that lists the known names or names the other command, ConfigError for a bad catalog.
    """
    found = _get_dataset(name)
    if found.is_pairs != is_pairs:
        what, command = ("pairs", "tokenize") if found.is_pairs else ("conversations", "convert")
        raise AnyGPTError(f"'{name}' is a set of {what}; anygpt {command} --dataset {name} takes it")
    return found


def load_run(cls: type[T], path: Path, *, pairs: str, conversations: str) -> T:
    """The YAML file of a run as `cls`, with what the catalog says about the sets that it selects by name.

    `pairs` and `conversations` are the keys of its lists of data. An entry `{dataset: NAME}` there gets path, weight
    and, of pairs, modality and direction from the catalog, unless it gives them. Raises ConfigError, naming the entry,
    for a name that the catalog lacks or has for the other list, and as `anygpt.config.load_config`.
    """
    run = read_mapping(path)
    for key, other, is_pairs in ((pairs, conversations, True), (conversations, pairs, False)):
        if not isinstance(entries := run.get(key), list):  # `from_dict` refuses it where it can't be
            continue
        run[key] = []
        for number, entry in enumerate(entries):
            if isinstance(entry, dict) and isinstance(name := entry.get("dataset"), str):
                try:
                    found = _get_dataset(name)
                except AnyGPTError as error:
                    raise ConfigError(f"{path}: {key}[{number}]: {error}") from None
                if found.is_pairs != is_pairs:
                    what = "pairs" if found.is_pairs else "conversations"
                    raise ConfigError(f"{path}: {key}[{number}]: '{name}' is a set of {what}; list it under '{other}'")
                entry = found.stage_fields | entry
            run[key].append(entry)
    return from_dict(cls, run, source=str(path))


def _get_dataset(name: str) -> Dataset:
    datasets = load_config(Catalog, resource("config", "datasets.yaml")).datasets
    if name not in datasets:
        raise AnyGPTError(f"unknown data set '{name}'{nearest(name, datasets)}; known: {', '.join(datasets)}")
    return datasets[name]


def stage_line(name: str, out: Path) -> str:
    """The line for a stage's list of data, when the training file of the set called `name` is at `out`."""
    return f"{{dataset: {name}}}" if out == _get_dataset(name).out else f"{{dataset: {name}, path: {out}}}"
