"""The world as training data: endless pairs of text and media, tokenized straight into the published JSONL."""

import json
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from anygpt.code_strings import codes_to_string
from anygpt.errors import AnyGPTError, nearest
from anygpt.media import Audio, atomic_write
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.video import Video
from anygpt.world import effects, images, music, speech, videos
from anygpt.world.dialogues import POINTING, DialogueWorld
from anygpt.world.sentences import typed_variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorldPair:
    """`media` as `ModalityTokenizer.encode` takes it; `prompt` is what a user might type to get it."""

    media: Any
    caption: str
    prompt: str


def _image_pairs(split: str, seed: int, first: int) -> Iterator[WorldPair]:
    for sample, rng in _drawn("image", images.ImageWorld(split, seed), split, seed, first):
        prompt = images.caption_variant(sample.scene, rng) if rng.random() < 0.5 else sample.caption
        yield WorldPair(media=Image.fromarray(sample.pixels), caption=sample.caption, prompt=prompt)


def _speech_pairs(split: str, seed: int, first: int) -> Iterator[WorldPair]:
    world = speech.SpeechWorld("heldout_sentences" if split == "heldout" else split, seed)
    for sample, rng in _drawn("speech", world, split, seed, first):
        prompt = typed_variant(sample.text, rng)
        yield WorldPair(media=Audio(sample.wave[None], speech.RATE_HZ), caption=sample.text, prompt=prompt)


def _music_pairs(split: str, seed: int, first: int) -> Iterator[WorldPair]:
    for sample, rng in _drawn("music", music.MusicWorld(split, seed), split, seed, first):
        prompt = music.caption_variant(sample.attributes, rng) if rng.random() < 0.5 else sample.caption
        yield WorldPair(media=Audio(sample.wave[None], music.RATE_HZ), caption=sample.caption, prompt=prompt)


def _audio_pairs(split: str, seed: int, first: int) -> Iterator[WorldPair]:
    for sample, rng in _drawn("audio", effects.EffectWorld(split, seed), split, seed, first):
        prompt = effects.caption_variant(sample.attributes, rng) if rng.random() < 0.5 else sample.caption
        yield WorldPair(media=Audio(sample.wave[None], effects.RATE_HZ), caption=sample.caption, prompt=prompt)


def _video_pairs(split: str, seed: int, first: int) -> Iterator[WorldPair]:
    for sample, rng in _drawn("video", videos.VideoWorld(split, seed), split, seed, first):
        prompt = videos.caption_variant(sample.attributes, rng) if rng.random() < 0.5 else sample.caption
        video = Video(tuple(map(Image.fromarray, sample.frames)), videos.RATE_HZ)
        yield WorldPair(media=video, caption=sample.caption, prompt=prompt)


def _drawn(modality: str, world: Any, split: str, seed: int, first: int) -> Iterator[tuple[Any, random.Random]]:
    """The samples of a world from number `first` on, each with the generator of its prompt."""
    for index in range(first, 2**62):
        yield world.sample(index), random.Random(f"prompt/{modality}/{split}/{seed}/{index}")


PAIRS: dict[str, Callable[[str, int, int], Iterator[WorldPair]]] = {
    "image": _image_pairs,
    "speech": _speech_pairs,
    "music": _music_pairs,
    "audio": _audio_pairs,
    "video": _video_pairs,
}
"""Modality -> function of (split, seed, first index) that yields pairs."""


def world_pairs(modality: str, split: str = "train", seed: int = 0, first: int = 0) -> Iterator[WorldPair]:
    """Pairs of the world from number `first` on. Raises AnyGPTError for a modality that the world has not."""
    if modality not in PAIRS:
        raise AnyGPTError(f"the world has no '{modality}'{nearest(modality, PAIRS)}; it has: {', '.join(PAIRS)}")
    return PAIRS[modality](split, seed, first)


