"""Pictures and recordings with text to the published pre-training JSONL, on one or more processes, resumably."""

import collections
import contextlib
import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from anygpt.code_strings import codes_to_string
from anygpt.data.media_codes import Fault, encode_all, load_place, spec_of
from anygpt.data.media_manifest import Batch
from anygpt.data.resumable import Job, ResumableJsonl, check_same
from anygpt.data.sources import open_source
from anygpt.data.storage import Place, find_files
from anygpt.data.workers import device_names, ordered_map, with_one_thread
from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.modality import ModalitySpec
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.tokenizers.sources import TokenizerPaths, choose_tokenizer, load_from_paths

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
AHEAD = 3
"""Batches that are loaded while one is encoded."""


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


@dataclass(frozen=True, kw_only=True)
class TokenizeJob(Job):
    """What decides the lines of a tokenized manifest."""

    modality: str
    manifest_sha256: str
    tokenizer: str
    """Its name or path, for people; the fingerprint is what counts."""
    tokenizer_fingerprint: str
    batch_size: int
    """Codes at a near tie may depend on the pictures that share a batch."""

    def differences(self, recorded: "TokenizeJob") -> dict[str, str]:
        return {
            "modality": "for another modality",
            "manifest_sha256": "from another manifest, or the manifest has changed since",
            "tokenizer_fingerprint": f"with another tokenizer ('{recorded.tokenizer}') than '{self.tokenizer}'",
            "batch_size": f"with --batch-size {recorded.batch_size}",
        }


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
    """Make the pre-training JSONL `out`, one line per usable row of `manifest`, in its order.

    `manifest` is a manifest or a WebDataset tar, here or behind a URL. A killed call goes on where it stopped when it
    is made again, and ends with the same bytes. Rows that can't be used are listed in `<out>.errors.jsonl` (`line`,
    `path`, `reason`) and skipped. `tokenizer` is a name under `tokenizers/`, a folder of ours, or a released file;
    `paths` may give it by modality instead; without either the shipped one is used. `workers` defaults to the number of
    devices, `batch_size` to 32, or to that of the run that is gone on with.
    Raises AnyGPTError for a manifest, tokenizer or output that is unfit, when `out` was made from something else, and
    when no row at all could be used.
    """
    check_counts(workers=workers, batch_size=batch_size)
    found = find_files(manifest)
    if len(found) > 1:
        raise AnyGPTError(f"{manifest}: {len(found)} files; give --format jsonl or parquet to make a folder of shards")
    source = open_source(found[0], modality)
    files = ResumableJsonl(out, TokenizeJob)
    recorded = files.recorded()
    devices = device_names(device)
    setup = Setup.choose(source.modality, tokenizer, paths, devices)
    loaded = setup.load(devices[0])
    size = batch_size or (recorded.job.batch_size if recorded else BATCH_SIZE)
    job = setup.job(loaded, sha256=source.sha256, batch_size=size)
    if recorded is not None and files.out.exists():
        check_same(recorded.job, job, files.out)
        return _result(files, recorded.written, recorded.skipped, was_finished=True)
    with files.writing(job, source.lines) as writer:
        done = writer.progress.lines_done
        if done:
            shown = f"{done} rows" if source.lines is None else f"{done} of {source.lines} rows"
            logger.info("%s: going on after %s", files.out, shown)
        batches = source.batches(job.batch_size, done)
        workers = workers or len(devices)
        if source.lines is not None:
            workers = min(workers, -(-(source.lines - done) // job.batch_size))
        if workers > 1:
            del loaded
            tokenized = ordered_map(setup, batches, workers=workers)
        else:
            tokenized = with_one_thread(tokenize_batches(loaded, batches, device=devices[0]))
        bar = tqdm(total=source.lines, initial=done, unit="row", desc=job.modality, mininterval=1)
        with bar, contextlib.closing(tokenized):
            for part in tokenized:
                writer.commit(part.lines, part.rows, part.errors)
                bar.update(part.lines)
                bar.set_postfix(skipped=writer.progress.skipped, refresh=False)
        if not writer.progress.written:
            files.discard()
            raise AnyGPTError(f"{found[0]}: {nothing_left(files.errors)}")
        writer.finish()
    return _result(files, writer.progress.written, writer.progress.skipped, was_finished=False)


def check_counts(**counts: int | None) -> None:
    """Raise AnyGPTError for a flag that is less than 1."""
    for name, number in counts.items():
        if number is not None and number < 1:
            raise AnyGPTError(f"--{name.replace('_', '-')} is {number}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """What `lines` lines of the manifest gave."""

    lines: int
    rows: list[dict[str, str]]
    errors: list[dict[str, Any]]


Medium = tuple[Place, tuple[float, float] | None]
"""What is loaded and encoded, a file and the part of it that is meant: several captions may share it."""


def media_of(batch: Batch) -> list[Medium]:
    """The media of the good rows, each once, in order."""
    return list(dict.fromkeys((row.place, row.part_s) for row in batch.rows if row.place is not None))


def load_medium(spec: ModalitySpec, medium: Medium) -> Any:
    """The picture or sound, or a Fault."""
    place, part_s = medium
    return load_place(place, spec) if part_s is None else load_place(place, spec, part_s=part_s)


def tokenize_batch(
    tokenizer: ModalityTokenizer, batch: Batch, load: Callable[[Medium], Any] | None = None
) -> Tokenized:
    """Load and encode the media of a batch; `load` gives those that were loaded elsewhere."""
    spec = spec_of(tokenizer)
    outcomes = encode_all(tokenizer, media_of(batch), load or functools.partial(load_medium, spec))
    rows: list[dict[str, str]] = []
    errors: list[dict[str, Any]] = []
    for row in batch.rows:
        outcome = outcomes[row.place, row.part_s] if row.place is not None else Fault(row.fault or "")
        if isinstance(outcome, Fault):
            errors.append({"line": row.line, "path": row.path, "reason": outcome.reason})
        else:
            rows.append({"text": row.text, spec.name: codes_to_string(spec, outcome)})
    return Tokenized(lines=batch.lines, rows=rows, errors=errors)


def tokenize_batches(tokenizer: ModalityTokenizer, batches: Iterator[Batch], *, device: str) -> Iterator[Tokenized]:
    """The results of batches, in order. While a GPU encodes one, threads load the next; a CPU has its hands full."""
    if device == "cpu":
        yield from map(functools.partial(tokenize_batch, tokenizer), batches)
        return
    with ThreadPoolExecutor(AHEAD + 1) as pool:
        yield from tokenize_ahead(
            tokenizer, batches, start=lambda spec, media: pool.submit(load_media_list, spec, media).result
        )


def tokenize_ahead(
    tokenizer: ModalityTokenizer,
    batches: Iterator[Batch],
    *,
    start: Callable[[ModalitySpec, list[Medium]], Callable[[], list[Any]]],
) -> Iterator[Tokenized]:
    """The results of batches, in order, `AHEAD` of which are loaded while one is encoded.

    `start` begins to load media and gives a function that waits for them.
    """
    spec = spec_of(tokenizer)
    ahead: collections.deque[tuple[Batch, list[Medium], Callable[[], list[Any]]]] = collections.deque()

    def begin(count: int) -> None:
        for batch in itertools.islice(batches, count):
            media = media_of(batch)
            ahead.append((batch, media, start(spec, media)))

    begin(AHEAD + 1)
    while ahead:
        batch, media, wait = ahead.popleft()
        loaded = dict(zip(media, wait(), strict=True))
        begin(1)
        yield tokenize_batch(tokenizer, batch, load=loaded.__getitem__)


def load_media_list(spec: ModalitySpec, media: Sequence[Medium]) -> list[Any]:
    """Each as `load_medium` gives it."""
    return [load_medium(spec, medium) for medium in media]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker process needs to begin; called with its number, it gives what the worker does with a batch."""

    modality: str
    paths: TokenizerPaths
    devices: tuple[str, ...]

    @classmethod
    def choose(
        cls, modality: str, tokenizer: str | None, paths: TokenizerPaths | None, devices: tuple[str, ...]
    ) -> "Setup":
        """See `tokenize_manifest`."""
        return cls(
            modality=modality,
            paths=choose_tokenizer(modality, tokenizer, paths or TokenizerPaths()),
            devices=devices,
        )

    @property
    def path(self) -> str:
        return str(getattr(self.paths, f"{self.modality}_tokenizer"))

    def load(self, device: str) -> ModalityTokenizer:
        """The tokenizer. Raises CheckpointError when it is made for another modality."""
        tokenizer = load_from_paths(self.modality, self.paths, device=device)
        if tokenizer.modality != self.modality:
            raise CheckpointError(f"{self.path}: made for {tokenizer.modality}, but the manifest has {self.modality}")
        return tokenizer

    def job(self, tokenizer: ModalityTokenizer, *, sha256: str, batch_size: int) -> TokenizeJob:
        """The record of a source with this hash."""
        return TokenizeJob(
            modality=self.modality,
            manifest_sha256=sha256,
            tokenizer=Path(self.path).name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            batch_size=batch_size,
        )

    def load_numbered(self, number: int) -> ModalityTokenizer:
        """The tokenizer of worker `number`, on its device and with one thread."""
        torch.set_num_threads(1)
        return self.load(self.devices[number % len(self.devices)])

    def __call__(self, number: int) -> Callable[[Batch], Tokenized]:
        return functools.partial(tokenize_batch, self.load_numbered(number))


def nothing_left(errors: Path) -> str:
    """What to say where every row was skipped; `errors` lists them."""
    if not errors.is_file():
        return "has blank lines only; nothing to tokenize"
    with errors.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    where = f"line {first['line']}" + (f", {first['path']}" if first["path"] else "")
    return f"no row could be tokenized; the first: {where}: {first['reason']}; all are in {errors}"


def _result(files: ResumableJsonl, written: int, skipped: int, *, was_finished: bool) -> TokenizeResult:
    errors = files.errors if skipped else None
    return TokenizeResult(out=files.out, written=written, skipped=skipped, errors=errors, was_finished=was_finished)
