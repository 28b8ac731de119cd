"""`anygpt eval`: how well a model does on held-out data of the synthetic world."""

import hashlib
import json
import logging
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT
    from anygpt.evaluation.bench import Bench
    from anygpt.tokenizers.base import ModalityTokenizer


def evaluate(
    *,
    model: str | None = None,
    tasks: list[str] | None = None,
    n: int = 200,
    seed: int = 0,
    out: Path = Path("runs/eval"),
    report: Path = Path("docs/quality.md"),
    judges: Path = Path("runs/judges"),
    train_judges: bool = False,
    tokenizer: list[Path] | None = None,
    tokenizers_only: bool = False,
    force: bool = False,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Judge a model's answers on held-out data, beside real media and the tokenizers' reconstructions.

    Scores are kept case by case in the output folder: the same command goes on where a stopped run ended, and computes
    only what a new model, tokenizer or judge has changed. Needs the packages that render the world.

    Args:
        model: Folder of a model, or the name of a shipped one; without it the shipped base model.
        tasks: A task, or several with commas; repeatable; without it all. The report holds these alone.
        n: Cases per task.
        seed: The same seed gives the same cases and answers.
        out: Folder for the scores of single cases.
        report: Markdown file whose section on this evaluation is rewritten; a JSON file is written beside it.
        judges: Folder of the judges.
        train_judges: Train the judges that are missing (with --force, all), and stop.
        tokenizer: Tokenizer folder to use instead of the one that the model or the release names; repeatable.
        tokenizers_only: Load no model, and judge the tokenizers alone.
        force: Compute again what is there already.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32, bfloat16 or float16.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if train_judges:
        from anygpt.training.judges import train_judges as train

        for path in train(judges, seed=seed, force=force):
            print(path)
        return
    from anygpt.evaluation.report import summarise, write_report
    from anygpt.evaluation.run import Origin, run_tasks
    from anygpt.evaluation.tasks import TASKS
    from anygpt.media import ensure_writable

    chosen = [TASKS[name] for name in _names(tasks)]
    ensure_writable(out)
    ensure_writable(report.parent)
    subject = _Subject(model, tokenizer or [], device=device, dtype=dtype, tokenizers_only=tokenizers_only)
    judge_paths = {name: judges / f"{name}.safetensors" for name in {task.judge for task in chosen} if name}
    origin = Origin(
        seed=seed,
        judges={name: fingerprint([path]) for name, path in judge_paths.items()},
        tokenizers={task.modality: fingerprint(subject.tokenizer_files(task.modality)) for task in chosen},
        model=fingerprint(subject.model_files()),
    )
    bench = subject.bench(judges, seed)
    results = run_tasks(chosen, bench, cases=n, out=out, origin=origin, force=force)
    scores = {name: getattr(bench, f"{name}_judge").scores for name in sorted(judge_paths)}
    command = ["anygpt", "eval", "--n", str(n), "--seed", str(seed)]
    command += ["--model", model] if model is not None else []
    command += ["--tokenizers-only"] if tokenizers_only else []
    for flag, values in (("--tasks", tasks), ("--tokenizer", tokenizer)):
        command += [word for value in values or () for word in (flag, str(value))]
    summary = {
        "model": subject.name,
        "command": shlex.join(command),
        "seed": seed,
        "judges": scores,
        "rows": summarise(chosen, results, seed=seed),
    }
    for path in write_report(report, summary):
        print(path)


def _names(given: list[str] | None) -> list[str]:
    """The tasks asked for, in the order of the report. Raises AnyGPTError for an unknown one."""
    from anygpt.errors import AnyGPTError, nearest
    from anygpt.evaluation.tasks import TASKS

    wanted = [name.strip() for words in given or [",".join(TASKS)] for name in words.split(",") if name.strip()]
    for name in wanted:
        if name not in TASKS:
            raise AnyGPTError(f"unknown task '{name}'{nearest(name, TASKS)}; known: {', '.join(TASKS)}")
    return [name for name in TASKS if name in wanted]


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files; a missing one counts as empty."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


class _Subject:
    """What is evaluated: a model with its tokenizers, or tokenizers alone, and the files that they are made of."""

    def __init__(
        self, model: str | None, tokenizers: list[Path], *, device: str, dtype: str, tokenizers_only: bool
    ) -> None:
        from anygpt import engine
        from anygpt.manifest import read_manifest
        from anygpt.paths import resource
        from anygpt.tokenizers.base import load_tokenizer

        self._device = "cpu" if device == "auto" else device
        given = [load_tokenizer(folder, device=self._device) for folder in tokenizers]
        self._loaded = {tokenizer.modality: tokenizer for tokenizer in given}
        self._folders = {tokenizer.modality: folder for tokenizer, folder in zip(given, tokenizers, strict=True)}
        self._model: AnyGPT | None = None
        self._model_folder: Path | None = None
        self.name = "the tokenizers"
        if tokenizers_only:
            return
        self._model_folder = engine.find_model(model)
        self._model = engine.AnyGPT.from_pretrained(self._model_folder, device=device, dtype=dtype)
        self.name = self._model_folder.resolve().name
        for tokenizer in given:
            self._model.tokenizers.add(tokenizer)
        manifest = read_manifest(self._model_folder)
        for modality, entry in (manifest.modalities if manifest else {}).items():
            if entry.tokenizer is not None:
                self._folders.setdefault(modality, resource("tokenizers", entry.tokenizer))

    def bench(self, judges: Path, seed: int) -> "Bench":
        from anygpt.evaluation.bench import Bench

        return Bench(tokenizer=self._tokenizer, judges=judges, model=self._model, seed=seed, device=self._device)

    def model_files(self) -> list[Path]:
        """The model's own files and the decoding settings."""
        from anygpt.paths import resource

        if self._model_folder is None:
            return []
        return [*_files(self._model_folder), *resource("config").glob("*_generate_config.json")]

    def tokenizer_files(self, modality: str) -> list[Path]:
        """The files of a tokenizer's folder, and of those that its config.json refers to."""
        folder = self._folder(modality)
        found = _files(folder)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8")).values()
        for path in (folder / value for value in values if isinstance(value, str)):
            if path.is_dir() and path != folder:
                found += _files(path)
        return found

    def _folder(self, modality: str) -> Path:
        from anygpt.paths import resource
        from anygpt.tokenizers.sources import DEFAULT_TOKENIZERS

        return self._folders.get(modality) or resource("tokenizers", DEFAULT_TOKENIZERS[modality])

    def _tokenizer(self, modality: str) -> "ModalityTokenizer":
        from anygpt.tokenizers.base import load_tokenizer

        if self._model is not None:
            return self._model.tokenizers.get(modality)
        if modality not in self._loaded:
            self._loaded[modality] = load_tokenizer(self._folder(modality), device=self._device)
        return self._loaded[modality]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".model", ".wav")]