def write_pairs(
    tokenizer: ModalityTokenizer, out: Path, *, count: int, split: str = "train", seed: int = 0, batch_size: int = 64
) -> tuple[Path, Path]:
    """Tokenize `count` pairs into `out/<modality>_captions.jsonl` and `out/<modality>_prompts.jsonl`.

    The first file holds canonical captions, to learn describing from; the second what users might type, to learn
    making from. A killed run goes on where its partial files end. Raises AnyGPTError for a count below 1.
    """
    _check_counts(count, batch_size)
    name = tokenizer.modality
    spec = tokenizer.spec
    out.mkdir(parents=True, exist_ok=True)
    paths = (out / f"{name}_captions.jsonl", out / f"{name}_prompts.jsonl")
    if all(path.is_file() for path in paths):
        logger.info("%s and %s exist already", *paths)
        return paths
    partial = tuple(path.with_suffix(f".{split}-{seed}.partial") for path in paths)
    done = min(_whole_lines(path) for path in partial)
    for path in partial:
        _keep_lines(path, done)
    pairs = world_pairs(name, split, seed, done)
    with tqdm(total=count, initial=done, unit="pair", desc=name, mininterval=2) as bar:
        while done < count:
            batch = [next(pairs) for _ in range(min(batch_size, count - done))]
            codes = tokenizer.encode([pair.media for pair in batch])
            strings = [codes_to_string(spec, codes_KT) for codes_KT in codes]
            for path, texts in zip(partial, ([p.caption for p in batch], [p.prompt for p in batch]), strict=True):
                rows = [
                    json.dumps({"text": text, name: string}, ensure_ascii=False)
                    for text, string in zip(texts, strings, strict=True)
                ]
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(f"{row}\n" for row in rows))
            done += len(batch)
            bar.update(len(batch))
    for path, whole in zip(partial, paths, strict=True):
        path.replace(whole)
    return paths


def write_pointing(
    tokenizer: ModalityTokenizer, out: Path, *, count: int, split: str = "train", seed: int = 0, batch_size: int = 64
) -> Path:
    """Tokenize `count` pictures into `out/image_pointing.jsonl`, with an instruction behind a tag (`prompts.tags`) and
    the answer as text, boxes in it: the first rounds of the conversations of `dialogues.pointing`.

    A killed run goes on where its partial file ends. Raises AnyGPTError for a count below 1.
    """
    _check_counts(count, batch_size)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "image_pointing.jsonl"
    if path.is_file():
        logger.info("%s exists already", path)
        return path
    partial = path.with_suffix(f".{split}-{seed}.partial")
    done = _whole_lines(partial)
    _keep_lines(partial, done)
    world = DialogueWorld(split, seed, scenarios=POINTING)
    with tqdm(total=count, initial=done, unit="pair", desc="pointing", mininterval=2) as bar:
        while done < count:
            batch = [world.dialogue(index).messages[:2] for index in range(done, min(done + batch_size, count))]
            scenes = [images.parse_caption(asked.media[0].caption) for asked, _ in batch]
            codes = tokenizer.encode([Image.fromarray(images.render(scene)) for scene in scenes if scene is not None])
            with partial.open("a", encoding="utf-8") as file:
                for (asked, answered), codes_KT in zip(batch, codes, strict=True):
                    string = codes_to_string(tokenizer.spec, codes_KT)
                    row = {"text": answered.text, "image": string, "instruction": asked.text}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            done += len(batch)
            bar.update(len(batch))
    partial.replace(path)
    return path


def _check_counts(count: int, batch_size: int) -> None:
    for flag, number in (("--count", count), ("--batch-size", batch_size)):
        if number < 1:
            raise AnyGPTError(f"{flag} is {number}, expected at least 1")


def _whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _keep_lines(path: Path, count: int) -> None:
    """Cut a partial file after `count` lines: a killed run may have written to one file only, or half a line."""
    if path.is_file():
        lines = path.read_bytes().splitlines(keepends=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(lines[:count]))
