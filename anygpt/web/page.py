"""The page itself: Gradio components, and what happens when they are used."""

import dataclasses
import html
import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from anygpt.errors import AnyGPTError
from anygpt.forms import TEXT
from anygpt.generation.policies import Policy
from anygpt.media import kind_of_file
from anygpt.web.batch import Stopped
from anygpt.web.examples import CHAT, SINGLE, Example, usable
from anygpt.web.talk import MEDIA_TYPES, Exchange, Question, Talk

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

ANY = "any"
TALK_KEPT_S = 4 * 3600
"""How long after its last answer a conversation is kept."""
FILES_KEPT_S = 24 * 3600
SEEDS = 2**31

CSS = """
.gradio-container { max-width: 900px !important; margin: 0 auto; }
#head h1 { margin: 0; }
#chat img { width: 176px; max-width: 100%; height: auto; margin: 0; border-radius: 6px; }
#chat audio { width: 300px; max-width: 100%; display: block; }
#examples { gap: 6px; }
#examples button, #actions button { min-width: 0; flex: 1 1 auto; width: auto; }
:is(button, input, textarea, label, [tabindex]):focus-visible {
  outline: 2px solid var(--color-accent); outline-offset: 1px;
}
@media (max-width: 640px) {
  .gradio-container { padding: 6px !important; }
  #chat { height: 52dvh !important; min-height: 260px !important; }
  textarea, input { font-size: 16px !important; }  /* smaller ones make phones zoom in */
}
"""
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'


