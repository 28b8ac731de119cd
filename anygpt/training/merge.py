"""An adapter and its base as one ordinary model folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from huggingface_hub import save_torch_state_dict

from anygpt.errors import AnyGPTError, CheckpointError
from anygpt.generation.adapter import Adapter, is_adapter
from anygpt.generation.llama import open_checkpoint
from anygpt.manifest import read_manifest, write_manifest
from anygpt.media import atomic_write
from anygpt.training.language_model import copy_vocabulary


def merge_adapter(folder: Path, out: Path) -> Path:
    """Write the model that `load_decoder` makes of an adapter folder into the new folder `out`; returns it.

    Weights keep the base's type. Raises CheckpointError for a folder that holds no adapter, AnyGPTError when `out`
    holds something already.
    """
    if not is_adapter(folder):
        raise CheckpointError(f"{folder}: holds no adapter (adapter_config.json), so there is nothing to merge")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise AnyGPTError(f"{out}: exists already; name a new folder")
    config, getters = open_checkpoint(folder)
    base = Adapter(folder).base
    out.mkdir(parents=True, exist_ok=True)
    copy_vocabulary(folder, out)
    manifest = read_manifest(out)
    if manifest is not None:
        write_manifest(out, replace(manifest, base_weights=None))
    defaults = base / "generation_config.json"
    if defaults.is_file():
        shutil.copyfile(defaults, out / defaults.name)
    save_torch_state_dict({key: get(key).contiguous() for key, get in getters.items()}, out, max_shard_size="5GB")
    # Last: a folder without it is no model.
    with atomic_write(out / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return out
