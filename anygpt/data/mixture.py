"""The training mixture: which sources, in which proportion, packed into micro-batches.

A source is a file of pairs (`PairSource`) or of conversations (`anygpt.data.conversations`). A `PackedMixture` is a
map from a number to a micro-batch, fixed by the seed. That makes resuming exact and needs no state: the trainer goes
on at the next number. `MixtureStreams` are several of them side by side, for many processes.
"""

import json
import logging
import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anygpt.blocks import Block
from anygpt.code_strings import string_to_codes
from anygpt.data.jsonl import in_validation, instruction_of, pair_of
from anygpt.data.packing import Example, PackingConfig, collate_rows, pack_rows
from anygpt.data.shard_folder import open_rows
from anygpt.errors import AnyGPTError, ConfigError, nearest
from anygpt.media import atomic_write
from anygpt.modality import get_modality
from anygpt.prompts.render import Rendered, render, render_pretrain
from anygpt.prompts.segments import Media, Turn
from anygpt.prompts.tasks import TaskPrompts
from anygpt.prompts.templates import DIRECTIONS, Direction
from anygpt.vocabulary import Text, Vocabulary

logger = logging.getLogger(__name__)


class Source(Protocol):
    """One file of training examples, split into training and validation."""

    path: Path
    dataset: str | None
    """Its name in the catalog, where it was selected by that."""
    vocab: Vocabulary
    weight: float
    """Share of the training tokens, relative to the other sources."""

    @property
    def split(self) -> tuple[Sequence[int], Sequence[int]]:
        """Line numbers, from 0, of training and of validation."""

    def examples(self, index: int) -> Iterable[Example]:
        """Line `index` in each of its forms."""

    def draw(self, index: int, rng: random.Random) -> Example:
        """Line `index` in one of its forms, as trained."""

    def validation_sets(self, limit: int) -> dict[str, list[Example]]:
        """Held-out examples by name, loss on the answers only; the name of the main one begins with the file's."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One entry of the `data` list."""

    path: Path
    """A JSONL file, or a folder of shards as `anygpt tokenize --format` writes it."""
    dataset: str | None = None
    """The set of `config/datasets.yaml` whose path, modality, direction and weight these are, as far as not given."""
    modality: str
    weight: float = 1.0
    """Share of the training tokens, relative to the other sources."""
    direction: Literal["both", "x2text", "text2x"] = "both"
    question_weight: float = 1.0
    """Loss weight of the prompt's ids (instruction and input) against the answer's; published training uses 1."""
    text_weight: float = 1.0
    """Loss weight of a text answer's ids: texts are short beside the codes they describe."""
    level_weights: tuple[float, ...] = ()
    """Loss weight of an answer's codes, for each level of the codebooks; without it all levels count 1. The first
    levels carry what is played, the last ones mostly noise, and yet the largest part of the loss."""
    drop_input: float = 0.0
    """Share of the examples from text to media that lack the text: what `guidance_scale` leads away from has to be
    learned (Ho and Salimans 2022, section 3.2)."""
    form: Literal["base", "chat"] = "base"
    """Whether examples are written in the base template or as one round of the checkpoint's chat template."""

    def __post_init__(self) -> None:
        get_modality(self.modality)
        if self.weight <= 0:
            raise ConfigError(f"data: {self.path}: weight is {self.weight}, expected more than 0")
        if not 0 <= self.drop_input < 1:
            raise ConfigError(f"data: {self.path}: drop_input is {self.drop_input}, expected 0 to less than 1")
        if self.drop_input and self.form == "chat":
            raise ConfigError(f"data: {self.path}: drop_input is for form base; conversations are not guided")


def code_weights(block: Block, level_weights: Sequence[float], path: Path) -> dict[int, float]:
    """Id -> loss weight of a modality's codes, from a weight for each level; empty where there are none.

    Raises ConfigError, naming the data file, for a wrong number of weights or a negative one.
    """
    levels = block.spec.num_codebooks
    if level_weights and (len(level_weights) != levels or min(level_weights) < 0):
        shown = ", ".join(map(str, level_weights))
        raise ConfigError(
            f"data: {path}: level_weights is [{shown}], expected {levels} numbers of 0 or more for {block.spec.name}"
        )
    return {index: weight for level, weight in enumerate(level_weights) for index in block.level_ids(level)}


