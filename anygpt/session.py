"""A conversation: messages in, events of the answer out.

The ids of an exchange are kept as they were: those of the message as rendered, those of the answer as generated.
Encoding the answer's text again may give other ids (a model need not split words as the text tokenizer does), and
then all of it would have to be computed again; and what the model said is what it should go on from. Only the end of
an answer is put right, where a limit cut it off or the model closed it in another way than the template.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from anygpt.boxes import Box, draw_boxes, find_boxes
from anygpt.choices import OpeningChoice, SpanChoice, opening_choice, span_choice, wants_choice
from anygpt.data.instructions import MESSAGE_CONTROLS
from anygpt.errors import AnyGPTError, nearest
from anygpt.forms import TEXT
from anygpt.generation.cache import StaticCache
from anygpt.generation.grammar import Request
from anygpt.generation.loop import Answer, decode, make
from anygpt.generation.policies import CONVERSATION, Policy, check_limits
from anygpt.generation.reading import AnswerReader, SpanStart, TextPiece
from anygpt.media import Audio, load_image
from anygpt.prompts.render import parse_answer, render
from anygpt.prompts.segments import Media, Segment, Turn
from anygpt.prompts.tags import box_form
from anygpt.prompts.templates import get_template, join_texts, load_templates, user_turn
from anygpt.video import Video
from anygpt.vocabulary import Control, Span

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

_VOICE = "voice"  # in `ModalitySpec.instruction_fields`

FIRST_SLOTS = 256
"""Positions that a new conversation's cache has memory for; it doubles up to the model's context."""
ANSWER_SHARE = 3
"""An answer gets the room that its policy may use, or this fraction of the context where that is less."""
SLACK_SHARE = 8
"""Where turns have to go, so many go that this fraction of the context is free beyond the answer's room: what is left
is computed anew, which should not happen at every turn. The last exchange goes only where an answer would not even
get this much."""


@dataclass(frozen=True, eq=False)
class MediaMade:
    """A picture or sound of the answer is ready: `media`, from `codes_KT` int64 [K, T]."""

    modality: str
    media: Image.Image | Audio | Video
    codes_KT: Tensor
    number: int
    """Its place among the media of the answer, from 1; see `Session.set_path`."""


@dataclass(frozen=True)
class TurnsDropped:
    """The context was full: the oldest `count` turns (two for every exchange) are forgotten."""

    count: int


@dataclass(frozen=True)
class Done:
    """The answer is complete, and part of the conversation."""

    turn: Turn


Event = TextPiece | SpanStart | MediaMade | TurnsDropped | Done

Given = Media | tuple[str, str | Path | Image.Image | Audio | Video | Tensor]
"""Media of a message: encoded already, or a modality with a file, a picture or sound, or codes [K, T]."""

IdSource = Callable[[Sequence[Answer]], Iterator[tuple[Answer, int]]]
"""Makes answers, as `generation.loop.decode` does: one, or those that a picture or sound is to be chosen from."""


@dataclass(frozen=True)
class _Exchange:
    """A message and its answer; `ids` from the user's tag to the end tag of the answer."""

    question: Turn
    answer: Turn
    ids: list[int]


