"""Chat completions: answers as messages, whole or as a stream of deltas."""

import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from torch import Tensor

from anygpt.generation.reading import TextPiece
from anygpt.media import Audio
from anygpt.serving import schemas
from anygpt.serving.answers import Answers, Made, Outcome, Part, SoundEnd, Work
from anygpt.serving.chat_prompts import OPENAI_NAMES, SPOKEN, SoundMemory
from anygpt.serving.media import (
    SOUND_FORMATS,
    STREAMED_FORMATS,
    SoundEncoder,
    encode_picture,
    encode_sound,
    to_base64,
)
from anygpt.serving.streams import merged
from anygpt.streaming import AudioChunk
from anygpt.video import Video, mp4_bytes

PICTURE_FORMAT = "jpeg"


class ChatAnswers:
    """Writes answers to chat requests."""

    def __init__(self, answers: Answers, sounds: SoundMemory, model_name: str) -> None:
        self._answers = answers
        self._sounds = sounds
        self._model_name = model_name

    async def completion(self, request: schemas.ChatRequest, works: Sequence[Work]) -> schemas.ChatCompletion:
        """The whole answer."""
        outcomes = await self._answers.all(works)
        return await self._answers.aside(self._completion, request, works, outcomes)

    async def deltas(self, request: schemas.ChatRequest, works: Sequence[Work]) -> AsyncGenerator[dict[str, Any], None]:
        """The answers as chunks (`chat.completion.chunk`), the last of each with the reason why it ended; then the
        usage, where it is asked for."""
        head = self._head("chat.completion.chunk")
        choices = [self._choice_deltas(request, number, work) for number, work in enumerate(works)]
        async with aclosing(merged(choices)) as news:
            async for choice in news:
                yield {**head, "choices": [choice]}
        if request.stream_options is not None and request.stream_options.include_usage:
            usage = schemas.Usage.of(works[0].prompt_length, sum(len(work.ids) for work in works))
            yield {**head, "choices": [], "usage": usage.model_dump()}

    async def _choice_deltas(
        self, request: schemas.ChatRequest, number: int, work: Work
    ) -> AsyncGenerator[dict[str, Any], None]:
        writer = _DeltaWriter(request, self._sounds)

        def choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            return {"index": number, "delta": delta, "finish_reason": reason, "logprobs": None}

        yield choice({"role": "assistant"})
        streams_sound = _sound_format(request) in STREAMED_FORMATS
        async with aclosing(self._answers.parts(work, streams_sound=streams_sound)) as parts:
            async for part in parts:
                for delta in await self._written(writer, part):
                    yield choice(delta)
                if writer.is_stopped:
                    break
        for delta in writer.finish():
            yield choice(delta)
        yield choice({}, "stop" if writer.is_stopped else work.finish_reason)

    async def _written(self, writer: "_DeltaWriter", part: Part) -> list[dict[str, Any]]:
        """Text is written at once; encoding media may take a while."""
        if isinstance(part, TextPiece):
            return writer.write(part)
        return await self._answers.aside(writer.write, part)

    def _completion(
        self, request: schemas.ChatRequest, works: Sequence[Work], outcomes: Sequence[Outcome]
    ) -> schemas.ChatCompletion:
        choices = [
            self._choice(request, number, work, outcome)
            for number, (work, outcome) in enumerate(zip(works, outcomes, strict=True))
        ]
        usage = schemas.Usage.of(works[0].prompt_length, sum(outcome.ids for outcome in outcomes))
        return schemas.ChatCompletion(**self._head("chat.completion"), choices=choices, usage=usage)

    def _choice(self, request: schemas.ChatRequest, number: int, work: Work, outcome: Outcome) -> schemas.Choice:
        stops = StopFilter(_stops(request))
        text = stops.push(outcome.text) + stops.flush()
        sounds: list[schemas.AnswerAudio] = []
        images: list[schemas.AnswerImage] = []
        videos: list[schemas.AnswerVideo] = []
        for made in outcome.media:
            if isinstance(made.media, Audio):
                sounds.append(self._sound(request, made, made.media, text))
            elif isinstance(made.media, Video):
                videos.append(_video(made.media, len(videos)))
            else:
                images.append(_image(made, len(images)))
        is_spoken = _asks_for_speech(request) and bool(sounds)
        message = schemas.AnswerMessage(
            content=None if is_spoken else text,
            audio=sounds[0] if sounds else None,
            audios=sounds if len(sounds) > 1 else None,
            images=images or None,
            videos=videos or None,
            heard=outcome.heard or None,
        )
        reason = "stop" if stops.is_stopped else work.finish_reason
        return schemas.Choice.model_validate({"index": number, "message": message, "finish_reason": reason})

    def _sound(self, request: schemas.ChatRequest, made: Made, audio: Audio, text: str) -> schemas.AnswerAudio:
        key = _sound_id()
        transcript = text if made.modality == SPOKEN else ""
        return schemas.AnswerAudio(
            id=key,
            data=to_base64(encode_sound(audio, _sound_format(request))),
            expires_at=self._sounds.keep(key, made.modality, made.codes_KT, transcript),
            transcript=transcript,
            modality=made.modality,
        )

    def _head(self, kind: str) -> dict[str, Any]:
        created = int(time.time())
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": kind,
            "created": created,
            "model": self._model_name,
        }


