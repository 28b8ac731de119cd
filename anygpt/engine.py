"""`AnyGPT`: a language model with its vocabulary and tokenizers; media in, media out."""

import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from PIL import Image
from torch import Tensor

from anygpt.boxes import Box, draw_boxes, find_boxes
from anygpt.candidates import best_fit, best_text, candidate_seed
from anygpt.config import from_dict
from anygpt.devices import find_device
from anygpt.errors import AnyGPTError, CheckpointError, MediaError, nearest
from anygpt.forms import INSTRUCTION, TEXT, parse_form, split_bars
from anygpt.generation.grammar import Grammar, Request
from anygpt.generation.llama import LlamaDecoder, load_decoder
from anygpt.generation.loop import Answer, decode, generate
from anygpt.generation.policies import CONVERSATION, Policy, check_limits, load_policies
from anygpt.generation.rules import base_grammar, chat_grammar
from anygpt.manifest import read_manifest
from anygpt.media import Audio, load_audio, load_image, save_audio, save_image
from anygpt.media_tokenizers import MediaTokenizers, TokenizerPaths
from anygpt.modality import ModalitySpec
from anygpt.paths import resource
from anygpt.prompts.render import render_base
from anygpt.prompts.segments import Media, Segment, text_of
from anygpt.prompts.tags import BoxForm, box_form
from anygpt.prompts.tasks import TaskPrompts
from anygpt.prompts.templates import Direction
from anygpt.session import Given, IdSource, Session
from anygpt.video import Video, load_video, save_video
from anygpt.vocabulary import Span, Text, Vocabulary

if TYPE_CHECKING:
    from anygpt.generation.reading import TextPiece
    from anygpt.questions import Score
    from anygpt.streaming import AudioChunk

DEFAULT_MODEL = "anygpt-mini-base"
MIN_VOICE_S = 0.5
BOX_TEXT_IDS = 256
"""What a text with boxes may have at least, where no length is asked for: a box takes up to 24 ids."""
MOST_TOGETHER = 64
"""Answers to one prompt that are made at once, candidates counted: more gain little, and each has a cache."""
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}

Progress = Callable[[int, int], None]
"""Called with the number of ids generated so far and the most that there can be."""


@dataclass(frozen=True)
class _MediaKind:
    """How one kind of file (`ModalitySpec.media`) is read and written."""

    type: type
    load: Callable[..., Any]
    save: Callable[[Path, Any], Path]
    extension: str


