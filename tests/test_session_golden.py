"""Parity of the prompts of conversations with the reference (golden/prompts), through a session's own path."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures_tiny import build_llama

from anygpt import AnyGPT
from anygpt import session as session_module
from anygpt.added_tokens import build_added_tokens
from anygpt.generation.llama import LlamaDecoder, load_decoder
from anygpt.generation.loop import Answer
from anygpt.generation.policies import Policy
from anygpt.media_tokenizers import MediaTokenizers
from anygpt.modality import MODALITIES
from anygpt.prompts.segments import Media, segments_from_marked
from anygpt.prompts.tasks import TaskPrompts
from anygpt.prompts.templates import user_turn
from anygpt.session import Session
from anygpt.text_tokenizer import TextTokenizer
from anygpt.vocabulary import Vocabulary

# The golden images are shorter than 32 codes.
ANY_LENGTH = {name: replace(spec, frames=None) for name, spec in MODALITIES.items() if not spec.parts}
TEMPLATES = ("MMGPT", "AnyGPT")
Case = dict[str, Any]


@pytest.fixture(scope="module")
def cases(golden_dir: Path) -> dict[str, Case]:
    cases = json.loads((golden_dir / "prompts" / "cases.json").read_text(encoding="utf-8"))
    return {case["id"]: case for case in cases if case["mode"] == "chat"}


@pytest.fixture(scope="module")
def wanted_ids(golden_dir: Path) -> dict[str, list[int]]:
    tokens = json.loads((golden_dir / "prompts" / "token_cases.json").read_text(encoding="utf-8"))
    return {case["case"]: case["input_ids"] for case in tokens["prompt_ids"]}


@pytest.fixture(scope="module")
def models(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnyGPT]:
    """By template; the released order of added tokens over the golden text model."""
    text = TextTokenizer(golden_dir / "prompts" / "toy_tokenizer.model")
    tokens = build_added_tokens(text.size, ANY_LENGTH.values())
    vocabularies = [Vocabulary(text, tokens, modalities=ANY_LENGTH, template=name) for name in TEMPLATES]
    folder = tmp_path_factory.mktemp("golden")
    build_llama(folder, vocabularies[0].size, max_position_embeddings=1024)
    decoder = load_decoder(folder)
    return {vocabulary.template: model_of(vocabulary, decoder) for vocabulary in vocabularies}


def model_of(vocabulary: Vocabulary, decoder: LlamaDecoder) -> AnyGPT:
    tokenizers = MediaTokenizers(vocabulary.specs)
    policies = {name: Policy() for name in ("text", *vocabulary.specs)}
    return AnyGPT(decoder, vocabulary, tokenizers, policies=policies, task_prompts=TaskPrompts.load(), seed=0)


class Talk:
    """A golden conversation, the user's turns through `Session.send`, the assistant's as if generated."""

    def __init__(self, model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session: Session = model.session()
        self.prompts: list[list[int]] = []
        self._vocabulary = model.vocabulary
        self._answer: list[int] = []
        monkeypatch.setattr(session_module, "make", self._make)
        monkeypatch.setattr(model, "decode", lambda *_, **__: None)

    def say(self, turn: Case, answer: str) -> None:
        """Have `answer`, a marked string, follow what the user says."""
        end = {"MMGPT": "<eos>", "AnyGPT": "<eom>"}[self._vocabulary.template]
        colon = self._vocabulary.encode_text(":")  # the prompt's last; the space after it is the answer's first
        self._answer = self._vocabulary.encode_marked(f": {answer}{end}")[len(colon) :]
        list(self.session.send(turn["instruction"], media=self.media(turn)))

    def media(self, turn: Case) -> list[Media]:
        # Against our order on purpose: the template sorts them.
        strings = [string for kind in ("speech", "music", "images") for string in turn[kind]]
        return [item for string in strings for item in segments_from_marked(string, self._vocabulary)]  # type: ignore[misc]

    def _make(self, _: object, answer: Answer, __: object) -> Iterator[int]:
        self.prompts.append(answer.prompt_ids)
        return iter(self._answer)


def names(*, forced: bool) -> list[str]:
    cases = ("force-image", "force-speech", "force-music", "force-prefix-image")
    others = (
        "1turn-text",
        "1turn-image",
        "1turn-two-images-music",
        "1turn-speech-only",
        "1turn-image-music-speech-text",
        "2turn-image",
        "3turn-mixed",
        "2turn-ends-with-assistant",
        "4messages-ends-with-assistant",
        "empty-assistant-message",
        "leading-colon-history",
    )
    return [f"chat/{template}/{name}" for template in TEMPLATES for name in (cases if forced else others)]


def test_golden_cases_are_all_here(cases: dict[str, Case]) -> None:
    assert set(cases) == {*names(forced=True), *names(forced=False)}


@pytest.mark.parametrize("name", names(forced=False))
def test_golden_conversations(
    cases: dict[str, Case],
    wanted_ids: dict[str, list[int]],
    models: dict[str, AnyGPT],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    case = cases[name]
    model = models[case["template"]]
    talk = Talk(model, monkeypatch)
    turns = case["turns"]
    # The reference keeps the colon that follows the role tag in its history; ours isn't to.
    wanted = case["rendered"].replace("]: : ", "]: ")
    for question, answer in zip(turns[::2], [*turns[1::2], {"message": "unheard"}], strict=False):
        talk.say(question, answer["message"].removeprefix(": ") or "unheard")
    answered = turns[-1]["role"] == "assistant" and turns[-1]["message"]
    ids = talk.session.prompt_ids() if answered else talk.prompts[-1]
    assert model.vocabulary.decode_text(ids) == f"<s>{wanted}"
    assert ids == [model.vocabulary.bos_id, *model.vocabulary.encode_marked(wanted)]
    if name in wanted_ids and wanted == case["rendered"]:
        assert ids == wanted_ids[name]


@pytest.mark.parametrize("name", names(forced=True))
def test_golden_opened_answers(
    cases: dict[str, Case],
    wanted_ids: dict[str, list[int]],
    models: dict[str, AnyGPT],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    case = cases[name]
    model = models[case["template"]]
    talk = Talk(model, monkeypatch)
    (turn,) = case["turns"]
    prefix = case["force"].get("force_res_prefix", "")
    (modality,) = (key.split("_")[1] for key in case["force"] if key.endswith("_generation"))
    question = user_turn(turn["instruction"], talk.media(turn))
    ids = talk.session.prompt_ids(question, answer_prefix=prefix, answer_modality=modality)
    assert ids == [model.vocabulary.bos_id, *model.vocabulary.encode_marked(case["rendered"])]
    assert wanted_ids.get(name, ids) == ids
