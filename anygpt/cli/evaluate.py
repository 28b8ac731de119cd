"""`anygpt eval`: how well a model does on held-out data of the synthetic world and on public sets."""

import hashlib
import json
import logging
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anygpt.errors import AnyGPTError, nearest

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT
    from anygpt.evaluation.bench import Bench
    from anygpt.evaluation.tasks import Task
    from anygpt.tokenizers.base import ModalityTokenizer


def evaluate(
    *,
    model_name_or_path: str | None = None,
    tasks: list[str] | None = None,
    n: int = 200,
    seed: int = 0,
    seeds: int = 1,
    out: Path | None = None,
    report: Path = Path("docs/quality.md"),
    html: Path | None = None,
    gallery: Path | None = None,
    judges: Path = Path("runs/judges"),
    train_judges: bool = False,
    tokenizer: list[Path] | None = None,
    tokenizers_only: bool = False,
    data: Path | None = None,
    scorer: list[str] | None = None,
    single_questions: bool = False,
    batch_size: int = 16,
    force: bool = False,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Judge a model's answers on held-out data, beside real media and the tokenizers' reconstructions.

    Scores are kept case by case in the output folder: the same command goes on where a stopped run ended, and computes
    only what a new model, tokenizer, judge or set has changed. Tasks of the synthetic world need the packages that
    render it, public ones their --data. Another model than the shipped base model gets a section of its own in the
    report, and is compared with what stands there of the base.

    Args:
        model_name_or_path: Folder of a model, or the name of a shipped one; without it the shipped base model.
        tasks: A task, several with commas, or `base`, `chat`, `pointing` or `public` for all of a kind; repeatable;
            without it the base tasks. The report holds these alone.
        n: Cases per task; of a public set at most as many as it has.
        seed: The same seed gives the same cases and answers.
        seeds: So many seeds, from --seed on; the report is over all of them.
        out: Folder for the scores of single cases; without it runs/eval, or runs/eval/NAME for other models.
        report: Markdown file whose section on this model is rewritten; a JSON file is written beside it.
        html: Folder to write a page into, with the results, and the worst cases with their pictures and sounds.
        gallery: Folder to write a gallery into, in Markdown with small files, of the best and worst cases of each task;
            then there is no report.
        judges: Folder of the judges.
        train_judges: Train the judges that are missing (with --force, all), and stop.
        tokenizer: Tokenizer folder to use instead of the one that the model or the release names; repeatable.
        tokenizers_only: Load no model, and judge the tokenizers alone.
        data: Folder of the public sets, each as it is published.
        scorer: A network that scores answers, as KIND=FOLDER: clip, clap, speaker or whisper; repeatable.
        single_questions: Put questions of public sets to a chat model as to a base model, not in a conversation.
        batch_size: Questions that are answered at once, where they need no conversation.
        force: Compute again what is there already.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32, bfloat16, float16 or int8 (weights of a byte each, computing in bfloat16).
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if train_judges:
        from anygpt.training.judges import train_judges as train

        for path in train(judges, seed=seed, force=force):
            print(path)
        return
    from anygpt.evaluation.gallery import write_gallery
    from anygpt.evaluation.page import write_page
    from anygpt.evaluation.report import compare_with_base, read_summary, summarise, summary_path, write_report
    from anygpt.evaluation.run import Origin, pool, run_tasks
    from anygpt.media import ensure_writable

    for flag, count in {"--seeds": seeds, "--batch-size": batch_size}.items():
        if count < 1:
            raise AnyGPTError(f"{flag} is {count}, expected at least 1")
    chosen = _chosen(tasks)
    scorers = _scorers(scorer or [])
    subject = _Subject(model_name_or_path, tokenizer or [], device=device, dtype=dtype, tokenizers_only=tokenizers_only)
    chosen = subject.able(chosen)
    section = subject.section
    is_chat = section is not None and not single_questions
    out = out or Path("runs/eval", section or "")
    ensure_writable(out)
    for written_to in (gallery or report.parent, *([html] if html is not None else [])):
        ensure_writable(written_to)
    base = read_summary(summary_path(report)) if section and summary_path(report).is_file() else None
    judge_paths = {name: judges / f"{name}.safetensors" for task in chosen for name in task.judges}
    modalities = {name for task in chosen for name in task.modalities}
    origin = Origin(
        seed=seed,
        judges={name: fingerprint([path]) for name, path in judge_paths.items()},
        tokenizers={name: fingerprint(subject.tokenizer_files(name)) for name in modalities},
        model=fingerprint(subject.model_files()),
        chat=fingerprint(_chat_files()),
        scorers={kind: fingerprint(_files(folder)) for kind, folder in scorers.items() if folder.is_dir()},
        is_chat=is_chat,
    )
    bench = subject.bench(judges, seed)
    bench = replace(bench, batch_size=batch_size, is_chat=is_chat, data=data, scorers=scorers)
    runs = []
    for number in range(seed, seed + seeds):
        folder = out if number == seed else out / f"seed-{number}"
        each, of_each = replace(bench, seed=number, cache=dict(bench.cache)), replace(origin, seed=number)
        runs.append(run_tasks(chosen, each, cases=n, out=folder, origin=of_each, force=force))
    scores = {name: getattr(bench, f"{name}_judge").scores for name in sorted(judge_paths)}
    command = ["anygpt", "eval", "--n", str(n), "--seed", str(seed)]
    command += ["--seeds", str(seeds)] if seeds > 1 else []
    command += ["--model-name-or-path", model_name_or_path] if model_name_or_path is not None else []
    command += ["--tokenizers-only"] if tokenizers_only else []
    command += ["--single-questions"] if single_questions else []
    command += ["--data", str(data)] if data is not None else []
    command += ["--gallery", str(gallery)] if gallery is not None else []
    for flag, values in (("--tasks", tasks), ("--tokenizer", tokenizer), ("--scorer", scorer)):
        command += [word for value in values or () for word in (flag, str(value))]
    summary: dict[str, Any] = {
        "model": subject.name,
        "command": shlex.join(command),
        "seed": seed,
        "seeds": seeds,
        "is_chat": is_chat,
        "judges": scores,
        "rows": summarise(chosen, pool(chosen, runs), seed=seed, by_seed=runs),
    }
    if base is not None:
        summary["base"] = base["model"]
        compare_with_base(summary["rows"], base)
    written = [] if gallery is not None else write_report(report, summary, section=section)
    for wanted, write in ((html, write_page), (gallery, write_gallery)):
        if wanted is not None:
            written.append(write(wanted, summary, chosen, runs[0], bench))
    for path in written:
        print(path)


def _scorers(given: list[str]) -> dict[str, Path]:
    """Kind -> folder. Raises AnyGPTError for what isn't KIND=FOLDER of a known kind."""
    from anygpt.evaluation.scorers import SCORERS

    found = {}
    for words in given:
        kind, has_folder, folder = words.partition("=")
        if kind not in SCORERS or not has_folder:
            hint = nearest(kind, SCORERS)
            raise AnyGPTError(f"--scorer is '{words}'{hint}, expected KIND=FOLDER, KIND one of {', '.join(SCORERS)}")
        found[kind] = Path(folder).expanduser()
    return found


def _chosen(given: list[str] | None) -> list["Task"]:
    """The tasks asked for, in the order of the report. Raises AnyGPTError for an unknown one."""
    from anygpt.evaluation.benchmarks.tasks import BENCHMARKS
    from anygpt.evaluation.chat_tasks import CHAT_TASKS
    from anygpt.evaluation.pointing import POINTING_TASKS
    from anygpt.evaluation.tasks import TASKS

    of_groups = {"chat": CHAT_TASKS, "base": TASKS, "pointing": POINTING_TASKS, "public": BENCHMARKS}
    known = {name: task for tasks in of_groups.values() for name, task in tasks.items()}
    groups = {group: tuple(tasks) for group, tasks in of_groups.items()}
    wanted: set[str] = set()
    for name in (name.strip() for words in given or ["base"] for name in words.split(",")):
        if name and name not in known and name not in groups:
            names = (*groups, *known)
            raise AnyGPTError(f"unknown task '{name}'{nearest(name, names)}; known: {', '.join(names)}")
        wanted.update(groups.get(name, (name,)))
    return [task for name, task in known.items() if name in wanted]


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files; a missing one counts as empty."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _chat_files() -> list[Path]:
    """What decides answers in conversations besides the model's files."""
    from anygpt.paths import resource

    return [resource("config") / "generate_config.json", resource("task_prompts", "templates.yaml")]


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
        self.section: str | None = None
        """The section of the report, if it isn't the main one."""
        if tokenizers_only:
            return
        self._model_folder = engine.find_model(model)
        self._model = engine.AnyGPT.from_pretrained(self._model_folder, device=device, dtype=dtype)
        self.name = self._model_folder.resolve().name
        self.section = None if self.name == engine.DEFAULT_MODEL else self.name
        for tokenizer in given:
            self._model.tokenizers.add(tokenizer)
        manifest = read_manifest(self._model_folder)
        for modality, entry in (manifest.modalities if manifest else {}).items():
            if entry.tokenizer is not None:
                self._folders.setdefault(modality, resource("tokenizers", entry.tokenizer))

    def able(self, tasks: list["Task"]) -> list["Task"]:
        """The tasks whose modalities it has; why others are left out goes into the log. Raises AnyGPTError where none
        is left."""
        from anygpt.tokenizers.sources import DEFAULT_TOKENIZERS

        known = self._model.specs if self._model is not None else {**DEFAULT_TOKENIZERS, **self._folders}
        missing = {task.name: [name for name in task.modalities if name not in known] for task in tasks}
        reasons = [
            f"{task}: left out, no {' and no '.join(lacks)} in {self.name}" for task, lacks in missing.items() if lacks
        ]
        if len(reasons) == len(tasks):
            raise AnyGPTError("; ".join(reasons))
        for reason in reasons:
            logging.info(reason)
        return [task for task in tasks if not missing[task.name]]

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
