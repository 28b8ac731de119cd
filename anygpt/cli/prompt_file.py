"""`anygpt base --input`: a file of prompts to a file of answers, many at a time.

Every answer is one step of a `ResumableJsonl`: its picture or sound is there, whole, before its line is. What a killed
run made beyond its last line is made again under the same names.
"""

import hashlib
import json
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from anygpt.cli.base import answer_row
from anygpt.config import from_dict
from anygpt.data.media_manifest import parse_line
from anygpt.data.resumable import Job, Progress, ResumableJsonl, check_same
from anygpt.engine import AnyGPT, Result, safe_name
from anygpt.errors import AnyGPTError, ConfigError
from anygpt.media import ensure_writable
from anygpt.paths import resource

BATCH_SIZE = 16

Item = TypeVar("Item")
Made = TypeVar("Made")
Rows = list[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A line of the input. Raises ConfigError for values that can't be meant."""

    prompt: str
    id: str | int | None = None
    """Without one the number of the line."""
    seed: int | None = None
    n: int | None = None
    """Answers to this prompt, of the seeds from `seed` on."""

    def __post_init__(self) -> None:
        for name in ("prompt", "id"):
            value = str(getattr(self, name))
            if not value.strip():
                raise ConfigError(f"'{name}' is empty")
            if any("\ud800" <= char <= "\udfff" for char in value):
                raise ConfigError(f"'{name}' holds half a surrogate pair, which is no character")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"'seed' is {self.seed}, expected 0 to 2^63 - 1")
        if self.n is not None and self.n < 1:
            raise ConfigError(f"'n' is {self.n}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class PromptFileJob(Job):
    """What decides the answers to a file of prompts."""

    input_sha256: str
    settings_sha256: str
    """Of the policy files."""
    model: dict[str, str]
    """The model's folder, and the flags that choose tokenizers and type."""
    media_dir: str
    n: int
    seed: int

    def differences(self, recorded: "PromptFileJob") -> dict[str, str]:
        return {
            "input_sha256": "from other prompts, or the file of prompts has changed since",
            "settings_sha256": "with other settings in config/*_generate_config.json",
            "model": "with another model, other tokenizers or another --dtype",
            "media_dir": f"with its pictures and sounds in {recorded.media_dir}",
            "n": f"with --n {recorded.n}",
            "seed": f"with --seed {recorded.seed}",
        }


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An answer to make."""

    id: str | int
    prompt: str
    seed: int
    stem: str
    """Names its picture or sound."""


def answer_prompt_file(
    load: Callable[[], AnyGPT],
    source: Path,
    *,
    model: Mapping[str, str],
    output: Path | None,
    output_dir: Path,
    batch_size: int,
    n: int,
    seed: int | None,
) -> bool:
    """Answer the prompts of `source`, one `PromptRow` a line, in `output` (None: in `output_dir`, named after it).

    `load` loads the model that `model` describes, unless all is done already. Pictures and sounds go to a folder in
    `output_dir` with the name of the output. Prints the output's path, and on standard error a progress bar and the
    number of answers. Returns whether all prompts were answered; the row of one that wasn't has an `error`. Raises
    AnyGPTError for a bad line of the input, before anything is made, and for an output made from something else.
    """
    source = source.expanduser()
    rows = read_prompts(source)
    out = output.expanduser() if output is not None else output_dir / f"{source.stem}.answers.jsonl"
    if out.exists() and out.samefile(source):
        raise AnyGPTError(f"{out}: is the file of prompts; choose another --output")
    files = ResumableJsonl(out, PromptFileJob, flag="--output")
    recorded = files.recorded()
    job = PromptFileJob(
        input_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        settings_sha256=settings_sha256(),
        model=dict(model),
        media_dir=str(output_dir / out.stem),
        n=n,
        seed=seed if seed is not None else recorded.job.seed if recorded is not None else secrets.randbelow(2**31),
    )
    wanted = wanted_answers(rows, source, n=n, seed=job.seed)
    if recorded is not None:
        check_same(recorded.job, job, out if out.exists() else files.partial, flag="--output")
    if out.exists():
        print(f"nothing to do: {out} is finished; remove it to make it again", file=sys.stderr)
    else:
        _check_unused(Path(job.media_dir), files)
        _answer(load(), wanted, files, job, batch_size)
    return _summary(out)


def _check_unused(media_dir: Path, files: ResumableJsonl) -> None:
    """Raise AnyGPTError rather than write over the files of another output with the same name."""
    if not files.progress_path.exists() and media_dir.is_dir() and any(media_dir.iterdir()):
        raise AnyGPTError(f"{media_dir}: holds files already; choose another --output-dir or --output")


def read_prompts(source: Path) -> dict[int, PromptRow]:
    """The rows by number of line; blank lines have none. Raises AnyGPTError that names file and line."""
    if not source.is_file():
        raise AnyGPTError(
            f"{source}: {'is a directory' if source.is_dir() else 'no such file'}; expected prompts, "
            'one object such as {"prompt": "text|image|a red apple"} a line'
        )
    rows: dict[int, PromptRow] = {}
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = parse_line(line)
            where = f"{source}: line {number}"
            if isinstance(content, str):
                raise AnyGPTError(f"{where} is {content}")
            if content is not None:
                rows[number] = from_dict(PromptRow, content, where)
    if not rows:
        raise AnyGPTError(f"{source}: has no prompts")
    return rows


def wanted_answers(rows: Mapping[int, PromptRow], source: Path, *, n: int, seed: int) -> list[Wanted]:
    """The answers that rows ask for, in order. Answer i has `seed` + i, where its row names no seed of its own.

    Raises AnyGPTError where two rows would give files of the same name.
    """
    wanted: list[Wanted] = []
    lines: dict[str, int] = {}
    for line, row in rows.items():
        name = row.id if row.id is not None else line
        count = row.n or n
        for number in range(count):
            stem = safe_name(str(name)) + (f"-{number + 1}" if count > 1 else "")
            if lines.setdefault(stem, line) != line:
                raise AnyGPTError(
                    f"{source}: line {line}: id {name!r} gives files named '{stem}', as line {lines[stem]} does; "
                    f"choose another"
                )
            own = row.seed + number if row.seed is not None else seed + len(wanted)
            wanted.append(Wanted(id=name, prompt=row.prompt, seed=own % 2**63, stem=stem))
    return wanted


def _answer(
    model: AnyGPT, wanted: Sequence[Wanted], files: ResumableJsonl, job: PromptFileJob, batch_size: int
) -> None:
    """Make the answers that are still missing, and give the output its name."""
    media_dir = ensure_writable(job.media_dir)

    def results(missing: Sequence[Wanted]) -> Iterator[Result]:
        for left in media_dir.glob(".*.tmp.*"):  # of a run that was killed while it wrote a file
            left.unlink()
        return model.run_batch(((item.prompt, item.seed) for item in missing), batch_size=batch_size)

    def step(item: Wanted, result: Result) -> tuple[Rows, Rows]:
        path = result.save(media_dir, stem=item.stem) if result.has_file else None
        return [{"id": item.id, **answer_row(result, path)}], []

    write_steps(files, job, wanted, results, step, unit="answer")


def write_steps(
    files: ResumableJsonl,
    job: Job,
    items: Sequence[Item],
    results: Callable[[Sequence[Item]], Iterable[Made]],
    step: Callable[[Item, Made], tuple[Rows, Rows]],
    *,
    unit: str,
) -> Progress:
    """Write what `step` makes of each item and its result, rows and errors, and give the output its name.

    `results` makes those of the items that an earlier run left, in order; it is called while nobody else writes the
    output. Shows a progress bar that counts in `unit`s.
    """
    with files.writing(job, len(items)) as writer:
        missing = items[writer.progress.lines_done :]
        bar = tqdm(total=len(items), initial=len(items) - len(missing), unit=unit, mininterval=1)
        with bar:
            for item, result in zip(missing, results(missing), strict=True):
                rows, errors = step(item, result)
                writer.commit(1, rows, errors)
                bar.update()
        writer.finish()
    return writer.progress


def _summary(out: Path) -> bool:
    """Print the path and the final count; whether no row has failed."""
    with out.open("rb") as file:
        failures = ["error" in json.loads(line) for line in file]
    count = f"{len(failures)} answer{'s' if len(failures) > 1 else ''}"
    print(f"{count}, {sum(failures)} failed" if any(failures) else count, file=sys.stderr)
    print(out)
    return not any(failures)


def settings_sha256() -> str:
    """Of the files in `config/` that decide how answers are drawn."""
    digest = hashlib.sha256()
    for path in sorted(resource("config").glob("*generate_config.json")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
