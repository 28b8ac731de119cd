"""Media that exist already, for `anygpt synth`: the file whose caption fits best, from manifests of files."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from anygpt.data.dialogue import MediaRef
from anygpt.data.media_codes import Fault, load_media
from anygpt.data.media_manifest import MediaManifest
from anygpt.errors import AnyGPTError, nearest
from anygpt.media import Audio
from anygpt.modality import get_modality
from anygpt.synth.generators import BadItem, MediaGenerator, PluginSettings
from anygpt.world.splits import held_out, stable_hash

OPTIONS = ("manifest", "min_score")
HELD_OUT_FRACTION = 0.1
MIN_SCORE = 0.4
"""Cosine of two captions below which they are not about the same thing."""


class FolderMedia(MediaGenerator):
    """Picks files from manifests (see `MediaManifest`), one for each modality.

    A caption is compared by its words, weighted by how rare they are; speech has to say the very words, case and
    punctuation aside. Equally good files are drawn by the key of what is asked for. A file is held out by its caption,
    so that train and heldout share none.
    Options: `manifest`, one or several paths with commas between; `min_score` (0 to 1) that a caption must reach.
    """

    def __init__(self, manifests: list[MediaManifest], *, split: str, min_score: float) -> None:
        self._min_score = min_score
        self._shelves: dict[str, _Shelf] = {}
        for manifest in manifests:
            if manifest.modality in self._shelves:
                raise AnyGPTError(f"{manifest.path}: the second manifest of {manifest.modality}; put them in one file")
            self._shelves[manifest.modality] = _Shelf(manifest, split)
        self.modalities = tuple(self._shelves)
        self._sha256 = {manifest.modality: manifest.sha256 for manifest in manifests}

    @classmethod
    def create(cls, settings: PluginSettings) -> "FolderMedia":
        for name in settings.options:
            if name not in OPTIONS:
                raise AnyGPTError(
                    f"unknown option 'folder.{name}'{nearest(name, OPTIONS)}; known: {', '.join(OPTIONS)}"
                )
        paths = [path.strip() for path in settings.options.get("manifest", "").split(",") if path.strip()]
        if not paths:
            raise AnyGPTError("media from a folder need its manifest: --option folder.manifest=PATH")
        given = settings.options.get("min_score", str(MIN_SCORE))
        try:
            min_score = float(given)
        except ValueError:
            min_score = math.nan
        if not 0 <= min_score <= 1:
            raise AnyGPTError(f"option 'folder.min_score' is '{given}', expected a number from 0 to 1")
        return cls([MediaManifest(path) for path in paths], split=settings.split, min_score=min_score)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"manifests": self._sha256, "min_score": self._min_score}

    def make(self, ref: MediaRef) -> Image.Image | Audio:
        shelf = self._shelves.get(ref.modality)
        if shelf is None:
            raise BadItem(f"no manifest of {ref.modality} is given; there are: {', '.join(self.modalities)}")
        path = shelf.find(ref, self._min_score)
        loaded = load_media(path, get_modality(ref.modality))
        if isinstance(loaded, Fault):
            raise BadItem(f"{path}: {loaded.reason}")
        media: Image.Image | Audio = loaded
        return media


class _Shelf:
    """The captions of one manifest, ready to be searched."""

    def __init__(self, manifest: MediaManifest, split: str) -> None:
        rows = (row for batch in manifest.batches(1024) for row in batch.rows if row.is_whole_file)
        wanted = split == "heldout"
        self._rows = [
            (row.text, manifest.folder / Path(str(row.path)).expanduser())
            for row in rows
            if held_out(" ".join(_words(row.text)), HELD_OUT_FRACTION, "folder media") == wanted
        ]
        if not self._rows:
            raise AnyGPTError(f"{manifest.path}: no usable row belongs to the {split} split")
        counted = [Counter(_words(text)) for text, _ in self._rows]
        found_in = Counter(word for words in counted for word in words)
        self._rarity = {word: math.log(1 + len(self._rows) / count) for word, count in found_in.items()}
        self._unknown = math.log(1 + len(self._rows))
        self._weights: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, words in enumerate(counted):
            for word, weight in self._normalised(words).items():
                self._weights[word].append((number, weight))

    def find(self, ref: MediaRef, min_score: float) -> Path:
        """The file that fits best. Raises BadItem when none does."""
        words = _words(ref.caption)
        scores: dict[int, float] = defaultdict(float)
        for word, weight in self._normalised(Counter(words)).items():
            for number, other in self._weights.get(word, ()):
                scores[number] += weight * other
        if ref.modality == "speech":
            scores = {number: 1.0 for number in scores if _words(self._rows[number][0]) == words}
        best = max(scores.values(), default=0.0)
        if best < min_score or not scores:
            about = f"the nearest scores {best:.2f} of {min_score:g}" if scores else "none shares its words"
            raise BadItem(f"no {ref.modality} fits '{ref.caption[:80]}': {about}")
        fitting = sorted(number for number, score in scores.items() if score > best - 1e-9)
        chosen = fitting[stable_hash(f"{ref.key}/{ref.caption}", "folder media") % len(fitting)]
        return self._rows[chosen][1]

    def _normalised(self, words: Counter[str]) -> dict[str, float]:
        weights = {word: count * self._rarity.get(word, self._unknown) for word, count in words.items()}
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
