"""One vocabulary for text, control tokens and media codes: ids both ways, exactly.

Ids come from the checkpoint's own `added_tokens.json`, never from arithmetic on the size of the text vocabulary:
the released chat model carries a block of sound-effect codes that the published code no longer adds.
Shape suffixes: K levels that the language model sees, T frames.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anygpt import added_tokens
from anygpt.blocks import Block, checked_tokens, find_block, marker_pattern
from anygpt.code_strings import (
    codes_to_indices,
    codes_to_string,
    frame_time,
    indices_to_codes,
    join_codes,
    split_codes,
)
from anygpt.errors import CheckpointError, CodeError, nearest
from anygpt.modality import MODALITIES, ModalitySpec
from anygpt.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class Text:
    """A run of plain text."""

    text: str


@dataclass(frozen=True)
class Control:
    """A single control token, such as a role tag or an end of turn."""

    token: str


@dataclass(frozen=True, eq=False)
class Span:
    """A run of one modality: `codes_KT` int64 [K, T]; `spec.frame_rate_hz` gives its length in seconds."""

    spec: ModalitySpec
    codes_KT: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Span) and self.spec == other.spec and torch.equal(self.codes_KT, other.codes_KT)

    def __hash__(self) -> int:
        return hash((self.spec, tuple(self.codes_KT.flatten().tolist())))


class Vocabulary:
    """Text pieces, control tokens and blocks of media codes of one checkpoint."""

    def __init__(
        self,
        text: TextTokenizer,
        tokens: Mapping[str, int],
        *,
        modalities: Mapping[str, ModalitySpec] = MODALITIES,
        sizes: Mapping[str, Mapping[str, Any]] | None = None,
        template: str = "MMGPT",
        source: str = "added_tokens.json",
    ) -> None:
        """`tokens` maps every added token to its id; `sizes` holds `codebook_size`, `num_codebooks` and perhaps
        `frame_rate_hz` by modality, read off the length of the block and the row where it has none. `template` names
        the chat template that the checkpoint was trained with, `source` the file in messages.

        Raises CheckpointError for a block with a hole or a missing tag, or sizes that don't fit the block.
        """
        self.text = text
        self.template = template
        self.tokens = checked_tokens(text, tokens, source)
        self.size = max(text.size, 1 + max(self.tokens.values(), default=-1))
        """Rows that the model's embedding needs."""
        self.blocks: dict[str, Block] = {}
        for spec in sorted(modalities.values(), key=lambda spec: bool(spec.parts)):
            block = find_block(spec, self.tokens, sizes, source, self.blocks)
            if block is not None:
                self.blocks[spec.name] = block
        for name in sizes or {}:
            if name not in self.blocks:
                raise CheckpointError(f"{source}: no codes of modality '{name}', which anygpt.json names")
        self.specs: dict[str, ModalitySpec] = {name: block.spec for name, block in self.blocks.items()}
        """The modalities of this checkpoint at its codebook sizes."""
        self._block_by_start = {block.start_id: block for block in self.blocks.values()}
        in_blocks = {i for block in self.blocks.values() for i in (*block.ids, block.start_id, block.end_id)}
        self.controls: dict[str, int] = {t: i for t, i in self.tokens.items() if i not in in_blocks}
        """Added tokens that are no code and no modality tag: role tags, ends of turns, separators."""
        self._control_by_id = {i: t for t, i in self.controls.items()}
        self.bos_id = text.bos_id
        """`<s>`, which begins every sequence."""
        self.text_eos_id = text.eos_id
        """`</s>`, which ends every training example (the ends of turns are control tokens)."""
        self.pad_id = max(text.unk_id, 0)
        """`<unk>`, as in the released checkpoints."""
        marked = {text.piece(i): i for i in (text.bos_id, text.eos_id, text.unk_id) if i >= 0}
        self._marked: dict[str, int] = {**marked, **self.tokens}
        self._marker = marker_pattern(self._marked, self.blocks.values())

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, modalities: Mapping[str, ModalitySpec] = MODALITIES
    ) -> "Vocabulary":
        """Read `tokenizer.model`, `added_tokens.json` and, where there is one, `anygpt.json` of a model folder.

        `modalities` is the table to look for. Raises CheckpointError naming the missing or damaged file.
        """
        folder = Path(folder)
        path = folder / "added_tokens.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; it maps the control and code tokens of the checkpoint to ids")
        tokens = _read_json(path)
        if not all(isinstance(value, int) for value in tokens.values()):
            raise CheckpointError(f"{path}: expected a map of token to id, got other values")
        own = folder / "anygpt.json"
        settings = _read_json(own) if own.is_file() else {}
        sizes = settings.get("modalities")
        if sizes is not None and not _are_sizes(sizes):
            raise CheckpointError(
                f"{own}: 'modalities' must map each name to a codebook_size and a num_codebooks, both whole numbers"
            )
        template = settings.get("template", "MMGPT")
        if not isinstance(template, str):
            raise CheckpointError(f"{own}: 'template' must be the name of a chat template, got {template!r}")
        return cls(
            TextTokenizer(folder / "tokenizer.model"),
            tokens,
            modalities=modalities,
            sizes=sizes,
            template=template,
            source=str(path),
        )

    @classmethod
    def create(cls, folder: Path | str, sentencepiece_model: Path | str, specs: Iterable[ModalitySpec]) -> "Vocabulary":
        """Write the tokenizer files of a new checkpoint, in the published order, and read them back.

        `specs` are the modalities at the sizes wanted, in order. Existing files of these names are replaced.
        """
        specs = list(specs)
        text = TextTokenizer(sentencepiece_model)
        tokens = added_tokens.build_added_tokens(text.size, specs)
        added_tokens.write_tokenizer_files(Path(folder), Path(sentencepiece_model), tokens)
        return cls.from_pretrained(folder, modalities={spec.name: spec for spec in specs})

    # Looking ids up

    def block(self, name: str) -> Block:
        """The block of modality `name`. Raises CheckpointError when the checkpoint has none."""
        try:
            return self.blocks[name]
        except KeyError:
            known = ", ".join(self.blocks) or "none"
            raise CheckpointError(
                f"this checkpoint has no modality '{name}'{nearest(name, self.blocks)}; it has: {known}"
            ) from None

    def start_id(self, name: str) -> int:
        """Id of the start tag of modality `name`."""
        return self.block(name).start_id

    def end_id(self, name: str) -> int:
        """Id of the end tag of modality `name`."""
        return self.block(name).end_id

    def control_id(self, token: str) -> int:
        """Id of a control token such as `<eoh>`, of a tag or of `<s>`. Raises CheckpointError when there is none."""
        try:
            return self._marked[token]
        except KeyError:
            known = ", ".join(self.controls) or "none"
            raise CheckpointError(f"this checkpoint has no control token '{token}'; it has: {known}") from None

    def is_text(self, index: int) -> bool:
        """Whether the id is a text piece; `<s>`, `</s>` and `<unk>` are not."""
        return 0 <= index < self.text.size and index not in self.text.special_ids

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the text pieces and added tokens: equal fingerprints mean equal ids."""
        digest = hashlib.sha256(self.text.model_path.read_bytes())
        digest.update(json.dumps(self.tokens, sort_keys=True).encode())
        return digest.hexdigest()

    # To ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text: a control token or code typed in it stays ordinary text."""
        return self.text.encode(text)

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a trusted string, in which control tokens and codes stand for themselves.

        Only for training files and rendered templates, never for what a user typed. Equals the tokenizer of
        transformers 4.34.1, with which the released checkpoints were trained; adds no `<s>`.
        """
        ids: list[int] = []
        for part in self._split_markers(text):
            ids += self.text.encode(part) if isinstance(part, str) else part
        return ids

    def split_marked(self, text: str) -> "list[Text | Control | Span]":
        """What a trusted string is made of, as `decode_ids` gives it. Raises CodeError for a malformed span.

        A position in a message counts tokens from the last text before the span.
        """
        items: list[Text | Control | Span] = []
        for part in self._split_markers(text):
            items += [Text(part)] if isinstance(part, str) else self.decode_ids(part)
        return items

    def _split_markers(self, text: str) -> Iterator[str | list[int]]:
        """Runs of text, and runs of ids of the control tokens and codes between them, in turn; none is empty.

        The times in a span that is made of parts are among the ids.
        """
        pending = ""
        ids: list[int] = []
        end_id: int | None = None
        for part in self._parts(text):
            if end_id is not None:
                new = self.text.encode(part) if isinstance(part, str) else part
                ids += new
                end_id = None if new[-1] == end_id else end_id
            elif isinstance(part, str):
                if ids:
                    yield ids
                    ids = []
                pending += part
            else:
                if pending:
                    yield pending
                    pending = ""
                ids += part
                opened = self._block_by_start.get(part[-1])
                end_id = opened.end_id if opened is not None and opened.parts else None
        if ids:
            yield ids
        if pending:
            yield pending

    def _parts(self, text: str) -> Iterator[str | list[int]]:
        """As `_split_markers`, but neighbours may be of one kind."""
        # The pattern has one group, so pieces alternate: text, marker, text, ..., text.
        for number, piece in enumerate(self._marker.split(text)):
            if not piece:
                continue
            if number % 2 == 0:
                yield piece
            elif piece in self._marked:
                yield [self._marked[piece]]
            else:
                yield from self._code_parts(piece)

    def _code_parts(self, run: str) -> Iterator[str | list[int]]:
        """A run of code strings of one modality. One that is outside this checkpoint's block is plain text."""
        block = next(block for block in self.blocks.values() if run.startswith(f"<{block.spec.prefix}"))
        head = f"<{block.spec.prefix}"
        # NumPy reads a comma-separated list several times faster than int() reads its items.
        numbers = run[len(head) : -1].replace(f">{head}", ",")
        indices = np.fromstring(numbers, dtype=np.int64, sep=",")
        if indices.max() < block.size:
            yield (indices + block.first_id).tolist()
            return
        for index in indices.tolist():
            yield [block.first_id + index] if index < block.size else block.spec.code_token(index)

    def encode_codes(self, modality: ModalitySpec | str, codes_KT: Tensor) -> list[int]:
        """Ids of a span with its tags: `codes_KT` integers [K, T]; K*T + 2 ids, more where it is made of parts.

        Raises CodeError.
        """
        block = self.block(modality if isinstance(modality, str) else modality.name)
        if block.parts:
            return self._encode_parts(block, codes_KT)
        first = block.first_id
        return [block.start_id, *[first + i for i in codes_to_indices(block.spec, codes_KT)], block.end_id]

    def time_ids(self, spec: ModalitySpec, number: int) -> list[int]:
        """Ids of the text before frame `number` (from 0) of a span that is made of parts."""
        return self.encode_text(frame_time(spec, number))

    def _encode_parts(self, block: Block, codes_KT: Tensor) -> list[int]:
        codes_to_indices(block.spec, codes_KT)  # its messages are in the terms of this modality
        frames, sound_KT = split_codes(block.spec, codes_KT)
        ids = [block.start_id]
        for number, frame_KT in enumerate(frames):
            ids += [*self.time_ids(block.spec, number), *self.encode_codes(block.parts[0].spec, frame_KT)]
        if sound_KT is not None:
            ids += self.encode_codes(block.parts[1].spec, sound_KT)
        return [*ids, block.end_id]

    # From ids

    def decode_ids(self, ids: Sequence[int]) -> list[Text | Control | Span]:
        """Text runs, control tokens and spans in order; `<s>`, `</s>` and `<unk>` come as controls.

        The inverse of `encode_text` and `encode_codes` over a sequence in which no two texts are neighbours.
        Raises CodeError with the position for a code or end tag outside a span, a span that doesn't end or has a
        wrong level, count or range, and an id outside the vocabulary.
        """
        items: list[Text | Control | Span] = []
        at = 0
        while at < len(ids):
            if self.is_text(ids[at]):
                end = at + 1
                while end < len(ids) and self.is_text(ids[end]):
                    end += 1
                items.append(Text(self.text.decode(ids[at:end])))
            elif ids[at] in self._block_by_start:
                span, end = self._span_at(ids, at)
                items.append(span)
            else:
                items.append(Control(self._control_at(ids, at)))
                end = at + 1
            at = end
        return items

    def decode_text(self, ids: Sequence[int]) -> str:
        """The marked string of any ids: the inverse of `encode_marked`, for logs and training files.

        Broken spans are written as they are. Raises CodeError for an id outside the vocabulary.
        """
        parts: list[str] = []
        run: list[int] = []
        for at, index in enumerate(ids):
            if self.is_text(index):
                run.append(index)
                continue
            if run:
                parts.append(self.text.decode(run))
                run = []
            parts.append(self._marker_by_id.get(index) or self._control_at(ids, at))
        if run:
            parts.append(self.text.decode(run))
        return "".join(parts)

    def span_string(self, span: Span) -> str:
        """The span as the training files write it, for example `<soim><👀12>...<eoim>`."""
        return codes_to_string(span.spec, span.codes_KT)

    @cached_property
    def _marker_by_id(self) -> dict[int, str]:
        return {i: token for token, i in self._marked.items()}

    def _span_at(self, ids: Sequence[int], at: int) -> tuple[Span, int]:
        """The span that starts at a position, and where it ends."""
        block = self._block_by_start[ids[at]]
        if block.parts:
            return self._span_of_parts(block, ids, at)
        end = self._span_end(block, ids, at)
        indices = [i - block.first_id for i in ids[at + 1 : end]]
        return Span(block.spec, indices_to_codes(block.spec, indices, position=at + 1)), end + 1

    def _span_of_parts(self, block: Block, ids: Sequence[int], start: int) -> tuple[Span, int]:
        frames: list[Tensor] = []
        sound_KT: Tensor | None = None
        at = start + 1
        while at < len(ids) and ids[at] != block.end_id:
            due = [*self.time_ids(block.spec, len(frames)), block.parts[0].start_id]
            if sound_KT is None and list(ids[at : at + len(due)]) == due:
                span, at = self._span_at(ids, at + len(due) - 1)
                frames.append(span.codes_KT)
            elif frames and sound_KT is None and ids[at] in [part.start_id for part in block.parts[1:]]:
                span, at = self._span_at(ids, at)
                sound_KT = span.codes_KT
            else:
                raise CodeError(
                    f"{block.spec.name}: id {ids[at]} ({self._describe(ids[at])}) at position {at} begins neither "
                    f"frame {len(frames)} at {frame_time(block.spec, len(frames))} s nor the sound after the frames"
                )
        if at >= len(ids):
            raise CodeError(f"{block.spec.name}: the span that starts at position {start} has no {block.spec.end}")
        return Span(block.spec, join_codes(block.spec, frames, sound_KT)), at + 1

    def _span_end(self, block: Block, ids: Sequence[int], start: int) -> int:
        codes = block.ids
        end = start + 1
        while end < len(ids) and ids[end] in codes:
            end += 1
        if end == len(ids):
            raise CodeError(f"{block.spec.name}: the span that starts at position {start} has no {block.spec.end}")
        if ids[end] != block.end_id:
            raise CodeError(
                f"{block.spec.name}: id {ids[end]} ({self._describe(ids[end])}) at position {end} is no "
                f"{block.spec.name} code and not {block.spec.end}"
            )
        return end

    def _control_at(self, ids: Sequence[int], at: int) -> str:
        index = ids[at]
        if index in self._control_by_id:
            return self._control_by_id[index]
        if 0 <= index < self.text.size:
            return self.text.piece(index)
        raise CodeError(f"id {index} ({self._describe(index)}) at position {at} stands outside a span")

    def _describe(self, index: int) -> str:
        if 0 <= index < self.text.size:
            return self.text.piece(index)
        return self._marker_by_id.get(index, f"outside the vocabulary of {self.size}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def _are_sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(row, dict) and all(isinstance(row.get(key), int) for key in ("codebook_size", "num_codebooks"))
        for row in value.values()
    )