class Session:
    """A conversation with a model, made by `AnyGPT.session`. It owns its turns and its cache, and sees no other."""

    def __init__(self, model: "AnyGPT", *, seed: int, source: IdSource | None = None) -> None:
        """`seed` decides all answers of the conversation. They are made one id after the other on a cache of its own,
        or come from `source`, such as a batch that conversations share.

        Raises AnyGPTError for a model that lacks the tokens of its template.
        """
        self.seed = seed
        self._source = source or self._alone
        self._model = model
        self._vocabulary = model.vocabulary
        self._template = get_template(model.vocabulary.template)
        self._grammar = model.chat_grammar
        self._header_ids = render([], self._template, self._vocabulary).ids
        self._newline_ids = self._vocabulary.encode_text("\n")
        self._exchanges: list[_Exchange] = []
        self._cache: StaticCache | None = None
        self._answers = 0
        self._paths: dict[int, Path] = {}
        self._is_answering = False

    @property
    def turns(self) -> list[Turn]:
        """The conversation so far, user and assistant in turn; what was dropped is not in it."""
        return [turn for exchange in self._exchanges for turn in (exchange.question, exchange.answer)]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """What the last answer points at, where the tag of its instruction asked for that."""
        if not self._exchanges or box_form(self._exchanges[-1].question.text) is None:
            return ()
        return find_boxes(self._exchanges[-1].answer.text)

    def draw(self) -> Image.Image | None:
        """The last picture before the last answer with `boxes` on it, enlarged where it is small; None where there is
        no box or no picture. Raises MediaError where its file can't be read any more."""
        shown = [item for turn in self.turns[:-1] for item in turn.media]
        pictures = [item for item in shown if self._model.specs[item.modality].media == "image"]
        if not self.boxes or not pictures:
            return None
        last = pictures[-1]
        if last.path is not None and last.path.expanduser().is_file():
            return draw_boxes(load_image(last.path), self.boxes)
        return draw_boxes(self._model.decode(last.modality, last.codes_KT), self.boxes)

    def send(
        self,
        text: str = "",
        *,
        media: Sequence[Given] = (),
        answer: str | None = None,
        voice: Path | str | Audio | None = None,
        policies: Mapping[str, Policy] | None = None,
        **settings: Any,
    ) -> Generator[Event, None, None]:
        """Say something, and go through the events of the answer; `Done` comes last.

        `media` go before the text; a spoken instruction is `("speech", path)` among them. `answer` names what the
        answer must contain: a modality, or "text" for text only; None leaves it to the model, unless a tag asks for
        boxes (`anygpt.prompts.tags`), which are text. `voice` is a sample of the voice for speech. `policies`, by
        modality or "text", take the place of the model's own; `settings` are fields of the answer's `Policy` (that of
        text for None). Conversations have no guidance, whatever the policy files say: `guidance_scale` has to be 1 in
        both.

        Where the iteration stops before `Done`, by an error or because it isn't carried on, the conversation is as
        it was. Raises AnyGPTError for an empty message, unfit media, unknown settings, a message that exceeds the
        model's context by itself, and while another answer is being made.
        """
        self._check_idle()
        specs = self._model.specs
        if answer is not None and answer != TEXT:
            _check_modality(answer, [TEXT, *specs])
        chosen = self._policies_for(answer or TEXT, policies or {}, settings)
        if answer != TEXT:
            _check_conversation(chosen, specs)
        sample = self._load_voice(voice) if voice is not None else None
        turn = self.message(text, media)
        spoken = load_templates().message.requests
        hears = any(item.modality in spoken for item in turn.media)
        request = Request.chat(answer, specs, hears=hears, boxes=box_form(text))
        return self._answer(turn, request, chosen, sample)

    def prompt_ids(
        self, turn: Turn | None = None, *, answer_prefix: str = "", answer_modality: str | None = None
    ) -> list[int]:
        """The ids of the conversation, `<s>` in front, and of `turn` after it, up to where its answer begins.

        Equals `render` but for answers, which are as they were generated; see there for the other arguments.
        """
        return self._prompt(self._exchanges, turn, answer_prefix=answer_prefix, answer_modality=answer_modality)

    def undo(self) -> bool:
        """Forget the last message and its answer; False when there is none. What was dropped doesn't come back."""
        self._check_idle()
        if not self._exchanges:
            return False
        self._exchanges = self._exchanges[:-1]
        return True

    def clear(self) -> None:
        """Forget everything, as in a new session of the same seed, and free the cache."""
        self._check_idle()
        self._exchanges, self._cache, self._answers = [], None, 0

    def restore(self, turns: Sequence[Turn]) -> None:
        """Go on from another conversation. Raises AnyGPTError, and leaves all as it was, for turns that are not user
        and assistant alternately, are empty, or hold tokens or codes that don't belong there."""
        self._check_idle()
        roles = [turn.role for turn in turns]
        if roles != ["user", "assistant"] * (len(turns) // 2):
            raise AnyGPTError(f"turns are by {', '.join(roles)}; expected user, assistant, user, assistant, …")
        for number, turn in enumerate(turns, start=1):
            _check_segments(turn, f"turn {number} ({turn.role})")
        pairs = zip(turns[::2], turns[1::2], strict=True)
        self._exchanges = [_Exchange(*pair, self._ids_after_header(pair)) for pair in pairs]
        self._answers = len(self._exchanges)

    def set_path(self, number: int, path: Path | str) -> None:
        """Say where medium `number` (as in `MediaMade`) was saved: of the answer being made, else of the last one."""
        if self._is_answering:
            self._paths[number] = Path(path)
            return
        last = self._exchanges[-1]
        self._exchanges = [*self._exchanges[:-1], replace(last, answer=_with_paths(last.answer, {number: Path(path)}))]

    def _answer(
        self, question: Turn, request: Request, policies: Mapping[str, Policy], voice: Audio | None
    ) -> Generator[Event, None, None]:
        self._check_idle()
        self._is_answering, self._paths = True, {}
        try:
            kept = self._exchanges[self._drop_count(question, request, policies) :]
            seed = self._answer_seed()
            answer = Answer(
                self._prompt(kept, question),
                grammar=self._grammar,
                request=request,
                policies=policies,
                context=self._model.decoder.shape.context,
                generator=torch.Generator(self._model.decoder.device).manual_seed(seed),
                pauses_at=wants_choice,
            )
            if len(kept) < len(self._exchanges):
                yield TurnsDropped(2 * (len(self._exchanges) - len(kept)))
            ids: list[int] = []
            number = 0
            for event in self._read(self._drawn(answer, question, seed), ids):
                if isinstance(event, Span):
                    number += 1
                    yield self._made(event, number, policies[event.spec.name], voice, seed)
                else:
                    yield event
            exchange = self._exchange(question, ids)
            self._exchanges = [*kept, exchange]
            self._answers += 1
        finally:
            self._is_answering = False
        yield Done(exchange.answer)

    def _drawn(self, answer: Answer, question: Turn, seed: int) -> Iterator[int]:
        """The ids of an answer; where there is a choice among several beginnings or spans, the chosen ids come at
        once."""
        choice: OpeningChoice | SpanChoice | None
        choice = opening_choice(self._model, answer, question.media, seed=seed)
        while True:
            if choice is not None:
                for _ in self._source(choice.candidates):
                    pass
                chosen = choice.chosen(self._model)
                yield from chosen
                answer = answer.carried_on(chosen)
            if not answer.is_done:
                for _, index in self._source([answer]):
                    yield index
            if not answer.is_paused:
                return
            if (choice := span_choice(self._model, answer, seed=seed)) is None:
                answer = answer.carried_on()

    def _alone(self, answers: Sequence[Answer]) -> Iterator[tuple[Answer, int]]:
        decoder = self._model.decoder
        if len(answers) > 1:
            return decode(decoder, answers, batch_size=len(answers), known=self._cache)
        if self._cache is None:
            self._cache = decoder.new_cache(slots=FIRST_SLOTS)
        return ((answers[0], index) for index in make(decoder, answers[0], self._cache))

    def _read(self, generated: Iterable[int], ids: list[int]) -> Iterator[TextPiece | SpanStart | Span]:
        """What the generated ids say; they are added to `ids`."""
        reader = AnswerReader(self._vocabulary, heard_ids=self._grammar.heard_ids)
        for index in generated:
            ids.append(index)
            yield from reader.push(index)
        yield from reader.flush()

    def _made(self, span: Span, number: int, policy: Policy, voice: Audio | None, seed: int) -> MediaMade:
        name = span.spec.name
        settings: dict[str, Any] = dict(policy.decoder_settings)
        if voice is not None and _VOICE in span.spec.instruction_fields:
            settings[_VOICE] = voice
        return MediaMade(name, self._model.decode(name, span.codes_KT, seed=seed, **settings), span.codes_KT, number)

    def _exchange(self, question: Turn, answer_ids: list[int]) -> _Exchange:
        """The exchange that generated ids complete, its end tag put right."""
        answer = parse_answer(answer_ids, self._template, self._vocabulary)
        if answer_ids[-1] in self._grammar.end_ids:
            answer_ids = answer_ids[:-1]
        end = self._vocabulary.control_id(self._template.assistant_end)
        return _Exchange(
            question, _with_paths(answer, self._paths), [*self._ids_after_header([question]), *answer_ids, end]
        )

    def _prompt(self, exchanges: Sequence[_Exchange], turn: Turn | None, **opening: Any) -> list[int]:
        ids = list(self._header_ids)
        for number, exchange in enumerate(exchanges):
            ids += [*self._newline_ids, *exchange.ids] if number else exchange.ids
        if turn is not None:
            ids += self._newline_ids if exchanges else []
            ids += self._ids_after_header([turn], **opening)
        return ids

    def _ids_after_header(self, turns: Sequence[Turn], **opening: Any) -> list[int]:
        """Texts of neighbouring turns are never encoded as one, since tags stand between them."""
        return render(turns, self._template, self._vocabulary, **opening).ids[len(self._header_ids) :]

    def _drop_count(self, question: Turn, request: Request, policies: Mapping[str, Policy]) -> int:
        """How many of the oldest exchanges have to go for `question` and its answer."""
        context = self._model.decoder.shape.context
        shortest = self._grammar.shortest_answer(request)
        expected = (TEXT, request.required) if request.required else (TEXT, *request.allowed)
        longest = 2 + max(policies[name].max_new_tokens for name in expected)
        room = max(shortest, min(longest, context // ANSWER_SHARE))
        length = len(self._prompt(self._exchanges, question))
        if length + room <= context:
            return 0
        count = 0
        for exchange in self._exchanges:
            is_last = count + 1 == len(self._exchanges)
            slack = context // SLACK_SHARE
            needed = max(shortest, min(room, slack)) if is_last else room + slack
            if length + needed <= context:
                break
            length -= len(exchange.ids) + len(self._newline_ids)
            count += 1
        return count

    def message(self, text: str, media: Sequence[Given] = ()) -> Turn:
        """A user's turn, its media encoded; the arguments and errors are those of `send`."""
        if not isinstance(text, str):
            raise AnyGPTError(f"text is given as {type(text).__name__}, expected str")
        turn = user_turn(text.strip(), [self._encoded(item) for item in media])
        if not turn.segments:
            raise AnyGPTError("the message is empty; expected a text, or media such as a spoken instruction")
        return turn

    def _encoded(self, given: Given) -> Media:
        if isinstance(given, Media):
            return given
        name, content = given
        _check_modality(name, self._model.specs)
        path = Path(content) if isinstance(content, str | Path) else None
        return Media(name, self._model.encode(name, content), path)

    def _policies_for(self, name: str, given: Mapping[str, Policy], settings: Mapping[str, Any]) -> dict[str, Policy]:
        policies = {**self._model.chat_policies, **given}
        policy = policies[name].override(settings)
        if name != TEXT:
            check_limits(policy, self._model.specs[name], "generation settings")
        return {**policies, name: policy}

    def _load_voice(self, voice: Path | str | Audio) -> Audio:
        for name, spec in self._model.specs.items():
            if _VOICE in spec.instruction_fields:
                return self._model.load(name, voice, is_prompt=True)
        raise AnyGPTError("this model makes nothing that takes a voice")

    def _answer_seed(self) -> int:
        """Another one for every answer, the same in every run; answers taken back count."""
        digest = hashlib.sha256(f"{self.seed}:{self._answers}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def _check_idle(self) -> None:
        if self._is_answering:
            raise AnyGPTError("an answer is being made in this conversation; go through it or close it first")


def _with_paths(turn: Turn, paths: Mapping[int, Path]) -> Turn:
    """The turn with paths of its media, by number from 1."""
    segments: list[Segment] = []
    number = 0
    for segment in turn.segments:
        if isinstance(segment, Media):
            number += 1
            segment = replace(segment, path=paths.get(number, segment.path))
        segments.append(segment)
    return Turn(turn.role, segments)


def _check_segments(turn: Turn, where: str) -> None:
    if not join_texts(turn.segments):
        raise AnyGPTError(f"{where} is empty")
    known = MESSAGE_CONTROLS if turn.role == "assistant" else ()
    for segment in turn.segments:
        if isinstance(segment, Control) and segment.token not in known:
            raise AnyGPTError(f"{where} holds the control token {segment.token}, which can't stand there")


def _check_conversation(policies: Mapping[str, Policy], names: Iterable[str]) -> None:
    for name in names:
        for field, only in CONVERSATION.items():
            value = getattr(policies[name], field)
            if value != only:
                raise AnyGPTError(
                    f"'{field}' of {name} is {value:g}, and in conversations only {only:g}: leave it out, or use a "
                    f"base prompt"
                )


def _check_modality(name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise AnyGPTError(f"unknown modality '{name}'{nearest(name, known)}; known: {', '.join(known)}")
