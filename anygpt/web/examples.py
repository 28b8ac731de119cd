"""Questions to begin with, in the shipped models' world; their media are the bundled ones."""

from dataclasses import dataclass
from pathlib import Path

from anygpt.errors import AnyGPTError
from anygpt.forms import TEXT
from anygpt.paths import resource


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question of the page; `file` is a modality and a path below `data/pretrain`."""

    label: str
    text: str = ""
    answer: str | None = None
    file: tuple[str, str] | None = None

    @property
    def path(self) -> Path | None:
        """The bundled file. Raises AnyGPTError where it isn't installed."""
        return None if self.file is None else resource("data", f"pretrain/{self.file[0]}/media/{self.file[1]}")


CHAT = (
    Example(label="Draw a camel", text="please draw a small camel at the bottom on a pink background", answer="image"),
    Example(label="Make its background blue", text="make the background blue"),
    Example(label="Look at a picture", text="what does this picture show?", answer=TEXT, file=("image", "003.jpg")),
    Example(label="Read aloud", text="read this aloud: the small dog is near the river", answer="speech"),
    Example(label="Compose a sad piece", text="play a slow sad piano piece in a minor key", answer="music"),
    Example(label="Listen to music", text="what do you hear?", answer=TEXT, file=("music", "004.wav")),
)
"""For a chat model."""

SINGLE = (
    Example(label="Draw an apple", text="a large red apple on a white background", answer="image"),
    Example(label="Look at a picture", answer=TEXT, file=("image", "003.jpg")),
    Example(label="Speak", text="the small dog is near the river", answer="speech"),
    Example(label="Write down what is said", answer=TEXT, file=("speech", "003.wav")),
    Example(label="Compose a sad piece", text="a slow sad piano piece in a minor key without drums", answer="music"),
    Example(label="Listen to music", answer=TEXT, file=("music", "004.wav")),
)
"""For a base model: one of each form."""


def usable(examples: tuple[Example, ...], modalities: set[str]) -> list[Example]:
    """Those whose files are there, and whose modalities a model has."""
    found = []
    for example in examples:
        needed = {example.answer or TEXT, example.file[0] if example.file is not None else TEXT}
        try:
            is_there = example.path is None or example.path.is_file()
        except AnyGPTError:
            is_there = False
        if is_there and needed <= {TEXT, *modalities}:
            found.append(example)
    return found