class _DeltaWriter:
    """Turns the parts of one answer into deltas."""

    def __init__(self, request: schemas.ChatRequest, sounds: SoundMemory) -> None:
        self._format = _sound_format(request)
        self._is_spoken = _asks_for_speech(request)
        self._sounds = sounds
        self._stops = StopFilter(_stops(request))
        self._sound_id = _sound_id()
        self._encoder: SoundEncoder | None = None
        self._text = ""
        self._images = self._videos = 0
        self._is_after_media = False

    @property
    def is_stopped(self) -> bool:
        """Whether one of the request's `stop` sequences came."""
        return self._stops.is_stopped

    def write(self, part: Part) -> list[dict[str, Any]]:
        if isinstance(part, TextPiece):
            if part.is_heard:
                return [{"heard": part.text}]
            break_ = "\n" if self._is_after_media and self._text else ""
            self._is_after_media = False
            return self._texts(self._stops.push(break_ + part.text))
        if isinstance(part, AudioChunk):
            self._encoder = self._encoder or SoundEncoder(self._format)
            return self._data(part.modality, self._encoder.push(part.audio))
        self._is_after_media = True
        if isinstance(part, SoundEnd):
            rest = self._encoder.finish() if self._encoder is not None else b""
            self._encoder = None
            return [*self._data(part.modality, rest), self._end(part.modality, part.codes_KT)]
        if isinstance(part.media, Audio):
            content = encode_sound(part.media, self._format)
            return [*self._data(part.modality, content), self._end(part.modality, part.codes_KT)]
        if isinstance(part.media, Video):
            video = _video(part.media, self._videos)
            self._videos += 1
            return [{"videos": [video.model_dump(exclude_none=True)]}]
        image = _image(part, self._images)
        self._images += 1
        return [{"images": [image.model_dump(exclude_none=True)]}]

    def finish(self) -> list[dict[str, Any]]:
        """Text that was held back, since a `stop` might have begun in it."""
        return self._texts(self._stops.flush())

    def _texts(self, text: str) -> list[dict[str, Any]]:
        if not text:
            return []
        self._text += text
        return [{"audio": {"id": self._sound_id, "transcript": text}} if self._is_spoken else {"content": text}]

    def _data(self, modality: str, content: bytes) -> list[dict[str, Any]]:
        if not content:
            return []
        return [{"audio": {"id": self._sound_id, "data": to_base64(content), "modality": modality}}]

    def _end(self, modality: str, codes_KT: Tensor) -> dict[str, Any]:
        transcript = self._text if modality == SPOKEN else ""
        expires_at = self._sounds.keep(self._sound_id, modality, codes_KT, transcript)
        ended, self._sound_id = self._sound_id, _sound_id()
        return {"audio": {"id": ended, "expires_at": expires_at}}


class StopFilter:
    """Lets text pass up to the first of some strings, across the pieces that it comes in."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """What can be passed on; a beginning of a stop is held back."""
        if self.is_stopped:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held, self.is_stopped = "", True
            return text[: min(found)]
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        held = next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What is held back, at the end."""
        held, self._held = self._held, ""
        return held


def _stops(request: schemas.ChatRequest) -> list[str]:
    return [request.stop] if isinstance(request.stop, str) else request.stop or []


def _sound_format(request: schemas.ChatRequest) -> str:
    name = request.audio.format if request.audio is not None else "wav"
    assert name in SOUND_FORMATS, name
    return name


def _asks_for_speech(request: schemas.ChatRequest) -> bool:
    return SPOKEN in (OPENAI_NAMES.get(name, name) for name in request.modalities or [])


def _image(made: Made, index: int) -> schemas.AnswerImage:
    assert not isinstance(made.media, Audio | Video)
    url = f"data:image/{PICTURE_FORMAT};base64,{to_base64(encode_picture(made.media, PICTURE_FORMAT))}"
    return schemas.AnswerImage(image_url=schemas.ImageUrl(url=url), index=index)


def _video(video: Video, index: int) -> schemas.AnswerVideo:
    url = f"data:video/mp4;base64,{to_base64(mp4_bytes(video))}"
    return schemas.AnswerVideo(video_url=schemas.ImageUrl(url=url), index=index)


def _sound_id() -> str:
    return f"audio_{secrets.token_hex(12)}"
