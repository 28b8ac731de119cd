"""Many answers at a time against each alone, and guided answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from fixtures_tiny import CONTEXT, SPECS

from anygpt.generation import llama, loop
from anygpt.generation.cache import BatchCache
from anygpt.generation.grammar import Grammar, Request
from anygpt.generation.llama import LlamaDecoder, load_decoder
from anygpt.generation.loop import Answer, Batch, decode, generate
from anygpt.generation.policies import Policy

GREEDY = {name: Policy(do_sample=False, max_new_tokens=40) for name in ("text", *SPECS)}
DRAWN = {name: policy.override({"do_sample": True, "temperature": 0.9}) for name, policy in GREEDY.items()}
PENALTY = {name: policy.override({"repetition_penalty": 1.3, "top_k": 9}) for name, policy in DRAWN.items()}
REQUESTS = [*map(Request.only, ("image", "music", "text", "speech")), Request(forced="image")]
PROMPTS = [[1, 270, 281, 265, 290], [1, 270, 281, 7], [5] * 150, [1, 270, 281, 265, 290], [9, 8]]


def answer(grammar: Grammar, number: int, policies: dict[str, Policy], **changes: object) -> Answer:
    arguments = {"prompt_ids": PROMPTS[number % 5], "request": REQUESTS[number % len(REQUESTS)], **changes}
    seed = torch.Generator().manual_seed(number)
    return Answer(grammar=grammar, policies=policies, context=CONTEXT, generator=seed, **arguments)  # type: ignore[arg-type]


def alone(decoder: LlamaDecoder, grammar: Grammar, number: int, policies: dict[str, Policy]) -> list[int]:
    return list(
        generate(
            decoder,
            PROMPTS[number % 5],
            grammar=grammar,
            request=REQUESTS[number % len(REQUESTS)],
            policies=policies,
            generator=torch.Generator().manual_seed(number),
        )
    )


def finish(decoder: LlamaDecoder, answers: Sequence[Answer], batch_size: int) -> None:
    ids: dict[int, list[int]] = {id(one): [] for one in answers}
    for one, index in decode(decoder, iter(answers), batch_size=batch_size):
        ids[id(one)].append(index)
    assert all(one.is_done and one.ids == ids[id(one)] for one in answers)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("policies", [GREEDY, DRAWN, PENALTY], ids=["greedy", "drawn", "penalty"])
def test_answers_are_as_alone(
    decoder: LlamaDecoder, grammar: Grammar, policies: dict[str, Policy], batch_size: int
) -> None:
    """Prompts and answers of all lengths and kinds; finished answers make way, the cache grows."""
    answers = [answer(grammar, number, policies) for number in range(9)]
    finish(decoder, answers, batch_size)
    for number, one in enumerate(answers):
        assert one.ids == alone(decoder, grammar, number, policies), number


def test_answers_are_read_as_places_become_free(decoder: LlamaDecoder, grammar: Grammar) -> None:
    taken: list[Answer] = []

    def answers() -> Iterator[Answer]:
        for number in range(6):
            taken.append(answer(grammar, number, GREEDY))
            yield taken[-1]

    for _ in decode(decoder, answers(), batch_size=2):
        assert sum(not one.is_done for one in taken) <= 2
    assert len(taken) == 6


@pytest.fixture
def passes(decoder: LlamaDecoder, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Of each pass, how many ids every row was given."""
    fed: list[list[int]] = []
    append, append_rows = decoder.append, decoder.append_rows

    def counted(new: Sequence[Sequence[int]], cache: BatchCache, *, first: int) -> torch.Tensor:
        fed.append([len(ids) for ids in new])
        return append_rows(new, cache, first=first)

    monkeypatch.setattr(decoder, "append", lambda ids, cache: (fed.append([len(ids)]), append(ids, cache))[1])
    monkeypatch.setattr(decoder, "append_rows", counted)
    return fed


def test_one_prompt_is_computed_once(decoder: LlamaDecoder, grammar: Grammar, passes: list[list[int]]) -> None:
    same = {"prompt_ids": PROMPTS[0], "request": Request.only("image")}
    answers = [answer(grammar, number, DRAWN, **same) for number in range(4)]
    finish(decoder, answers, 4)
    assert passes[:2] == [[6], [1] * 4]  # the prompt and the start tag
    assert len({tuple(one.ids) for one in answers}) == 4
    passes.clear()
    finish(decoder, [answer(grammar, number, DRAWN, **same) for number in range(4)], 1)
    assert passes.count([6]) == 1


