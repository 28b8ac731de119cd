"""What plugs into `anygpt synth`: writers of conversations and generators of media, by name."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from anygpt.data.dialogue import Dialogue, MediaRef
from anygpt.errors import AnyGPTError, nearest
from anygpt.media import Audio

WRITERS = {
    "world": "anygpt.synth.world:WorldWriter",
    "openai": "anygpt.synth.openai:OpenAIWriter",
}
"""Name -> `module:class` of a `DialogueWriter`, imported on first use."""
MEDIA_GENERATORS = {
    "world": "anygpt.synth.world:WorldMedia",
    "openai": "anygpt.synth.openai:OpenAIMedia",
    "folder": "anygpt.synth.folder:FolderMedia",
}
"""Name -> `module:class` of a `MediaGenerator`, likewise."""


class BadItem(AnyGPTError):
    """One conversation or medium can't be made: it goes to the errors file and the run goes on.

    Any other AnyGPTError of a plug-in ends the run.
    """


@dataclass(frozen=True, kw_only=True)
class PluginSettings:
    """What every plug-in is made from."""

    split: str = "train"
    """train or heldout."""
    seed: int = 0
    scenarios: tuple[str, ...] = ()
    """The scenarios to write; empty for all."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The plug-in's own: of the flag `--option openai.url=URL`, openai gets {"url": URL}."""


class DialogueWriter(ABC):
    """Thinks up conversations: topics, scenarios, turns that refer to media."""

    @classmethod
    @abstractmethod
    def create(cls, settings: PluginSettings) -> "DialogueWriter":
        """The writer. Raises AnyGPTError for options and scenarios that it does not know, before anything is made."""

    @abstractmethod
    def write(self, index: int) -> Dialogue:
        """Conversation `index`, from 0. Depends on settings and index alone, as far as the source can.

        Raises BadItem when this one can't be written.
        """

    @property
    def identity(self) -> Mapping[str, Any]:
        """What besides `PluginSettings` decides the output, as JSON; a run is not gone on with under another one."""
        return {}


class MediaGenerator(ABC):
    """Makes pictures and sounds from their descriptions."""

    modalities: tuple[str, ...]
    """What it can make."""

    @classmethod
    @abstractmethod
    def create(cls, settings: PluginSettings) -> "MediaGenerator":
        """The generator. Raises AnyGPTError for options that it does not know."""

    @abstractmethod
    def make(self, ref: MediaRef) -> Image.Image | Audio:
        """The picture (RGB) or sound that `ref` describes, as tokenizers take it.

        Raises BadItem when this one can't be made, such as for a caption that it does not understand.
        """

    @property
    def identity(self) -> Mapping[str, Any]:
        """What besides `PluginSettings` decides the output, as in `DialogueWriter.identity`."""
        return {}


def create_writer(name: str, settings: PluginSettings) -> DialogueWriter:
    """The writer called `name`. Raises AnyGPTError that lists the known names."""
    writer: DialogueWriter = _find(name, WRITERS, "--writer").create(settings)
    return writer


def create_media(name: str, settings: PluginSettings) -> MediaGenerator:
    """The media generator called `name`. Raises AnyGPTError that lists the known names."""
    generator: MediaGenerator = _find(name, MEDIA_GENERATORS, "--media").create(settings)
    return generator


def no_options(name: str, settings: PluginSettings) -> None:
    """Raise AnyGPTError unless a plug-in that has no options was given none."""
    if settings.options:
        raise AnyGPTError(f"--option {name}.{next(iter(settings.options))}: {name} has no options")


def parse_options(options: Sequence[str], names: Collection[str]) -> dict[str, dict[str, str]]:
    """Plug-in -> its options, from `plugin.key=value`. Raises AnyGPTError for another form, a plug-in that is none of
    `names`, and an option given twice."""
    parsed: dict[str, dict[str, str]] = {}
    for option in options:
        target, equals, value = option.partition("=")
        name, dot, key = target.partition(".")
        if not (equals and dot and key):
            raise AnyGPTError(f"--option is '{option}', expected PLUGIN.KEY=VALUE")
        if name not in names:
            raise AnyGPTError(f"--option {target}: '{name}' takes no part; there are: {', '.join(names)}")
        if key in parsed.setdefault(name, {}):
            raise AnyGPTError(f"--option {target}: given twice")
        parsed[name][key] = value
    return parsed


def _find(name: str, table: Mapping[str, str], flag: str) -> Any:
    if name not in table:
        raise AnyGPTError(f"{flag} is '{name}'{nearest(name, table)}; known: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
