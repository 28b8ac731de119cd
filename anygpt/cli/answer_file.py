"""Questions about many pictures, answered into one file in their order; for `anygpt caption` and `anygpt answer`.

As in `prompt_file` every answer is one step of a `ResumableJsonl`, so that a run that was killed goes on with the next.
"""

import contextlib
import hashlib
import itertools
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anygpt.cli.chat import DEFAULT_MODEL
from anygpt.cli.decoding_flags import DecodingFlags
from anygpt.cli.model_flags import ModelFlags
from anygpt.cli.prompt_file import settings_sha256, write_steps
from anygpt.cli.volume_flags import VolumeFlags
from anygpt.data.convert.source import contents, is_array
from anygpt.data.resumable import Job, ResumableJsonl, check_same
from anygpt.data.workers import device_names, ordered_map
from anygpt.errors import AnyGPTError
from anygpt.generation.policies import Policy
from anygpt.paths import resource

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

BATCHES_SENT = 4
"""What a worker process gets at a time, in batches: the last answers of each are made in a batch that is not full."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about a picture."""

    number: int
    """Its place in the input, from 0."""
    image: str | None
    """As the input names it; None for a question about nothing."""
    text: str | None
    """None: describe the picture, as a base prompt."""
    id: str | int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a question: a text, or the reason why there is none."""

    text: str | None
    fault: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class AnswerJob(Job):
    """What decides the answers in a file; the pictures themselves are taken to stay."""

    questions_sha256: str
    settings_sha256: str
    """Of the policy files."""
    decoding: dict[str, str]
    """The decoding flags that were given."""
    model: dict[str, str]
    """The model's folder, and the flags that choose tokenizers and type."""
    seed: int

    def differences(self, recorded: "AnswerJob") -> dict[str, str]:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in recorded.decoding.items())
        return {
            "questions_sha256": "from other pictures or questions, or another part of them",
            "settings_sha256": "with other settings in config/*generate_config.json",
            "decoding": f"with {flags or 'no decoding flags'}",
            "model": "with another model, other tokenizers or another --dtype",
            "seed": f"with --seed {recorded.seed}",
        }


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions are answered, in this process or, made by `__call__`, in others."""

    model: ModelFlags
    devices: tuple[str, ...]
    decoding: DecodingFlags
    image_folder: Path | None
    batch_size: int
    seed: int

    def load(self, number: int = 0) -> "AnyGPT":
        return replace(self.model, device=self.devices[number % len(self.devices)]).load()

    def answer(self, model: "AnyGPT", questions: Sequence[Question]) -> Iterator[Outcome]:
        """The outcomes of neighbouring questions in order, made as they are asked for. Raises AnyGPTError for flags."""
        settings = {"batch_size": self.batch_size, **self.decoding.settings()}
        seed = (self.seed + questions[0].number) % 2**63
        if questions[0].text is None:
            results = model.caption((self._path(question) or "" for question in questions), seed=seed, **settings)
        else:
            asked = ((self._path(question), question.text or "") for question in questions)
            results = model.answer_batch(asked, seed=seed, **settings)
        for result in results:
            fault = None if result.error is None else " ".join(str(result.error).split())
            yield Outcome(text=result.text, fault=fault, seed=result.seed)

    def __call__(self, number: int) -> Callable[[Sequence[Question]], list[Outcome]]:
        import torch

        torch.set_num_threads(1)
        model = self.load(number)
        return lambda questions: list(self.answer(model, questions))

    def _path(self, question: Question) -> str | None:
        if question.image is None or self.image_folder is None:
            return question.image
        return str(self.image_folder / question.image)


def answer_questions(
    questions: Sequence[Question],
    out: Path,
    row: Callable[[Question, Outcome], Mapping[str, Any]],
    *,
    model: ModelFlags,
    decoding: DecodingFlags,
    volume: VolumeFlags,
    unit: str,
    is_array: bool = False,
) -> None:
    """Answer questions, all captions or none, and write what `row` makes of them to `out`, in order.

    Of `questions` the part that `volume` names. Questions that can't be answered go to `<out>.errors.jsonl` with the
    reason. Prints the output's path, and on standard error a progress bar and the counts. Raises AnyGPTError for flags
    that can't be meant, and for an output made from something else.
    """
    volume.check()
    questions = volume.part(questions)
    Policy().override(decoding.settings())  # a value out of range is no reason to load a model
    files = ResumableJsonl(out, AnswerJob, is_array=is_array)
    recorded = files.recorded()
    seed = volume.seed
    if seed is None:
        seed = recorded.job.seed if recorded is not None else secrets.randbelow(2**31)
    job = AnswerJob(
        questions_sha256=hashlib.sha256(json.dumps([asdict(each) for each in questions]).encode()).hexdigest(),
        settings_sha256=settings_sha256(),
        decoding={name: str(value) for name, value in decoding.settings().items()},
        model=model.deciding(),
        seed=seed,
    )
    if recorded is not None:
        check_same(recorded.job, job, files.out if files.out.exists() else files.partial)
    if recorded is not None and files.out.exists():
        print(f"nothing to do: {files.out} is finished; remove it to make it again", file=sys.stderr)
        written, skipped = recorded.written, recorded.skipped
    else:
        devices = device_names(model.device)
        asking = Asking(
            model=model,
            devices=devices,
            decoding=decoding,
            image_folder=volume.image_folder,
            batch_size=volume.batch_size,
            seed=job.seed,
        )
        answers = partial(_answers, asking, volume.workers or len(devices))
        progress = write_steps(files, job, questions, answers, partial(_step, row), unit=unit)
        written, skipped = progress.written, progress.skipped
    print(f"{written} {unit}s" + (f", {skipped} skipped, see {files.errors}" if skipped else ""), file=sys.stderr)
    print(files.out)


def rows_of(source: Path) -> Iterator[tuple[str, Any]]:
    """The items of a JSON array, or the objects of JSON lines, each with its place for messages. Raises AnyGPTError."""
    source = source.expanduser()
    word = "item" if is_array(source) else "line"
    for number, content in enumerate(contents(source), start=1):
        where = f"{source}: {word} {number}"
        if word == "line" and isinstance(content, str):
            raise AnyGPTError(f"{where} is {content}")
        if content is not None or word == "item":
            yield where, content


def with_chat_model(model: ModelFlags) -> ModelFlags:
    """The flags with the shipped chat model, where they name none. Raises AnyGPTError where it isn't there."""
    if model.model_name_or_path is not None:
        return model
    return replace(model, model_name_or_path=str(resource("models", DEFAULT_MODEL)))


def _answers(asking: Asking, workers: int, missing: Sequence[Question]) -> Iterator[Outcome]:
    size = asking.batch_size * BATCHES_SENT
    workers = min(workers, -(-len(missing) // size))
    if workers <= 1:
        yield from asking.answer(asking.load(), missing) if missing else ()
        return
    tasks = (missing[at : at + size] for at in range(0, len(missing), size))
    with contextlib.closing(ordered_map(asking, tasks, workers=workers)) as parts:
        yield from itertools.chain.from_iterable(parts)


def _step(
    row: Callable[[Question, Outcome], Mapping[str, Any]], question: Question, outcome: Outcome
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    if outcome.fault is None:
        return [row(question, outcome)], []
    name = {} if question.id is None else {"question_id": question.id}
    return [], [{**name, "image": question.image, "reason": outcome.fault}]
