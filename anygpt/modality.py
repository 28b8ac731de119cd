"""The modality table: everything that differs between modalities and is not a neural network.

Adding a modality is one row in `MODALITIES` and a folder under `anygpt/tokenizers/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from anygpt.errors import AnyGPTError, nearest


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """How one modality's codes are written and counted in the language model's vocabulary.

    `codebook_size` and `num_codebooks` are those that the language model sees: speech has eight residual
    levels but only the first enters the model. A checkpoint may override both, and the frame rate (`with_codebooks`).
    """

    name: str
    start: str
    """Start tag, a vocabulary entry of its own."""
    end: str
    prefix: str
    """Code k is written `<{prefix}{k}>`."""
    codebook_size: int
    num_codebooks: int = 1
    frame_rate_hz: float | None = None
    """Frames per second; None for modalities without a time axis."""
    frames: int | None = None
    """Exact number of frames of a span; None where any positive number is right."""
    parts: "tuple[ModalitySpec, ...]" = ()
    """What a span is made of that has no codes of its own: frames of the first modality, each after its time in text,
    and perhaps one span of the second, its sound. Its codes are those of its parts, with blocks side by side."""
    media: str
    """Kind of file at the ends: "image", "audio" or "video"."""
    instruction_fields: tuple[str, ...] = ()
    """Extra fields of the `text|<name>|content|...` prompt form, by their keyword in `ModalityTokenizer.decode`."""
    codec: str
    """What produced the released codes, for messages and documentation."""

    @property
    def num_tokens(self) -> int:
        """Vocabulary entries of the code block: every level has its own entries."""
        return 0 if self.parts else self.codebook_size * self.num_codebooks

    @property
    def fewest_codes(self) -> int:
        """Codes of the shortest span; of one made of parts also those of a frame."""
        return self.parts[0].fewest_codes if self.parts else (self.frames or 1) * self.num_codebooks

    @property
    def codes_per_s(self) -> float | None:
        """Codes of a second, without the sound of frames; None for modalities without a time axis."""
        per_frame = self.fewest_codes if self.parts else self.num_codebooks
        return None if self.frame_rate_hz is None else self.frame_rate_hz * per_frame

    def code_token(self, index: int) -> str:
        """The string of the `index`-th entry of the block, `index` = code + level * codebook_size."""
        return f"<{self.prefix}{index}>"

    def with_codebooks(
        self, *, codebook_size: int, num_codebooks: int, frame_rate_hz: float | None = None
    ) -> "ModalitySpec":
        """The same modality at another checkpoint's codebook sizes and, where that is another one, frame rate."""
        rate_hz = frame_rate_hz or self.frame_rate_hz
        return replace(self, codebook_size=codebook_size, num_codebooks=num_codebooks, frame_rate_hz=rate_hz)

    def with_parts(self, specs: "Mapping[str, ModalitySpec]") -> "ModalitySpec":
        """The same modality with its parts as in `specs`, without a sound that isn't there; itself if it has none.

        Raises AnyGPTError where `specs` lack the frames.
        """
        if not self.parts:
            return self
        if self.parts[0].name not in specs:
            raise AnyGPTError(f"{self.name} is made of {self.parts[0].name} codes; add modality '{self.parts[0].name}'")
        parts = tuple(specs[part.name] for part in self.parts if part.name in specs)
        return replace(self, parts=parts, codebook_size=sum(part.num_tokens for part in parts))


_ROWS = (
    ModalitySpec(
        name="image",
        start="<soim>",
        end="<eoim>",
        prefix="\N{EYES}",
        codebook_size=8192,
        frames=32,
        media="image",
        codec="SEED-2",
    ),
    ModalitySpec(
        name="speech",
        start="<sosp>",
        end="<eosp>",
        prefix="\N{SPEAKING HEAD IN SILHOUETTE}\N{VARIATION SELECTOR-16}",
        codebook_size=1024,
        frame_rate_hz=50.0,
        media="audio",
        instruction_fields=("voice",),
        codec="SpeechTokenizer level 1, 16 kHz",
    ),
    ModalitySpec(
        name="music",
        start="<somu>",
        end="<eomu>",
        prefix="\N{MULTIPLE MUSICAL NOTES}",
        codebook_size=2048,
        num_codebooks=4,
        frame_rate_hz=50.0,
        media="audio",
        codec="Encodec 32 kHz",
    ),
    ModalitySpec(
        name="audio",
        start="<soau>",
        end="<eoau>",
        prefix="\N{EAR}",
        codebook_size=1024,
        num_codebooks=4,
        frame_rate_hz=75.0,
        media="audio",
        codec="Encodec 24 kHz",
    ),
)

_PARTS = {row.name: row for row in _ROWS}

_ROWS_OF_PARTS = (
    ModalitySpec(
        name="video",
        start="<sovi>",
        end="<eovi>",
        prefix="\N{CLAPPER BOARD}",
        codebook_size=_PARTS["image"].num_tokens + _PARTS["audio"].num_tokens,
        frame_rate_hz=2.0,
        parts=(_PARTS["image"], _PARTS["audio"]),
        media="video",
        codec="frames by the image tokenizer, sound by that of sound effects",
    ),
)

MODALITIES: dict[str, ModalitySpec] = {row.name: row for row in (*_ROWS, *_ROWS_OF_PARTS)}
"""All media modalities by name, with the released codebook sizes, in the order of the released vocabulary; what is made
of parts comes after them."""


def get_modality(name: str) -> ModalitySpec:
    """The row called `name`. Raises AnyGPTError that lists the known names."""
    try:
        return MODALITIES[name]
    except KeyError:
        known = ", ".join(MODALITIES)
        raise AnyGPTError(f"unknown modality '{name}'{nearest(name, MODALITIES)}; known: {known}") from None
