"""Candidates for an answer, and the choice among them, on a tiny random model."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_tiny import CONTEXT
from transformers import LlamaForCausalLM

from anygpt import AnyGPT, choices
from anygpt.candidates import best_fit, candidate_seed
from anygpt.data.instructions import MESSAGE_CONTROLS
from anygpt.engine import Result
from anygpt.errors import ConfigError
from anygpt.generation.llama import LlamaDecoder
from anygpt.generation.loop import decode, generate
from anygpt.generation.reading import TextPiece
from anygpt.prompts.render import render_base
from anygpt.prompts.segments import Media, text_of
from anygpt.prompts.templates import load_templates
from anygpt.session import Done, Given, MediaMade
from anygpt.vocabulary import Text

pytestmark = pytest.mark.usefixtures("home")

PROMPT, TEXT, SEED = "text|image|a red apple", "a red apple", 5


def codes(result: Result) -> Any:
    assert result.codes_KT is not None
    return result.codes_KT.tolist()


def likelihoods(model: AnyGPT, folder: Path, results: Sequence[Result]) -> list[float]:
    """log P(text | codes), id by id with Hugging Face's model."""
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for result in results:
        assert result.codes_KT is not None
        instruction = model.task_prompts.canonical("image", "x2text")
        prompt = render_base("x2text", instruction, [Media("image", result.codes_KT)], model.vocabulary)
        answer = model.vocabulary.encode_text(f"[MMGPT]: {TEXT}<eos>")[len(model.vocabulary.encode_text("[MMGPT]:")) :]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.inference_mode():
            logits_TV = plain(ids).logits[0].log_softmax(-1)
        chosen = logits_TV[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])
        found.append(float(chosen.sum()))
    return found


def test_the_candidate_that_says_the_prompt_best_is_kept(model: AnyGPT, tiny_home: Path) -> None:
    alone = [model.run(PROMPT, seed=candidate_seed(SEED, number), temperature=1.5) for number in range(4)]
    assert len({str(codes(result)) for result in alone}) == 4
    fits = likelihoods(model, next((tiny_home / "models").iterdir()), alone)
    chosen = model.run(PROMPT, seed=SEED, temperature=1.5, best_of=4)
    assert codes(chosen) == codes(alone[fits.index(max(fits))])
    assert chosen.seed == SEED


def test_one_candidate_is_the_plain_answer(model: AnyGPT) -> None:
    plain = model.run(PROMPT, seed=SEED)
    assert codes(model.run(PROMPT, seed=SEED, best_of=1)) == codes(plain)
    assert candidate_seed(SEED, 0) == SEED and candidate_seed(SEED, 1) != candidate_seed(SEED + 1, 0)


def test_the_likeliest_ids_are_made_once(model: AnyGPT) -> None:
    task = model.task(PROMPT, seed=SEED, do_sample=False, best_of=4)
    assert len(model.making(task)) == 1


def test_prompts_of_a_batch_have_candidates_of_their_own(model: AnyGPT) -> None:
    prompts = [(PROMPT, 1), ("text|nothing|x", 2), ("text|image|y", 3), (PROMPT, 4), ("text|music|a b", 5)]
    results = list(model.run_batch(prompts, batch_size=3, temperature=1.5, best_of=3))
    assert [result.error is None for result in results] == [True, False, True, True, True]
    for (prompt, seed), result in zip(prompts, results, strict=True):
        if result.error is None:
            assert codes(result) == codes(model.run(prompt, seed=seed, temperature=1.5, best_of=3))
    several = model.run(PROMPT, n=2, seed=3, temperature=1.5, best_of=3)
    assert codes(several[1]) == codes(results[3])


def test_progress(model: AnyGPT) -> None:
    seen: list[int] = []
    picture = model.run(PROMPT, seed=1, best_of=3, progress=lambda done, most: seen.append(done))
    assert max(seen) == 34 and picture.image is not None


