"""What the stages of training share: packed micro-batches on the Hugging Face Trainer, whole checkpoints, curves."""

import dataclasses
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from anygpt.config import read_mapping
from anygpt.data.mixture import MixtureStreams, Source, ValidationSet, check_labels, id_weights, single_micro_batch
from anygpt.data.packing import PackingConfig, attention_mask
from anygpt.errors import CheckpointError, ConfigError, nearest
from anygpt.media import atomic_write
from anygpt.paths import resource
from anygpt.training import attention
from anygpt.training.curves import plot_curves
from anygpt.training.guard import LossGuard
from anygpt.training.loss import NextIdLoss
from anygpt.training.optimizer import MuonAdamW
from anygpt.training.rates import LearningRates
from anygpt.training.sharding import complete_sharding, form_group
from anygpt.training.trainable import is_of_rows, row_parts
from anygpt.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""File that marks a checkpoint as whole: a run killed while saving leaves a folder without it."""

VOCABULARY_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "anygpt.json",
)


@dataclass(frozen=True, kw_only=True)
class ModalityConfig:
    """One modality of the model: its codebooks, and the tokenizer folder that made the codes."""

    codebook_size: int
    num_codebooks: int = 1
    tokenizer: str | None = None
    """Name under `tokenizers/`; its fingerprint goes into the checkpoint. None: the released tokenizers."""
    decoding: dict[str, Any] = field(default_factory=dict)
    """Fields of `generation.policies.Policy` for the checkpoint, such as `guidance_scale`; policy files go before."""
    reading: dict[str, Any] = field(default_factory=dict)
    """The same for texts about media of this modality."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon and AdamW on float32 masters; leave the section out for the Trainer's own `optim`."""

    lr: float = 2e-3
    muon_lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The part of a run's YAML file that is the same in all stages."""

    trainer: dict[str, Any]
    """Passed to `transformers.TrainingArguments`: max_steps, batch accumulation, FSDP, and so on."""
    packing: PackingConfig = field(default_factory=PackingConfig)
    micro_batches_per_step: int | None = None
    """On all processes together, so that a step means the same on any number of them; stands in for
    trainer.gradient_accumulation_steps, which counts those of one process."""
    optimizer: OptimizerConfig | None = None
    compile: bool = False
    """Train through `torch.compile`: 1.1 to 1.3 times as fast on a CPU, after half a minute for every row length
    (`benchmarks/train_attention.py`)."""
    trainable: tuple[str, ...] = ("all",)
    """What is trained: all, embeddings, new_rows, image_rows (or another modality's), last_half, or patterns of the
    weights' names (model.layers.3.*)."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the learning rate for such parts, `{embeddings: 0.1, speech_rows: 3}`; where several name a weight the
    last one counts."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """Factors of the loss weights that data have, by what an id is: a modality (its codes and tags), or text."""
    spike_factor: float | None = None
    """Stop, with the micro-batches saved, at a loss this many times the mean of the last 100 steps; a loss or gradient
    that is not finite always stops."""
    template: str = "AnyGPT"
    validation_fraction: float = 0.01
    validation_limit: int = 64
    """Validation examples of each source (of pairs: in each direction)."""
    seed: int = 0

    def __post_init__(self) -> None:
        known = {f.name for f in dataclasses.fields(TrainingArguments)}
        for key in self.trainer:
            if key not in known or key == "output_dir":
                raise ConfigError(f"trainer: unknown key '{key}'{nearest(key, known)}")
        if self.optimizer is not None and (self.trainer.get("fsdp") or self.trainer.get("deepspeed")):
            raise ConfigError(
                "optimizer: keeps whole copies of the weights, which FSDP and DeepSpeed split; leave the section out "
                "and set trainer.optim and trainer.learning_rate"
            )
        if self.compile and (self.trainer.get("fsdp") or self.trainer.get("deepspeed")):
            raise ConfigError(
                "compile: is for whole models, and FSDP and DeepSpeed gather one layer at a time; set compile: false"
            )
        if self.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            raise ConfigError("compile: needs a C++ compiler, and there is none; install g++ or set compile: false")
        if self.micro_batches_per_step is not None and "gradient_accumulation_steps" in self.trainer:
            raise ConfigError(
                "micro_batches_per_step: give either this (of all processes) or trainer.gradient_accumulation_steps "
                "(of one process)"
            )
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise ConfigError(f"spike_factor: is {self.spike_factor}, expected more than 1")
        for name, parts in (("trainable", self.trainable), ("lr_factors", self.lr_factors)):
            rows = next(filter(is_of_rows, parts), None)
            if rows is not None and (self.trainer.get("fsdp") or self.trainer.get("deepspeed")):
                raise ConfigError(f"{name}: {rows} needs whole weights, which FSDP and DeepSpeed split")
            decay = self.optimizer.weight_decay if self.optimizer else self.trainer.get("weight_decay")
            if rows is not None and decay and name == "trainable":
                raise ConfigError(f"{name}: {rows} needs weight_decay: 0, which would shrink the other rows")
        for name, factors in (("lr_factors", self.lr_factors), ("loss_weights", self.loss_weights)):
            for part, factor in factors.items():
                if not 0 < factor < math.inf:
                    raise ConfigError(f"{name}.{part}: is {factor:g}, expected more than 0")
        if "max_steps" not in self.trainer:
            raise ConfigError("trainer: 'max_steps' is missing; the mixture has no epochs")

    @property
    def bits_of_frozen_layers(self) -> float | None:
        """Of a weight in the frozen matrices of layers, where these are not in the model's type."""
        return None


