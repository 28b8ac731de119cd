"""Pictures and recordings with text to the published pre-training JSONL, on one or more processes, resumably."""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from anygpt.code_strings import codes_to_string
from anygpt.data.media_manifest import Batch, MediaManifest, Row
from anygpt.data.resumable import Job, ResumableJsonl, check_same
from anygpt.data.workers import ordered_map
from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.media import Audio, load_audio, load_image
from anygpt.modality import ModalitySpec, get_modality
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.tokenizers.sources import TokenizerPaths, find_tokenizer, load_from_paths

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
GROUP_BYTES = 256 * 2**20
"""Media of a batch are encoded in groups of about this size, so that a few large photographs don't fill the memory."""

_LOADERS: dict[str, Callable[[Path], Any]] = {
    "image": load_image,
    "audio": functools.partial(load_audio, reject_silence=True),
}
"""How one kind of file (`ModalitySpec.media`) is read."""


@dataclass(frozen=True, kw_only=True)
class TokenizeResult:
    """What became of a manifest."""

    out: Path
    written: int
    skipped: int
    errors: Path | None
    """The list of what was skipped, None when nothing was."""
    was_finished: bool
    """An earlier run had done it all."""


def tokenize_manifest(
    manifest: Path | str,
    out: Path | str,
    *,
    modality: str | None = None,
    tokenizer: str | None = None,
    paths: TokenizerPaths | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> TokenizeResult:
    """Tokenize the files of a manifest (see `MediaManifest`) into `out`, one `{"text", "<modality>"}` a line, in order.

    A killed call goes on where it stopped when it is made again, with any number of workers, and ends with the same
    bytes. Rows and files that can't be used are listed in `<out>.errors.jsonl` (`line`, `path`, `reason`) and skipped.
    `tokenizer` is a shipped one's name, a folder or a released file; `paths` may give it by modality instead; without
    either the shipped one is used. `workers` defaults to the number of devices, `batch_size` to 32, or to that of the
    run that is gone on with.
    Raises AnyGPTError for a manifest, tokenizer or output that is unfit, when `out` was made from something else, and
    when no row at all could be used.
    """
    for name, number in (("workers", workers), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise AnyGPTError(f"--{name.replace('_', '-')} is {number}, expected at least 1")
    source = MediaManifest(manifest, modality)
    files = ResumableJsonl(out)
    recorded = files.recorded()
    devices = _devices(device)
    setup = _Setup(
        modality=source.modality,
        paths=_choose(source.modality, tokenizer, paths or TokenizerPaths()),
        folder=source.folder,
        devices=devices,
    )
    loaded = setup.load(devices[0])
    job = Job(
        modality=source.modality,
        manifest_sha256=source.sha256,
        tokenizer=Path(setup.path).name,
        tokenizer_fingerprint=loaded.fingerprint,
        batch_size=batch_size or (recorded.job.batch_size if recorded else BATCH_SIZE),
    )
    if recorded is not None and files.out.exists():
        check_same(recorded.job, job, files.out)
        return _result(files, recorded.written, recorded.skipped, was_finished=True)
    with files.writing(job, source.lines) as writer:
        done = writer.progress.lines_done
        if done:
            logger.info("%s: going on after %d of %d rows", files.out, done, source.lines)
        batches = source.batches(job.batch_size, done)
        workers = min(workers or len(devices), -(-(source.lines - done) // job.batch_size))
        if workers > 1:
            del loaded
            tokenized = ordered_map(setup, batches, workers=workers)
        else:
            tokenized = _in_this_process(loaded, batches, source.folder)
        bar = tqdm(total=source.lines, initial=done, unit="row", desc=job.modality, mininterval=1)
        with bar, contextlib.closing(tokenized):
            for part in tokenized:
                writer.commit(part.lines, part.rows, part.errors)
                bar.update(part.lines)
                bar.set_postfix(skipped=writer.progress.skipped, refresh=False)
        if not writer.progress.written:
            files.discard()
            raise AnyGPTError(f"{source.path}: {_nothing_left(files.errors)}")
        writer.finish()
    return _result(files, writer.progress.written, writer.progress.skipped, was_finished=False)


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """What `lines` lines of the manifest gave."""

    lines: int
    rows: list[dict[str, str]]
    errors: list[dict[str, Any]]


def tokenize_batch(tokenizer: ModalityTokenizer, batch: Batch, *, folder: Path) -> Tokenized:
    """Load and encode the files of a batch; relative paths start from `folder`."""
    spec = get_modality(tokenizer.modality).with_codebooks(
        codebook_size=tokenizer.codebook_size, num_codebooks=tokenizer.num_codebooks
    )
    outcomes: dict[int, str | _Fault] = {}
    group: dict[int, Any] = {}
    size = 0
    for row in batch.rows:
        media = _load(row, spec, folder)
        if isinstance(media, _Fault):
            outcomes[row.line] = media
            continue
        group[row.line] = media
        size += _bytes(media)
        if size > GROUP_BYTES:
            outcomes.update(zip(group, _encode(tokenizer, spec, list(group.values())), strict=True))
            group, size = {}, 0
    outcomes.update(zip(group, _encode(tokenizer, spec, list(group.values())), strict=True))
    rows: list[dict[str, str]] = []
    errors: list[dict[str, Any]] = []
    for row in batch.rows:
        outcome = outcomes[row.line]
        if isinstance(outcome, _Fault):
            errors.append({"line": row.line, "path": row.path, "reason": outcome.reason})
        else:
            rows.append({"text": row.text, spec.name: outcome})
    return Tokenized(lines=batch.lines, rows=rows, errors=errors)


@dataclass(frozen=True)
class _Fault:
    """Why a row is skipped."""

    reason: str


def _load(row: Row, spec: ModalitySpec, folder: Path) -> Any:
    """The picture or sound of a row, or a _Fault."""
    if row.fault is not None:
        return _Fault(row.fault)
    assert row.path is not None, row
    path = folder / Path(row.path).expanduser()
    try:
        return _LOADERS[spec.media](path)
    except AnyGPTError as error:
        return _Fault(_without_path(str(error), path))
    except OSError as error:
        return _Fault(f"can't be read ({error.strerror or error})")


def _without_path(message: str, path: Path) -> str:
    """A message about a file without the file at its beginning, so that moving a data set leaves its errors alike."""
    tail = message[len(str(path)) :]  # cut by length: the message shows unprintable characters as others
    return tail.removeprefix(": ") if tail.startswith(": ") else message


def _encode(tokenizer: ModalityTokenizer, spec: ModalitySpec, media: Sequence[Any]) -> list[str | _Fault]:
    """The code string of each item; where the tokenizer refuses a batch, its items are tried one by one."""
    try:
        codes = tokenizer.encode(media) if media else []
        return [codes_to_string(spec, codes_KT) for codes_KT in codes]
    except AnyGPTError as error:
        if len(media) == 1:
            return [_Fault(" ".join(str(error).split()))]
        return [_encode(tokenizer, spec, [item])[0] for item in media]


def _bytes(media: Image.Image | Audio) -> int:
    return media.wave.nbytes if isinstance(media, Audio) else 3 * media.width * media.height


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What a worker process needs to begin."""

    modality: str
    paths: TokenizerPaths
    folder: Path
    devices: tuple[str, ...]

    @property
    def path(self) -> str:
        return str(getattr(self.paths, f"{self.modality}_tokenizer"))

    def load(self, device: str) -> ModalityTokenizer:
        """The tokenizer. Raises CheckpointError when it is made for another modality."""
        tokenizer = load_from_paths(self.modality, self.paths, device=device)
        if tokenizer.modality != self.modality:
            raise CheckpointError(f"{self.path}: made for {tokenizer.modality}, but the manifest has {self.modality}")
        return tokenizer

    def __call__(self, number: int) -> Callable[[Batch], Tokenized]:
        torch.set_num_threads(1)
        tokenizer = self.load(self.devices[number % len(self.devices)])
        return functools.partial(tokenize_batch, tokenizer, folder=self.folder)


def _choose(modality: str, tokenizer: str | None, paths: TokenizerPaths) -> TokenizerPaths:
    """The paths with the one tokenizer that is needed filled in."""
    field = f"{modality}_tokenizer"
    given = getattr(paths, field)
    if tokenizer is not None and given is not None:
        raise AnyGPTError(f"two {modality} tokenizers are given, '{tokenizer}' and '{given}'; give one")
    chosen = find_tokenizer(modality, tokenizer if tokenizer is not None else given)
    if modality == "speech":
        return TokenizerPaths(speech_tokenizer=chosen, speech_config=paths.speech_config)
    return TokenizerPaths(**{field: chosen})


def _devices(name: str) -> tuple[str, ...]:
    """The devices to share the work among: every GPU for "auto" and "cuda", where there are some."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    names = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) if name == "cuda" else (name,)
    try:
        for each in names or (name,):
            torch.zeros(1, device=each).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise AnyGPTError(f"device '{name}' is not available here; expected auto, cpu or cuda") from None
    return names


def _in_this_process(
    tokenizer: ModalityTokenizer, batches: Iterable[Batch], folder: Path
) -> Generator[Tokenized, None, None]:
    """What `ordered_map` does, without other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: the number of threads may change the last bits of a sum
    try:
        for batch in batches:
            yield tokenize_batch(tokenizer, batch, folder=folder)
    finally:
        torch.set_num_threads(threads)


def _nothing_left(errors: Path) -> str:
    if not errors.is_file():
        return "has blank lines only; nothing to tokenize"
    with errors.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    where = f"line {first['line']}" + (f", {first['path']}" if first["path"] else "")
    return f"no row could be tokenized; the first: {where}: {first['reason']}; all are in {errors}"


def _result(files: ResumableJsonl, written: int, skipped: int, *, was_finished: bool) -> TokenizeResult:
    errors = files.errors if skipped else None
    return TokenizeResult(out=files.out, written=written, skipped=skipped, errors=errors, was_finished=was_finished)
