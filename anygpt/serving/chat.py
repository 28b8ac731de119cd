"""Chat completions: messages to a prompt, answers to messages, whole or as a stream of deltas.

Nothing of a conversation is kept but the sounds of answers, for an hour, since OpenAI's clients send only their ids
back. The model's template has a system line of its own; what system messages say goes before the first of the user.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anygpt.errors import AnyGPTError, nearest
from anygpt.forms import TEXT
from anygpt.generation.grammar import Request
from anygpt.generation.loop import Answer
from anygpt.generation.reading import TextPiece
from anygpt.media import Audio
from anygpt.prompts.render import render
from anygpt.prompts.segments import Media, Segment, Turn
from anygpt.prompts.templates import load_templates, strip_segments, user_turn
from anygpt.serving import schemas
from anygpt.serving.answers import Answers, Made, Outcome, Part, SoundEnd, Work
from anygpt.serving.media import (
    SOUND_FORMATS,
    STREAMED_FORMATS,
    MediaReader,
    SoundEncoder,
    encode_picture,
    encode_sound,
    to_base64,
)
from anygpt.streaming import AudioChunk
from anygpt.vocabulary import Text

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

SPOKEN = "speech"
OPENAI_NAMES = {"audio": SPOKEN}
"""What OpenAI calls a modality of ours in `modalities`."""
SOUNDS_KEPT, SOUNDS_KEPT_S = 1024, 3600
PICTURE_FORMAT = "jpeg"


@dataclass(frozen=True, eq=False)
class _KeptSound:
    modality: str
    codes_KT: Tensor
    transcript: str
    expires_at: int


class SoundMemory:
    """The sounds of late answers, as codes, by their ids; used in the event loop and in threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _KeptSound] = OrderedDict()

    def keep(self, key: str, modality: str, codes_KT: Tensor, transcript: str) -> int:
        """Returns until when, as Unix time."""
        expires_at = int(time.time()) + SOUNDS_KEPT_S
        self._kept[key] = _KeptSound(modality, codes_KT, transcript, expires_at)
        while len(self._kept) > SOUNDS_KEPT:
            self._kept.popitem(last=False)
        return expires_at

    def get(self, key: str) -> _KeptSound:
        """Raises AnyGPTError for a sound that is unknown or too old."""
        kept = self._kept.get(key)
        if kept is None or kept.expires_at < time.time():
            raise AnyGPTError(f"no sound with the id {key[:80]!r} is kept; send its transcript as content instead")
        return kept