class PackedTrainer(Trainer):
    """The Trainer on packed micro-batches: block-diagonal attention, weighted loss, loader without shuffling."""

    def __init__(
        self,
        *,
        compiles: bool,
        guard: LossGuard,
        rates: LearningRates,
        callbacks: list[TrainerCallback],
        **settings: Any,
    ) -> None:
        model = settings["model"]
        self.guard, self.rates = guard, rates
        self._source_tokens: Tensor | None = None
        # Validation has too many shapes to be worth compiling.
        self.validation_loss = NextIdLoss(model)
        self.training_loss = NextIdLoss(model, compiles=True) if compiles else self.validation_loss
        super().__init__(callbacks=[guard, *callbacks], **settings)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each source's share of the tokens since the last line, `share/<file>`, to those about training."""
        if "loss" in logs and self._source_tokens is not None:
            tokens = self._source_tokens[None].to(self.args.device)
            if self.args.world_size > 1:
                tokens = self.accelerator.gather(tokens)
            shares = (tokens.sum(0) / tokens.sum()).tolist()
            assert isinstance(self.train_dataset, MixtureStreams), type(self.train_dataset)
            for source, share in zip(self.train_dataset.sources, shares, strict=True):
                name = f"share/{source.path.stem}"
                logs[name] = round(logs.get(name, 0.0) + share, 4)
            self._source_tokens = None
        super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        norm: Tensor | float | None = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With a loss scale (fp16) infinite gradients are part of finding it, and such steps are skipped. DeepSpeed has
        # no norm where it clips nothing.
        if norm is not None and self.accelerator.scaler is None:
            self.guard.check_norm(float(norm), self.args, self.state)
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `optim` names, where the run has none of its own, with the rates of parts."""
        is_given = self.optimizer is not None
        model = self.model if model is None else model
        assert model is not None
        optimizer = super().create_optimizer(model)
        if not is_given:
            self.rates.apply(optimizer, dict(model.named_parameters()))
        return optimizer

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        complete_sharding(self.accelerator, self.args)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if state_dict is not None:
            # Gathered from shards, tied weights don't share memory any more and would be written twice.
            tied = getattr(self.model, "all_tied_weights_keys", {})
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict=state_dict)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """Sum of the loss weights over all micro-batches of a step, on all ranks: what the loss is divided by."""
        if not batch_samples:
            return None
        total = torch.stack([batch["loss_weights"][:, 1:].sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total.reshape(1)).sum()
        return total

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy of the next id within each example."""
        weights = inputs["loss_weights"]
        mask = attention_mask(inputs["segment_ids"], next(model.parameters()).dtype)
        loss_of = self.training_loss if model.training else self.validation_loss
        total = weights[:, 1:].sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss_of(model, inputs["input_ids"], mask, inputs["position_ids"], weights) / total
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks, the total is a sum
        if model.training:
            self.guard.add(loss.item(), inputs, self.args, self.state)
            tokens = inputs["source_tokens"]
            self._source_tokens = tokens if self._source_tokens is None else self._source_tokens + tokens
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        assert isinstance(loss, Tensor)
        return loss.detach(), None, None