_KINDS = {
    "image": _MediaKind(Image.Image, load_image, save_image, "jpg"),
    "audio": _MediaKind(Audio, partial(load_audio, reject_silence=True), save_audio, "wav"),
    "video": _MediaKind(Video, load_video, save_video, "mp4"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The answer to one prompt: `text`, `image`, `audio` or `video`, whichever the modality of the answer is."""

    prompt: str
    modality: str
    """Of the answer."""
    text: str | None = None
    image: Image.Image | None = None
    audio: Audio | None = None
    video: Video | None = None
    codes_KT: Tensor | None = None
    """The codes of the picture, sound or video, int64 [levels, frames]."""
    boxes: tuple[Box, ...] = ()
    """What the text points at, where the instruction's tag asked for that."""
    picture: str | Path | Image.Image | None = None
    """What the boxes are on, unless that was given as codes."""
    seed: int
    """Gives the same answer again."""
    seconds: float
    """What it took, tokenizers included; in a batch, from when its prompt got a place."""
    error: AnyGPTError | None = None
    """Of `run_batch`: why there is no answer. The modality may then be empty."""

    @property
    def media(self) -> Image.Image | Audio | Video | None:
        """The picture, sound or video, None for text."""
        return next((media for media in (self.image, self.audio, self.video) if media is not None), None)

    @property
    def has_file(self) -> bool:
        """Whether there is something to `save`."""
        return self.media is not None or (bool(self.boxes) and self.picture is not None)

    def draw(self) -> Image.Image:
        """The picture that was asked about with the boxes on it; a small one is enlarged.

        Raises AnyGPTError where the answer has no boxes, or the picture was given as codes.
        """
        if not self.boxes or self.picture is None:
            raise AnyGPTError("there is nothing to draw: " + ("no picture" if self.boxes else "no boxes in the answer"))
        picture = self.picture if isinstance(self.picture, Image.Image) else load_image(self.picture)
        return draw_boxes(picture, self.boxes)

    def save(self, folder: Path | str, *, stem: str | None = None) -> Path:
        """Write the picture (JPEG) or sound (16-bit WAV), or the picture with boxes on it, named from the prompt's text
        and the time.

        With `stem` the file is `<stem>.<extension>`, in place of what has that name. Returns the path. Raises
        AnyGPTError when the folder can't be written; an answer in text alone is not saved.
        """
        assert self.has_file, "an answer in text has no file"
        media = self.draw() if self.media is None else self.media
        if stem is None:
            return save_media(folder, media, name=self._name())
        kind = _kind_of(media)
        return kind.save(Path(folder).expanduser() / f"{stem}.{kind.extension}", media)

    def _name(self) -> str:
        """What a file of the answer is named from."""
        words = split_bars(self.prompt)
        return self.prompt if len(words) < 3 else words[2] if self.media is not None else words[-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A prompt as ids, and how it is to be answered; made by `AnyGPT.task`."""

    prompt: str
    target: str
    ids: list[int]
    unconditional_ids: list[int] | None
    """The prompt without its input, where the answer is guided."""
    policies: Mapping[str, Policy]
    decoder_settings: Mapping[str, Any]
    seed: int
    grammar: Grammar | None = None
    """The rules of the answer, None for those of single questions."""
    text: str | None = None
    """What a picture or sound is to be made from: candidates are chosen by it (`Policy.best_of`)."""
    media: Media | None = None
    """What a text is about, where that is all the prompt says: the same."""
    boxes: BoxForm | None = None
    """How boxes stand in the answer, where the instruction's tag asks for them."""
    picture: str | Path | Image.Image | None = None
    """What the boxes are on, unless that was given as codes."""

    def candidates(self) -> "list[Task]":
        """The task with other seeds, as often as the policy says; the task itself first."""
        policy = self.policies[self.target]
        if self.media is not None:
            others = {**self.policies, self.target: policy.of_others}
            seeds = [candidate_seed(self.seed, number) for number in range(1, policy.best_of)]
            return [self, *(replace(self, seed=seed, policies=others) for seed in seeds)]
        count = 1 if self.text is None or policy.is_greedy else policy.best_of
        return [replace(self, seed=candidate_seed(self.seed, number)) for number in range(count)]

    def failed(self, error: AnyGPTError) -> Result:
        return Result(prompt=self.prompt, modality=self.target, seed=self.seed, seconds=0.0, error=error)


class AnyGPT:
    """A model that answers prompts in text, pictures, speech and music."""

    def __init__(
        self,
        decoder: LlamaDecoder,
        vocabulary: Vocabulary,
        tokenizers: MediaTokenizers,
        *,
        policies: dict[str, Policy],
        reading: Mapping[str, Mapping[str, Any]] | None = None,
        task_prompts: TaskPrompts,
        config_dir: Path | str | None = None,
        seed: int | None = None,
    ) -> None:
        """`policies` by modality and "text"; `reading` has other fields of that of text, by modality of the media that
        texts are about. `config_dir` holds that of chat's text (None: the shipped one). `seed` is what `run` and
        `session` use when they are given none (None: a new one)."""
        if decoder.shape.vocab_size < vocabulary.size:
            raise CheckpointError(
                f"the model has {decoder.shape.vocab_size} rows of embeddings, its vocabulary {vocabulary.size} ids: "
                f"config.json and added_tokens.json belong to different checkpoints"
            )
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.tokenizers = tokenizers
        self.policies = policies
        self.reading = dict(reading or {})
        self.task_prompts = task_prompts
        self.seed = seed
        self._config_dir = config_dir
        self._grammar = base_grammar(vocabulary)

    @classmethod
    def from_pretrained(
        cls,
        model: Path | str | None = None,
        *,
        image_tokenizer_path: Path | str | None = None,
        speech_tokenizer_path: Path | str | None = None,
        speech_tokenizer_config: Path | str | None = None,
        soundstorm_path: Path | str | None = None,
        music_tokenizer_path: Path | str | None = None,
        audio_tokenizer_path: Path | str | None = None,
        unclip_path: Path | str | None = None,
        config_dir: Path | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        seed: int | None = None,
    ) -> "AnyGPT":
        """Load a model folder, or a shipped model by name (default: the shipped base model).

        Tokenizers are found by the model's `anygpt.json`, or by these paths (released checkpoints), and loaded when
        first needed. `config_dir` holds `<modality>_generate_config.json`. `device` "auto" takes a GPU when there is
        one; `dtype` "auto" is bfloat16 there and float32 on a CPU; "int8" keeps weights as 8-bit integers and computes
        in bfloat16. Raises AnyGPTError, mostly CheckpointError, that names the file or setting.
        """
        folder = find_model(model)
        where = find_device(device)
        vocabulary = Vocabulary.from_pretrained(folder)
        manifest = read_manifest(folder)
        entries = manifest.modalities if manifest is not None else {}
        reading = {name: entry.reading for name, entry in entries.items()}
        policies = load_policies(
            config_dir or resource("config"),
            vocabulary.specs.values(),
            defaults={name: entry.decoding for name, entry in entries.items()},
        )
        for name, own in reading.items():
            from_dict(Policy, own, source=f"the model's settings for reading {name}")
        tokenizers = MediaTokenizers(
            vocabulary.specs,
            manifest=manifest,
            paths=TokenizerPaths(
                image_tokenizer=_text(image_tokenizer_path),
                unclip=_text(unclip_path),
                speech_tokenizer=_text(speech_tokenizer_path),
                speech_config=_text(speech_tokenizer_config),
                soundstorm=_text(soundstorm_path),
                music_tokenizer=_text(music_tokenizer_path),
                audio_tokenizer=_text(audio_tokenizer_path),
            ),
            device=where,
        )
        return cls(
            load_decoder(folder, dtype=_dtype(dtype, where), device=where),
            vocabulary,
            tokenizers,
            policies=policies,
            reading=reading,
            task_prompts=TaskPrompts.load(),
            config_dir=config_dir,
            seed=seed,
        )

    @property
    def specs(self) -> dict[str, ModalitySpec]:
        """The modalities of this model, at its codebook sizes."""
        return self.vocabulary.specs

    @overload
    def run(
        self, prompt: str, *, n: None = None, seed: int | None = None, progress: Progress | None = None, **settings: Any
    ) -> Result: ...

    @overload
    def run(
        self, prompt: str, *, n: int, seed: int | None = None, progress: Progress | None = None, **settings: Any
    ) -> list[Result]: ...

    def run(
        self,
        prompt: str,
        *,
        n: int | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result | list[Result]:
        r"""Answer a one-line prompt such as `text|image|a red apple` or `speech|text|hello.wav`; `\|` is a bar.

        `settings` are fields of the answer's `Policy` (`temperature=0.5`) or of its form (`voice="me.wav"`, also an
        `Audio`; `instruction="[refer] a dog"`). The same seed gives the same answer on the same machine. With `n`, so
        many answers at once, of the seeds from `seed` on, for one reading of the prompt; they don't call `progress`.
        Raises AnyGPTError for an unknown form, unfit media, an unknown setting, or a prompt that doesn't fit the
        model's context.
        """
        if n is None:
            form = parse_form(prompt, self.specs.values())
            given = self.ask(
                form.source, form.target, form.content, seed=seed, progress=progress, **form.fields, **settings
            )
            return replace(given, prompt=prompt)
        if n < 1:
            raise AnyGPTError(f"n is {n}, expected at least 1")
        task = self.task(prompt, seed=seed, **settings)
        tasks = [replace(task, seed=(task.seed + i) % 2**63) for i in range(n)]
        results = self.run_tasks(tasks, batch_size=min(n * len(task.candidates()), MOST_TOGETHER))
        return [_answered(result) for result in results]

    def run_batch(
        self,
        prompts: Iterable[str | tuple[str, int]],
        *,
        batch_size: int = 16,
        seed: int | None = None,
        **settings: Any,
    ) -> Iterator[Result]:
        """Answer many prompts, `batch_size` at a time; the results come in the order of the prompts.

        A prompt may come with a seed of its own; prompt i without one has `seed` + i. It is answered as by `run` with
        that seed, but for ids so close to a tie that the order of summation decides. Prompts are read as places
        become free and up to `batch_size` ahead, their media encoded and those of answers decoded in other threads.
        What can't be answered gives a result with an `error`. `settings` as in `run`, for all prompts.
        Raises AnyGPTError for a batch size or seed out of range.
        """
        from anygpt.batches import prepare_and_run

        if batch_size < 1:
            raise AnyGPTError(f"batch_size is {batch_size}, expected at least 1")
        first = self._chosen(seed)
        seeded = (
            (item, (first + number) % 2**63) if isinstance(item, str) else item for number, item in enumerate(prompts)
        )
        makes = (partial(self._prepared, *item, settings) for item in seeded)
        return prepare_and_run(self, makes, batch_size=batch_size)

    def ask(
        self,
        source: str,
        target: str,
        content: str | Path | Image.Image | Audio | Video | Tensor,
        *,
        seed: int | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result:
        """Answer `content` of modality `source` ("text", or a modality) in modality `target`; one of them is "text".

        `content` is text, or the path of a file, a picture or sound, or codes [K, T]. See `run` for the rest.
        """
        began = time.perf_counter()
        task = self.prepare(source, target, content, self._chosen(seed), settings)
        most = self._grammar.longest_answer(Request.only(target), task.policies) or self.decoder.shape.context
        most = min(most, self.decoder.shape.context - len(task.ids))
        if len(task.candidates()) > 1:
            making = self.making(task)
            for answer, _ in decode(self.decoder, making, batch_size=len(making)):
                if progress is not None:
                    progress(len(answer.ids), most)
            return self.result(task, self.chosen(task, making).ids, began)
        ids: list[int] = []
        for index in generate(self.decoder, task.ids, **self.rules(task)):
            ids.append(index)
            if progress is not None:
                progress(len(ids), most)
        return self.result(task, ids, began)

    def stream(
        self, prompt: str, *, seed: int | None = None, **settings: Any
    ) -> "Iterator[TextPiece | AudioChunk | Result]":
        """As `run`, with the answer in parts while it is made: text, sound in chunks, and the `Result` last."""
        from anygpt.streaming import stream

        return stream(self, prompt, seed=self._chosen(seed), **settings)

    def caption(
        self,
        images: Iterable[str | Path | Image.Image | Tensor],
        *,
        instruction: str | None = None,
        batch_size: int = 16,
        seed: int | None = None,
        **settings: Any,
    ) -> Iterator[Result]:
        """Describe pictures, as files, pictures or codes [1, 32], many at a time; see `run_batch` for what comes out.

        `instruction` is put to a chat model with each of them; without one they are prompts `image|text|…`.
        `settings` are fields of the answers' `Policy`. Raises AnyGPTError for an unknown setting.
        """
        from anygpt.questions import caption

        return caption(self, images, instruction, batch_size=batch_size, seed=self._chosen(seed), settings=settings)

    def answer(
        self,
        image: str | Path | Image.Image | Tensor | None,
        question: str,
        *,
        seed: int | None = None,
        **settings: Any,
    ) -> Result:
        """What a chat model answers in text to a question about a picture (None: about nothing), in a conversation of
        its own. `settings` are fields of the answer's `Policy`. Raises AnyGPTError as `Session.send` does."""
        return _answered(next(self.answer_batch([(image, question)], batch_size=1, seed=seed, **settings)))

    def answer_batch(
        self,
        questions: Iterable[tuple[str | Path | Image.Image | Tensor | None, str]],
        *,
        batch_size: int = 16,
        seed: int | None = None,
        **settings: Any,
    ) -> Iterator[Result]:
        """As `answer`, for many pictures and questions, `batch_size` at a time; see `run_batch` for what comes out."""
        from anygpt.questions import answer

        return answer(self, questions, batch_size=batch_size, seed=self._chosen(seed), settings=settings)

    def score(self, prompt: str, candidates: Sequence[str], *, media: Sequence[Given] | None = None) -> "list[Score]":
        """How likely each of these texts is as the whole answer to a prompt, in their order; the prompt is read once.

        With `media` (see `Session.send`; empty for none) the prompt is a message to a chat model, without it a one-line
        prompt as in `run`. Raises AnyGPTError for unfit media, no candidates, an empty or too long one, or a prompt for
        anything but text.
        """
        from anygpt.questions import score

        return score(self, prompt, candidates, media)

    def session(self, *, seed: int | None = None, source: IdSource | None = None) -> Session:
        """A new conversation with this model, in the template of its `anygpt.json` (without one: the released chat
        model's). Conversations share the model and nothing else; the same seed gives the same answers. `source` is for
        ids that are drawn elsewhere, such as in a batch.

        Raises AnyGPTError for a model without the tokens of its template, or a bad `generate_config.json`.
        """
        return Session(self, seed=self._chosen(seed), source=source)

    @cached_property
    def chat_policies(self) -> dict[str, Policy]:
        """Those of `policies` without guidance, which conversations don't have, and chat's own for text
        (`generate_config.json`)."""
        # Guidance needs the same conversation without what was asked for. What the model has said of the picture before
        # it begins would still be there, so that hardly anything would be left to guide by.
        plain = {name: policy.override(CONVERSATION) for name, policy in self.policies.items()}
        return {**plain, **load_policies(self._config_dir or resource("config"), [], text="")}

    @cached_property
    def chat_grammar(self) -> Grammar:
        """The rules of answers in conversations: turns end as the template has it, or with `</s>`."""
        return chat_grammar(self.vocabulary)

    def encode(self, name: str, media: str | Path | Image.Image | Audio | Video | Tensor) -> Tensor:
        """Codes int64 [K, T] of a file, picture or sound of modality `name`; codes are passed through.

        Raises MediaError for a file that is unfit, or longer than the model's context.
        """
        if isinstance(media, Tensor):
            return media
        loaded = self.load(name, media)
        return self.tokenizers.get(name).encode([loaded])[0]

    def decode(self, name: str, codes_KT: Tensor, *, seed: int = 0, **settings: Any) -> Any:
        """The picture or sound that codes int64 [K, T] stand for; `settings` are the tokenizer's own (`voice`)."""
        return self.tokenizers.get(name).decode(codes_KT, generator=_generator(seed, "cpu"), **settings)

    def task(self, prompt: str, *, seed: int | None = None, **settings: Any) -> Task:
        """What `run` makes of a prompt before it generates an answer; arguments and errors are those of `run`.

        `rules` and `result` are the steps that follow, for a caller who does the generating.
        """
        form = parse_form(prompt, self.specs.values())
        given = {**form.fields, **settings}
        return replace(self.prepare(form.source, form.target, form.content, self._chosen(seed), given), prompt=prompt)

    def rules(self, task: Task) -> dict[str, Any]:
        """What `generate` and `Answer` want to know of a task besides its prompt."""
        return {
            "grammar": task.grammar or self._grammar,
            "request": replace(Request.only(task.target), boxes=task.boxes),
            "policies": task.policies,
            "generator": _generator(task.seed, self.decoder.device),
            "unconditional_ids": task.unconditional_ids,
        }

    def result(self, task: Task, ids: list[int], began: float, *, audio: Audio | None = None) -> Result:
        """The answer that ids stand for, a start tag included; its time counts from `began` (`time.perf_counter`).

        `audio` is the sound of the ids, where they have been decoded already.
        """
        answer: dict[str, Any] = {}
        items = self.vocabulary.decode_ids(ids)
        if task.target == TEXT:
            answer["text"] = text_of(items)
            if task.boxes is not None:
                answer |= {"boxes": find_boxes(answer["text"]), "picture": task.picture}
        else:
            span = items[0]
            assert isinstance(span, Span), span
            media = audio or self.decode(task.target, span.codes_KT, seed=task.seed, **task.decoder_settings)
            answer |= {"codes_KT": span.codes_KT, self.specs[task.target].media: media}
        seconds = time.perf_counter() - began
        return Result(prompt=task.prompt, modality=task.target, seed=task.seed, seconds=seconds, **answer)

    def _prepared(self, prompt: str, seed: int, settings: Mapping[str, Any]) -> "Task | Result":
        return task_or_error(lambda: self.task(prompt, seed=seed, **settings), prompt, seed)

    def run_tasks(self, tasks: "Iterable[Task | Result]", *, batch_size: int) -> Iterator[Result]:
        """As `run_batch` for tasks that are prepared; what is a result already has its place among the answers."""
        from anygpt.batches import run

        return run(self, tasks, batch_size=batch_size)

    def making(self, task: Task) -> list[Answer]:
        """The answers that a task's own is `chosen` from, not made yet. Raises AnyGPTError for too long a prompt."""
        context = self.decoder.shape.context
        return [Answer(each.ids, context=context, **self.rules(each)) for each in task.candidates()]

    def chosen(self, task: Task, candidates: Sequence[Answer]) -> Answer:
        """The answer of a task among those of `making`, all of them done."""
        if len(candidates) == 1:
            return candidates[0]
        if task.media is not None:
            return candidates[best_text(self, task.media, candidates)]
        assert task.text is not None
        spans = [self.vocabulary.decode_ids(candidate.ids)[0] for candidate in candidates]
        codes = [span.codes_KT for span in spans if isinstance(span, Span)]
        return candidates[best_fit(self, task.target, task.text, codes)]

    def prepare(
        self,
        source: str,
        target: str,
        content: str | Path | Image.Image | Audio | Video | Tensor,
        seed: int,
        settings: Mapping[str, Any],
    ) -> Task:
        """As `task`, with the arguments of `ask`: all that an answer is made from. Raises AnyGPTError as `run` does."""
        name = source if target == TEXT else target
        assert TEXT in (source, target) and name in self.specs, (source, target)
        own = self.reading.get(source, {}) if target == TEXT else {}
        policy, fields = self._split_settings(target, {**own, **settings})
        given = _instruction(fields.pop(INSTRUCTION, None))
        boxes = box_form(given or "") if self.specs[name].media == "image" else None
        if boxes is not None and "max_new_tokens" not in settings:
            policy = replace(policy, max_new_tokens=max(policy.max_new_tokens, BOX_TEXT_IDS))
        fields = {key: self.load(target, value, is_prompt=True) for key, value in fields.items()}
        segment = _plain(content) if source == TEXT else Media(source, self.encode(source, content))
        is_guided = target != TEXT and policy.guidance_scale != 1.0
        return Task(
            prompt=_describe(source, target, content),
            target=target,
            ids=self._prompt_ids(name, target, [segment], given),
            unconditional_ids=self._prompt_ids(name, target, []) if is_guided else None,
            policies={**self.policies, target: policy},
            decoder_settings=policy.decoder_settings | fields,
            seed=seed,
            text=segment.text if isinstance(segment, Text) else None,
            media=segment if isinstance(segment, Media) and given is None else None,
            boxes=boxes,
            picture=content if isinstance(content, str | Path | Image.Image) and target == TEXT else None,
        )

    def _prompt_ids(
        self, name: str, target: str, segments: Sequence[Segment], instruction: str | None = None
    ) -> list[int]:
        """A prompt up to where the answer begins, which is with the start tag that the grammar forces. Without an
        instruction it has that of its form."""
        direction: Direction = "x2text" if target == TEXT else "text2x"
        instruction = instruction or self.task_prompts.canonical(name, direction)
        forced = Request.only(target).forced
        ids = render_base(direction, instruction, segments, self.vocabulary, answer_modality=forced)
        return ids if forced is None else ids[:-1]

    def _chosen(self, seed: int | None) -> int:
        """The seed of an answer: the given one, else the model's own, else a new one."""
        return _seed(seed if seed is not None else self.seed)

    def _split_settings(self, target: str, settings: dict[str, Any]) -> tuple[Policy, dict[str, Any]]:
        """The answer's policy with its overrides, and what is meant for the form's fields."""
        names = self.specs[target].instruction_fields if target != TEXT else (INSTRUCTION,)
        fields = {name: settings.pop(name) for name in names if settings.get(name) is not None}
        known = [*Policy.__dataclass_fields__, *names]
        for name in settings:
            if name not in known:
                raise AnyGPTError(f"unknown setting '{name}'{nearest(name, known)}; known: {', '.join(known)}")
        policy = self.policies[target].override(settings)
        if target != TEXT:
            check_limits(policy, self.specs[target], "generation settings")
        return policy, fields

    def load(self, name: str, media: Any, *, is_prompt: bool = False, **limits: Any) -> Any:
        """A picture, sound or video for modality `name`, from a file unless it is one already.

        `is_prompt` is for a sample such as a voice; `limits` are for the function that reads the file. Raises
        MediaError for a file that is unfit or too long.
        """
        spec = self.specs[name]
        kind = _KINDS[spec.media]
        if isinstance(media, kind.type):
            return media
        if not isinstance(media, str | Path):
            raise MediaError(f"{name} is given as {type(media).__name__}, expected a path or {kind.type.__name__}")
        if is_prompt:
            limits["min_duration_s"] = MIN_VOICE_S
        elif spec.codes_per_s is not None:
            limits["max_duration_s"] = self.decoder.shape.context / spec.codes_per_s
        return kind.load(media, **limits)


def save_media(folder: Path | str, media: Image.Image | Audio | Video, *, name: str) -> Path:
    """Write a picture (JPEG), sound (16-bit WAV) or video (MP4), named from the text `name` and the time.

    No file is replaced. Returns the path. Raises AnyGPTError when the folder can't be written.
    """
    kind = _kind_of(media)
    stem = f"{safe_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(folder).expanduser()
    numbered = (folder / f"{stem}{'' if n == 1 else f'-{n}'}.{kind.extension}" for n in range(1, 1_000_000))
    return kind.save(next(path for path in numbered if not path.exists()), media)


def _kind_of(media: Image.Image | Audio | Video) -> _MediaKind:
    return next(kind for kind in _KINDS.values() if isinstance(media, kind.type))


def find_model(model: Path | str | None) -> Path:
    """The folder of a model given by path, by the name of a shipped one, or not at all (the shipped base model)."""
    if model is None:
        return resource("models", DEFAULT_MODEL)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder}: is a file, expected the folder of a model")
    if len(folder.parts) == 1:
        try:
            return resource("models", str(model))
        except AnyGPTError:
            pass
    raise CheckpointError(f"{folder}: no such model folder")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise AnyGPTError(f"unknown dtype '{name}'{nearest(name, DTYPES)}; known: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(torch.randint(2**31, (1,)))
    if not 0 <= seed < 2**63:
        raise AnyGPTError(f"seed is {seed}, expected 0 to 2^63 - 1")
    return seed


def _generator(seed: int, device: torch.device | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _plain(content: Any) -> Text:
    if not isinstance(content, str):
        raise AnyGPTError(f"text is given as {type(content).__name__}, expected str")
    if not content.strip():
        raise AnyGPTError("the text is empty")
    return Text(content.strip())


def _instruction(given: Any) -> str | None:
    if given is not None and (not isinstance(given, str) or not given.strip()):
        raise AnyGPTError(f"'{INSTRUCTION}' is {given!r}, expected a text")
    return None if given is None else given.strip()


def task_or_error(make: Callable[[], Task], prompt: str, seed: int) -> "Task | Result":
    """What `make` gives, or a result with the error that it raised."""
    try:
        return make()
    except AnyGPTError as error:
        return Result(prompt=prompt, modality="", seed=seed, seconds=0.0, error=error)


def _answered(result: Result) -> Result:
    if result.error is not None:
        raise result.error
    return result


def _text(path: Path | str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser())


def _describe(source: str, target: str, content: Any) -> str:
    shown = str(content) if isinstance(content, str | Path) else f"<{type(content).__name__}>"
    return f"{source}|{target}|{shown}"


def safe_name(text: str, *, max_bytes: int = 80) -> str:
    """A file name from any text: letters and digits of any script, everything else a hyphen; never empty."""
    plain = unicodedata.normalize("NFKC", text)
    name = re.sub(r"[\W_]+", "-", plain).strip("-").lower()
    return name.encode()[:max_bytes].decode(errors="ignore").strip("-") or "answer"
