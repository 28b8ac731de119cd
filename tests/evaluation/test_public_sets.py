"""Public sets in miniature: read as published, and refused by name when they aren't."""

from pathlib import Path

import pytest
from fixtures_benchmarks import build_sets
from PIL import Image

from anygpt.errors import AnyGPTError, MediaError
from anygpt.evaluation.bench import Bench, Case
from anygpt.evaluation.benchmarks.sets import SETS, set_cases
from anygpt.evaluation.tasks import PublicCases


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sets(tmp_path_factory.mktemp("sets"))


def bench(data: Path | None, seed: int = 0) -> Bench:
    return Bench(tokenizer=lambda name: None, judges=Path(), data=data, seed=seed)  # type: ignore[arg-type, return-value]


def cases(name: str, data: Path) -> list[Case]:
    found = set_cases(name)(bench(data))
    return sorted((found(index) for index in range(len(found))), key=lambda case: (str(case.media), case.text))


COUNTS = {
    "coco": 2, "coco-val": 3, "librispeech": 2, "vctk": 2, "musiccaps": 1, "vqav2": 2, "gqa": 2, "scienceqa": 1,
    "textvqa": 2, "pope": 6, "mme": 3, "mmbench": 2, "seed-bench": 1, "refcoco": 4, "refcoco+": 2, "refcocog": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read(name: str, data: Path) -> None:
    found = cases(name, data)
    assert len(found) == COUNTS[name]
    for case in found:
        media = case.media
        assert isinstance(media() if callable(media) else media, Image.Image) or Path(media).is_file()
        assert all(Path(other).is_file() for other in case.others)


def test_what_people_said_comes_along(data: Path) -> None:
    first = cases("coco", data)[0]
    assert first.references == ("a dog on a red field 1", "A small dog, running. 1", "the dog's ball 1")
    assert cases("librispeech", data)[1].text == "IT'S A CAT"
    assert {case.truth["kind"] for case in cases("vqav2", data)} == {"yes/no", "other"}
    science = cases("scienceqa", data)[0]
    assert science.text == "Look.\nWhich?" and science.references[int(science.truth["answer"])] == "dog"
    existence, posters, code = sorted(cases("mme", data), key=lambda case: str(case.media))[:3]
    assert {case.truth["subtask"] for case in (existence, posters, code)} == {"existence", "posters", "code_reasoning"}
    assert existence.truth["answer 0"] == "yes" and existence.truth["answer 1"] == "no"
    (seed,) = cases("seed-bench", data)
    assert seed.references[int(seed.truth["answer"])] == "three" and seed.truth["kind"] == "Instances Counting"


def test_rotations_and_shared_pictures_of_mmbench(data: Path) -> None:
    which, one = sorted(cases("mmbench", data), key=lambda case: len(case.references), reverse=True)
    assert which.references == ("cat", "dog", "cow") and which.truth["answer"] == "1"
    assert one.text == "A hint.\nWhich one?" and one.references == ("up", "down")
    assert one.media().tobytes() == which.media().tobytes()


def test_voice_prompts_are_of_the_speaker_and_say_something_else(data: Path) -> None:
    for case in cases("vctk", data):
        (prompt,) = case.others
        assert prompt.parent == case.media.parent and prompt != case.media


def test_the_order_is_the_same_for_every_seed(data: Path) -> None:
    one, other = (set_cases("pope")(bench(data, seed)) for seed in (0, 1))
    assert [one(i).truth for i in range(6)] == [other(i).truth for i in range(6)]
    assert one(0).seed != other(0).seed
    assert isinstance(one, PublicCases) and one.fingerprint == other.fingerprint


def test_a_missing_set_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AnyGPTError, match=r"--data FOLDER, with gqa/testdev"):
        set_cases("gqa")(bench(None))
    for name, found in SETS.items():
        with pytest.raises(AnyGPTError) as caught:
            set_cases(name)(bench(tmp_path))
        assert found.place in str(caught.value), name


def test_a_set_of_another_layout_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gqa" / "testdev_balanced_questions.json"
    path.parent.mkdir()
    for text in ("{", '{"1": {"question": "?"}}', "{}", "[1]"):
        path.write_text(text)
        with pytest.raises(AnyGPTError, match="expected gqa/testdev_balanced_questions.json"):
            set_cases("gqa")(bench(tmp_path))


def test_boxes_of_phrases_are_the_same_in_both_layouts(data: Path, tmp_path: Path) -> None:
    dog = {"box": "8 12 40 36", "size": "64 48"}
    found = [case for case in cases("refcoco", data) if case.text == "the dog"]
    assert sorted(case.truth["split"] for case in found) == ["testA", "val"]
    assert all(dog.items() <= case.truth.items() and case.media.is_file() for case in found)
    assert [(case.text, case.truth) for case in cases("refcoco+", data)] == [
        (f"dog {number}", {**dog, "split": "testB"}) for number in range(2)
    ]
    assert {case.media.name for case in cases("refcocog", data)} == {"COCO_train2014_000000000007.jpg"}
    folder = tmp_path / "refcoco+"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(b"")
    with pytest.raises(AnyGPTError, match=r"refs\(unc\).p: is a pickle, .* write its list as JSON to refs\(unc\).json"):
        set_cases("refcoco+")(bench(tmp_path))


def test_a_broken_picture_in_a_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mmbench" / "mmbench_dev_en.tsv"
    path.parent.mkdir()
    path.write_text("index\tquestion\tA\tB\tanswer\tcategory\timage\n7\tWhat?\tx\ty\tA\tk\t!!!\n")
    case = set_cases("mmbench")(bench(tmp_path))(0)
    with pytest.raises(MediaError, match="mmbench_dev_en.tsv, index 7: not a picture"):
        case.media()