def test_what_is_known_is_not_computed_again(decoder: LlamaDecoder, grammar: Grammar, passes: list[list[int]]) -> None:
    """A conversation's cache, longer than a batch has room for at first; it stays as it is."""
    prompt = [5] * 200 + PROMPTS[0]
    same = {"prompt_ids": prompt, "request": Request.only("image")}
    plain = [answer(grammar, number, DRAWN, **same) for number in range(3)]
    finish(decoder, plain, 3)
    known = decoder.new_cache(slots=256)
    decoder.append([*prompt[:203], 9], known)
    before = known.keys_values[..., :204, :].clone()
    passes.clear()
    answers = [answer(grammar, number, DRAWN, **same) for number in range(3)]
    for _ in decode(decoder, answers, batch_size=3, known=known):
        pass
    assert passes[:2] == [[3], [1] * 3]  # the rest of the prompt and the start tag
    assert [one.ids for one in answers] == [one.ids for one in plain]
    assert known.ids == [*prompt[:203], 9] and torch.equal(known.keys_values[..., :204, :], before)


def test_new_prompts_are_read_together(decoder: LlamaDecoder, grammar: Grammar, passes: list[list[int]]) -> None:
    """What they have in common once, and with the ids that the other answers go on by."""

    def some(*prompts: list[int]) -> list[Answer]:
        rules = {"request": Request.only("text")}
        return [answer(grammar, n, DRAWN, prompt_ids=ids, **rules) for n, ids in enumerate(prompts)]

    batch = Batch(decoder)
    for waiting, expected in (
        (some([7] * 4, [8] * 5, [9] * 6), [[4, 5, 6]]),
        (some([7] * 4 + [8], [5] * 40), [[1, 1, 1, 1, 40]]),
        (some([6] * 30 + [1], [6] * 30 + [2, 3], [4]), [[1, 1, 1, 1, 1, 31], [2, 1]]),
    ):
        passes.clear()
        for one in waiting:
            batch.add(one)
        batch.step()
        assert passes == expected