class Housekeeping(TrainerCallback):
    """Completes and marks whole checkpoints and draws the curves."""

    def __init__(self, out: Path, complete: Callable[[Path], None]) -> None:
        self.out, self.complete = out, complete

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every rank has written its part
        if state.is_world_process_zero:
            folder = self.out / f"checkpoint-{state.global_step}"
            self.complete(folder)
            step = {"micro_batches_per_step": _micro_batches_per_step(args)}
            (folder / COMPLETE).write_text(json.dumps(step) + "\n", encoding="utf-8")
            plot_curves(state.log_history, self.out / "curves.png")


def copy_vocabulary(source: Path, target: Path) -> None:
    """Copy the tokenizer files and `anygpt.json` from one model folder to another."""
    for name in VOCABULARY_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint under `out`; removes those that a killed run left half-written."""
    whole = []
    for folder in out.glob("checkpoint-*"):
        if (folder / COMPLETE).is_file():
            whole.append(folder)
        else:
            logger.warning("%s is incomplete (the run was stopped while saving); removing it", folder)
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def load_llama(
    path: Path, vocab: Vocabulary, *, dtype: torch.dtype, implementation: str, empty: bool = False,
    quantisation: BitsAndBytesConfig | None = None,
) -> LlamaForCausalLM:  # fmt: skip
    """A LLaMA checkpoint with rows added for the ids of `vocab` that it lacks. Raises CheckpointError.

    New rows are drawn around the mean of the old ones with their covariance (Hewitt 2021), so that at first no new
    token is likelier than the old. `empty` gives shapes without weights, `quantisation` leaves them as they are.
    """
    if implementation == attention.NAME:
        attention.register()
    try:
        if empty:
            shape = LlamaConfig.from_pretrained(path)
            shape.vocab_size = max(shape.vocab_size, vocab.size)
            with torch.device("meta"):
                model: Any = LlamaForCausalLM(shape)
            return model.to(dtype)
        # Quantised weights go to the process's own GPU as they are read, where there is one.
        model = LlamaForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=implementation, quantization_config=quantisation
        )
    except OSError as error:
        raise CheckpointError(f"{path}: not a LLaMA checkpoint ({error})") from None
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding), type(embeddings)
    if embeddings.num_embeddings < vocab.size:
        model.resize_token_embeddings(vocab.size, mean_resizing=True)
    return model


def rows_of(vocab: Vocabulary, base: Path | None) -> dict[str, Tensor]:
    """The rows of embeddings by their names (`trainable.row_parts`); `base` is the model that training starts from."""
    return row_parts(vocab, None if base is None else LlamaConfig.from_pretrained(base).vocab_size)


def trainer_section(config: RunConfig) -> dict[str, Any]:
    """The `trainer` section with the file that `fsdp_config` or `deepspeed` names, a path or one in `config/`, read."""
    section = dict(config.trainer)
    for key in ("fsdp_config", "deepspeed"):
        if isinstance(name := section.get(key), str):
            section[key] = read_mapping(name if Path(name).is_file() else resource("config", Path(name).name))
    return section


def training_arguments(config: RunConfig, out: Path) -> TrainingArguments:
    """The Trainer's settings: the `trainer` section, and what packed micro-batches need."""
    accumulation = {}
    if config.micro_batches_per_step is not None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if config.micro_batches_per_step < 1 or config.micro_batches_per_step % processes:
            raise ConfigError(
                f"micro_batches_per_step: is {config.micro_batches_per_step}, expected a multiple of the number of "
                f"processes, {processes}"
            )
        accumulation["gradient_accumulation_steps"] = config.micro_batches_per_step // processes
    section = trainer_section(config)
    if config.lr_factors and "optimizer" in (section.get("deepspeed") or {}):
        raise ConfigError(
            "lr_factors: the optimizer in trainer.deepspeed knows one rate; leave it out there and set trainer.optim"
        )
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        remove_unused_columns=False,
        seed=config.seed,
        label_names=[],
        train_sampling_strategy="sequential",
        **{
            "report_to": "tensorboard",
            "average_tokens_across_devices": False,
            "ddp_find_unused_parameters": False,
            "logging_nan_inf_filter": False,  # such losses stop the run instead
            **section,
            **accumulation,
        },
    )
    form_group(arguments)
    return arguments


