"""Stage 1: next-token prediction on pairs of text and media, both directions, and on interleaved documents."""

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anygpt.added_tokens import plan_expansion, write_tokenizer_files
from anygpt.data.catalog import load_run
from anygpt.data.conversations import ConversationConfig, ConversationSource
from anygpt.data.mixture import PairSource, Source, SourceConfig
from anygpt.errors import ConfigError, nearest
from anygpt.manifest import Manifest, ModalityEntry, write_manifest
from anygpt.modality import ModalitySpec, get_modality
from anygpt.paths import resource
from anygpt.prompts.tasks import TaskPrompts
from anygpt.tokenizers.base import load_tokenizer
from anygpt.training import attention
from anygpt.training.language_model import ModalityConfig, RunConfig, load_llama, rows_of, train_packed
from anygpt.training.plan import Machine, plan_run
from anygpt.training.trainable import set_trainable
from anygpt.vocabulary import Vocabulary


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
class Stage1Config(RunConfig):
    """The YAML file of a stage 1 run."""

    model: ModelConfig
    modalities: dict[str, ModalityConfig]
    data: list[SourceConfig]
    """Files of pairs."""
    conversations: list[ConversationConfig] = field(default_factory=list)
    """Files of interleaved documents, as conversations; weights count together with `data`."""
    scenario_limit: int = 8
    """Validation conversations of each scenario."""

    def __post_init__(self) -> None:
        for source in self.data:
            if source.modality not in self.modalities:
                raise ConfigError(
                    f"data: {source.path}: modality '{source.modality}' is not among modalities: "
                    f"{', '.join(self.modalities)}"
                )
        super().__post_init__()

    def specs(self) -> list[ModalitySpec]:
        specs = {
            name: get_modality(name).with_codebooks(codebook_size=m.codebook_size, num_codebooks=m.num_codebooks)
            for name, m in self.modalities.items()
        }
        return [spec.with_parts(specs) for spec in specs.values()]


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
        entries[name] = dataclasses.replace(entry, decoding=modality.decoding, reading=modality.reading)
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


def build_model(config: Stage1Config, vocab: Vocabulary, *, empty: bool = False) -> LlamaForCausalLM:
    """The model to train: from scratch, or a LLaMA checkpoint with rows added for the new tokens.

    `empty` gives its shapes without weights.
    """
    settings = config.model
    dtype = getattr(torch, settings.dtype)
    if settings.path is not None:
        model = load_llama(settings.path, vocab, dtype=dtype, implementation=settings.attention, empty=empty)
        set_trainable(model, config.trainable, rows_of(vocab, settings.path))
        return model
    assert settings.init is not None
    if settings.attention == attention.NAME:
        attention.register()
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
    with torch.device("meta") if empty else nullcontext():
        model = LlamaForCausalLM(llama)
    if config.optimizer is None:
        model = model.to(dtype)
    set_trainable(model, config.trainable, rows_of(vocab, None))
    return model


def build_sources(config: Stage1Config, vocab: Vocabulary) -> list[Source]:
    """The pairs and the interleaved documents of a run."""
    prompts = TaskPrompts.load()
    pairs = [PairSource(s, vocab, prompts, validation_fraction=config.validation_fraction) for s in config.data]
    documents = [
        ConversationSource(
            entry,
            vocab,
            validation_fraction=config.validation_fraction,
            longest=config.packing.row_lengths[-1],
            scenario_limit=config.scenario_limit,
        )
        for entry in config.conversations
    ]
    return [*pairs, *documents]


def read_stage1(config_path: Path, overrides: dict[str, Any] | None = None) -> Stage1Config:
    """The configuration of a run; `overrides` replace keys of the `trainer` section. Raises ConfigError."""
    config = load_run(Stage1Config, config_path, pairs="data", conversations="conversations")
    return dataclasses.replace(config, trainer={**config.trainer, **(overrides or {})})


def _builders(config: Stage1Config) -> dict[str, Any]:
    return {
        "build_vocabulary": partial(build_vocabulary, config),
        "build_sources": partial(build_sources, config),
        "build_model": partial(build_model, config),
        "base": config.model.path,
        "dtype": getattr(torch, config.model.dtype),
    }


def train_stage1(config_path: Path, out: Path, *, overrides: dict[str, Any] | None = None) -> Path:
    """Run or resume stage 1; the exported model folder, `out/model`. Raises ConfigError and CheckpointError."""
    config = read_stage1(config_path, overrides)
    return train_packed(config, out, **_builders(config))


def plan_stage1(config_path: Path, machine: Machine, *, overrides: dict[str, Any] | None = None) -> Iterator[str]:
    """Lines about what stage 1 will do and need. Raises what `train_stage1` would before its first step."""
    config = read_stage1(config_path, overrides)
    return plan_run(config, machine, **_builders(config))