def id_weights(vocab: Vocabulary, factors: Mapping[str, float]) -> Tensor | None:
    """The factor of every id's loss weight, float32 [ids], None where all are 1.

    `factors` maps modalities (their codes and tags) and "text" (all other ids) to factors. Raises ConfigError for a
    modality that the vocabulary lacks.
    """
    if not factors:
        return None
    weights = torch.full((vocab.size,), factors.get("text", 1.0))
    for name, block in vocab.blocks.items():
        weights[[block.start_id, block.end_id, *block.ids]] = factors.get(name, 1.0)
    known = ("text", *vocab.blocks)
    for name in factors:
        if name not in known:
            raise ConfigError(
                f"loss_weights: unknown modality '{name}'{nearest(name, known)}; known: {', '.join(known)}"
            )
    return weights


class PairSource:
    """The pairs of one JSONL file, split into training and validation by a hash of the text."""

    def __init__(
        self, config: SourceConfig, vocab: Vocabulary, prompts: TaskPrompts, *, validation_fraction: float
    ) -> None:
        self.config, self.vocab, self.prompts = config, vocab, prompts
        command = f"anygpt tokenize --dataset {config.dataset}" if config.dataset else "anygpt tokenize MANIFEST"
        self.file = open_rows(config.path, command=command)
        self.spec = vocab.block(config.modality).spec
        self.validation_fraction = validation_fraction
        self.path, self.dataset, self.weight = config.path, config.dataset, config.weight
        self._code_weights = code_weights(vocab.block(config.modality), config.level_weights, config.path)

    @property
    def directions(self) -> tuple[Direction, ...]:
        return DIRECTIONS if self.config.direction == "both" else (self.config.direction,)

    def pair(self, index: int) -> tuple[str, Media]:
        """Text and media codes of a line. Raises AnyGPTError or CodeError naming file and line."""
        text, media, _ = self._read(index)
        return text, media

    def _read(self, index: int) -> tuple[str, Media, str | None]:
        """As `pair`, with the instruction that the line has, if it does."""
        row, where = self.file[index], self.file.where(index)
        text, string = pair_of(row, self.spec, where)
        try:
            media = Media(self.spec.name, string_to_codes(self.spec, string))
        except AnyGPTError as error:
            raise AnyGPTError(f"{where}: {error}") from None
        return text, media, instruction_of(row, where)

    @cached_property
    def split(self) -> tuple[Sequence[int], Sequence[int]]:
        """Line numbers of training and of validation."""
        train, validation = array("I"), array("I")  # of a hundred million lines
        for index, text in enumerate(self.file.texts(self.spec)):
            (validation if in_validation(text, self.validation_fraction) else train).append(index)
        if not train:
            raise ConfigError(f"{self.config.path}: no line is left for training; lower validation_fraction")
        return train, validation

    def example(
        self,
        index: int,
        direction: Direction,
        instruction: str,
        *,
        answer_only: bool = False,
        drop_input: bool = False,
    ) -> Example:
        """Line `index` as a training example; `answer_only` gives the question no weight, to measure the answer."""
        text, media, own = self._read(index)
        if own is not None and direction != "x2text":
            where = self.file.where(index)
            raise AnyGPTError(f"{where}: has an instruction for {self.spec.name} to text; set direction: x2text")
        instruction = own or instruction
        if self.config.form == "base":
            rendered = render_pretrain(
                direction, instruction, text, media, self.vocab, train_question=False, drop_input=drop_input
            )
        else:
            rendered = self._chat(direction, instruction, text, media)
        question = 0.0 if answer_only else self.config.question_weight
        answer = self.config.text_weight if direction == "x2text" and not answer_only else 1.0
        codes = {} if answer_only else self._code_weights
        weights = [
            answer * codes.get(index, 1.0) if is_answer else question
            for index, is_answer in zip(rendered.ids, rendered.loss_mask, strict=True)
        ]
        return Example(ids=rendered.ids, weights=weights)

    def _chat(self, direction: Direction, instruction: str, text: str, media: Media) -> Rendered:
        """The pair as one round of a conversation."""
        if direction == "x2text":
            turns = [Turn("user", [media, Text(f" {instruction}")]), Turn("assistant", [Text(text)])]
        else:
            turns = [Turn("user", [Text(f"{instruction} {text}")]), Turn("assistant", [media])]
        return render(turns, self.vocab.template, self.vocab, end_of_text=True)

    def examples(self, index: int) -> Iterable[Example]:
        for direction in self.directions:
            yield self.example(index, direction, self.prompts.canonical(self.spec.name, direction))

    def draw(self, index: int, rng: random.Random) -> Example:
        direction = rng.choice(self.directions)
        instruction = self.prompts.sample(self.spec.name, direction, rng)
        share = self.config.drop_input if direction == "text2x" else 0.0
        return self.example(index, direction, instruction, drop_input=share > 0 and rng.random() < share)

    def validation_sets(self, limit: int) -> dict[str, list[Example]]:
        """Per direction, in the canonical wording."""
        lines = self.split[1][:limit]
        sets = {}
        for direction in self.directions if lines else ():
            instruction = self.prompts.canonical(self.spec.name, direction)
            examples = [self.example(line, direction, instruction, answer_only=True) for line in lines]
            sets[f"{self.path.stem}_{direction}"] = examples
        return sets