def _micro_batches_per_step(arguments: TrainingArguments) -> int:
    return arguments.gradient_accumulation_steps * arguments.world_size


def check_resumable(checkpoint: Path, arguments: TrainingArguments) -> None:
    """Raise ConfigError where a step of the run that `checkpoint` is of had another number of micro-batches."""
    text = (checkpoint / COMPLETE).read_text(encoding="utf-8")  # empty in checkpoints of earlier versions
    before = json.loads(text)["micro_batches_per_step"] if text else None
    now = _micro_batches_per_step(arguments)
    if before not in (None, now):
        raise ConfigError(
            f"{checkpoint}: was trained with {before} micro-batches per step, now they are {now} "
            f"({arguments.world_size} processes); set micro_batches_per_step: {before}"
        )


def train_packed(
    config: RunConfig,
    out: Path,
    *,
    build_vocabulary: Callable[[Path], Vocabulary],
    build_sources: Callable[[Vocabulary], Sequence[Source]],
    build_model: Callable[[Vocabulary], nn.Module],
    base: Path | None,
    dtype: torch.dtype,
    complete: Callable[[Path], None] | None = None,
) -> Path:
    """Run or resume a training; the exported folder, `out/model`.

    `build_vocabulary` writes the vocabulary files of the model into the folder it is given, on the first process
    only. `base` is the model that training starts from, None from scratch. `dtype` is what the model computes in under
    `config.optimizer`. `complete` finishes every folder of weights that is written (checkpoints and the export) after
    the vocabulary files have been copied into it.
    """
    set_seed(config.seed)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(out / "tensorboard"))
    arguments = training_arguments(config, out)
    folder = out / "vocabulary"
    is_first = arguments.process_index == 0
    with arguments.main_process_first(local=False, desc="vocabulary"):
        vocab = build_vocabulary(folder) if is_first else Vocabulary.from_pretrained(folder)
    sources = build_sources(vocab)
    check_labels(sources)
    steps = arguments.max_steps * _micro_batches_per_step(arguments)
    mixture = MixtureStreams(
        sources,
        config.packing,
        length=steps,
        seed=config.seed,
        index_folder=out,
        id_weights=id_weights(vocab, config.loss_weights),
    )
    validation = {
        name: ValidationSet(examples, config.packing, vocab.pad_id)
        for source in sources
        for name, examples in source.validation_sets(config.validation_limit).items()
    }
    model = build_model(vocab)
    rates = LearningRates(model, config.lr_factors, rows_of(vocab, base))
    optimizer = None
    if config.optimizer is not None:
        optimizer = MuonAdamW(model, dtype=dtype, rates=rates, **dataclasses.asdict(config.optimizer))

    def complete_folder(written: Path) -> None:
        copy_vocabulary(folder, written)
        if complete is not None:
            complete(written)

    trainer = PackedTrainer(
        compiles=config.compile,
        guard=LossGuard(out, spike_factor=config.spike_factor),
        rates=rates,
        model=model,
        args=arguments,
        train_dataset=mixture,
        eval_dataset=validation or None,
        data_collator=single_micro_batch,
        optimizers=(optimizer, None),
        callbacks=[Housekeeping(out, complete_folder)],
    )
    checkpoint = last_checkpoint(out) if is_first else None
    if arguments.world_size > 1:
        shared = [str(checkpoint) if checkpoint else None]
        torch.distributed.broadcast_object_list(shared)
        checkpoint = Path(shared[0]) if shared[0] else None
    if checkpoint:
        check_resumable(checkpoint, arguments)
        logger.info("resuming from %s", checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    exported = out / "model"
    trainer.save_model(str(exported))
    if is_first:
        complete_folder(exported)
        plot_curves(trainer.state.log_history, out / "curves.png")
        with atomic_write(out / "log.json") as temporary:
            temporary.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")
    return exported
