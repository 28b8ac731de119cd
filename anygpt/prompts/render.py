"""Turns and base prompts to ids, with the mask of what is trained on; and generated ids back to turns.

Texts that stand side by side, whoever wrote them, are encoded as one run: that is what the released checkpoints
saw. Codes and control tokens map straight to ids, so nothing that a user types can become one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from anygpt.errors import AnyGPTError
from anygpt.modality import ModalitySpec
from anygpt.prompts.segments import Media, Segment, Turn, segments_from_items, segments_to_marked
from anygpt.prompts.templates import ChatTemplate, Direction, get_template, join_texts, load_templates
from anygpt.vocabulary import Control, Text, Vocabulary


class Rendered(NamedTuple):
    """`loss_mask[i]` says whether the prediction of `ids[i]` is trained."""

    ids: list[int]
    loss_mask: list[bool]


class RenderedString(NamedTuple):
    """`trained_spans` are [start, end) character offsets in `text`."""

    text: str
    trained_spans: list[tuple[int, int]]


@dataclass(frozen=True)
class _Part:
    segment: Segment
    trained: bool


def render(
    turns: Sequence[Turn],
    template: ChatTemplate | str,
    vocab: Vocabulary,
    *,
    answer_prefix: str = "",
    answer_modality: str | None = None,
    end_of_text: bool = False,
) -> Rendered:
    """A conversation as ids with `<s>` in front; the same function for training and chat.

    When the user spoke last, the assistant's tag follows, then `answer_prefix` and the start tag of
    `answer_modality`, to be continued by the model. For a training example set `end_of_text`: it appends `</s>`.
    Trained are the assistant's messages, their end tags and `</s>`. An assistant's message before the first of the
    user is left out. Raises AnyGPTError for an empty message that isn't the last, or a training example that doesn't
    end with an answer; CodeError for codes that don't fit.
    """
    if end_of_text and (not turns or turns[-1].role != "assistant" or not join_texts(turns[-1].segments)):
        raise AnyGPTError("a training conversation must end with an assistant's message")
    opened = vocab.block(answer_modality).spec if answer_modality else None
    parts = _chat_parts(turns, _template(template), answer_prefix=answer_prefix, opened=opened)
    ids, loss_mask = _encode(parts, vocab)
    if end_of_text:
        ids.append(vocab.text_eos_id)
        loss_mask.append(True)
    return Rendered(ids, loss_mask)


def render_string(
    turns: Sequence[Turn],
    template: ChatTemplate | str,
    specs: Mapping[str, ModalitySpec],
    *,
    answer_prefix: str = "",
    answer_modality: str | None = None,
    open_answer: bool = True,
) -> RenderedString:
    """What `render` encodes, as a string for logs and comparison, without `<s>` and `</s>`.

    `open_answer=False` leaves out the assistant's tag after a last message of the user.
    """
    opened = specs[answer_modality] if answer_modality else None
    parts = _chat_parts(turns, _template(template), answer_prefix=answer_prefix, opened=opened, open_answer=open_answer)
    text = ""
    spans: list[tuple[int, int]] = []
    for part in parts:
        start = len(text)
        text += segments_to_marked([part.segment], specs)
        if part.trained and spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], len(text))
        elif part.trained:
            spans.append((start, len(text)))
    # The space after a role tag belongs to the first trained id, but to no message.
    return RenderedString(text, [(start + (text[start] == " "), end) for start, end in spans])


def render_base(
    direction: Direction | None,
    instruction: str,
    segments: Sequence[Segment],
    vocab: Vocabulary,
    *,
    answer_modality: str | None = None,
) -> list[int]:
    """Prompt ids of one task, with `<s>`. `direction` None means that the input carries its own instruction.

    With `answer_modality` the start tag of that modality follows, to be continued by the model, after the same ids
    as in a training example.
    """
    parts = question(direction, instruction, segments)
    if answer_modality is not None:
        start = Control(vocab.block(answer_modality).spec.start)
        answer = load_templates().base.fill("answer", output=[start])
        parts += answer[: answer.index(start) + 1]
    return _encode([_Part(segment, False) for segment in parts], vocab).ids


def render_pretrain(
    direction: Direction,
    instruction: str,
    text: str,
    media: Media,
    vocab: Vocabulary,
    *,
    train_question: bool = True,
    drop_input: bool = False,
) -> Rendered:
    """One pre-training example, `<s>` and `</s>` included.

    As published all of it is trained; `train_question=False` trains the answer only, to measure its loss. With
    `drop_input` the answer follows the instruction alone, as where classifier-free guidance reads the prompt without
    its input.
    """
    source: Segment = media if direction == "x2text" else Text(text)
    target: Segment = Text(text) if direction == "x2text" else media
    asked = question(direction, instruction, [] if drop_input else [source])
    parts = [_Part(segment, train_question) for segment in asked]
    parts += [_Part(segment, True) for segment in load_templates().base.fill("answer", output=[target])]
    ids, loss_mask = _encode(parts, vocab)
    return Rendered([*ids, vocab.text_eos_id], [train_question, *loss_mask[1:], True])


def render_answered(direction: Direction, instruction: str, text: str, media: Media, vocab: Vocabulary) -> Rendered:
    """A prompt with its answer, up to the answer's end; only the answer counts in `loss_mask`."""
    ids, mask = render_pretrain(direction, instruction, text, media, vocab, train_question=False)
    return Rendered(ids[:-1], mask[:-1])  # without the end of the training example


