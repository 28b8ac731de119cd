"""Pictures and recordings with text to the published pre-training JSONL, on one or more processes, resumably."""

import contextlib
import functools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from anygpt.code_strings import codes_to_string
from anygpt.data.media_codes import Fault, encode_all, load_media, spec_of
from anygpt.data.media_manifest import Batch, MediaManifest, Row
from anygpt.data.resumable import Job, ResumableJsonl, check_same
from anygpt.data.workers import device_names, map_here, ordered_map
from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.tokenizers.base import ModalityTokenizer
from anygpt.tokenizers.sources import TokenizerPaths, choose_tokenizer, load_from_paths

logger = logging.getLogger(__name__)

BATCH_SIZE = 32


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
    files = ResumableJsonl(out, TokenizeJob)
    recorded = files.recorded()
    devices = device_names(device)
    setup = _Setup(
        modality=source.modality,
        paths=choose_tokenizer(source.modality, tokenizer, paths or TokenizerPaths()),
        folder=source.folder,
        devices=devices,
    )
    loaded = setup.load(devices[0])
    job = TokenizeJob(
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
            tokenized = map_here(functools.partial(tokenize_batch, loaded, folder=source.folder), batches)
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
    spec = spec_of(tokenizer)

    def load(row: Row) -> Any:
        if row.fault is not None:
            return Fault(row.fault)
        assert row.path is not None, row
        return load_media(folder / Path(row.path).expanduser(), spec)

    outcomes = encode_all(tokenizer, batch.rows, load)
    rows: list[dict[str, str]] = []
    errors: list[dict[str, Any]] = []
    for row in batch.rows:
        outcome = outcomes[row]
        if isinstance(outcome, Fault):
            errors.append({"line": row.line, "path": row.path, "reason": outcome.reason})
        else:
            rows.append({"text": row.text, spec.name: codes_to_string(spec, outcome)})
    return Tokenized(lines=batch.lines, rows=rows, errors=errors)


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
