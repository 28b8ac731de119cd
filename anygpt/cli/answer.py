"""`anygpt answer`: a file of questions about pictures to a file of answers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anygpt.cli.decoding_flags import AS_CONFIGURED, DecodingFlags
from anygpt.cli.model_flags import UNSET, ModelFlags
from anygpt.cli.volume_flags import ALL_AT_ONCE, VolumeFlags
from anygpt.errors import AnyGPTError

if TYPE_CHECKING:
    from anygpt.cli.answer_file import Question


def answer(
    questions: Path,
    *,
    out: Path,
    model: ModelFlags = UNSET,
    decoding: DecodingFlags = AS_CONFIGURED,
    volume: VolumeFlags = ALL_AT_ONCE,
) -> None:
    """Have a chat model answer questions about pictures.

    QUESTIONS has one object a line, {"question_id": 1, "image": "a.jpg", "text": "What is this?"}, as in the
    evaluations of LLaVA and ShareGPT4V; without image a question stands alone, and further keys are ignored. OUT has
    theirs: {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}, in the same order. Questions that
    can't be answered are listed with the reason in OUT.errors.jsonl. The same command goes on where a stopped run
    ended.

    Args:
        questions: The file of questions.
        out: The JSONL file to make.
        model_name_or_path: Folder of a chat model, or the name of a shipped one; without it the shipped chat model.
    """
    from anygpt.cli.answer_file import Outcome, Question, answer_questions, with_chat_model

    asked = _read(questions)
    model = with_chat_model(model)
    name = Path(str(model.model_name_or_path)).name

    def row(question: Question, outcome: Outcome) -> Mapping[str, Any]:
        key = f"{question.id}\n{question.number}\n{outcome.seed}\n{outcome.text}"
        return {
            "question_id": question.id,
            "prompt": question.text,
            "text": outcome.text,
            "answer_id": hashlib.sha256(key.encode()).hexdigest()[:22],
            "model_id": name,
            "metadata": {},
        }

    answer_questions(
        asked,
        out,
        row,
        model=model,
        decoding=decoding,
        volume=volume,
        unit="answer",
    )


def _read(source: Path) -> "list[Question]":
    """The questions of a file. Raises AnyGPTError that names the item."""
    from anygpt.cli.answer_file import Question, rows_of

    found: list[Question] = []
    for where, content in rows_of(source):
        if not isinstance(content, dict):
            raise AnyGPTError(f"{where} is not an object with question_id, image and text")
        id, image, text = (content.get(key) for key in ("question_id", "image", "text"))
        if not isinstance(id, (str, int)):
            raise AnyGPTError(f"{where}: 'question_id' is {id!r}, expected a number or text")
        if not isinstance(text, str) or not text.strip():
            raise AnyGPTError(f"{where}: 'text' is {text!r}, expected a question")
        if image is not None and not (isinstance(image, str) and image.strip()):
            raise AnyGPTError(f"{where}: 'image' is {image!r}, expected a path")
        found.append(Question(number=len(found), image=image, text=text, id=id))
    if not found:
        raise AnyGPTError(f"{source}: has no questions")
    return found
