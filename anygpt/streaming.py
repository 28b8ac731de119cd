"""Answers to one-line prompts while they are made: text as soon as it is final, sound in chunks.

Generation and decoding take turns in the caller's thread: a chunk is decoded when enough codes are there, and the next
code is drawn when the caller asks for more.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anygpt.engine import Result, Task
from anygpt.forms import TEXT
from anygpt.generation.loop import generate
from anygpt.generation.reading import AnswerReader, SpanStart, TextPiece
from anygpt.media import Audio
from anygpt.tokenizers.streams import ChunkDecoder, StreamingTokenizer
from anygpt.vocabulary import Block, Span

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """Some more sound of an answer; the chunks follow one another without gap or overlap."""

    modality: str
    audio: Audio
    start_s: float
    """Where in the clip it begins."""


class SpanSound:
    """The sound of one span while its ids are generated: `push` every id of it, tags included or not."""

    def __init__(self, block: Block, decoder: ChunkDecoder) -> None:
        """`decoder` takes the codes; see `StreamingTokenizer.stream`."""
        self._block = block
        self._decoder = decoder
        self._frame: list[int] = []
        self._samples = 0

    def push(self, index: int) -> Iterator[AudioChunk]:
        """The sound that one more id makes final; with the end tag, the rest."""
        if index == self._block.end_id:
            yield from self._chunks(self._decoder.finish())
        elif index != self._block.start_id:
            self._frame.append(index - self._block.level_ids(len(self._frame)).start)
            if len(self._frame) == self._block.spec.num_codebooks:
                codes_K1 = torch.tensor(self._frame)[:, None]
                self._frame = []
                yield from self._chunks(self._decoder.push(codes_K1))

    def _chunks(self, pieces: Iterable[Audio]) -> Iterator[AudioChunk]:
        for audio in pieces:
            yield AudioChunk(self._block.spec.name, audio, self._samples / audio.rate_hz)
            self._samples += audio.samples


def stream(model: "AnyGPT", prompt: str, *, seed: int, **settings: Any) -> Iterator[TextPiece | AudioChunk | Result]:
    """The answer to `prompt` in parts, and the `Result` last; arguments and errors are those of `AnyGPT.run`.

    Text, codes and pictures are those that `run` gives for the same seed; so is music, whose chunks joined are its
    whole recording. Speech is told apart from it in `SpeechTokenizer.stream`.
    """
    began = time.perf_counter()
    task = model.task(prompt, seed=seed, **settings)
    generated = generate(model.decoder, task.ids, **model.rules(task))
    return _events(model, task, generated, _sound(model, task), began)


def _sound(model: "AnyGPT", task: Task) -> SpanSound | None:
    """The decoder of an answer in sound; None for other answers, and for a tokenizer that can't decode in pieces."""
    if task.target == TEXT or model.specs[task.target].media != "audio":
        return None
    tokenizer = model.tokenizers.get(task.target)
    if not isinstance(tokenizer, StreamingTokenizer):
        return None
    decoder = tokenizer.stream(generator=torch.Generator().manual_seed(task.seed), **task.decoder_settings)
    return SpanSound(model.vocabulary.blocks[task.target], decoder)


def _events(
    model: "AnyGPT", task: Task, generated: Iterable[int], sound: SpanSound | None, began: float
) -> Iterator[TextPiece | AudioChunk | Result]:
    reader = AnswerReader(model.vocabulary)
    ids: list[int] = []
    chunks: list[Audio] = []
    for index in generated:
        ids.append(index)
        yield from _texts(reader.push(index))
        for chunk in sound.push(index) if sound is not None else ():
            chunks.append(chunk.audio)
            yield chunk
    yield from _texts(reader.flush())
    result = model.result(task, ids, began, audio=_joined(chunks) if chunks else None)
    if result.audio is not None and not chunks:
        yield AudioChunk(task.target, result.audio, 0.0)
    yield result


def _texts(events: Iterable[TextPiece | SpanStart | Span]) -> Iterator[TextPiece]:
    return (event for event in events if isinstance(event, TextPiece))


def _joined(chunks: Sequence[Audio]) -> Audio:
    return Audio(wave=np.concatenate([chunk.wave for chunk in chunks], axis=1), rate_hz=chunks[0].rate_hz)