def test_a_model_says_how_many_suit_it(tiny_home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(next((tiny_home / "models").iterdir()), tmp_path / "own")
    manifest = json.loads((folder / "anygpt.json").read_text())
    manifest["modalities"]["image"]["decoding"] = {"best_of": 3}
    (folder / "anygpt.json").write_text(json.dumps(manifest))
    assert AnyGPT.from_pretrained(folder).policies["image"].best_of == 3


def test_in_a_conversation_the_words_before_it_choose(model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three pictures the last is taken; it is what the conversation goes on with."""
    read: list[tuple[str, list[Any]]] = []

    def last(_: AnyGPT, modality: str, text: str, candidates: Sequence[torch.Tensor]) -> int:
        assert modality == "image"
        read.append((text, [each.tolist() for each in candidates]))
        return len(candidates) - 1

    monkeypatch.setattr(choices, "best_fit", last)
    pattern = replace(load_templates().chat[model.vocabulary.template], announces="^..(.*)")
    monkeypatch.setattr(choices, "get_template", lambda name: pattern)
    settings = {"answer": "image", "best_of": 3, "temperature": 1.5}
    session, again = model.session(seed=SEED), model.session(seed=SEED)
    events = list(session.send("draw", **settings))
    made = next(event for event in events if isinstance(event, MediaMade))
    ((text, drawn),) = read
    before = "".join(event.text for event in events[: events.index(made)] if isinstance(event, TextPiece))
    assert text == before.strip()[2:] and len({str(each) for each in drawn}) == 3
    assert made.codes_KT.tolist() == drawn[2]
    assert session.turns[-1] == events[-1].turn and made.codes_KT.tolist() in [
        segment.codes_KT.tolist() for segment in session.turns[-1].segments if isinstance(segment, Media)
    ]
    assert str(list(again.send("draw", **settings))[-1]) == str(events[-1])
    list(session.send("and now?", answer="text"))
    assert len(read) == 2


def test_candidates_of_a_conversation_begin_with_its_cache(model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long conversation is not read again for them: what a pass reads are ids of this exchange."""
    monkeypatch.setattr(choices, "_words_before_span", lambda *_: "it")
    session = model.session(seed=SEED)
    list(session.send("a red apple " * 12, answer="text"))
    known = len(session.prompt_ids())
    read: list[int] = []
    layers = LlamaDecoder._layers

    def counted(self: LlamaDecoder, ids: Sequence[int], *rest: Any) -> Any:
        read.append(len(ids))
        return layers(self, ids, *rest)

    monkeypatch.setattr(LlamaDecoder, "_layers", counted)
    monkeypatch.setattr(choices, "best_fit", lambda *_: 0)
    list(session.send("draw", answer="image", best_of=2))
    assert max(read) < known // 2 and sum(read) >= 2 * 32


def test_an_answer_begins_with_what_fits_the_picture_best(model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three openings, of which three letters say what is shown, the last is taken as far as these."""
    read: list[list[str]] = []

    def last(_: AnyGPT, media: Media, texts: Sequence[str]) -> list[float]:
        assert media.codes_KT is picture
        read.append(list(texts))
        return [float(number) for number in range(len(texts))]

    monkeypatch.setattr(choices, "text_fits", last)
    monkeypatch.setattr(model, "reading", {"image": {"best_of": 3, "choice_temperature": 1.5}})
    pattern = replace(load_templates().chat[model.vocabulary.template], perceives={"image": "(?s)(.{3})"})
    monkeypatch.setattr(choices, "get_template", lambda name: pattern)
    picture = torch.arange(32)[None] % 8
    settings: dict[str, Any] = {"do_sample": True, "min_new_tokens": 9, "max_new_tokens": 9}

    def answer(*media: torch.Tensor, **more: Any) -> str:
        message: list[Given] = [("image", each) for each in media]
        done = [*model.session(seed=SEED).send("what?", media=message, answer="text", **settings, **more)][-1]
        assert isinstance(done, Done)
        return done.turn.text

    said = answer(picture)
    ((*others, best),) = read
    assert len(others) == 2 and best not in others and said.startswith(best.strip()) and len(said) > 3
    assert answer(picture) == said and len(read) == 2
    answer()
    answer(picture, picture)
    assert len(read) == 2
    assert len(model.session().turns) == 0
    settings["do_sample"] = False
    answer(picture)
    assert len(read) == 2


def test_what_is_heard_and_seen_is_found_with_its_end(model: AnyGPT) -> None:
    vocabulary = model.vocabulary
    heard, reply = (vocabulary.control_id(token) for token in MESSAGE_CONTROLS)
    pattern = replace(load_templates().chat[vocabulary.template], perceives={"image": r"see (.+?)\."})
    ids = [heard, *vocabulary.encode_text("go on"), reply, *vocabulary.encode_text("I see a cat. I see a dog.")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choices, "get_template", lambda name: pattern)
        media = {name: Media(name, torch.zeros(1, 1)) for name in ("image", "speech")}
        found = choices._perceived(model, ids, media)
        assert {name: text for name, (text, _) in found.items()} == {"image": "a cat", "speech": "go on"}
        assert ids[found["speech"][1] - 1] == reply
        assert vocabulary.text.decode(ids[found["speech"][1] : found["image"][1]]).strip() == "I see a cat."
        assert choices._perceived(model, ids, {"music": media["image"]}) == {}


def test_what_no_words_stand_before_is_not_chosen(model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "_words_before_span", lambda *_: "")
    plain, choosing = (list(model.session(seed=SEED).send("draw", answer="image", best_of=number)) for number in (1, 3))
    assert str(plain[-1]) == str(choosing[-1])


def test_what_is_too_long_to_be_read_back_comes_last(model: AnyGPT) -> None:
    short, long = (torch.zeros(3, frames, dtype=torch.int64) for frames in (4, CONTEXT // 3))
    assert best_fit(model, "music", TEXT, [long, short, long]) == 1
    assert best_fit(model, "music", TEXT, [long, long]) == 0


def test_no_candidate_is_a_mistake(model: AnyGPT) -> None:
    with pytest.raises(ConfigError, match="'best_of' is 0, expected at least 1"):
        model.run(PROMPT, best_of=0)


def test_of_texts_about_a_picture_the_one_that_fits_best_is_kept(model: AnyGPT, tiny_home: Path) -> None:
    """log P(text | codes) + log P(codes | text), id by id with Hugging Face's model; the first is drawn as ever."""
    folder = next((tiny_home / "models").iterdir())
    picture = torch.arange(32)[None] % 8
    settings: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5}
    task = model.prepare("image", "text", picture, SEED, {**settings, "best_of": 4, "choice_temperature": 1.5})
    answers = model.making(task)
    for _ in decode(model.decoder, answers, batch_size=4):
        pass
    assert answers[0].ids == list(generate(model.decoder, task.ids, **model.rules(task)))
    texts = [text_of(model.vocabulary.decode_ids(answer.ids)) for answer in answers]
    assert len(set(texts)) > 1
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def log_p(prompt: list[int], answer: list[int]) -> float:
        with torch.inference_mode():
            logits_TV = plain(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return float(logits_TV[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum())

    fits = []
    for text in texts:
        instruction = model.task_prompts.canonical("image", "text2x")
        making = render_base("text2x", instruction, [Text(text)], model.vocabulary)
        codes_ids = [*model.vocabulary.encode_codes("image", picture), model.vocabulary.control_id("<eos>")]
        told = [*model.vocabulary.encode_text(f" {text}"), model.vocabulary.control_id("<eos>")]
        fits.append(log_p(task.ids, told) + log_p(making, codes_ids))
    best = fits.index(max(fits))
    assert model.chosen(task, answers).ids == answers[best].ids
    settings |= {"best_of": 4, "choice_temperature": 1.5}
    assert model.ask("image", "text", picture, seed=SEED, **settings).text == texts[best]


def test_a_model_says_how_it_reads(tiny_home: Path, tmp_path: Path) -> None:
    """Of the media that it says so for; with an instruction of one's own there is nothing to choose by."""
    folder = shutil.copytree(next((tiny_home / "models").iterdir()), tmp_path / "own")
    manifest = json.loads((folder / "anygpt.json").read_text())
    manifest["modalities"]["image"]["reading"] = {"best_of": 3}
    (folder / "anygpt.json").write_text(json.dumps(manifest))
    own = AnyGPT.from_pretrained(folder)
    picture, clip = torch.zeros(1, 32, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.int64)
    assert len(own.making(own.prepare("image", "text", picture, 0, {}))) == 3
    assert len(own.making(own.prepare("image", "text", picture, 0, {"best_of": 1}))) == 1
    assert len(own.making(own.prepare("image", "text", picture, 0, {"instruction": "how many?"}))) == 1
    assert len(own.making(own.prepare("music", "text", clip, 0, {}))) == 1
    manifest["modalities"]["image"]["reading"] = {"best_off": 3}
    (folder / "anygpt.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="settings for reading image: unknown key 'best_off'"):
        AnyGPT.from_pretrained(folder)
