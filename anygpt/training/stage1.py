"""Stage 1: next-token prediction on pairs of text and media, both directions, on the Hugging Face Trainer."""

import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from anygpt.added_tokens import plan_expansion, write_tokenizer_files
from anygpt.config import load_config
from anygpt.data.mixture import PackedMixture, PairSource, SourceConfig, ValidationPairs, single_micro_batch
from anygpt.data.packing import PackingConfig, attention_mask
from anygpt.errors import CheckpointError, ConfigError, nearest
from anygpt.manifest import Manifest, ModalityEntry, write_manifest
from anygpt.media import atomic_write
from anygpt.modality import ModalitySpec, get_modality
from anygpt.paths import resource
from anygpt.prompts.tasks import TaskPrompts
from anygpt.tokenizers.base import load_tokenizer
from anygpt.training import attention
from anygpt.training.curves import plot_curves
from anygpt.training.optimizer import MuonAdamW
from anygpt.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""File that marks a checkpoint as whole: a run killed while saving leaves a folder without it."""


@dataclass(frozen=True, kw_only=True)
class ModalityConfig:
    """One modality of the model: its codebooks, and the tokenizer folder that made the codes."""

    codebook_size: int
    num_codebooks: int = 1
    tokenizer: str | None = None
    """Name under `tokenizers/`; its fingerprint goes into the checkpoint. None: the released tokenizers."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the model comes from: exactly one of `path` and `init`."""

    path: Path | None = None
    """A LLaMA checkpoint folder; its vocabulary is expanded."""
    init: dict[str, Any] | None = None
    """Fields of `LlamaConfig` for a model from scratch (vocab_size is filled in)."""
    tokenizer_model: Path | None = None
    """The sentencepiece model of a model from scratch."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.init is None):
            raise ConfigError("model: give exactly one of 'path' (a LLaMA checkpoint) and 'init' (from scratch)")
        if self.init is not None and self.tokenizer_model is None:
            raise ConfigError("model: 'init' needs 'tokenizer_model', a sentencepiece model")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon and AdamW on float32 masters; leave the section out for the Trainer's own `optim`."""

    lr: float = 2e-3
    muon_lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """The YAML file of a stage 1 run."""

    model: ModelConfig
    modalities: dict[str, ModalityConfig]
    data: list[SourceConfig]
    trainer: dict[str, Any]
    """Passed to `transformers.TrainingArguments`: max_steps, batch accumulation, FSDP, and so on."""
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig | None = None
    template: str = "AnyGPT"
    validation_fraction: float = 0.01
    validation_limit: int = 64
    """Validation pairs per source and direction."""
    seed: int = 0

    def __post_init__(self) -> None:
        for source in self.data:
            if source.modality not in self.modalities:
                raise ConfigError(
                    f"data: {source.path}: modality '{source.modality}' is not among modalities: "
                    f"{', '.join(self.modalities)}"
                )
        known = {f.name for f in dataclasses.fields(TrainingArguments)}
        for key in self.trainer:
            if key not in known or key == "output_dir":
                raise ConfigError(f"trainer: unknown key '{key}'{nearest(key, known)}")
        if self.optimizer is not None and (self.trainer.get("fsdp") or self.trainer.get("deepspeed")):
            raise ConfigError(
                "optimizer: keeps whole copies of the weights, which FSDP and DeepSpeed split; leave the section out "
                "and set trainer.optim and trainer.learning_rate"
            )
        if "max_steps" not in self.trainer:
            raise ConfigError("trainer: 'max_steps' is missing; the mixture has no epochs")

    def specs(self) -> list[ModalitySpec]:
        return [
            get_modality(name).with_codebooks(codebook_size=m.codebook_size, num_codebooks=m.num_codebooks)
            for name, m in self.modalities.items()
        ]


class PackedTrainer(Trainer):
    """The Trainer on packed micro-batches: block-diagonal attention, weighted loss, loader without shuffling."""

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
        ids, weights = inputs["input_ids"], inputs["loss_weights"][:, 1:]
        dtype = next(model.parameters()).dtype
        logits = model(
            input_ids=ids,
            attention_mask=attention_mask(inputs["segment_ids"], dtype),
            position_ids=inputs["position_ids"],
            use_cache=False,
        ).logits
        counted = weights > 0
        losses = F.cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="none")
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (losses * weights[counted]).sum() / total
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks, the total is a sum
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        assert isinstance(loss, Tensor)
        return loss.detach(), None, None


class _Housekeeping(TrainerCallback):
    """Marks whole checkpoints, copies the vocabulary beside the weights and draws the curves."""

    def __init__(self, out: Path, vocabulary_folder: Path) -> None:
        self.out, self.vocabulary_folder = out, vocabulary_folder

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every rank has written its part
        if state.is_world_process_zero:
            folder = self.out / f"checkpoint-{state.global_step}"
            copy_vocabulary(self.vocabulary_folder, folder)
            (folder / COMPLETE).touch()
            plot_curves(state.log_history, self.out / "curves.png")


VOCABULARY_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "anygpt.json",
)


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


