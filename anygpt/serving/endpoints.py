"""What the server answers, endpoint by endpoint."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import File, Form, UploadFile
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response
from torch import Tensor

from anygpt.forms import TEXT
from anygpt.generation.grammar import Request
from anygpt.generation.reading import TextPiece
from anygpt.media import Audio
from anygpt.serving import schemas
from anygpt.serving.answers import Answers, Made, Outcome, Part, SoundEnd, Work
from anygpt.serving.chat import ChatAnswers
from anygpt.serving.chat_prompts import SPOKEN, ChatPrompts, SoundMemory
from anygpt.serving.errors import ApiError
from anygpt.serving.media import (
    SOUND_FORMATS,
    STREAMED_FORMATS,
    MediaReader,
    SoundEncoder,
    encode_picture,
    encode_sound,
    to_base64,
)
from anygpt.serving.metrics import Metrics
from anygpt.serving.scheduler import Scheduler
from anygpt.serving.streams import EVENT_STREAM, Streamed, begun, events
from anygpt.streaming import AudioChunk

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

PICTURE, MUSIC = "image", "music"


class Endpoints:
    """The handlers of one model's server."""

    def __init__(
        self,
        model: "AnyGPT",
        *,
        names: list[str],
        scheduler: Scheduler,
        answers: Answers,
        reader: MediaReader,
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        """`names` are those that requests may call the model by; the first is the one in answers."""
        self._model = model
        self._names = names
        self._scheduler = scheduler
        self._answers = answers
        self._reader = reader
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._created = int(time.time())
        sounds = SoundMemory()
        self._chat_prompts = ChatPrompts(model, answers, reader, sounds)
        self._chat_answers = ChatAnswers(answers, sounds, names[0])

    async def health(self) -> Response:
        """Whether the model is at work, and on how much."""
        is_alive = self._scheduler.is_alive
        state = schemas.Health(
            status="ok" if is_alive else "failed",
            model=self._names[0],
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
        )
        return JSONResponse(state.model_dump(), 200 if is_alive else 503)

    async def metrics(self) -> Response:
        """Counters in Prometheus's format."""
        return Response(self._metrics.page(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> schemas.ModelList:
        """The model, by all of its names."""
        return schemas.ModelList(data=[self._card(name) for name in self._names])

    async def model(self, name: str) -> schemas.ModelCard:
        """The model by one of its names."""
        self._check_model(name)
        return self._card(name)

    async def chat(self, request: schemas.ChatRequest) -> Response:
        """Answer a conversation in text, pictures and sound."""
        self._check_model(request.model)
        if (field := request.unsupported()) is not None:
            raise ApiError(400, f"{field} is not supported", param=field, code="unsupported_parameter")
        works = await self._chat_prompts.works(request, seed=_seed(request.seed), deadline=self._deadline())
        self._count(works)
        if request.stream:
            return Streamed(events(self._chat_answers.deltas(request, works)), EVENT_STREAM)
        completion = await self._chat_answers.completion(request, works)
        return _json(completion)

    async def images(self, request: schemas.ImageRequest) -> Response:
        """Make pictures of a prompt."""
        self._check_model(request.model)
        works = await self._works(TEXT, PICTURE, request.prompt, request.settings(), request.seed, n=request.n or 1)
        outcomes = await self._answers.all(works)
        response = await self._answers.aside(_pictures, request, works, outcomes)
        return _json(response, exclude_none=True)

    async def speech(self, request: schemas.SpeechRequest) -> Response:
        """Speak a text."""
        return await self._sound(SPOKEN, request)

    async def music(self, request: schemas.MusicRequest) -> Response:
        """Make music of a prompt."""
        return await self._sound(MUSIC, request)

    async def transcriptions(
        self,
        file: Annotated[UploadFile, File(description="WAV, MP3, FLAC or OGG.")],
        model: Annotated[str | None, Form()] = None,
        response_format: Annotated[Literal["json", "text"], Form()] = "json",
        temperature: Annotated[float | None, Form(ge=0, le=2, allow_inf_nan=False)] = None,
        language: Annotated[str | None, Form(description="Has no effect.")] = None,
        prompt: Annotated[str | None, Form(description="Has no effect.")] = None,
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        """Write down what is said in a recording."""
        self._check_model(model)
        content = await file.read()
        settings = {} if temperature is None else {"temperature": temperature, "do_sample": temperature > 0}
        codes_KT = await self._answers.prepared(self._reader.encode, SPOKEN, content, "file")
        (work,) = await self._works(SPOKEN, TEXT, codes_KT, settings, None)
        if stream:
            return Streamed(events(self._transcript(work)), EVENT_STREAM)
        outcome = await self._answers.whole(work)
        if response_format == "text":
            return PlainTextResponse(outcome.text + "\n")
        answer = {"text": outcome.text, "usage": _transcript_usage(work, outcome.ids)}
        return _json(schemas.Transcription.model_validate(answer))

    async def _transcript(self, work: Work) -> AsyncGenerator[dict[str, Any], None]:
        text = ""
        async with aclosing(self._answers.parts(work)) as parts:
            async for part in parts:
                if isinstance(part, TextPiece):
                    text += part.text
                    yield {"type": "transcript.text.delta", "delta": part.text}
        usage = _transcript_usage(work, len(work.ids))
        yield {"type": "transcript.text.done", "text": text, "usage": usage}

    async def _sound(self, name: str, request: schemas.SoundRequest) -> Response:
        self._check_model(request.model)
        if request.response_format == "aac":
            raise ApiError(400, "aac is not supported: use mp3, opus, flac, wav or pcm", param="response_format")
        form = request.response_format or "mp3"
        settings = request.settings()
        if request.voice_sample is not None:
            where = "voice_prompt"
            content = await self._answers.prepared(self._reader.from_url, request.voice_sample, where)
            settings["voice"] = await self._answers.prepared(self._reader.voice, content, where)
        (work,) = await self._works(TEXT, name, request.text, settings, request.seed)
        is_streamed = form in STREAMED_FORMATS and (request.stream_format is not None or form != "wav")
        if request.stream_format == "sse":
            return Streamed(events(self._sound_events(work, form)), EVENT_STREAM)
        if is_streamed:
            return Streamed(await begun(self._sound_bytes(work, form)), SOUND_FORMATS[form].media_type)
        outcome = await self._answers.whole(work)
        return Response(await self._answers.aside(_encoded, outcome, form), media_type=SOUND_FORMATS[form].media_type)

    async def _sound_events(self, work: Work, form: str) -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(self._sound_bytes(work, form)) as pieces:
            async for piece in pieces:
                yield {"type": "speech.audio.delta", "audio": to_base64(piece)}
        yield {"type": "speech.audio.done", "usage": _token_usage(work, len(work.ids))}

    async def _sound_bytes(self, work: Work, form: str) -> AsyncGenerator[bytes, None]:
        """The file in pieces, as they are made; in one where the format can't."""
        encoder = SoundEncoder(form) if form in STREAMED_FORMATS else None
        async with aclosing(self._answers.parts(work, streams_sound=encoder is not None)) as parts:
            async for part in parts:
                if piece := await self._answers.aside(_piece, encoder, part, form):
                    yield piece

    async def _works(
        self, source: str, target: str, content: str | Tensor, settings: dict[str, Any], seed: int | None, *, n: int = 1
    ) -> list[Work]:
        """A prompt of the base forms, to be answered `n` times."""
        for name in (source, target):
            if name not in (TEXT, *self._model.specs):
                raise ApiError(404, f"the model has no modality '{name}'; it has {', '.join(self._model.specs)}")
        works = await self._answers.prepared(
            self._base_works, source, target, content, settings, _seed(seed), n, self._deadline()
        )
        self._count(works)
        return works

    def _base_works(
        self,
        source: str,
        target: str,
        content: str | Tensor,
        settings: dict[str, Any],
        seed: int,
        n: int,
        deadline: float,
    ) -> list[Work]:
        task = self._model.prepare(source, target, content, seed, settings)
        works = []
        for number in range(n):
            own = replace(task, seed=(seed + number) % 2**63)
            answer, *others = self._model.making(own)
            works.append(
                Work(
                    answer=answer,
                    others=tuple(others),
                    choose=partial(self._model.chosen, own) if others else None,
                    seed=own.seed,
                    deadline=deadline,
                    settings={target: own.decoder_settings},
                    end_ids=self._model.rules(own)["grammar"].end_ids,
                    ends_after_span=Request.only(target).ends_after_span,
                )
            )
        return works

    def _check_model(self, name: str | None) -> None:
        if name is not None and name not in self._names:
            raise ApiError(
                404,
                f"no model '{name[:80]}' here; there is {', '.join(self._names)}",
                param="model",
                code="model_not_found",
            )

    def _card(self, name: str) -> schemas.ModelCard:
        context = self._model.decoder.shape.context
        modalities = [TEXT, *self._model.specs]
        return schemas.ModelCard(id=name, created=self._created, modalities=modalities, context_length=context)

    def _count(self, works: list[Work]) -> None:
        self._metrics.tokens("prompt", works[0].prompt_length)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout_s


def _pictures(request: schemas.ImageRequest, works: list[Work], outcomes: list[Outcome]) -> schemas.ImagesResponse:
    form = request.output_format or "png"
    data = []
    size = ""
    for outcome in outcomes:
        image = outcome.media[0].media
        assert isinstance(image, Image.Image), image
        if request.size not in (None, "auto"):
            width, _, height = str(request.size).partition("x")
            image = image.resize((int(width), int(height)), Image.Resampling.LANCZOS)
        size = f"{image.width}x{image.height}"
        content = to_base64(encode_picture(image, form))
        is_url = request.response_format == "url"
        data.append(
            schemas.GeneratedImage(url=f"data:image/{form};base64,{content}")
            if is_url
            else schemas.GeneratedImage(b64_json=content)
        )
    usage = _token_usage(works[0], sum(outcome.ids for outcome in outcomes))
    details = {"image_tokens": 0, "text_tokens": works[0].prompt_length}
    return schemas.ImagesResponse(
        created=int(time.time()),
        data=data,
        output_format=form,
        size=size,
        usage=schemas.ImageUsage(**usage, input_tokens_details=details),
    )


def _encoded(outcome: Outcome, form: str) -> bytes:
    media = outcome.media[0].media
    assert isinstance(media, Audio), media
    return encode_sound(media, form)


def _piece(encoder: SoundEncoder | None, part: Part, form: str) -> bytes:
    """What a part adds to the file."""
    if isinstance(part, AudioChunk):
        assert encoder is not None
        return encoder.push(part.audio)
    if isinstance(part, SoundEnd):
        return encoder.finish() if encoder is not None else b""
    assert isinstance(part, Made) and isinstance(part.media, Audio), part
    return encode_sound(part.media, form) if encoder is None else encoder.push(part.media) + encoder.finish()


def _token_usage(work: Work, generated: int) -> dict[str, int]:
    read = work.prompt_length
    return {"input_tokens": read, "output_tokens": generated, "total_tokens": read + generated}


def _transcript_usage(work: Work, generated: int) -> dict[str, Any]:
    return {"type": "tokens", **_token_usage(work, generated)}


def _seed(given: int | None) -> int:
    return secrets.randbits(63) if given is None else given % 2**63


def _json(model: Any, **options: Any) -> JSONResponse:
    return JSONResponse(model.model_dump(mode="json", **options))
