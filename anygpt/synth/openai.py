"""Conversations, pictures and speech from an OpenAI-compatible endpoint, for `anygpt synth`.

Conversations come about as in AnyInstruct (the paper's section 4): the model is asked for topics, for each topic for
situations, and for each situation for a conversation in text, whose media are described in words. Which modality asks
and which answers goes round over all pairs, so that the set covers them.
"""

import base64
import binascii
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from anygpt.data.dialogue import Dialogue, MediaRef, Message, check_messages
from anygpt.data.media_codes import Fault, load_media
from anygpt.data.plain_text import checked_text
from anygpt.errors import AnyGPTError, nearest
from anygpt.media import Audio
from anygpt.modality import get_modality
from anygpt.synth.endpoint import Endpoint, EndpointOptions
from anygpt.synth.generators import BadItem, DialogueWriter, MediaGenerator, PluginSettings
from anygpt.world.splits import held_out, stable_hash

KINDS = ("text", "image", "speech", "music")
SCENARIOS = {f"{asked}-to-{answered}": (asked, answered) for asked, answered in itertools.product(KINDS, KINDS)}
"""Scenario -> what one of the user's messages carries, and what its answer does."""
TOPICS, SITUATIONS = 10, len(SCENARIOS)
"""Topics asked for at once, and situations of each."""
HELD_OUT_FRACTION = 0.1
MAX_TOPIC_CHARS, MAX_CHARS, MAX_CAPTION_CHARS = 80, 1000, 400
MAX_ROUNDS, MAX_MEDIA = 6, 3
MAX_MEDIA_BYTES = 64 * 2**20

SYSTEM = "You write training data for a voice and picture assistant. You answer with one JSON object and nothing else."
ASK_TOPICS = (
    "Think of {count} topics of everyday conversation, of widely different kinds; this is list number {number}, so "
    'avoid the most obvious ones. Each is a few words. Answer as {{"topics": ["...", ...]}}.'
)
ASK_SITUATIONS = (
    "Topic: {topic}. Think of {count} different situations in which someone turns to the assistant about it, with "
    'pictures, speech or music in play. Each is one sentence. Answer as {{"situations": ["...", ...]}}.'
)
ASK_DIALOGUE = (
    "Write a conversation of {rounds} rounds between a user and the assistant.\n"
    "Topic: {topic}.\nSituation: {situation}\n"
    "Somewhere the user {asks}, and the assistant's answer to that very message {answers}. Later messages refer to "
    "earlier ones. Keep messages short.\n"
    'Answer as {{"messages": [{{"role": "user", "text": "...", "spoken": false, "media": [{{"modality": "image", '
    '"caption": "..."}}]}}, {{"role": "assistant", ...}}, ...]}}. "text" is what is said or written. "spoken" is '
    'whether it is said aloud; an assistant says its whole text. "media" are pictures and pieces of music that come '
    'with the message, mostly none, each with modality "image" or "music" and a caption that describes it to someone '
    "who has to make it."
)
ASKS = {
    "text": "writes, without media",
    "image": "shows a picture",
    "speech": "speaks",
    "music": "plays a piece of music",
}
ANSWERS = {
    "text": "is text alone",
    "image": "brings a picture",
    "speech": "is spoken",
    "music": "brings a piece of music",
}

Checked = TypeVar("Checked")


