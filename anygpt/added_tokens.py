"""Which tokens a multimodal checkpoint adds to its text vocabulary, in which order, and the files that say so."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anygpt.errors import CheckpointError
from anygpt.modality import ModalitySpec
from anygpt.text_tokenizer import TextTokenizer

PRETRAINING_CONTROLS = ("[Human]", "[MMGPT]", "<eoh>", "<eos>")
"""Role tags and ends of turns that published pre-training adds before the first modality."""
CHAT_CONTROLS = ("<eom>", "[AnyGPT]", "<-Res->", "<-Ins->")
"""What the released chat checkpoint carries after the last modality."""


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """How to enlarge a language model's embedding so that it holds the multimodal vocabulary."""

    old_rows: int
    """Rows of the text vocabulary that keep their weights."""
    rows: int
    """Rows after the expansion."""
    tokens: dict[str, int]
    """All added tokens with their ids, those that were there before included."""


def build_added_tokens(
    base_size: int,
    specs: Iterable[ModalitySpec],
    *,
    controls: Iterable[str] = PRETRAINING_CONTROLS,
    trailing: Iterable[str] = CHAT_CONTROLS,
    existing: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Token -> id: `controls`, then per modality its codes, start tag and end tag, then `trailing`.

    New ids follow the highest one there is (`base_size` text pieces, or `existing`). A token that exists keeps its
    id; a modality whose start tag exists is not touched. The defaults give the layout of the released chat model.
    """
    tokens = dict(existing or {})
    next_id = max([base_size, *[i + 1 for i in tokens.values()]])

    def add(names: Iterable[str]) -> None:
        nonlocal next_id
        for name in names:
            if name not in tokens:
                tokens[name] = next_id
                next_id += 1

    add(controls)
    for spec in specs:
        if spec.start not in tokens:
            add(map(spec.code_token, range(spec.num_tokens)))
            add((spec.start, spec.end))
    add(trailing)
    return tokens


def plan_expansion(folder: Path | str, specs: Iterable[ModalitySpec]) -> Expansion:
    """What to add to the vocabulary of a LLaMA checkpoint folder (`tokenizer.model`, maybe `added_tokens.json`)."""
    folder = Path(folder)
    base_size = TextTokenizer(folder / "tokenizer.model").size
    path = folder / "added_tokens.json"
    existing: dict[str, int] = {}
    if path.is_file():
        try:
            existing = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    old_rows = max([base_size, *[i + 1 for i in existing.values()]])
    tokens = build_added_tokens(base_size, specs, existing=existing)
    return Expansion(old_rows=old_rows, rows=max(old_rows, 1 + max(tokens.values())), tokens=tokens)


def write_tokenizer_files(folder: Path, sentencepiece_model: Path, tokens: Mapping[str, int]) -> None:
    """Write `tokenizer.model`, `added_tokens.json`, `tokenizer_config.json` and `special_tokens_map.json`.

    The first two are enough to use the checkpoint; the other two let transformers load the same vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "tokenizer.model"
    if sentencepiece_model.resolve() != model.resolve():
        temporary = model.with_suffix(".model.partial")
        shutil.copyfile(sentencepiece_model, temporary)
        temporary.replace(model)
    special = {
        name: {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": None,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "spaces_between_special_tokens": False,
            "sp_model_kwargs": {},
        },
    )
    # Last, because a folder without it is not taken for a multimodal checkpoint.
    _write_json(folder / "added_tokens.json", dict(sorted(tokens.items(), key=lambda item: item[1])))


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".json.partial")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