@dataclass(frozen=True)
class ChunkEnd:
    """How far a mixture has come with a chunk: lists have an entry for each source."""

    micro_batches: int
    """Of this chunk."""
    draws: list[int]
    """Examples drawn up to here."""
    tokens: list[int]
    """Ids of those examples."""


class LineOrder:
    """The lines of each source in the order of the draws: every line once per pass, each pass in another order."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        self.sources, self.seed = sources, seed
        self._orders: dict[tuple[int, int], array[int]] = {}

    def line(self, number: int, draw: int) -> int:
        """Line of the `draw`-th draw, from 0, from source `number`."""
        lines = self.sources[number].split[0]
        turn, at = divmod(draw, len(lines))
        if (number, turn) not in self._orders:
            # The pass before is kept: streams come to the end of one after each other.
            for source, before in list(self._orders):
                if source == number and before < turn - 1:
                    del self._orders[source, before]
            order = array("I", range(len(lines)))
            random.Random(f"{self.seed}/order/{number}/{turn}").shuffle(order)
            self._orders[number, turn] = order
        return lines[self._orders[number, turn][at]]


class PackedMixture(Dataset[dict[str, Tensor]]):
    """Micro-batch i for every i below `length`: sources drawn by their share of the tokens, packed.

    Every example is of the source that is furthest behind its share, so that shares hold to within an example at the
    end of every chunk. Examples are drawn, rendered and packed a chunk at a time; where each chunk ended is kept in
    `index_path`, so that a resumed run finds its place without rendering what came before. Beside what `collate_rows`
    gives, a micro-batch has `source_tokens`, int64 [sources]: the ids that it has of each.

    Of several `streams` each takes every so many-th draw, this one from number `stream` on.
    """

    ORDER = 2
    """Version of the order of the data, kept in the index."""

    def __init__(
        self,
        sources: Sequence[Source],
        packing: PackingConfig,
        *,
        length: int,
        seed: int,
        index_path: Path | None = None,
        chunk_examples: int = 2048,
        id_weights: Tensor | None = None,
        stream: int = 0,
        streams: int = 1,
        lines: LineOrder | None = None,
    ) -> None:
        """`id_weights`, float32 [ids], multiplies the loss weight of every id; `lines` may be shared by streams."""
        self.sources, self.packing, self.length, self.seed = list(sources), packing, length, seed
        self.index_path, self.chunk_examples, self.id_weights = index_path, chunk_examples, id_weights
        self.pad_id = sources[0].vocab.pad_id
        total = sum(source.weight for source in sources)
        self.shares = [source.weight / total for source in sources]
        self.ends = self._read_index()
        self.stream, self.streams = stream, streams
        self.lines = lines or LineOrder(self.sources, seed)
        self._chunk: tuple[int, list[dict[str, Tensor]]] | None = None

    def __len__(self) -> int:
        return self.length

    def _read_index(self) -> list[ChunkEnd]:
        if self.index_path is None or not self.index_path.is_file():
            return []
        index = json.loads(self.index_path.read_text(encoding="utf-8"))
        if not isinstance(index, dict) or index["order"] != self.ORDER:
            logger.warning("%s: is of an earlier version; data come in another order from here on", self.index_path)
            return []
        return [ChunkEnd(**end) for end in index["chunks"]]

    def _write_index(self) -> None:
        if self.index_path is not None:
            index = {"order": self.ORDER, "chunks": [asdict(end) for end in self.ends]}
            with atomic_write(self.index_path) as temporary:
                temporary.write_text(json.dumps(index), encoding="utf-8")

    def _numbered(self, own: int) -> int:
        """Number among those of all streams, of a chunk or draw by its number in this one."""
        return own * self.streams + self.stream

    def _examples(self, chunk: int, draws: list[int], tokens: list[int]) -> list[tuple[int, Example]]:
        """(source, example) of a chunk; `draws` and `tokens`, as the chunk before left them, are brought up to date."""
        rng = random.Random(f"{self.seed}/wording/{self._numbered(chunk)}")
        longest = self.packing.row_lengths[-1]
        examples = []
        for _ in range(self.chunk_examples):
            total = sum(tokens)
            number = max(range(len(tokens)), key=lambda n: self.shares[n] * total - tokens[n])
            line = self.lines.line(number, self._numbered(draws[number]))
            example = self.sources[number].draw(line, rng)
            if len(example.ids) > longest:
                raise ConfigError(too_long(self.sources[number].path, line, len(example.ids), longest))
            examples.append((number, example))
            draws[number] += 1
            tokens[number] += len(example.ids)
        return examples

    def _build(self, chunk: int) -> tuple[list[dict[str, Tensor]], ChunkEnd]:
        """The micro-batches of one chunk, in random order, and where it ends. The chunks before must be known."""
        before = self.ends[chunk - 1] if chunk else ChunkEnd(0, [0] * len(self.sources), [0] * len(self.sources))
        draws, tokens = list(before.draws), list(before.tokens)
        buckets = self._grouped(self._examples(chunk, draws, tokens))
        batches = []
        rng = random.Random(f"{self.seed}/batches/{self._numbered(chunk)}")
        for (length, _), bucket in buckets.items():
            rows = pack_rows([len(example.ids) for _, example in bucket], length)
            rng.shuffle(rows)  # best-fit leaves the longest examples in front
            size = self.packing.tokens_per_micro_batch // length
            for at in range(0, len(rows), size):
                group = [[bucket[i] for i in row] for row in rows[at : at + size]]
                batch = collate_rows([[example for _, example in row] for row in group], length, self.pad_id)
                if self.id_weights is not None:
                    batch["loss_weights"] *= self.id_weights[batch["input_ids"]]
                batch["source_tokens"] = torch.zeros(len(self.sources), dtype=torch.int64)
                for number, example in (item for row in group for item in row):
                    batch["source_tokens"][number] += len(example.ids)
                batches.append(batch)
        rng.shuffle(batches)
        return batches, ChunkEnd(len(batches), draws, tokens)

    def _grouped(self, examples: Iterable[tuple[int, Example]]) -> dict[tuple[int, str], list[tuple[int, Example]]]:
        """The examples by the length of their row and, where batches are grouped so, by the modalities they have."""
        lengths = self.packing.row_lengths
        starts = {block.start_id: name for name, block in self.sources[0].vocab.blocks.items()}
        by_modality = self.packing.group_by == "modality"
        groups: dict[tuple[int, str], list[tuple[int, Example]]] = {(length, ""): [] for length in lengths}
        for number, example in examples:
            length = next(length for length in lengths if len(example.ids) <= length)
            found = starts.keys() & set(example.ids) if by_modality else ()
            kind = " ".join(sorted(starts[index] for index in found))
            groups.setdefault((length, kind), []).append((number, example))
        return groups

    def _load(self, chunk: int) -> list[dict[str, Tensor]]:
        if self._chunk is None or self._chunk[0] != chunk:
            batches, end = self._build(chunk)
            if chunk == len(self.ends):
                self.ends.append(end)
                self._write_index()
            if self.ends[chunk] != end:
                raise ConfigError(
                    f"{self.index_path}: the data, their weights or packing have changed since this run began; delete "
                    "the file to go on with those of now"
                )
            self._chunk = (chunk, batches)
        return self._chunk[1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first = chunk = 0
        while True:
            if chunk == len(self.ends):
                self._load(chunk)
            count = self.ends[chunk].micro_batches
            if index < first + count:
                return self._load(chunk)[index - first]
            first, chunk = first + count, chunk + 1


class MixtureStreams(Dataset[dict[str, Tensor]]):
    """Micro-batch i is number i // streams of stream i % streams, each a `PackedMixture` on its part of the draws.

    Micro-batches are dealt out to the processes in turn, so that a process renders the streams that it trains on and no
    others where the number of processes divides `packing.streams`. `index_folder` gets a file for every stream.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        packing: PackingConfig,
        *,
        length: int,
        seed: int,
        index_folder: Path | None = None,
        chunk_examples: int = 2048,
        id_weights: Tensor | None = None,
    ) -> None:
        self.sources, self.length = list(sources), length
        lines = LineOrder(self.sources, seed)
        self._streams = [
            PackedMixture(
                sources,
                packing,
                length=-(-length // packing.streams),
                seed=seed,
                index_path=None if index_folder is None else index_folder / f"micro_batches.{stream}.json",
                chunk_examples=chunk_examples,
                id_weights=id_weights,
                stream=stream,
                streams=packing.streams,
                lines=lines,
            )
            for stream in range(packing.streams)
        ]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, stream = divmod(index, len(self._streams))
        return self._streams[stream][number]


class ValidationSet(Dataset[dict[str, Tensor]]):
    """Held-out examples, one in each row, in micro-batches."""

    def __init__(self, examples: Sequence[Example], packing: PackingConfig, pad_id: int) -> None:
        length = max((len(example.ids) for example in examples), default=0)
        size = max(1, packing.tokens_per_micro_batch // max(1, length))
        groups = [examples[at : at + size] for at in range(0, len(examples), size)]
        self._batches = [collate_rows([[example] for example in group], length, pad_id) for group in groups]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._batches[index]


def single_micro_batch(items: list[dict[str, Tensor]]) -> dict[str, torch.Tensor]:
    """The data loader's collate function: the items already are micro-batches, taken one at a time."""
    assert len(items) == 1, len(items)
    return items[0]


def too_long(path: Path, line: int, length: int, longest: int) -> str:
    """The message about an example of `length` ids at `line` (from 0) that fits no row."""
    return (
        f"{path}: line {line + 1} has {length} ids, the longest row (packing.row_lengths) {longest}; add a longer row"
    )


def check_labels(sources: Iterable[Source]) -> None:
    """Raise ConfigError for a source in which nothing is to be learned: every loss weight of every line is 0."""
    for source in sources:
        examples = (example for line in source.split[0] for example in source.examples(line))
        # The first id of an example is never predicted.
        if not any(any(example.weights[1:]) for example in examples):
            raise ConfigError(
                f"{source.path}: every label is masked, so there is nothing to learn; check text_weight and "
                "question_weight of this source"
            )