class OpenAIWriter(DialogueWriter):
    """Has a chat model write conversations. Options: see `EndpointOptions`; `model` is needed.

    A topic is held out by its name, so that train and heldout share none. What the model answers is checked strictly;
    after an unfit answer it is told what was wrong, and after some of them the conversation is given up.
    """

    def __init__(self, options: EndpointOptions, settings: PluginSettings) -> None:
        self._options, self._settings = options, settings
        self._endpoint = Endpoint(options)
        self._scenarios = settings.scenarios or tuple(SCENARIOS)
        self._topics: list[str] = []
        self._lists = 0
        self._situations: dict[str, list[str]] = {}

    @classmethod
    def create(cls, settings: PluginSettings) -> "OpenAIWriter":
        options = EndpointOptions.parse(settings.options)
        if not options.model:
            raise AnyGPTError("the openai writer needs the name of a model: --option openai.model=NAME")
        for name in settings.scenarios:
            if name not in SCENARIOS:
                raise AnyGPTError(f"unknown scenario '{name}'{nearest(name, SCENARIOS)}; known: {', '.join(SCENARIOS)}")
        return cls(options, settings)

    @property
    def identity(self) -> Mapping[str, Any]:
        prompts = "\n".join((SYSTEM, ASK_TOPICS, ASK_SITUATIONS, ASK_DIALOGUE))
        options = self._options
        return {"model": options.model, "temperature": options.temperature, "prompts": stable_hash(prompts, "prompts")}

    def write(self, index: int) -> Dialogue:
        scenario = self._scenarios[index % len(self._scenarios)]
        topic = self._topic(index // SITUATIONS)
        situation = self._situation(topic, index % SITUATIONS)
        asked, answered = SCENARIOS[scenario]
        prompt = ASK_DIALOGUE.format(
            rounds=2 + stable_hash(str(index), "rounds") % 3,
            topic=topic,
            situation=situation,
            asks=ASKS[asked],
            answers=ANSWERS[answered],
        )

        def check(answer: Any) -> Dialogue:
            dialogue = Dialogue(topic=topic, scenario=scenario, messages=tuple(_messages(answer, f"{index}")))
            check_messages(dialogue)
            if not _covers(dialogue, asked, answered):
                raise AnyGPTError(f"in no round the user {ASKS[asked]} and the answer {ANSWERS[answered]}")
            return dialogue

        return self._ask(prompt, check, f"dialogue/{index}")

    def _topic(self, number: int) -> str:
        """Topic `number` of this split; lists are asked for until there are enough."""
        while len(self._topics) <= number:
            if self._lists > 20 + 40 * number / TOPICS:
                raise AnyGPTError(f"the model '{self._options.model}' names no new topics after {self._lists} lists")
            prompt = ASK_TOPICS.format(count=TOPICS, number=self._lists + 1)
            topics = self._ask(prompt, lambda answer: _strings(answer, "topics"), f"topics/{self._lists}")
            self._lists += 1
            wanted = self._settings.split == "heldout"
            for topic in topics:
                known = topic.lower() in (other.lower() for other in self._topics)
                if not known and held_out(topic.lower(), HELD_OUT_FRACTION, "openai topics") == wanted:
                    self._topics.append(topic)
        return self._topics[number]

    def _situation(self, topic: str, number: int) -> str:
        if topic not in self._situations:
            prompt = ASK_SITUATIONS.format(topic=topic, count=SITUATIONS)
            self._situations = {
                topic: self._ask(prompt, lambda answer: _strings(answer, "situations"), f"topic/{topic}")
            }
        situations = self._situations[topic]
        return situations[number % len(situations)]

    def _ask(self, prompt: str, check: Callable[[Any], Checked], key: str) -> Checked:
        """The checked answer to a prompt; the model hears what was wrong with the one before."""
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        problem = ""
        for attempt in range(self._options.attempts):
            seed = stable_hash(f"{self._settings.seed}/{self._settings.split}/{key}/{attempt}", "openai") % 2**31
            text = self._complete(messages, seed)
            try:
                return check(_json(text))
            except AnyGPTError as error:
                problem = " ".join(str(error).split())
            complaint = f"That can't be used: {problem}. Answer again, with the whole JSON object."
            messages = [*messages[:2], {"role": "assistant", "content": text}, {"role": "user", "content": complaint}]
        raise BadItem(f"the model's answer is unfit {self._options.attempts} times: {problem}")

    def _complete(self, messages: list[Any], seed: int) -> str:
        options = self._options
        answer = self._endpoint.ask(
            lambda client: client.chat.completions.create(
                model=options.model,
                messages=messages,
                temperature=options.temperature,
                seed=seed,
                response_format={"type": "json_object"},
            )
        )
        return answer.choices[0].message.content or "" if answer.choices else ""


class OpenAIMedia(MediaGenerator):
    """Has an endpoint make pictures (`image_model`) and speech (`speech_model`); see `EndpointOptions`."""

    def __init__(self, options: EndpointOptions, settings: PluginSettings) -> None:
        self._options, self._settings = options, settings
        self._endpoint = Endpoint(options)
        self._voices = [voice.strip() for voice in options.voices.split(",") if voice.strip()] or ["alloy"]
        self._makers = {"image": (options.image_model, self._image), "speech": (options.speech_model, self._speech)}
        self.modalities = tuple(name for name, (model, _) in self._makers.items() if model)

    @classmethod
    def create(cls, settings: PluginSettings) -> "OpenAIMedia":
        options = EndpointOptions.parse(settings.options)
        if not options.image_model and not options.speech_model:
            raise AnyGPTError("media from an endpoint need a model: --option openai.image_model=NAME or speech_model")
        return cls(options, settings)

    @property
    def identity(self) -> Mapping[str, Any]:
        names = ("image_model", "image_size", "speech_model", "voices")
        return {name: getattr(self._options, name) for name in names}

    def make(self, ref: MediaRef) -> Image.Image | Audio:
        if ref.modality not in self.modalities:
            raise BadItem(f"the endpoint makes no {ref.modality}; it makes: {', '.join(self.modalities)}")
        content = self._makers[ref.modality][1](ref)
        if len(content) > MAX_MEDIA_BYTES:
            raise BadItem(f"the endpoint sent {len(content)} bytes of {ref.modality}, the limit is {MAX_MEDIA_BYTES}")
        with tempfile.NamedTemporaryFile(prefix="anygpt-") as file:
            file.write(content)
            file.flush()
            loaded = load_media(Path(file.name), get_modality(ref.modality))
        if isinstance(loaded, Fault):
            raise BadItem(f"what the endpoint sent as {ref.modality}: {loaded.reason}")
        media: Image.Image | Audio = loaded
        return media

    def _image(self, ref: MediaRef) -> bytes:
        options = self._options
        form = {"response_format": options.image_response_format} if options.image_response_format else {}
        answer = self._endpoint.ask(
            lambda client: client.images.generate(
                model=options.image_model, prompt=ref.caption, n=1, size=options.image_size, **form
            )
        )
        encoded = answer.data[0].b64_json if answer.data else None
        if not encoded:
            raise BadItem("the endpoint sent no picture in base64; see the option openai.image_response_format")
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise BadItem("the endpoint sent a picture in broken base64") from None

    def _speech(self, ref: MediaRef) -> bytes:
        options = self._options
        voice = self._voices[stable_hash(f"{self._settings.seed}/{ref.key}/{ref.voice}", "voices") % len(self._voices)]
        answer = self._endpoint.ask(
            lambda client: client.audio.speech.create(
                model=options.speech_model, voice=voice, input=ref.caption, response_format=options.speech_format
            )
        )
        content: bytes = answer.content
        return content


def _json(text: str) -> Any:
    """The JSON in an answer, which models like to put into a fenced block."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, flags=re.S)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        raise AnyGPTError(f"not JSON: {text[:60]!r}") from None


def _strings(answer: Any, key: str) -> list[str]:
    values = _fields(answer, "the answer", {key: list})[key]
    if not values or not all(isinstance(value, str) for value in values):
        raise AnyGPTError(f"'{key}' must be a list of texts")
    limit = MAX_TOPIC_CHARS if key == "topics" else MAX_CHARS
    return [_text(value, f"'{key}'", limit) for value in values]


def _messages(answer: Any, key: str) -> list[Message]:
    """The messages that an answer describes. Raises AnyGPTError for the first thing that is wrong."""
    items = _fields(answer, "the answer", {"messages": list})["messages"]
    if len(items) > 2 * MAX_ROUNDS:
        raise AnyGPTError(f"{len(items)} messages; at most {2 * MAX_ROUNDS}")
    messages: list[Message] = []
    heard: str | None = None
    for number, item in enumerate(items, start=1):
        where = f"message {number}"
        fields = _fields(item, where, {"role": str, "text": str}, {"spoken": bool, "media": list})
        text, is_spoken = _text(fields["text"], f"{where}: text", MAX_CHARS), fields.get("spoken", False)
        media = [
            _ref(ref, f"{where}: medium {n}", f"{key}/{number}/{n}") for n, ref in enumerate(fields.get("media", []))
        ]
        if len(media) > MAX_MEDIA:
            raise AnyGPTError(f"{where}: {len(media)} media; at most {MAX_MEDIA}")
        speech = [MediaRef(modality="speech", caption=text, facts={"text": text}, key=f"{key}/{number}")]
        if fields["role"] == "user":
            heard = text if is_spoken else None
            messages.append(Message(role="user", parts=(*(speech if is_spoken else [text]), *media)))
        elif fields["role"] == "assistant":
            spoken = speech if is_spoken else []
            messages.append(Message(role="assistant", parts=(text, *spoken, *media), heard=heard))
        else:
            raise AnyGPTError(f"{where}: role is '{fields['role']}', expected user or assistant")
    return messages


def _ref(value: Any, where: str, key: str) -> MediaRef:
    fields = _fields(value, where, {"modality": str, "caption": str})
    if fields["modality"] not in ("image", "music"):
        raise AnyGPTError(f"{where}: modality is '{fields['modality']}', expected image or music")
    caption = _text(fields["caption"], f"{where}: caption", MAX_CAPTION_CHARS)
    return MediaRef(modality=fields["modality"], caption=caption, key=key)


def _fields(
    value: Any, where: str, needed: Mapping[str, type], optional: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """The fields of an object, all of the right type, no others."""
    if not isinstance(value, dict):
        raise AnyGPTError(f"{where} must be an object")
    known = {**needed, **(optional or {})}
    for name in value:
        if name not in known:
            raise AnyGPTError(f"{where}: unknown field '{name}'")
    for name, kind in known.items():
        if name in needed and name not in value:
            raise AnyGPTError(f"{where}: field '{name}' is missing")
        if name in value and not isinstance(value[name], kind):
            raise AnyGPTError(f"{where}: field '{name}' must be a {kind.__name__}")
    return value


def _text(value: str, where: str, limit: int) -> str:
    text = checked_text(" ".join(value.split()), where)
    if not text or len(text) > limit:
        raise AnyGPTError(f"{where} has {len(text)} characters, expected 1 to {limit}")
    return text


def _covers(dialogue: Dialogue, asked: str, answered: str) -> bool:
    """Whether some round is the one that was ordered."""
    rounds = zip(dialogue.messages[::2], dialogue.messages[1::2], strict=True)
    return any(asked in _kinds(question) and answered in _kinds(answer) for question, answer in rounds)


def _kinds(message: Message) -> set[str]:
    """The modalities of a message; text only where there is nothing else."""
    return {ref.modality for ref in message.media} or {"text"}
