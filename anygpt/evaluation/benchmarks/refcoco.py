"""RefCOCO, RefCOCO+ and RefCOCOg (Kazemzadeh et al. 2014; Yu et al. 2016; Mao et al. 2016): phrases and their boxes.

Two layouts are read: MiniGPT-v2's, `refcoco/refcoco_testA.json` with rows {img_id, height, width, sents, bbox}, and the
original `refcoco/instances.json` with the references as JSON beside it, `refs(unc).json`. As published these are a
pickle, which may run any code when it is read, and is not read here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anygpt.boxes import find_boxes, overlap
from anygpt.errors import AnyGPTError
from anygpt.evaluation.bench import Bench, Case, Question
from anygpt.evaluation.benchmarks.items import Item, read_json
from anygpt.evaluation.metrics import Scores
from anygpt.evaluation.pointing import ENOUGH
from anygpt.prompts.tags import tagged


@dataclass(frozen=True, kw_only=True)
class RefSet:
    """One of the three: its folder, who split it (in the name of the references), and its splits."""

    folder: str
    split_by: str
    splits: tuple[str, ...]

    @property
    def place(self) -> str:
        """What has to be in the data folder, for messages."""
        own = self.folder
        original = f"instances.json with refs({self.split_by}).json"
        return f"{own}/{own}_{self.splits[0]}.json, or {own}/{original}; coco/train2014/"

    def read(self, data: Path) -> Iterator[Item]:
        """A phrase and its box; `truth` has the split, the box (left, top, right, bottom) and the size in pixels."""
        folder = data / self.folder
        paths = {split: folder / f"{self.folder}_{split}.json" for split in self.splits}
        if any(path.is_file() for path in paths.values()):
            for split, path in paths.items():
                for row in read_json(path) if path.is_file() else ():
                    sentences = [row["sents"]] if isinstance(row["sents"], str) else row["sents"]
                    size = (row["width"], row["height"])
                    for sentence in sentences:
                        yield _item(data, str(row["img_id"]), sentence, split, row["bbox"], size)
            return
        references = folder / f"refs({self.split_by}).json"
        if not references.is_file() and references.with_suffix(".p").is_file():
            raise AnyGPTError(
                f"{references.with_suffix('.p')}: is a pickle, which may run any code when it is read; write its list "
                f"as JSON to {references.name}"
            )
        instances = read_json(folder / "instances.json")
        boxes = {entry["id"]: entry["bbox"] for entry in instances["annotations"]}
        sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in instances["images"]}
        for row in read_json(references):
            if row["split"] in self.splits:
                number, box = row["image_id"], boxes[row["ann_id"]]
                for sentence in row["sentences"]:
                    yield _item(data, str(number), sentence["sent"], row["split"], box, sizes[number])


REF_SETS: dict[str, RefSet] = {
    "refcoco": RefSet(folder="refcoco", split_by="unc", splits=("val", "testA", "testB")),
    "refcoco+": RefSet(folder="refcoco+", split_by="unc", splits=("val", "testA", "testB")),
    "refcocog": RefSet(folder="refcocog", split_by="umd", splits=("val", "test")),
}


def _item(data: Path, image: str, phrase: str, split: str, box: list[float], size: tuple[int, int]) -> Item:
    """`image` is a COCO number, or a name that has it, as in COCO_train2014_000000581857_16."""
    number = re.search(r"\d{12}", image) or re.fullmatch(r"\d+", image)
    if number is None:
        raise ValueError(f"img_id {image!r} has no number of a COCO picture")
    left, top, width, height = box
    return Item(
        media=data / "coco" / "train2014" / f"COCO_train2014_{int(number[0]):012d}.jpg",
        text=phrase.strip(),
        truth={
            "split": split,
            "box": _written([left, top, left + width, top + height]),
            "size": _written(size),
        },
    )


def _written(numbers: Any) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def ask_for_box(bench: Bench, case: Case) -> list[Question]:
    """Where is it? In MiniGPT-v2's words."""
    words = tagged("refer", f"give me the location of {case.text}")
    return [Question(source="image", target="text", content=case.media, words=words, seed=case.seed)]


def box_is_right(bench: Bench, case: Case, said: str | None) -> Scores:
    """Whether the first box of an answer overlaps with the true one by more than half, in pixels."""
    left, top, right, bottom = map(float, case.truth["box"].split())
    width, height = map(int, case.truth["size"].split())
    found = find_boxes(said or "")[:1]
    best = max((overlap(box.pixels((width, height)), (left, top, right, bottom)) for box in found), default=0.0)
    score = (float(best > ENOUGH), 1.0)
    return {"accuracy": score, case.truth["split"]: score, "overlap": (best, 1.0)}
