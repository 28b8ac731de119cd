"""`anygpt base`: one-line prompts, from the command line, standard input or a terminal."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anygpt.cli.console import (
    QUIT,
    LineReader,
    Progress,
    box_rows,
    interact,
    print_json,
    print_mistake,
    printable,
)
from anygpt.cli.model_flags import UNSET, ModelFlags
from anygpt.errors import AnyGPTError
from anygpt.forms import describe_forms, parse_form
from anygpt.media import ensure_writable
from anygpt.modality import MODALITIES

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT, Result

_HINTS = ("  <file>|<instruction> says what is wanted of a file", r"  \| is a bar inside a text; help, quit")


def base(
    *,
    prompt: list[str] | None = None,
    model: ModelFlags = UNSET,
    output_dir: Path = Path("infer_output/base"),
    n: int = 1,
    input: Path | None = None,
    output: Path | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    json: bool = False,
) -> None:
    """Answer prompts such as "text|image|a red apple" with a base model.

    Without --prompt, prompts are read line by line from standard input, where `help` shows their forms and `quit` ends.
    Pictures and sounds are saved, and their paths printed, as are pictures with boxes on them where a prompt such as
    "image|text|photo.jpg|[refer] the red apple" asks for these. The exit code is 2 when a prompt could not be answered.

    With --input, a file of many prompts is answered: one JSON object a line, {"prompt": "text|image|a red apple"},
    if wanted with "id", "seed" and "n". The answers are JSON lines in the same order, one for each with "text" or
    "path", or "error". Pictures and sounds are named after the id, in a folder with the name of --output within
    --output-dir. The same command goes on where a stopped run ended.

    Args:
        prompt: A prompt to answer; give the flag several times for several.
        model_name_or_path: Folder of a model, or the name of a shipped one; without it the shipped base model.
        output_dir: Folder for pictures and sounds.
        n: So many answers to each prompt, which is read once.
        input: File of prompts.
        output: File of answers to --input; without it the name of --input with .answers.jsonl, in --output-dir.
        batch_size: Answers made together from --input; without it 16.
        seed: The same seed gives the same answers.
        json: Print one JSON object per answer.
    """
    _check_flags(prompt=prompt, n=n, input=input, output=output, batch_size=batch_size, json=json)
    output_dir = ensure_writable(output_dir)
    if prompt is not None:
        _check_any_form(prompt)
    if input is not None:
        from anygpt.cli.prompt_file import BATCH_SIZE, answer_prompt_file

        is_complete = answer_prompt_file(
            partial(model.load, seed=seed),
            input,
            model=model.deciding(),
            output=output,
            output_dir=output_dir,
            batch_size=batch_size or BATCH_SIZE,
            n=n,
            seed=seed,
        )
        sys.exit(0 if is_complete else 2)
    console = _Console(model.load(seed=seed), output_dir, n=n, as_json=json)
    if prompt is None and sys.stdin.isatty():
        print("Type a prompt, `help` for the forms, or `quit`.")
        interact(LineReader(), console.handle, leave="quit")
        return
    if prompt is not None:
        for line in prompt:
            console.answer(line)
    else:
        for line in filter(None, map(str.strip, sys.stdin)):
            if not console.handle(line):
                break
    if console.has_failed:
        sys.exit(2)


def _check_flags(
    *,
    prompt: list[str] | None,
    n: int,
    input: Path | None,
    output: Path | None,
    batch_size: int | None,
    json: bool,
) -> None:
    for flag, number in (("--n", n), ("--batch-size", batch_size)):
        if number is not None and number < 1:
            raise AnyGPTError(f"{flag} is {number}, expected at least 1")
    if input is None:
        for flag, is_given in (("--output", output is not None), ("--batch-size", batch_size is not None)):
            if is_given:
                raise AnyGPTError(f"{flag} goes with --input, a file of prompts")
    elif prompt is not None or json:
        raise AnyGPTError(f"{'--json' if prompt is None else '--prompt'} doesn't go with --input")


def _check_any_form(prompts: Sequence[str]) -> None:
    """Raise the first prompt's mistake, before a model is loaded, when none of them has a known form."""
    mistakes: list[AnyGPTError] = []
    for prompt in prompts:
        try:
            parse_form(prompt, MODALITIES.values())
        except AnyGPTError as error:
            mistakes.append(error)
    if len(mistakes) == len(prompts):
        raise mistakes[0]


class _Console:
    """Answers prompts and prints the results."""

    def __init__(self, model: "AnyGPT", output_dir: Path, *, n: int, as_json: bool) -> None:
        """`n` answers to each prompt."""
        self.has_failed = False
        """Whether a prompt could not be answered."""
        self._model = model
        self._output_dir = output_dir
        self._n = n
        self._as_json = as_json

    def handle(self, line: str) -> bool:
        """Do what a line of the input asks, and say whether to go on."""
        if line in QUIT:
            return False
        if line == "help":
            self._print_help()
        else:
            self.answer(line)
        return True

    def _print_help(self) -> None:
        """The prompts that the model understands."""
        forms = describe_forms(self._model.specs.values())
        if self._as_json:
            print_json({"prompt": "help", "notes": forms})
        else:
            print(*(f"  {form}" for form in forms), *_HINTS, sep="\n", flush=True)

    def answer(self, prompt: str) -> None:
        """Answer one prompt, and print the answers or the mistake."""
        progress = Progress()
        try:
            results = self._results(prompt, progress)
            paths = [result.save(self._output_dir) if result.has_file else None for result in results]
        except AnyGPTError as error:
            progress.clear()
            print_mistake(prompt, str(error), as_json=self._as_json)
            self.has_failed = True
            return
        except BaseException:
            progress.clear()
            raise
        progress.clear()
        for result, path in zip(results, paths, strict=True):
            if self._as_json:
                print_json(answer_row(result, path))
                continue
            if result.media is None:
                print(printable(result.text or ""), flush=True)
            if path is not None:
                print(path, flush=True)

    def _results(self, prompt: str, progress: Progress) -> "list[Result]":
        if self._n == 1:
            return [self._model.run(prompt, progress=progress)]
        return self._model.run(prompt, n=self._n)


def answer_row(result: "Result", path: Path | None) -> dict[str, Any]:
    """An answer as JSON; `path` is where its picture or sound is, or the picture with its boxes. One that couldn't be
    given has an `error`."""
    row: dict[str, Any] = {"prompt": result.prompt, "modality": result.modality}
    if result.error is not None:
        return row | {"seed": result.seed, "error": " ".join(str(result.error).split())}
    row |= {"text": result.text} if result.media is None else {}
    row |= {"boxes": box_rows(result.boxes)} if result.boxes else {}
    row |= {"path": str(path)} if path is not None else {}
    if result.codes_KT is not None:
        row["frames"] = result.codes_KT.shape[1]
    if result.audio is not None:
        row["duration_s"] = round(result.audio.duration_s, 3)
    return row | {"seed": result.seed, "seconds": round(result.seconds, 3)}
