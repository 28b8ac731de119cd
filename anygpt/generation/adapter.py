"""LoRA adapters: what `peft` saves, applied to the weights of the model that it was trained on.

W + scale * B A (Hu et al. 2021, section 4.1), computed here so that a chat needs neither peft nor transformers; a
test holds it equal to peft's own merge.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.manifest import read_manifest
from anygpt.paths import resource

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the keys of the base model."""

Getters = Mapping[str, Callable[[str], Tensor]]
"""Key -> the function that reads its tensor."""

# Other values of these change what an adapter's tensors mean.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (folder / CONFIG_NAME).is_file() and not (folder / "config.json").is_file()


class Adapter:
    """An adapter folder; `base` is the folder of the model that it belongs to."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for a missing or damaged file, a kind of adapter that isn't supported, a base that
        isn't there, or one whose tokenizers differ."""
        self.folder = folder
        config_path = folder / CONFIG_NAME
        try:
            self.config = json.loads(config_path.read_text(encoding="utf-8"))
            rank, alpha = int(self.config["r"]), float(self.config["lora_alpha"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{config_path}: not the configuration of a LoRA adapter ({error!r})") from None
        for key, plain in _PLAIN.items():
            if self.config.get(key) not in plain:
                raise CheckpointError(
                    f"{config_path}: {key} is {self.config.get(key)!r}, supported is plain LoRA; merge it with peft"
                )
        self._scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        self._tensors = _read_tensors(folder / WEIGHTS_NAME)
        self.base = self._find_base(config_path)
        self._check_manifest()

    def check_weights(self, files: Iterable[Path]) -> None:
        """Raise CheckpointError when the base's weight files are not those that the adapter was trained on."""
        manifest = read_manifest(self.folder)
        expected = manifest.base_weights if manifest is not None else None
        if expected is not None and weights_fingerprint(files) != expected:
            raise CheckpointError(f"{self.folder}: was trained on other weights than those in {self.base}")

    def apply(self, getters: Getters, *, tied_head: bool) -> dict[str, Callable[[str], Tensor]]:
        """Readers of the base's tensors with the adapter in them, each in the type that the base has it in.

        Raises CheckpointError for a tensor of the adapter that belongs to none of the base.
        """
        modules = {key.removesuffix(".weight"): key for key in getters}
        for key in self._tensors:
            module = key.removeprefix(PREFIX)
            for ending in (".weight", ".lora_A", ".lora_B", ".token_adapter.trainable_tokens_delta"):
                module = module.removesuffix(ending)
            if module not in modules and not (tied_head and module == "lm_head"):
                raise CheckpointError(f"{self.folder / WEIGHTS_NAME}: '{key}' fits no weight of {self.base}")
        return {key: self._merging(get) for key, get in getters.items()}

    def rows(self, rows: int) -> int:
        """Rows of the embedding with the adapter applied, where the base has `rows`."""
        new = [row + 1 for indices in self._token_rows().values() for row in indices]
        return max([rows, *new])

    def _merging(self, get: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        return lambda key: self._merged(key, get(key))

    def _merged(self, key: str, tensor: Tensor) -> Tensor:
        whole = self._tensors.get(f"{PREFIX}{key}")
        if whole is not None:  # `modules_to_save`
            return whole.to(tensor.dtype)
        module = key.removesuffix(".weight")
        down, up = (self._tensors.get(f"{PREFIX}{module}.lora_{part}.weight") for part in "AB")
        if down is not None and up is not None:
            if (up.shape[0], down.shape[1]) != tuple(tensor.shape):
                raise CheckpointError(f"{self.folder}: its '{module}' has another shape than that of {self.base}")
            tensor = (tensor.float() + self._scale * (up.float() @ down.float())).to(tensor.dtype)
        new_rows = self._tensors.get(f"{PREFIX}{module}.token_adapter.trainable_tokens_delta")
        if new_rows is not None:  # despite their name these are the rows themselves
            indices = self._token_rows()[module.rpartition(".")[2]]
            missing = self.rows(len(tensor)) - len(tensor)
            tensor = torch.cat([tensor, tensor.new_zeros(missing, tensor.shape[1])])
            tensor[torch.tensor(indices)] = new_rows.to(tensor.dtype)
        return tensor

    def _token_rows(self) -> dict[str, list[int]]:
        """Layer -> the rows that were trained, in the order of their tensor."""
        given = self.config.get("trainable_token_indices") or {}
        return given if isinstance(given, dict) else {"embed_tokens": given}

    def _find_base(self, config_path: Path) -> Path:
        name = self.config.get("base_model_name_or_path") or ""
        places = [self.folder / Path(name).expanduser()]
        if len(Path(name).parts) == 1:
            try:
                places.append(resource("models", name))
            except AnyGPTError:
                pass
        base = next((place for place in places if name and (place / "config.json").is_file()), None)
        if base is None:
            raise CheckpointError(
                f"{config_path}: base_model_name_or_path is '{name}', which is no model folder seen from "
                f"{self.folder} and no shipped model; put the folder's path there"
            )
        return base

    def _check_manifest(self) -> None:
        own, base = read_manifest(self.folder), read_manifest(self.base)
        if own is None or base is None:
            return
        for name, entry in own.modalities.items():
            if base.modalities.get(name) != entry:
                raise CheckpointError(
                    f"{self.folder}: its base {self.base} has another tokenizer or codebook of {name}"
                )


def weights_fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over the sizes of weight files and 16 slices of each: quick also for large models."""
    digest = hashlib.sha256()
    slice_bytes = 1 << 16
    for path in files:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for number in range(16):
                file.seek(max(0, size - slice_bytes) * number // 15)
                digest.update(file.read(slice_bytes))
    return digest.hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; an adapter folder holds it beside {CONFIG_NAME}")
    try:
        with safe_open(path, framework="pt") as reader:
            return {key: reader.get_tensor(key) for key in reader.keys()}
    except Exception as error:  # safetensors raises a different type for every kind of damage
        raise CheckpointError(f"{path}: damaged or not a weights file ({type(error).__name__})") from None