def question(direction: Direction | None, instruction: str, segments: Sequence[Segment]) -> list[Segment]:
    """The segments of a base prompt, up to where the answer begins; `segments` are the input."""
    base = load_templates().base
    return base.fill(direction or "custom", instruction=[Text(instruction)], input=segments)


def parse_turns(ids: Sequence[int], template: ChatTemplate | str, vocab: Vocabulary) -> list[Turn]:
    """The turns that `ids` hold, the inverse of `render`: system line, tags and their colons removed.

    Where the template puts words first, they stay in front. A last turn without an end tag is kept. Raises CodeError
    for a malformed span.
    """
    template = _template(template)
    roles = {template.user: "user", template.assistant: "assistant"}
    ends = {template.user_end, template.assistant_end, vocab.text.piece(vocab.text_eos_id)}
    turns: list[Turn] = []
    is_open = False
    for item in segments_from_items(vocab.decode_ids(ids)):
        if isinstance(item, Control) and item.token in roles:
            turns.append(Turn("user" if roles[item.token] == "user" else "assistant"))
            is_open = True
        elif isinstance(item, Control) and item.token in ends:
            is_open = False
        elif is_open:
            last = turns[-1]
            if not last.segments and isinstance(item, Text):
                item = Text(_without_colon(item.text))
            turns[-1] = Turn(last.role, [*last.segments, item])
    return [Turn(turn.role, join_texts(turn.segments)) for turn in turns]


def parse_answer(ids: Sequence[int], template: ChatTemplate | str, vocab: Vocabulary) -> Turn:
    """The assistant's turn in the ids that a model generated after a prompt, up to its first end tag.

    Works with and without the end tag, and where the model repeats its role tag. Raises CodeError.
    """
    template = _template(template)
    stops = [vocab.controls.get(end) for end in (template.assistant_end, template.user_end, template.user)]
    end = next((at for at, index in enumerate(ids) if index in (*stops, vocab.text_eos_id)), len(ids))
    items = segments_from_items(vocab.decode_ids(ids[:end]))
    tag = Control(template.assistant)
    if tag in items:
        items = items[len(items) - items[::-1].index(tag) :]
        if items and isinstance(items[0], Text):
            items = (Text(_without_colon(items[0].text)), *items[1:])
    return Turn("assistant", join_texts(items))


