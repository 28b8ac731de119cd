"""`anygpt caption`: many pictures to a file of captions."""

import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anygpt.cli.decoding_flags import AS_CONFIGURED, DecodingFlags
from anygpt.cli.model_flags import UNSET, ModelFlags
from anygpt.cli.volume_flags import ALL_AT_ONCE, VolumeFlags
from anygpt.errors import AnyGPTError

ARRAY_SUFFIX = ".json"


def caption(
    images: str,
    *,
    out: Path,
    instruction: str | None = None,
    model: ModelFlags = UNSET,
    decoding: DecodingFlags = AS_CONFIGURED,
    volume: VolumeFlags = ALL_AT_ONCE,
) -> None:
    """Describe many pictures.

    IMAGES is a folder, a pattern such as 'photos/*.jpg', or a list: a JSON array of paths (as for ShareGPT4V's
    captioner), or JSON lines with a path under image. OUT becomes JSON lines {"image": path, "text": caption}, or,
    where its name ends in .json, an array of {path: caption}, in the order of IMAGES (of folders and patterns: sorted).
    Pictures that can't be used are listed with the reason in OUT.errors.jsonl. The same command goes on where a stopped
    run ended.

    Args:
        images: The pictures.
        out: The file to make.
        instruction: What to ask a chat model about each; without it they are prompts image|text to a base model.
        model_name_or_path: Folder of a model, or the name of a shipped one; without it the shipped base model, or
            with --instruction the shipped chat model.
    """
    from anygpt.cli.answer_file import Outcome, Question, answer_questions, with_chat_model

    if volume.image_folder is not None and not Path(images).expanduser().is_file():
        raise AnyGPTError("--image-folder says where the paths of a list start from, but IMAGES is none")
    listed = enumerate(_paths(images))
    questions = [Question(number=number, image=path, text=instruction) for number, path in listed]
    is_array = out.suffix == ARRAY_SUFFIX

    def row(question: Question, outcome: Outcome) -> Mapping[str, Any]:
        assert question.image is not None, question
        return {question.image: outcome.text} if is_array else {"image": question.image, "text": outcome.text}

    answer_questions(
        questions,
        out,
        row,
        model=model if instruction is None else with_chat_model(model),
        decoding=decoding,
        volume=volume,
        unit="caption",
        is_array=is_array,
    )


def _paths(images: str) -> list[str]:
    """The paths that the argument stands for, as they are written or found. Raises AnyGPTError where there are none."""
    from anygpt.data.tars import EXTENSIONS

    source = Path(images).expanduser()
    if source.is_dir():
        names = (path for path in sorted(source.rglob("*")) if path.suffix[1:].lower() in EXTENSIONS["image"])
        paths = [str(path) for path in names if path.is_file()]
    elif source.is_file():
        paths = list(_listed(source))
    else:
        paths = sorted(path for path in glob.glob(str(source), recursive=True) if Path(path).is_file())
    if not paths:
        raise AnyGPTError(
            f"{images}: no pictures; expected a folder of them, a pattern such as 'photos/*.jpg', a JSON array of "
            f'paths, or JSON lines such as {{"image": "a.jpg"}}'
        )
    return paths


def _listed(source: Path) -> Iterator[str]:
    """The paths in a JSON array or in JSON lines, told apart by the first character."""
    from anygpt.cli.answer_file import rows_of

    for where, content in rows_of(source):
        path = content.get("image") if isinstance(content, dict) else content
        if not isinstance(path, str) or not path.strip():
            shown = json.dumps(content, ensure_ascii=False)[:60]
            raise AnyGPTError(f"{where} is {shown}, expected a path, or an object with one under 'image'")
        yield path
