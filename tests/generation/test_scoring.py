"""Likelihoods of answers read together behind one prompt, against Hugging Face's model on each whole sequence."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fixtures_tiny import CONTEXT
from torch import Tensor

from anygpt.generation import scoring
from anygpt.generation.llama import LlamaDecoder
from anygpt.generation.scoring import log_likelihoods, log_likelihoods_behind

PROMPT = [1, 270, 281, 265, 290]
ANSWERS = [[271], [271, 300, 2], [272, 260, 261, 262], [271, 300, 2], [280, 281]]


def plain_log_likelihoods(folder: Path, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Tensor]:
    """One whole sequence after the other, nothing kept in between."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    results = []
    for answer in answers:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        results.append(torch.stack([logits[at, index] for at, index in zip(places, answer, strict=True)]))
    return results


@pytest.mark.parametrize("chunk", [512, 6, 1])
def test_equals_the_plain_loop(
    chunk: int, decoder: LlamaDecoder, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PREFILL_CHUNK", chunk)
    ours = log_likelihoods(decoder, PROMPT, ANSWERS)
    for got, wanted in zip(ours, plain_log_likelihoods(model_folder, PROMPT, ANSWERS), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_long_answers_fill_the_context(decoder: LlamaDecoder, model_folder: Path) -> None:
    answers = [[260 + n % 40 for n in range(CONTEXT - len(PROMPT))], [261] * 200, [262]]
    ours = log_likelihoods(decoder, PROMPT, answers)
    for got, wanted in zip(ours, plain_log_likelihoods(model_folder, PROMPT, answers), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_the_prompt_is_read_once(decoder: LlamaDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    layers = LlamaDecoder._layers

    def counted(self: LlamaDecoder, ids: Sequence[int], *rest: Tensor) -> Tensor:
        read.append(len(ids))
        return layers(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LlamaDecoder, "_layers", counted)
    log_likelihoods(decoder, PROMPT, ANSWERS)
    assert read == [len(PROMPT), sum(len(answer) - 1 for answer in ANSWERS)]
    read.clear()
    log_likelihoods(decoder, PROMPT, [[271], [272]])
    assert read == [len(PROMPT)]


@pytest.mark.parametrize("chunk", [512, 12, 1])
@pytest.mark.parametrize("answer", [[271, 300, 2], [271]])
def test_one_answer_behind_several_prompts(
    chunk: int, answer: list[int], decoder: LlamaDecoder, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PREFILL_CHUNK", chunk)
    prompts = [PROMPT, PROMPT[:2], [1], [260 + n % 40 for n in range(CONTEXT - len(answer))], PROMPT]
    ours = log_likelihoods_behind(decoder, prompts, answer)
    for got, prompt in zip(ours, prompts, strict=True):
        (wanted,) = plain_log_likelihoods(model_folder, prompt, [answer])
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