def theme() -> gr.themes.Base:
    """The look, with the fonts of the visitor's system: others would be fetched from elsewhere."""
    return gr.themes.Soft(
        font=["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


class Page:
    """Builds the components and handles their events; what it knows of a visitor is a `Talk`."""

    def __init__(self, model: "AnyGPT", name: str, new_talk: Callable[[], Talk], *, is_chat: bool) -> None:
        """`name` is what the model is called."""
        self._name = name
        self._specs = model.specs
        self._is_chat = is_chat
        self._policies = model.chat_policies if is_chat else model.policies
        self._new_talk = new_talk
        self._present: weakref.WeakValueDictionary[str, Talk] = weakref.WeakValueDictionary()

    def build(self) -> gr.Blocks:
        """The components, with their events."""
        # Old uploads and answers are removed from Gradio's folder every hour.
        with gr.Blocks(title="AnyGPT", analytics_enabled=False, delete_cache=(3600, FILES_KEPT_S)) as blocks:
            self._talk = gr.State(None, time_to_live=TALK_KEPT_S, delete_callback=_close)
            gr.Markdown(self._introduction(), elem_id="head")
            self._chat = gr.Chatbot(
                label="Conversation",
                elem_id="chat",
                height="52dvh",
                min_height=260,
                layout="bubble",
                render_markdown=False,  # what was written stays as written, and no text can have pictures fetched
                feedback_options=None,
                buttons=["copy"],
                placeholder="Type below, record, or attach a picture or sound. Or take an example.",
            )
            self._box = gr.MultimodalTextbox(
                label="Message",
                show_label=False,
                placeholder="Message (Enter sends)",
                sources=["upload", "microphone"],
                file_types=list(dict.fromkeys(spec.media for spec in self._specs.values())),
                file_count="multiple" if self._is_chat else "single",
                max_plain_text_length=100_000,
                autofocus=True,
                elem_id="message",
            )
            with gr.Row():
                self._answer = gr.Radio(
                    self._answers(),
                    value=self._answers()[0][1],
                    label="Answer with",
                    scale=7,
                    min_width=340,
                    elem_id="answer",
                )
                self._sounds = gr.Radio(
                    self._sound_names(),
                    value=next(iter(self._sound_names()), None),
                    label="Attached sounds are",
                    visible=len(self._sound_names()) > 1,
                    scale=3,
                    min_width=240,
                    elem_id="sounds",
                )
            with gr.Row(elem_id="actions"):
                undo = gr.Button("Undo", size="sm", elem_id="undo")
                clear = gr.Button("Clear", size="sm", elem_id="clear")
                self._download = gr.DownloadButton("Download", size="sm", interactive=False, elem_id="download")
            self._add_examples()
            self._add_settings()
            self._add_events(blocks, undo, clear)
        return blocks

    def _add_examples(self) -> None:
        examples = usable(CHAT if self._is_chat else SINGLE, set(self._specs))
        with gr.Row(elem_id="examples"):
            for example in examples:
                button = gr.Button(example.label, size="sm", variant="secondary")
                button.click(
                    self._fill(example),
                    None,
                    [self._box, self._answer, self._sounds],
                    api_visibility="private",
                    show_progress="hidden",
                )

    def _add_settings(self) -> None:
        self._sliders: list[gr.Slider] = []
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self._seed = gr.Number(
                random.randrange(SEEDS),
                label="Seed",
                info="The same seed and the same questions give the same answers.",
                precision=0,
                minimum=0,
                maximum=SEEDS,
                elem_id="seed",
            )
            self._voice = gr.Audio(
                label="Voice of spoken answers: a sample, recorded or uploaded",
                sources=["upload", "microphone"],
                type="filepath",
                visible=any("voice" in spec.instruction_fields for spec in self._specs.values()),
                elem_id="voice",
            )
            for name in (TEXT, *self._specs):
                policy = self._policies[name]
                with gr.Row():
                    self._sliders += [
                        gr.Slider(0, 2, _temperature(policy), step=0.05, label=f"{name}: temperature (0: most likely)"),
                        gr.Slider(0.05, 1, policy.top_p, step=0.05, label=f"{name}: top_p"),
                    ]

    def _add_events(self, blocks: gr.Blocks, undo: gr.Button, clear: gr.Button) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        inputs = [self._talk, self._box, self._answer, self._sounds, self._voice, self._seed, *self._sliders]
        self._box.submit(
            self._send, inputs, [self._talk, self._box, self._chat, self._download], concurrency_limit=None, **quiet
        )
        self._box.stop(_stop, [self._talk], None, queue=False, **quiet)
        undo.click(self._undo, [self._talk], [self._box, self._chat, self._download], **quiet)
        for emptied in (clear.click, self._chat.clear):
            emptied(self._clear, [self._talk], [self._chat, self._download], **quiet)
        blocks.load(lambda: random.randrange(SEEDS), None, [self._seed], **quiet)
        blocks.unload(self._left)

    def _send(
        self,
        request: gr.Request,
        talk: Talk | None,
        box: Mapping[str, Any],
        answer: str,
        sounds: str | None,
        voice: str | None,
        seed: float | None,
        *numbers: float,
    ) -> Iterator[dict[Any, Any]]:
        """Ask, and show the answer as it comes. What was typed goes back to the box when nothing comes of it."""
        if not (box.get("text") or "").strip() and not box.get("files"):
            yield {self._box: gr.update()}
            return
        talk = talk or self._new_talk()
        self._present[request.session_hash or ""] = talk
        empty = gr.update(value=None, submit_btn=False, stop_btn=True)
        ready = gr.update(submit_btn=True, stop_btn=False)
        try:
            question = Question(
                text=(box.get("text") or "").strip(),
                files=[(self._modality(Path(path), sounds), Path(path)) for path in box.get("files") or []],
                answer=None if answer == ANY else answer,
                voice=Path(voice) if voice else None,
                seed=int(seed or 0),
                policies=self._chosen(numbers),
            )
            yield {self._talk: talk, self._box: empty}
            for _ in talk.ask(question):
                yield {self._chat: _messages(talk)}
        except (AnyGPTError, OSError) as error:
            gr.Warning(html.escape(str(error)), title="No answer", duration=20)
            ready = gr.update(value=dict(box), submit_btn=True, stop_btn=False)
        except Stopped:
            ready = gr.update(value=dict(box), submit_btn=True, stop_btn=False)
        yield {self._talk: talk, self._box: ready, self._chat: _messages(talk), self._download: _download(talk)}

    def _undo(self, talk: Talk | None) -> dict[Any, Any]:
        if talk is None:
            return {self._box: gr.update()}
        try:
            question = talk.undo()
        except AnyGPTError as error:
            gr.Warning(html.escape(str(error)))
            return {self._box: gr.update()}
        if question is None:
            return {self._box: gr.update()}
        value = {"text": question.text, "files": [str(path) for _, path in question.files if path.is_file()]}
        return {self._box: gr.update(value=value), self._chat: _messages(talk), self._download: _download(talk)}

    def _clear(self, talk: Talk | None) -> dict[Any, Any]:
        if talk is not None:
            try:
                talk.clear()
            except AnyGPTError as error:
                gr.Warning(html.escape(str(error)))
                return {self._chat: gr.update()}
        return {self._chat: [], self._download: gr.update(value=None, interactive=False)}

    def _left(self, request: gr.Request) -> None:
        """The visitor's page is closed: nobody waits for the answer."""
        talk = self._present.get(request.session_hash or "")
        if talk is not None:
            talk.stop()

    def _fill(self, example: Example) -> Callable[[], tuple[Any, ...]]:
        """What a click on an example puts into the page."""

        def fill() -> tuple[Any, ...]:
            files = [str(example.path)] if example.path is not None else []
            is_sound = example.file is not None and example.file[0] in self._sound_names()
            sounds = gr.update(value=example.file[0]) if example.file is not None and is_sound else gr.update()
            return {"text": example.text, "files": files}, example.answer or ANY, sounds

        return fill

    def _modality(self, path: Path, sounds: str | None) -> str:
        kind = kind_of_file(path)
        if kind == "audio" and sounds is not None:
            return sounds
        return next((name for name, spec in self._specs.items() if spec.media == kind), kind)

    def _chosen(self, numbers: tuple[float, ...]) -> dict[str, Policy]:
        """The decoding settings with the sliders' temperatures and top_p; what wasn't moved stays as it is."""
        chosen = {}
        for name, temperature, top_p in zip([TEXT, *self._specs], numbers[::2], numbers[1::2], strict=True):
            policy = self._policies[name]
            if temperature != _temperature(policy):
                policy = dataclasses.replace(policy, temperature=temperature, do_sample=temperature > 0)
            chosen[name] = dataclasses.replace(policy, top_p=top_p)
        return chosen

    def _answers(self) -> list[tuple[str, str]]:
        modalities = [(name, name) for name in (TEXT, *self._specs)]
        return [("anything", ANY), *modalities] if self._is_chat else modalities

    def _sound_names(self) -> list[str]:
        return [name for name, spec in self._specs.items() if spec.media == "audio"]

    def _introduction(self) -> str:
        what = "A conversation" if self._is_chat else "Single questions, text to media or media to text,"
        return f"# AnyGPT\n{what} in text, pictures, speech and music with `{self._name}`."


def _messages(talk: Talk) -> list[dict[str, Any]]:
    """The conversation as `gr.Chatbot` takes it."""
    messages = []
    for exchange in talk.exchanges:
        question = exchange.question
        messages += [_message("user", _medium(talk, path, f"your {name}")) for name, path in question.files]
        if question.text:
            messages.append(_message("user", question.text))
        messages += _answer(talk, exchange)
    return messages


def _answer(talk: Talk, exchange: Exchange) -> list[dict[str, Any]]:
    messages = []
    for part in exchange.parts:
        if part.path is not None:
            messages.append(_message("assistant", _medium(talk, part.path, f"{part.modality} of the answer")))
        else:
            heard = "heard: " if part.kind == "heard" else ""
            messages.append(_message("assistant", heard + part.text))
    if exchange.status:
        messages.append(_message("assistant", exchange.status))
    return messages


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _medium(talk: Talk, path: Path, about: str) -> gr.HTML:
    """A picture, or a sound or video with the browser's own player, which keyboards and screen readers know."""
    url = f"media/{talk.folder.name}/{path.name}"
    if MEDIA_TYPES.get(path.suffix, "").startswith("video/"):
        return gr.HTML(f'<video controls preload="metadata" src="{url}" aria-label="{about}"></video>', padding=False)
    if MEDIA_TYPES.get(path.suffix, "audio/").startswith("audio/"):
        return gr.HTML(f'<audio controls preload="metadata" src="{url}" aria-label="{about}"></audio>', padding=False)
    return gr.HTML(f'<a href="{url}" target="_blank"><img src="{url}" alt="{about}"></a>', padding=False)


def _download(talk: Talk) -> Any:
    path = talk.archive()
    return gr.update(value=str(path) if path is not None else None, interactive=path is not None)


def _temperature(policy: Policy) -> float:
    return 0.0 if policy.is_greedy else policy.temperature


def _stop(talk: Talk | None) -> None:
    if talk is not None:
        talk.stop()


def _close(talk: Talk | None) -> None:
    if talk is not None:
        talk.close()
