"""Existing media chosen by caption."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anygpt.data.dialogue import MediaRef
from anygpt.errors import AnyGPTError
from anygpt.media import Audio, save_audio, save_image
from anygpt.synth.generators import BadItem, MediaGenerator, PluginSettings, create_media

COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "black", "orange", "pink", "brown")
THINGS = ("apple", "boat", "cat", "dog", "egg", "fish", "goat")


def folder_media(*manifests: Path, split: str = "train", **options: str) -> MediaGenerator:
    given = {"manifest": ",".join(map(str, manifests)), **options}
    return create_media("folder", PluginSettings(split=split, options=given))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A picture of one colour for each caption."""
    rows: list[dict[str, Any]] = []
    for n, colour in enumerate(COLOURS):
        for m, thing in enumerate(THINGS):
            path = save_image(tmp_path / "p" / f"{colour}-{thing}.png", Image.new("RGB", (8, 8), (n, m, 0)))
            rows.append({"image": str(path.relative_to(tmp_path)), "text": f"A {colour} {thing}, on a table."})
    rows.append({"image": "p/gone.png", "text": "a lost zebra"})
    rows.append({"image": None, "text": "a row without a path"})
    manifest = tmp_path / "pictures.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for n, text in enumerate([*(f"Hello number {word}." for word in COLOURS), "Hello number red, dear."]):
        wave = random.normal(0, 0.2, (1, 1600 + n)).clip(-1, 1).astype(np.float32)
        rows.append({"speech": save_audio(tmp_path / f"{n}.wav", Audio(wave, 16_000)).name, "text": text})
    manifest = tmp_path / "recordings.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def chosen(media: MediaGenerator, caption: str, key: str = "") -> str | None:
    """Colour and thing of the picture that was found."""
    try:
        picture = media.make(MediaRef(modality="image", caption=caption, key=key))
    except BadItem:
        return None
    assert isinstance(picture, Image.Image)
    pixel = picture.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return f"{COLOURS[pixel[0]]} {THINGS[pixel[1]]}"


def test_the_best_caption_wins_and_no_file_is_in_both_splits(pictures: Path) -> None:
    splits = [folder_media(pictures, split=split) for split in ("train", "heldout")]
    whole = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    found = [[chosen(media, f"there is a {name} on the table") for media in splits] for name in whole]
    exact = [[got == name for got in pair] for pair, name in zip(found, whole, strict=True)]
    assert all(sum(pair) == 1 for pair in exact)
    assert 0 < sum(heldout for _, heldout in exact) < len(whole) / 3


def test_equally_good_files_are_drawn_by_key(tmp_path: Path) -> None:
    manifest = tmp_path / "kites.jsonl"
    rows = []
    for n in range(5):
        save_image(tmp_path / f"{n}.png", Image.new("RGB", (8, 8), (n, 0, 0)))
        rows.append(json.dumps({"image": f"{n}.png", "text": "a kite"}))
    manifest.write_text("\n".join(rows))
    media = folder_media(manifest)
    drawn = [chosen(media, "a kite", key=str(n)) for n in range(20)]
    assert len(set(drawn)) > 2 and None not in drawn
    assert drawn == [chosen(folder_media(manifest), "a kite", key=str(n)) for n in range(20)]


def test_what_fits_nothing_is_a_bad_item(pictures: Path) -> None:
    media = folder_media(pictures)
    for caption, reason in (
        ("quantum chromodynamics", "none shares its words"),
        ("an enormous purple spaceship landing near seven sleepy villages tonight", "the nearest scores 0."),
        ("", "none shares its words"),
    ):
        with pytest.raises(BadItem, match=reason):
            media.make(MediaRef(modality="image", caption=caption))
    assert chosen(folder_media(pictures, min_score="0"), "an enormous purple spaceship") is not None
    with pytest.raises(BadItem, match="no manifest of music is given; there are: image"):
        media.make(MediaRef(modality="music", caption="x"))
    with pytest.raises(BadItem, match=r"gone.png: no such file"):
        media.make(MediaRef(modality="image", caption="a lost zebra"))


def test_speech_says_the_very_words(pictures: Path, recordings: Path) -> None:
    media = folder_media(pictures, recordings)
    assert media.modalities == ("image", "speech")
    found = {}
    for n, word in enumerate(COLOURS):
        try:
            sound = media.make(MediaRef(modality="speech", caption=f"hello number {word}"))
        except BadItem:
            continue  # held out
        assert isinstance(sound, Audio)
        found[n] = sound.samples
    assert len(found) > 5 and all(samples == 1600 + n for n, samples in found.items())
    with pytest.raises(BadItem, match="no speech fits"):
        media.make(MediaRef(modality="speech", caption="number hello red"))


def test_mistakes_in_options(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(AnyGPTError, match="folder.manifest=PATH"):
        create_media("folder", PluginSettings())
    with pytest.raises(AnyGPTError, match="'folder.manifst' .did you mean 'manifest'"):
        create_media("folder", PluginSettings(options={"manifst": "x"}))
    with pytest.raises(AnyGPTError, match="'folder.min_score' is 'much'"):
        folder_media(pictures, min_score="much")
    with pytest.raises(AnyGPTError, match="the second manifest of image"):
        folder_media(pictures, pictures)
    with pytest.raises(AnyGPTError, match="no such manifest"):
        folder_media(tmp_path / "gone.jsonl")
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"image": "x.png", "text": "a kite"}) + "\n")
    with pytest.raises(AnyGPTError, match="no usable row belongs to the heldout split"):
        folder_media(one, split="heldout")
