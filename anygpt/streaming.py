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
from torch import Tensor

from anygpt.engine import Result
from anygpt.forms import TEXT, Form, parse_form
from anygpt.generation.grammar import Request
from anygpt.generation.loop import generate
from anygpt.generation.reading import AnswerReader, SpanStart, TextPiece
from anygpt.media import Audio
from anygpt.prompts.render import render_base
from anygpt.prompts.segments import Media
from anygpt.prompts.templates import Direction
from anygpt.tokenizers.streams import ChunkDecoder, StreamingTokenizer
from anygpt.vocabulary import Block, Span, Text

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
    form = parse_form(prompt, model.specs.values())
    policy, fields = model._split_settings(form.target, {**form.fields, **settings})
    fields = {key: model.load(form.target, value, is_prompt=True) for key, value in fields.items()}
    content = Text(form.content) if form.source == TEXT else Media(form.source, model.encode(form.source, form.content))
    request = Request.only(form.target)
    direction: Direction = "x2text" if form.target == TEXT else "text2x"
    ids = render_base(
        direction,
        model.task_prompts.canonical(form.modality, direction),
        [content],
        model.vocabulary,
        answer_modality=request.forced,
    )
    generated = generate(
        model.decoder,
        ids if request.forced is None else ids[:-1],  # `generate` begins with the start tag itself
        grammar=model._grammar,
        request=request,
        policies={**model.policies, form.target: policy},
        generator=torch.Generator(model.decoder.device).manual_seed(seed),
    )
    decoder_settings = policy.decoder_settings | fields
    sound = _sound(model, form.target, seed, decoder_settings)
    return _events(model, form, prompt, generated, sound, seed, decoder_settings, began)


def _sound(model: "AnyGPT", target: str, seed: int, settings: dict[str, Any]) -> SpanSound | None:
    """The decoder of an answer in sound; None for other answers, and for a tokenizer that can't decode in pieces."""
    if target == TEXT or model.specs[target].media != "audio":
        return None
    tokenizer = model.tokenizers.get(target)
    if not isinstance(tokenizer, StreamingTokenizer):
        return None
    decoder = tokenizer.stream(generator=torch.Generator().manual_seed(seed), **settings)
    return SpanSound(model.vocabulary.blocks[target], decoder)


def _events(
    model: "AnyGPT",
    form: Form,
    prompt: str,
    generated: Iterable[int],
    sound: SpanSound | None,
    seed: int,
    settings: dict[str, Any],
    began: float,
) -> Iterator[TextPiece | AudioChunk | Result]:
    reader = AnswerReader(model.vocabulary)
    texts: list[str] = []
    chunks: list[Audio] = []
    codes_KT: Tensor | None = None

    def read(events: Iterable[TextPiece | SpanStart | Span]) -> Iterator[TextPiece]:
        nonlocal codes_KT
        for event in events:
            if isinstance(event, TextPiece):
                texts.append(event.text)
                yield event
            elif isinstance(event, Span):
                codes_KT = event.codes_KT

    for index in generated:
        yield from read(reader.push(index))
        for chunk in sound.push(index) if sound is not None else ():
            chunks.append(chunk.audio)
            yield chunk
    yield from read(reader.flush())
    answer: dict[str, Any] = {}
    if form.target == TEXT:
        answer["text"] = "".join(texts)
    else:
        assert codes_KT is not None
        media = _joined(chunks) if chunks else model.decode(form.target, codes_KT, seed=seed, **settings)
        if isinstance(media, Audio) and not chunks:
            yield AudioChunk(form.target, media, 0.0)
        answer |= {"codes_KT": codes_KT, model.specs[form.target].media: media}
    yield Result(prompt=prompt, modality=form.target, seed=seed, seconds=time.perf_counter() - began, **answer)


def _joined(chunks: Sequence[Audio]) -> Audio:
    return Audio(wave=np.concatenate([chunk.wave for chunk in chunks], axis=1), rate_hz=chunks[0].rate_hz)