@pytest.mark.parametrize("seed", range(4))
def test_answers_do_not_depend_on_how_prompts_are_read(
    decoder: LlamaDecoder, grammar: Grammar, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that have more or less in common, guided or not: one by one, a few together, all together."""
    random = Random(seed)
    prompts = [[random.randrange(3, 250) for _ in range(random.randrange(2, 70))]]
    for _ in range(11):
        source = random.choice(prompts)
        kept = random.choice([0, 1, len(source) // 2, len(source)])
        prompts.append(source[:kept] + [random.randrange(3, 250) for _ in range(random.randrange(kept == 0, 30))])

    def some() -> list[Answer]:
        guide = DRAWN["image"].override({"guidance_scale": 2.0})
        return [
            answer(
                grammar,
                number,
                {**DRAWN, "image": guide},
                prompt_ids=ids,
                unconditional_ids=ids[: len(ids) // 2 + 1] if number % 3 == 0 else None,
            )
            for number, ids in enumerate(prompts)
        ]

    made = []
    for most, worth in ((1, 1), (32, 4), (512, 10_000)):
        monkeypatch.setattr(loop, "PREFILL_CHUNK", most)
        monkeypatch.setattr(loop, "WORTH_A_PASS", worth)
        answers = some()
        finish(decoder, answers, 5)
        made.append([one.ids for one in answers])
    assert made[0] == made[1] == made[2]


def test_batched_logits_are_those_of_each(decoder: LlamaDecoder) -> None:
    batch = BatchCache(lambda: decoder.new_cache(slots=4))
    batch.reserve(3, 8)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]
    for row, prompt in zip(batch.rows, prompts, strict=True):
        decoder.forward(prompt, row)
    for index in (7, 11, 13):
        together = decoder.logits(decoder.append_rows([[index], [index + 1], [index + 2]], batch))
        for number, prompt in enumerate(prompts):
            prompt.append(index + number)
            expected = decoder.forward(prompt, decoder.new_cache())
            torch.testing.assert_close(together[number], expected, atol=1e-4, rtol=1e-4)
            assert batch.rows[number].ids == prompt


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 5), (1, 1, 7, 1, 2), (4,), (2, 1, 1)], ids=str)
def test_rows_may_be_given_many_ids(decoder: LlamaDecoder, first: int, counts: tuple[int, ...]) -> None:
    batch = BatchCache(lambda: decoder.new_cache(slots=4))
    batch.reserve(first + len(counts), 8)
    prompts = [[n + 3, 1, 4][: n % 4] for n in range(first + len(counts))]
    for row, prompt in zip(batch.rows, prompts, strict=False):
        decoder.append(prompt, row) if prompt else None
    new = [[10 * n + at for at in range(count)] for n, count in enumerate(counts)]
    together = decoder.logits(decoder.append_rows(new, batch, first=first))
    for number, ids in enumerate(new):
        expected = decoder.forward([*prompts[first + number], *ids], decoder.new_cache())
        torch.testing.assert_close(together[number], expected, atol=1e-4, rtol=1e-4)
    assert [row.ids for row in batch.rows[: len(prompts)]] == prompts[:first] + [
        prompts[first + number] + ids for number, ids in enumerate(new)
    ]


def guided(grammar: Grammar, number: int, scale: float, unconditional_ids: list[int] | None) -> Answer:
    policies = {**DRAWN, "image": DRAWN["image"].override({"guidance_scale": scale})}
    only = Request.only("image")
    return answer(grammar, number, policies, prompt_ids=PROMPTS[0], request=only, unconditional_ids=unconditional_ids)


def test_guidance_of_one_changes_nothing(decoder: LlamaDecoder, grammar: Grammar) -> None:
    without, at_one = guided(grammar, 3, 1.0, None), guided(grammar, 3, 1.0, PROMPTS[0][:2])
    finish(decoder, [without, at_one], 2)
    assert without.ids == at_one.ids


def test_guidance_of_zero_forgets_the_input(decoder: LlamaDecoder, grammar: Grammar) -> None:
    forgotten = guided(grammar, 3, 0.0, PROMPTS[0][:2])
    plain = answer(grammar, 3, DRAWN, prompt_ids=PROMPTS[0][:2], request=Request.only("image"))
    finish(decoder, [forgotten, plain], 2)
    assert forgotten.ids == plain.ids


def test_guidance_goes_away_from_the_answer_without_input(decoder: LlamaDecoder, grammar: Grammar) -> None:
    """First codes are rated by log p(code | prompt) - log p(code | prompt without input)."""
    block = grammar.blocks["image"]
    codes = block.level_ids(0)
    start = block.start_id
    with_input, without = (
        decoder.forward([*ids, start], decoder.new_cache())[codes.start : codes.stop].log_softmax(-1)
        for ids in (PROMPTS[0], PROMPTS[0][:2])
    )
    gain = with_input - without
    means = []
    for scale in (0.0, 1.0, 4.0, 16.0):
        answers = [guided(grammar, number, scale, PROMPTS[0][:2]) for number in range(60)]
        finish(decoder, answers, 16)
        means.append(gain[torch.tensor([one.ids[1] - codes.start for one in answers])].mean().item())
    assert means == sorted(means) and means[-1] > means[1] + 0.1


def test_guided_answers_among_others(decoder: LlamaDecoder, grammar: Grammar) -> None:
    def some() -> list[Answer]:
        both = [(guided(grammar, n, 3.0, PROMPTS[0][:2]), answer(grammar, n, DRAWN)) for n in range(4)]
        return [one for pair in both for one in pair]

    together = some()
    finish(decoder, together, 3)
    for one, expected in zip(together, some(), strict=True):
        finish(decoder, [expected], 1)
        assert one.ids == expected.ids


def test_answers_that_are_cancelled_leave_the_others_alone(decoder: LlamaDecoder, grammar: Grammar) -> None:
    def some() -> list[Answer]:
        return [
            answer(grammar, 0, DRAWN),
            guided(grammar, 1, 3.0, PROMPTS[0][:2]),
            *(answer(grammar, n, DRAWN) for n in (6, 8)),
        ]

    kept, expected = some(), some()
    batch = Batch(decoder)
    for one in kept:
        batch.add(one)
    for steps, number in ((2, 1), (1, 3), (1, 0)):
        for _ in range(steps):
            batch.step()
        batch.cancel(kept[number])
        batch.add(answer(grammar, 2, GREEDY, request=Request.only("text")))
    while batch.size:
        batch.step()
    finish(decoder, [expected[2]], 1)
    assert kept[2].ids == expected[2].ids
    assert not any(kept[number].is_done for number in (0, 1, 3))


def test_rows_in_bfloat16_have_the_logits_of_each(model_folder: Path) -> None:
    decoder = load_decoder(model_folder, dtype=torch.bfloat16)
    batch = BatchCache(lambda: decoder.new_cache(slots=4))
    batch.reserve(2, 8)
    prompts = [[1, 5, 9, 2, 6, 5, 3], [3, 1, 4]]
    for row, prompt in zip(batch.rows, prompts, strict=True):
        decoder.forward(prompt, row)
    together = decoder.logits(decoder.append_rows([[7], [8]], batch))
    for logits, prompt, index in zip(together, prompts, (7, 8), strict=True):
        expected = decoder.forward([*prompt, index], decoder.new_cache())
        torch.testing.assert_close(logits, expected, atol=0.02 * expected.abs().max().item(), rtol=0.02)


@pytest.mark.parametrize("padding", [-1, 1 << 40], ids=["one by one", "together"])
def test_both_ways_of_attention_give_the_logits_of_each(
    decoder: LlamaDecoder, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "PADDING", padding)
    batch = BatchCache(lambda: decoder.new_cache(slots=4))
    batch.reserve(3, 90)
    prompts = [[3, 1, 4] * 25, [1, 5, 9, 2, 6, 5, 3], [5]]
    for row, prompt in zip(batch.rows, prompts, strict=True):
        decoder.forward(prompt, row)
    together = decoder.logits(decoder.append_rows([[7], [8], [9]], batch))
    for logits, prompt, index in zip(together, prompts, (7, 8, 9), strict=True):
        expected = decoder.forward([*prompt, index], decoder.new_cache())
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
