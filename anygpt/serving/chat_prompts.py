"""Chat requests as prompts: messages to turns, and what the answer may hold.

Nothing of a conversation is kept but the sounds of answers, for an hour, since OpenAI's clients send only their ids
back. The model's template has a system line of its own; what system messages say goes before the first of the user.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anygpt.choices import wants_choice
from anygpt.errors import AnyGPTError, nearest
from anygpt.forms import TEXT
from anygpt.generation.grammar import Request
from anygpt.generation.loop import Answer
from anygpt.media import Audio
from anygpt.prompts.render import render
from anygpt.prompts.segments import Media, Segment, Turn
from anygpt.prompts.tags import BoxForm, box_form
from anygpt.prompts.templates import load_templates, strip_segments, user_turn
from anygpt.serving import schemas
from anygpt.serving.answers import Answers, Work
from anygpt.serving.media import MediaReader
from anygpt.vocabulary import Text

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

SPOKEN = "speech"
OPENAI_NAMES = {"audio": SPOKEN}
"""What OpenAI calls a modality of ours in `modalities`."""
SOUNDS_KEPT, SOUNDS_KEPT_S = 1024, 3600
IDS_PER_MEDIUM, CHARACTERS_PER_ID = 8, 32
"""Fewer ids than any picture or sound of use has, and more characters than an id of text."""


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
        self._lock = threading.Lock()

    def keep(self, key: str, modality: str, codes_KT: Tensor, transcript: str) -> int:
        """Returns until when, as Unix time."""
        expires_at = int(time.time()) + SOUNDS_KEPT_S
        with self._lock:
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
    """Makes prompts of chat requests. A thread gets one medium at a time, so that a request whose client has left, or
    whose time is over, costs no more than the one that is being read, and requests with many don't hold up others."""

    def __init__(self, model: "AnyGPT", answers: Answers, reader: MediaReader, sounds: SoundMemory) -> None:
        self._model = model
        self._answers = answers
        self._reader = reader
        self._sounds = sounds

    async def works(self, request: schemas.ChatRequest, *, seed: int, deadline: float) -> list[Work]:
        """What there is to do, one for each of the request's `n`. Raises AnyGPTError for what can't be answered, and
        TimeoutError after `deadline`."""
        self._check_size(request.messages)
        async with asyncio.timeout_at(deadline):
            turns = await self._turns(request.messages)
            voice = await self._voice(request.audio)
            return await self._answers.prepared(self._works, request, turns, voice, seed, deadline)

    def _works(
        self, request: schemas.ChatRequest, turns: Sequence[Turn], voice: Audio | None, seed: int, deadline: float
    ) -> list[Work]:
        spoken = load_templates().message.requests
        hears = any(item.modality in spoken for item in turns[-1].media)
        wanted = self._wanted(request.modalities, hears=hears, boxes=box_form(turns[-1].text))
        grammar = self._model.chat_grammar
        policies = dict(self._model.chat_policies)
        policies[TEXT] = policies[TEXT].override(_text_settings(request))
        if request.stream:  # what is sent while it is made is not chosen when it is there
            sounds = [name for name, spec in self._model.specs.items() if spec.media == "audio"]
            policies |= {name: policies[name].override({"best_of": 1}) for name in sounds}
        settings: dict[str, dict[str, Any]] = {
            name: dict(policies[name].decoder_settings) for name in self._model.specs
        }
        if voice is not None:
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
                    pauses_at=wants_choice,
                ),
                seed=(seed + number) % 2**63,
                deadline=deadline,
                settings=settings,
                heard_ids=grammar.heard_ids,
                end_ids=grammar.end_ids,
                media=turns[-1].media,
            )
            for number in range(request.n or 1)
        ]

    def _check_size(self, messages: Sequence[Any]) -> None:
        """Refuse what can't fit in by far, before the work of finding out by how much is put into it."""
        context = self._model.decoder.shape.context
        parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
        media = sum(not isinstance(part, schemas.TextPart | schemas.RefusalPart) for part in parts)
        answers = [message for message in messages if isinstance(message, schemas.AssistantMessage)]
        media += sum(len(message.images or []) + len(message.videos or []) for message in answers)
        texts = [message.content for message in messages if isinstance(message.content, str)]
        texts += [part.text for part in parts if isinstance(part, schemas.TextPart)]
        if media > context // IDS_PER_MEDIUM or sum(map(len, texts)) > context * CHARACTERS_PER_ID:
            raise AnyGPTError(f"messages: far longer than the model's context of {context} ids; shorten them")

    def _wanted(self, modalities: Sequence[str] | None, *, hears: bool, boxes: BoxForm | None) -> Request:
        """What the answer may hold, and has to."""
        known = list(self._model.specs)
        if modalities is None:
            return Request.chat(None, known, hears=hears, boxes=boxes)
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
            return Request.chat(TEXT, known, hears=hears, boxes=boxes)
        only = names[0] if len(names) == 1 else None
        return replace(Request.chat(only, known, hears=hears), allowed=frozenset(names))

    async def _turns(self, messages: Sequence[Any]) -> list[Turn]:
        if not isinstance(messages[-1], schemas.UserMessage):
            raise AnyGPTError(f"messages: the last is by '{messages[-1].role}', expected 'user'")
        system = [_joined(message.content) for message in messages if isinstance(message, schemas.SystemMessage)]
        turns: list[Turn] = []
        for number, message in enumerate(messages):
            if isinstance(message, schemas.UserMessage):
                turns.append(await self._user(message, f"messages[{number}]", system))
                system = []
            elif isinstance(message, schemas.AssistantMessage):
                turns.append(await self._assistant(message, f"messages[{number}]"))
            if turns and not turns[-1].segments:
                raise AnyGPTError(f"messages[{number}] is empty")
        return turns

    async def _user(self, message: schemas.UserMessage, where: str, system: Sequence[str]) -> Turn:
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
                media.append(await self._media("image", self._reader.from_url, part.image_url.url, place))
            elif isinstance(part, schemas.VideoPart):
                media.append(await self._media("video", self._reader.from_url, part.video_url.url, place))
            else:
                sound = part.input_audio
                media.append(await self._media(sound.modality, self._reader.from_base64, sound.data, place))
        return user_turn("\n\n".join(filter(None, map(str.strip, texts))), media)

    async def _assistant(self, message: schemas.AssistantMessage, where: str) -> Turn:
        text = _joined(message.content or "")
        media: list[Segment] = []
        for number, part in enumerate(message.images or []):
            place = f"{where}.images[{number}]"
            media.append(await self._media("image", self._reader.from_url, part.image_url.url, place))
        for number, video in enumerate(message.videos or []):
            place = f"{where}.videos[{number}]"
            media.append(await self._media("video", self._reader.from_url, video.video_url.url, place))
        if message.audio is not None:
            kept = self._sounds.get(message.audio.id)
            text = text or kept.transcript
            media.append(Media(kept.modality, kept.codes_KT))
        return Turn("assistant", strip_segments([Text(text), *media]))

    async def _media(self, name: str, read: Callable[[str, str], bytes], source: str, where: str) -> Media:
        if name not in self._model.specs:
            known = ", ".join(self._model.specs)
            raise AnyGPTError(f"{where}: the model has no modality '{name[:40]}'; it has {known}")
        return Media(name, await self._answers.prepared(lambda: self._reader.encode(name, read(source, where), where)))

    async def _voice(self, options: schemas.AudioOptions | None) -> Audio | None:
        """The sample of a voice that the answer's speech is to have."""
        if options is None or (source := options.voice_prompt) is None:
            return None
        where = "audio.voice_prompt"
        return await self._answers.prepared(lambda: self._reader.voice(self._reader.from_url(source, where), where))


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


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(part.text if isinstance(part, schemas.TextPart) else part.refusal for part in content)
