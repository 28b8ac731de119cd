"""Public sets as they are published: the layout of each below the data folder, read into items."""

import base64
import binascii
import csv
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from anygpt.data.layouts import LAYOUTS
from anygpt.errors import AnyGPTError, MediaError
from anygpt.evaluation.bench import Bench, Case
from anygpt.evaluation.benchmarks.items import Item, PublicSet, read_json
from anygpt.evaluation.benchmarks.refcoco import REF_SETS

_ORDER_SEED = 20_240_219


class Items:
    """The cases of a set in an order that is drawn once and for all, so that the first n are a fair sample."""

    def __init__(self, name: str, bench: Bench) -> None:
        self._items, self._bench = _load(name, bench), bench
        self._order = np.random.default_rng(_ORDER_SEED).permutation(len(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def __call__(self, index: int) -> Case:
        item = self._items[self._order[index]]
        return Case(
            index=index,
            seed=self._bench.case_seed(index),
            media=item.media,
            text=item.text,
            truth=item.truth,
            references=item.references,
            others=item.others,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Of names and texts, not of the media themselves."""
        digest = hashlib.sha256()
        for item in self._items:
            media = "" if callable(item.media) else Path(item.media).name
            digest.update(repr((media, item.text, item.references, sorted(item.truth.items()))).encode())
        return digest.hexdigest()


def set_cases(name: str) -> Callable[[Bench], Items]:
    """The cases of `SETS[name]`."""
    return lambda bench: Items(name, bench)


def _load(name: str, bench: Bench) -> list[Item]:
    """All items, read once. Raises AnyGPTError where the set isn't there or isn't of its layout."""
    key = f"set {name}"
    if key in bench.cache:
        return list(bench.cache[key])
    found = SETS[name]
    if bench.data is None:
        raise AnyGPTError(f"this task needs a public set: give --data FOLDER, with {found.place} in it")
    try:
        items = list(found.read(bench.data))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError, csv.Error) as error:
        if isinstance(error, AnyGPTError):
            raise
        reason = f"{error.__class__.__name__}: {' '.join(str(error).split())}"
        raise AnyGPTError(f"{bench.data}: expected {found.place} in it ({reason})") from None
    if not items:
        raise AnyGPTError(f"{bench.data}: nothing to evaluate in it; expected {found.place}")
    bench.cache[key] = items
    return items


# ---- pictures and captions ----


def _coco_karpathy(data: Path) -> Iterator[Item]:
    """The 5,000 test pictures of Karpathy's split, each with its (about five) captions."""
    for image in read_json(data / "coco" / "dataset_coco.json")["images"]:
        if image["split"] == "test":
            captions = tuple(sentence["raw"].strip() for sentence in image["sentences"])
            path = data / "coco" / image["filepath"] / image["filename"]
            yield Item(media=path, text=captions[0], references=captions)


def _coco_validation(data: Path) -> Iterator[Item]:
    """The first caption of each of the 40,504 pictures of val2014."""
    pairs = LAYOUTS["coco"].pairs(data / "coco" / "annotations" / "captions_val2014.json")
    for path, group in itertools.groupby(pairs, key=lambda pair: Path(pair.path)):
        yield Item(media=path, text=next(group).text)


# ---- speech ----


def _librispeech(data: Path) -> Iterator[Item]:
    for pair in LAYOUTS["librispeech"].pairs(data / "LibriSpeech" / "test-clean"):
        yield Item(media=Path(pair.path), text=pair.text)


def _vctk(data: Path) -> Iterator[Item]:
    """A sentence of each speaker to be said, its recording, and another recording of the same speaker as the prompt."""
    root = data / "VCTK-Corpus-0.92"
    for folder in sorted((root / "txt").iterdir()):
        recorded = root / "wav48_silence_trimmed" / folder.name
        pairs = [
            (path, recorded / f"{path.stem}_mic1.flac")
            for path in sorted(folder.glob("*.txt"))
            if (recorded / f"{path.stem}_mic1.flac").is_file()
        ]
        if len(pairs) < 2:
            continue
        rng = np.random.default_rng([_ORDER_SEED, *folder.name.encode()])
        said, prompt = (pairs[number] for number in rng.choice(len(pairs), 2, replace=False))
        yield Item(media=said[1], text=said[0].read_text(encoding="utf-8").strip(), others=(prompt[1],))


# ---- music ----


def _musiccaps(data: Path) -> Iterator[Item]:
    """The clips of the evaluation split that are there: videos disappear."""
    source = data / "musiccaps" / "musiccaps-public.csv"
    with source.open(encoding="utf-8", newline="") as file:
        evaluated = [row["is_audioset_eval"].strip().lower() == "true" for row in csv.DictReader(file)]
    for is_evaluated, pair in zip(evaluated, LAYOUTS["musiccaps"].pairs(source), strict=True):
        if is_evaluated and Path(pair.path).is_file():
            yield Item(media=Path(pair.path), text=pair.text, references=(pair.text,))


# ---- questions about pictures ----


def _vqav2(data: Path) -> Iterator[Item]:
    folder = data / "vqav2"
    questions = read_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    annotations = read_json(folder / "v2_mscoco_val2014_annotations.json")["annotations"]
    answers = {entry["question_id"]: entry for entry in annotations}
    for question in questions:
        found = answers[question["question_id"]]
        yield Item(
            media=_coco_2014(data, question["image_id"]),
            text=question["question"],
            references=tuple(answer["answer"] for answer in found["answers"]),
            truth={"kind": found["answer_type"]},
        )


def _gqa(data: Path) -> Iterator[Item]:
    for entry in read_json(data / "gqa" / "testdev_balanced_questions.json").values():
        path = data / "gqa" / "images" / f"{entry['imageId']}.jpg"
        yield Item(media=path, text=entry["question"], truth={"answer": entry["answer"]})


def _textvqa(data: Path) -> Iterator[Item]:
    folder = data / "textvqa"
    for entry in read_json(folder / "TextVQA_0.5.1_val.json")["data"]:
        path = folder / "train_images" / f"{entry['image_id']}.jpg"
        yield Item(media=path, text=entry["question"], references=tuple(entry["answers"]))


def _scienceqa(data: Path) -> Iterator[Item]:
    """The test questions that have a picture, with their hint before the question."""
    folder = data / "scienceqa"
    problems = read_json(folder / "problems.json")
    for number in read_json(folder / "pid_splits.json")["test"]:
        problem = problems[number]
        if problem["image"]:
            path = folder / "images" / "test" / number / problem["image"]
            yield _choice(path, problem["question"], problem["choices"], problem["answer"], hint=problem["hint"])


def _pope(data: Path) -> Iterator[Item]:
    """Three times as many questions: objects asked for at random, popular ones, and those that often go together."""
    for kind in ("random", "popular", "adversarial"):
        lines = (data / "pope" / f"coco_pope_{kind}.json").read_text(encoding="utf-8").splitlines()
        for entry in (json.loads(line) for line in lines if line.strip()):
            path = data / "coco" / "val2014" / entry["image"]
            yield Item(media=path, text=entry["text"], truth={"answer": entry["label"].lower(), "kind": kind})


MME_SUBTASKS = {
    "perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}  # fmt: skip


def _mme(data: Path) -> Iterator[Item]:
    """A picture with its two questions; some subtasks have `images/` and `questions_answers_YN/`, some one folder."""
    root = data / "MME_Benchmark_release_version"
    for subtask in itertools.chain.from_iterable(MME_SUBTASKS.values()):
        folder = root / subtask
        texts, images = folder / "questions_answers_YN", folder / "images"
        for path in sorted((texts if texts.is_dir() else folder).glob("*.txt")):
            lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            found = ((images if images.is_dir() else folder) / f"{path.stem}{suffix}" for suffix in (".jpg", ".png"))
            image = next((each for each in found if each.is_file()), folder / f"{path.stem}.jpg")
            answers = {f"answer {number}": line[1].strip().lower() for number, line in enumerate(lines)}
            yield Item(media=image, references=tuple(line[0] for line in lines), truth={"subtask": subtask, **answers})


def _mmbench(data: Path) -> Iterator[Item]:
    """The development split, whose answers are public; pictures stand in the table."""
    paths = sorted((data / "mmbench").glob("mmbench_dev*.tsv"), key=lambda path: path.name.lower())
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    pictures: dict[str, str] = {}
    for path in paths[:1]:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, dialect=csv.excel_tab):
                # Rotations of the choices (index above a million) are made here, and a picture may be a row's number.
                if int(row["index"]) >= 1_000_000:
                    continue
                pictures[row["index"]] = pictures.get(row["image"], row["image"])
                choices = [row[letter] for letter in "ABCD" if (row.get(letter) or "").strip() not in ("", "nan")]
                hint = "" if row.get("hint") in (None, "nan") else row["hint"]
                answer = "ABCD".index(row["answer"])
                media = _Picture(pictures[row["index"]], f"{path.name}, index {row['index']}")
                yield _choice(media, row["question"], choices, answer, hint=hint, kind=row["category"])


def _seed_bench(data: Path) -> Iterator[Item]:
    """The questions about pictures (dimensions 1 to 9); those about videos are left out."""
    content = read_json(data / "SEED-Bench" / "SEED-Bench.json")
    kinds = {number: name for name, number in content.get("question_type", {}).items()}
    for entry in content["questions"]:
        if entry["data_type"] == "image":
            path = data / "SEED-Bench" / "SEED-Bench-image" / entry["data_id"]
            choices = [entry[f"choice_{letter}"] for letter in "abcd"]
            kind = kinds.get(entry["question_type_id"], str(entry["question_type_id"]))
            yield _choice(path, entry["question"], choices, "ABCD".index(entry["answer"]), kind=kind)


SETS: dict[str, PublicSet] = {
    "coco": PublicSet(place="coco/dataset_coco.json (Karpathy's) and coco/val2014/", read=_coco_karpathy),
    "coco-val": PublicSet(place="coco/annotations/captions_val2014.json and coco/val2014/", read=_coco_validation),
    "librispeech": PublicSet(place="LibriSpeech/test-clean/", read=_librispeech),
    "vctk": PublicSet(place="VCTK-Corpus-0.92/txt/ and wav48_silence_trimmed/", read=_vctk),
    "musiccaps": PublicSet(place="musiccaps/musiccaps-public.csv and the clips below it", read=_musiccaps),
    "vqav2": PublicSet(
        place="vqav2/v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, coco/val2014/",
        read=_vqav2,
    ),
    "gqa": PublicSet(place="gqa/testdev_balanced_questions.json and gqa/images/", read=_gqa),
    "scienceqa": PublicSet(place="scienceqa/problems.json, pid_splits.json and images/test/", read=_scienceqa),
    "textvqa": PublicSet(place="textvqa/TextVQA_0.5.1_val.json and train_images/", read=_textvqa),
    "pope": PublicSet(place="pope/coco_pope_{random,popular,adversarial}.json and coco/val2014/", read=_pope),
    "mme": PublicSet(place="MME_Benchmark_release_version/<subtask>/", read=_mme),
    "mmbench": PublicSet(place="mmbench/mmbench_dev….tsv", read=_mmbench),
    "seed-bench": PublicSet(place="SEED-Bench/SEED-Bench.json and SEED-Bench-image/", read=_seed_bench),
    **{name: PublicSet(place=found.place, read=found.read) for name, found in REF_SETS.items()},
}
"""Name -> where a set lies and how it is read."""


@dataclass(frozen=True)
class _Picture:
    """A picture from base64, decoded when it is asked for."""

    content: str
    where: str

    def __call__(self) -> Image.Image:
        try:
            return Image.open(io.BytesIO(base64.b64decode(self.content))).convert("RGB")
        except (binascii.Error, UnidentifiedImageError, OSError) as error:
            raise MediaError(f"{self.where}: not a picture ({error})") from None


def _choice(media: Any, question: str, choices: Sequence[str], answer: int, *, hint: str = "", kind: str = "") -> Item:
    text = f"{hint.strip()}\n{question.strip()}".strip()
    return Item(media=media, text=text, references=tuple(choices), truth={"answer": str(answer), "kind": kind})


def _coco_2014(data: Path, number: int) -> Path:
    return data / "coco" / "val2014" / f"COCO_val2014_{number:012d}.jpg"