class ChatPrompts:
    """Makes prompts of chat requests. Its methods block, and may run in any thread."""

    def __init__(self, model: "AnyGPT", reader: MediaReader, sounds: SoundMemory) -> None:
        self._model = model
        self._reader = reader
        self._sounds = sounds

    def works(self, request: schemas.ChatRequest, *, seed: int, deadline: float) -> list[Work]:
        """What there is to do, one for each of the request's `n`. Raises AnyGPTError for what can't be answered."""
        turns = self._turns(request.messages)
        spoken = load_templates().message.requests
        hears = any(item.modality in spoken for item in turns[-1].media)
        wanted = self._wanted(request.modalities, hears=hears)
        grammar = self._model.chat_grammar
        policies = dict(self._model.chat_policies)
        policies[TEXT] = policies[TEXT].override(_text_settings(request))
        settings: dict[str, dict[str, Any]] = {
            name: dict(policies[name].decoder_settings) for name in self._model.specs
        }
        if request.audio is not None and request.audio.voice_prompt is not None:
            where = "audio.voice_prompt"
            voice = self._reader.voice(self._reader.from_url(request.audio.voice_prompt, where), where)
            for name, spec in self._model.specs.items():
                if "voice" in spec.instruction_fields:
                    settings[name]["voice"] = voice
        ids = render(turns, self._model.vocabulary.template, self._model.vocabulary).ids
        return [
            Work(
                answer=Answer(
                    ids,
                    grammar=grammar,
                    request=wanted,
                    policies=policies,
                    context=self._model.decoder.shape.context,
                    generator=torch.Generator(self._model.decoder.device).manual_seed((seed + number) % 2**63),
                ),
                seed=(seed + number) % 2**63,
                deadline=deadline,
                settings=settings,
                heard_ids=grammar.heard_ids,
                end_ids=grammar.end_ids,
            )
            for number in range(request.n or 1)
        ]

    def _wanted(self, modalities: Sequence[str] | None, *, hears: bool) -> Request:
        """What the answer may hold, and has to."""
        known = list(self._model.specs)
        if modalities is None:
            return Request.chat(None, known, hears=hears)
        names = []
        for given in modalities:
            name = OPENAI_NAMES.get(given, given)
            if name not in (TEXT, *known):
                raise AnyGPTError(
                    f"modalities: unknown '{given[:40]}'{nearest(given, known)}; known: text, audio, {', '.join(known)}"
                )
            if name != TEXT and name not in names:
                names.append(name)
        if not names:
            return Request.chat(TEXT, known, hears=hears)
        only = names[0] if len(names) == 1 else None
        return replace(Request.chat(only, known, hears=hears), allowed=frozenset(names))

    def _turns(self, messages: Sequence[Any]) -> list[Turn]:
        if not isinstance(messages[-1], schemas.UserMessage):
            raise AnyGPTError(f"messages: the last is by '{messages[-1].role}', expected 'user'")
        system = [_joined(message.content) for message in messages if isinstance(message, schemas.SystemMessage)]
        turns: list[Turn] = []
        for number, message in enumerate(messages):
            if isinstance(message, schemas.UserMessage):
                turns.append(self._user(message, f"messages[{number}]", system))
                system = []
            elif isinstance(message, schemas.AssistantMessage):
                turns.append(self._assistant(message, f"messages[{number}]"))
            if turns and not turns[-1].segments:
                raise AnyGPTError(f"messages[{number}] is empty")
        return turns

    def _user(self, message: schemas.UserMessage, where: str, system: Sequence[str]) -> Turn:
        parts = (
            [schemas.TextPart(type="text", text=message.content)]
            if isinstance(message.content, str)
            else message.content
        )
        texts, media = [*system], []
        for number, part in enumerate(parts):
            place = f"{where}.content[{number}]"
            if isinstance(part, schemas.TextPart):
                texts.append(part.text)
            elif isinstance(part, schemas.ImagePart):
                media.append(self._media("image", self._reader.from_url(part.image_url.url, place), place))
            else:
                content = self._reader.from_base64(part.input_audio.data, place)
                media.append(self._media(part.input_audio.modality, content, place))
        return user_turn("\n\n".join(filter(None, map(str.strip, texts))), media)

    def _assistant(self, message: schemas.AssistantMessage, where: str) -> Turn:
        text = _joined(message.content or "")
        media: list[Segment] = []
        for number, part in enumerate(message.images or []):
            place = f"{where}.images[{number}]"
            media.append(self._media("image", self._reader.from_url(part.image_url.url, place), place))
        if message.audio is not None:
            kept = self._sounds.get(message.audio.id)
            text = text or kept.transcript
            media.append(Media(kept.modality, kept.codes_KT))
        return Turn("assistant", strip_segments([Text(text), *media]))

    def _media(self, name: str, content: bytes, where: str) -> Media:
        if name not in self._model.specs:
            known = ", ".join(self._model.specs)
            raise AnyGPTError(f"{where}: the model has no modality '{name[:40]}'; it has {known}")
        return Media(name, self._reader.encode(name, content, where))


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

    async def deltas(self, request: schemas.ChatRequest, work: Work) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as chunks (`chat.completion.chunk`), the last with the reason why it ended; then the usage, where
        it is asked for."""
        head = self._head("chat.completion.chunk")
        writer = _DeltaWriter(request, self._sounds)

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}

        yield chunk({"role": "assistant"})
        streams_sound = _sound_format(request) in STREAMED_FORMATS
        async with aclosing(self._answers.parts(work, streams_sound=streams_sound)) as parts:
            async for part in parts:
                for delta in await self._written(writer, part):
                    yield chunk(delta)
                if writer.is_stopped:
                    break
        for delta in writer.finish():
            yield chunk(delta)
        yield chunk({}, "stop" if writer.is_stopped else work.finish_reason)
        if request.stream_options is not None and request.stream_options.include_usage:
            usage = schemas.Usage.of(work.prompt_length, len(work.answer.ids))
            yield {**head, "choices": [], "usage": usage.model_dump()}

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
        for made in outcome.media:
            if isinstance(made.media, Audio):
                sounds.append(self._sound(request, made, made.media, text))
            else:
                images.append(_image(made, len(images)))
        is_spoken = _asks_for_speech(request) and bool(sounds)
        message = schemas.AnswerMessage(
            content=None if is_spoken else text,
            audio=sounds[0] if sounds else None,
            audios=sounds if len(sounds) > 1 else None,
            images=images or None,
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
        self._images = 0
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


def _text_settings(request: schemas.ChatRequest) -> dict[str, Any]:
    given = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "repetition_penalty": request.repetition_penalty,
        "max_new_tokens": request.max_completion_tokens or request.max_tokens,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if request.temperature:
        settings["do_sample"] = True
    return settings


def _stops(request: schemas.ChatRequest) -> list[str]:
    return [request.stop] if isinstance(request.stop, str) else request.stop or []


def _sound_format(request: schemas.ChatRequest) -> str:
    name = request.audio.format if request.audio is not None else "wav"
    assert name in SOUND_FORMATS, name
    return name


def _asks_for_speech(request: schemas.ChatRequest) -> bool:
    return SPOKEN in (OPENAI_NAMES.get(name, name) for name in request.modalities or [])


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(part.text if isinstance(part, schemas.TextPart) else part.refusal for part in content)


def _image(made: Made, index: int) -> schemas.AnswerImage:
    assert not isinstance(made.media, Audio)
    url = f"data:image/{PICTURE_FORMAT};base64,{to_base64(encode_picture(made.media, PICTURE_FORMAT))}"
    return schemas.AnswerImage(image_url=schemas.ImageUrl(url=url), index=index)


def _sound_id() -> str:
    return f"audio_{secrets.token_hex(12)}"