def _manifest(config: Stage1Config) -> Manifest:
    """What `anygpt.json` will say: the codebooks asked for, and the fingerprints of the tokenizers named."""
    entries = {}
    for name, modality in config.modalities.items():
        entry = ModalityEntry(codebook_size=modality.codebook_size, num_codebooks=modality.num_codebooks)
        if modality.tokenizer is not None:
            tokenizer = load_tokenizer(resource("tokenizers", modality.tokenizer))
            entry = Manifest.of({modality.tokenizer: tokenizer}, template=config.template).modalities[name]
            if (entry.codebook_size, entry.num_codebooks) != (modality.codebook_size, modality.num_codebooks):
                raise ConfigError(
                    f"modalities.{name}: {modality.num_codebooks} x {modality.codebook_size} codes, but tokenizer "
                    f"'{modality.tokenizer}' has {entry.num_codebooks} x {entry.codebook_size}"
                )
        entries[name] = entry
    return Manifest(modalities=entries, template=config.template)


def build_vocabulary(config: Stage1Config, folder: Path) -> Vocabulary:
    """Write the vocabulary files of the new model into `folder` and read them back."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.model.path is not None:
        expansion = plan_expansion(config.model.path, config.specs())
        write_tokenizer_files(folder, config.model.path / "tokenizer.model", expansion.tokens)
    else:
        assert config.model.tokenizer_model is not None
        Vocabulary.create(folder, config.model.tokenizer_model, config.specs())
    write_manifest(folder, _manifest(config))
    return Vocabulary.from_pretrained(folder)


def build_model(config: Stage1Config, vocab: Vocabulary) -> LlamaForCausalLM:
    """The model to train: from scratch, or a LLaMA checkpoint with rows added for the new tokens.

    New rows are drawn around the mean of the old ones with their covariance (Hewitt 2021), so that at first no new
    token is likelier than the old.
    """
    settings = config.model
    if settings.attention == attention.NAME:
        attention.register()
    dtype = getattr(torch, settings.dtype)
    if settings.path is not None:
        try:
            model = LlamaForCausalLM.from_pretrained(settings.path, dtype=dtype, attn_implementation=settings.attention)
        except OSError as error:
            raise CheckpointError(f"{settings.path}: not a LLaMA checkpoint ({error})") from None
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding), type(embeddings)
        if embeddings.num_embeddings < vocab.size:
            model.resize_token_embeddings(vocab.size, mean_resizing=True)
        return model
    assert settings.init is not None
    known = set(LlamaConfig().to_dict())
    for key in settings.init:
        if key not in known:
            raise ConfigError(f"model.init: unknown key '{key}'{nearest(key, known)}")
    llama = LlamaConfig(
        **{"bos_token_id": vocab.bos_id, "eos_token_id": vocab.text_eos_id, "pad_token_id": vocab.pad_id}
        | settings.init
        | {"vocab_size": vocab.size}
    )
    llama._attn_implementation = settings.attention
    # In float32: an optimizer with masters rounds them itself.
    return LlamaForCausalLM(llama) if config.optimizer else LlamaForCausalLM(llama).to(dtype)


def training_arguments(config: Stage1Config, out: Path) -> TrainingArguments:
    """The Trainer's settings: the `trainer` section, and what packed micro-batches need."""
    return TrainingArguments(
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
            **config.trainer,
        },
    )


def train_stage1(config_path: Path, out: Path, *, overrides: dict[str, Any] | None = None) -> Path:
    """Run or resume stage 1; the exported model folder, `out/model`.

    `overrides` replace keys of the `trainer` section. Raises ConfigError and CheckpointError.
    """
    config = load_config(Stage1Config, config_path)
    config = dataclasses.replace(config, trainer={**config.trainer, **(overrides or {})})
    set_seed(config.seed)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(out / "tensorboard"))
    arguments = training_arguments(config, out)
    folder = out / "vocabulary"
    is_first = arguments.process_index == 0
    with arguments.main_process_first(local=False, desc="vocabulary"):
        vocab = build_vocabulary(config, folder) if is_first else Vocabulary.from_pretrained(folder)
    prompts = TaskPrompts.load()
    sources = [PairSource(s, vocab, prompts, validation_fraction=config.validation_fraction) for s in config.data]
    steps = arguments.max_steps * arguments.gradient_accumulation_steps * arguments.world_size
    index_path = out / f"micro_batches.{arguments.process_index}.json"
    mixture = PackedMixture(sources, config.packing, length=steps, seed=config.seed, index_path=index_path)
    validation = {
        f"{source.config.path.stem}_{direction}": ValidationPairs(
            source, direction, config.packing, limit=config.validation_limit
        )
        for source in sources
        for direction in source.directions
        if source.split[1]
    }
    model = build_model(config, vocab)
    optimizer = None
    if config.optimizer is not None:
        dtype = getattr(torch, config.model.dtype)
        optimizer = MuonAdamW(model, dtype=dtype, **dataclasses.asdict(config.optimizer))
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        train_dataset=mixture,
        eval_dataset=validation or None,
        data_collator=single_micro_batch,
        optimizers=(optimizer, None),
        callbacks=[_Housekeeping(out, folder)],
    )
    checkpoint = last_checkpoint(out) if is_first else None
    if arguments.world_size > 1:
        shared = [str(checkpoint) if checkpoint else None]
        torch.distributed.broadcast_object_list(shared)
        checkpoint = Path(shared[0]) if shared[0] else None
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    exported = out / "model"
    trainer.save_model(str(exported))
    if is_first:
        copy_vocabulary(folder, exported)
        plot_curves(trainer.state.log_history, out / "curves.png")
        with atomic_write(out / "log.json") as temporary:
            temporary.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")
    return exported
