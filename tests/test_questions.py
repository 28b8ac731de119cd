"""Captions, answers and likelihoods on a tiny random model: those of single prompts, of conversations, of training."""

from pathlib import Path

import pytest
import torch
from fixtures_media import picture_bytes
from fixtures_tiny import MODEL

from anygpt import AnyGPT
from anygpt.errors import AnyGPTError, ConfigError
from anygpt.media import load_image
from anygpt.session import Done
from anygpt.vocabulary import Text

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(picture_bytes(number))
    return paths


def test_captions_are_those_of_single_prompts(model: AnyGPT, pictures: list[Path]) -> None:
    drawn = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "max_new_tokens": 6}
    captions = list(model.caption([pictures[0], "nowhere.png", pictures[1]], batch_size=2, seed=3, **drawn))
    assert [result.seed for result in captions] == [3, 4, 5]
    assert captions[0].text == model.run(f"image|text|{pictures[0]}", seed=3, **drawn).text
    assert captions[2].text == model.run(f"image|text|{pictures[1]}", seed=5, **drawn).text
    assert captions[1].text is None and "nowhere.png: no such file" in str(captions[1].error)
    loaded = list(model.caption([load_image(pictures[0]), model.encode("image", pictures[0])], seed=3, **drawn))
    assert loaded[0].text == captions[0].text and loaded[1].error is None


def test_answers_are_those_of_a_conversation(model: AnyGPT, pictures: list[Path]) -> None:
    *_, done = model.session(seed=1).send("a red apple", media=[("image", pictures[0])], answer="text", do_sample=False)
    assert isinstance(done, Done)
    said = " ".join(part.text for part in done.turn.segments if isinstance(part, Text))
    answer = model.answer(pictures[0], "a red apple", seed=1, do_sample=False)
    assert answer.text == said.strip() and answer.prompt == "a red apple" and answer.modality == "text"
    captions = model.caption(pictures, instruction="a red apple", seed=1, do_sample=False)
    assert [result.text for result in captions][0] == answer.text
    asked = [(pictures[0], "a red apple"), (None, "a red apple"), (None, " ")]
    batch = list(model.answer_batch(asked, seed=1, do_sample=False))
    assert batch[0].text == answer.text and batch[1].text and "the message is empty" in str(batch[2].error)


def test_settings_decide(model: AnyGPT, pictures: list[Path]) -> None:
    hot = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 9, "min_new_tokens": 9}
    answers = [model.answer(pictures[0], "x", seed=seed, **hot).text for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert answers[0] != model.answer(pictures[0], "x", seed=1, **{**hot, "top_k": 1}).text
    for call in (lambda: model.caption(pictures, temprature=1), lambda: model.answer(pictures[0], "x", temprature=1)):
        with pytest.raises(ConfigError, match="unknown key 'temprature' .did you mean 'temperature'"):
            call()
    with pytest.raises(AnyGPTError, match="images is one picture, expected a list"):
        model.caption(str(pictures[0]))
    with pytest.raises(AnyGPTError, match="batch_size is 0"):
        model.caption(pictures, batch_size=0)
    with pytest.raises(AnyGPTError, match="no such file"):
        model.answer("nowhere.png", "x")


@pytest.mark.parametrize("is_chat", [False, True])
def test_scores_are_those_of_whole_training_examples(is_chat: bool, model: AnyGPT, pictures: list[Path]) -> None:
    """Ids, and the sum of their log-probabilities by a full pass of Hugging Face's model."""
    from transformers import LlamaForCausalLM

    twin = LlamaForCausalLM.from_pretrained(Path(model_folder()), dtype=torch.float32).eval()
    vocabulary = model.vocabulary
    if is_chat:
        scores = model.score("the red fox?", ["yes", "no, a lazy dog"], media=[("image", pictures[0])])
        prompt = model.session().prompt_ids(model.session().message("the red fox?", [("image", pictures[0])]))
        end = vocabulary.control_id("<eom>")
    else:
        scores = model.score(f"image|text|{pictures[0]}", ["yes", "no, a lazy dog"])
        prompt = model.task(f"image|text|{pictures[0]}").ids
        end = vocabulary.control_id("<eos>")
    for score in scores:
        ids = [*prompt, *vocabulary.encode_text(score.candidate), end]
        with torch.inference_mode():
            logs = twin(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = sum(float(logs[at - 1, ids[at]]) for at in range(len(prompt), len(ids)))
        assert score.log_likelihood == pytest.approx(wanted, abs=1e-4)
        assert score.count == len(ids) - len(prompt) and score.mean == score.log_likelihood / score.count


def model_folder() -> Path:
    from anygpt.paths import resource

    return resource("models", MODEL)


def test_the_greedy_answer_is_likelier_than_others(model: AnyGPT, pictures: list[Path]) -> None:
    said = model.answer(pictures[0], "quick?", do_sample=False, max_new_tokens=3).text or ""
    scores = model.score("quick?", [said, f"{said} dog"], media=[("image", pictures[0])])
    again = model.score("quick?", [f"{said} dog", said], media=[("image", pictures[0])])
    assert [score.candidate for score in scores] == [said, f"{said} dog"]
    assert again[1].log_likelihood == pytest.approx(scores[0].log_likelihood, abs=1e-4)
    alone = model.score("the red fox?", ["yes"], media=[])
    assert alone[0].log_likelihood < 0


def test_mistakes_of_scoring(model: AnyGPT, pictures: list[Path]) -> None:
    prompt = f"image|text|{pictures[0]}"
    for candidates, message in (
        ([], "candidates are \\[\\], expected a list"),
        ("yes", "candidates are 'yes', expected a list"),
        (["yes", " "], "a candidate is ' ', expected a text"),
        (["a red apple " * 200], "more than the model's context of 320"),
    ):
        with pytest.raises(AnyGPTError, match=message):
            model.score(prompt, candidates)
    with pytest.raises(AnyGPTError, match="candidates are texts; expected a prompt such as"):
        model.score("text|image|x", ["yes"])
    with pytest.raises(AnyGPTError, match="answers to it begin with what was heard"):
        model.score("", ["yes"], media=[("speech", torch.arange(9)[None] % 16)])
    with pytest.raises(AnyGPTError, match="unknown form"):
        model.score("is it?", ["yes"])