def _template(template: ChatTemplate | str) -> ChatTemplate:
    return get_template(template) if isinstance(template, str) else template


def _chat_parts(
    turns: Sequence[Turn],
    template: ChatTemplate,
    *,
    answer_prefix: str,
    opened: ModalitySpec | None,
    open_answer: bool = True,
) -> list[_Part]:
    if turns and turns[0].role == "assistant":
        turns = turns[1:]
    parts = [_Part(Text(f"{template.system}\n"), False)]
    for number, turn in enumerate(turns, start=1):
        tag, end = template.tags(turn.role)
        is_last, trained = number == len(turns), turn.role == "assistant"
        segments = join_texts(turn.segments)
        if template.words_first and turn.role == "user":
            segments = _words_first(segments)
        parts.append(_Part(tag, False))
        if not segments:
            if not is_last or turn.role == "user":
                raise AnyGPTError(f"message {number} of the conversation ({turn.role}) is empty")
            parts.append(_Part(Text(":"), False))
            return parts
        parts += (_Part(Text(":"), False), _Part(Text(" "), trained))
        parts += [_Part(segment, trained) for segment in segments]
        parts.append(_Part(end, trained))
        if not is_last:
            parts.append(_Part(Text("\n"), False))
    if open_answer and turns and turns[-1].role == "user":
        parts += (_Part(Text("\n"), False), _Part(template.tags("assistant")[0], False), _Part(Text(":"), False))
        if answer_prefix:
            parts.append(_Part(Text(f" {answer_prefix}"), False))
        if opened is not None:
            parts += (_Part(Text(" "), False), _Part(Control(opened.start), False))
    return parts


def _words_first(segments: Sequence[Segment]) -> list[Segment]:
    """A message of media and then a text with the text in front; any other, as with words among its media, stays."""
    *media, last = segments or [Text("")]
    is_gathered = all(isinstance(segment, Media) or segment == Text(" ") for segment in media)
    if not (media and is_gathered and isinstance(last, Text) and last.text.strip()):
        return list(segments)
    return [Text(f"{last.text.strip()} "), *media]


def _without_colon(text: str) -> str:
    """A message without the colon that follows the role tag; models and transformers put a space before it."""
    bare = text.lstrip(" ")
    if not bare.startswith(":"):
        return text
    return bare[1:].removeprefix(" ")


def _encode(parts: Iterable[_Part], vocab: Vocabulary) -> Rendered:
    ids, loss_mask = [vocab.bos_id], [False]
    run: list[tuple[str, bool]] = []

    def flush() -> None:
        text_ids, text_mask = _encode_run(run, vocab)
        ids.extend(text_ids)
        loss_mask.extend(text_mask)
        run.clear()

    for part in parts:
        if isinstance(part.segment, Text):
            run.append((part.segment.text, part.trained))
            continue
        flush()
        if isinstance(part.segment, Control):
            new = [vocab.control_id(part.segment.token)]
        else:
            new = vocab.encode_codes(part.segment.modality, part.segment.codes_KT)
        ids += new
        loss_mask += [part.trained] * len(new)
    flush()
    return Rendered(ids, loss_mask)


def _encode_run(run: Sequence[tuple[str, bool]], vocab: Vocabulary) -> tuple[list[int], list[bool]]:
    """Encode neighbouring texts as one; an id that holds characters of two of them takes the flag of the later."""
    text = "".join(string for string, _ in run)
    ids = vocab.encode_text(text)
    mask: list[bool] = []
    end = 0
    for number, (string, trained) in enumerate(run):
        end += len(string)
        if number + 1 < len(run) and run[number + 1][1] == trained:
            continue
        count = len(ids) if number + 1 == len(run) else _common_length(ids, vocab.encode_text(text[:end]))
        mask += [trained] * (count - len(mask))
    return ids, mask


def _common_length(ids: Sequence[int], others: Sequence[int]) -> int:
    pairs = enumerate(zip(ids, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ids), len(others)))
