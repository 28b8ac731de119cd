"""What happens beside the drawing of many answers: order, errors, and that no thread stays."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from anygpt import AnyGPT
from anygpt.batches import BACKLOG, ahead
from anygpt.engine import Result
from anygpt.errors import AnyGPTError, MediaError

WAIT_S = 30.0
PROMPT = "text|image|a red apple"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before, [thread.name for thread in threading.enumerate()]


Install = Callable[[Callable[[int], None]], None]


@pytest.fixture
def decoding_with(model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Has a function called with the seed before media are decoded."""
    plain = model.decode

    def install(before: Callable[[int], None]) -> None:
        def decode(name: str, codes_KT: torch.Tensor, *, seed: int = 0, **settings: Any) -> Any:
            before(seed)
            return plain(name, codes_KT, seed=seed, **settings)

        monkeypatch.setattr(model, "decode", decode)

    return install


def test_answers_come_in_order_however_long_each_is_decoded(model: AnyGPT, decoding_with: Install) -> None:
    expected = [model.run(PROMPT, seed=seed) for seed in range(6)]
    names: set[str] = set()

    def slow(seed: int) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.05 if seed % 2 == 0 else 0.0)

    decoding_with(slow)
    results = list(model.run_batch([PROMPT] * 6, batch_size=2, seed=0))
    assert [result.seed for result in results] == list(range(6))
    for result, single in zip(results, expected, strict=True):
        assert result.codes_KT is not None and single.codes_KT is not None
        assert torch.equal(result.codes_KT, single.codes_KT)
        assert result.image is not None and single.image is not None
        assert result.image.tobytes() == single.image.tobytes()
    assert threading.current_thread().name not in names


def test_other_answers_go_on_while_one_is_decoded(
    model: AnyGPT, decoding_with: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first picture waits for the ids of the second answer."""
    making = model.making
    begun: list[Any] = []
    waited: list[bool] = []
    monkeypatch.setattr(model, "making", lambda task: begun.append(making(task)) or begun[-1])

    def wait_for_the_second(seed: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while not (len(begun) > 1 and begun[1][0].is_done) and time.monotonic() < deadline:
            time.sleep(0.005)
        waited.append(time.monotonic() < deadline)

    decoding_with(wait_for_the_second)
    assert [result.seed for result in model.run_batch([PROMPT, PROMPT], batch_size=1, seed=0)] == [0, 1]
    assert waited == [True, True]


def test_what_cannot_be_decoded_fails_alone(model: AnyGPT, decoding_with: Install) -> None:
    def refuse(seed: int) -> None:
        if seed == 1:
            raise MediaError("no such sound")

    decoding_with(refuse)
    results = list(model.run_batch([PROMPT] * 3, batch_size=2, seed=0))
    assert [str(result.error or "") for result in results] == ["", "no such sound", ""]


def test_a_fault_of_ours_reaches_the_caller(model: AnyGPT, decoding_with: Install) -> None:
    def fail(seed: int) -> None:
        assert seed != 1, "of ours"

    decoding_with(fail)
    results = model.run_batch([PROMPT] * 9, batch_size=2, seed=0)
    assert next(results).error is None
    with pytest.raises(AssertionError, match="of ours"):
        next(results)


def test_closed_early(model: AnyGPT) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield PROMPT

    results = model.run_batch(endless(), batch_size=2)
    assert next(results).error is None
    results.close()  # type: ignore[attr-defined]
    assert len(read) <= 2 * (3 + BACKLOG)
    assert next(results, None) is None


def test_prompts_that_break_off(model: AnyGPT) -> None:
    def broken() -> Iterator[str]:
        yield PROMPT
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(model.run_batch(broken()))


def test_the_batch_waits_for_what_is_decoded(
    model: AnyGPT, decoding_with: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not more than a few answers are ever between their last id and the caller."""
    made, decoded, most = 0, 0, 0
    making = model.making

    def counted(task: Any) -> Any:
        nonlocal made, most
        made += 1
        most = max(most, made - decoded)
        return making(task)

    def slow(seed: int) -> None:
        nonlocal decoded
        time.sleep(0.02)
        decoded += 1

    monkeypatch.setattr(model, "making", counted)
    decoding_with(slow)
    assert len(list(model.run_batch([PROMPT] * 16, batch_size=2, do_sample=False))) == 16
    assert most <= 2 * (1 + BACKLOG) + 1


def test_results_without_any_prompt(model: AnyGPT) -> None:
    assert list(model.run_batch([])) == [] and list(model.run_tasks([], batch_size=2)) == []
    failed = Result(prompt="x", modality="", seed=1, seconds=0.0, error=AnyGPTError("known"))
    assert list(model.run_tasks([failed], batch_size=2)) == [failed]


def test_ahead_goes_so_far() -> None:
    called: list[int] = []

    def call(number: int) -> int:
        called.append(number)
        return number

    given = ahead((lambda number=number: call(number) for number in itertools.count()), 3)
    assert [next(given) for _ in range(5)] == [0, 1, 2, 3, 4]
    given.close()
    assert called == sorted(called) and len(called) <= 5 + 3


def test_ahead_raises_in_turn() -> None:
    def fail() -> int:
        raise OSError("second")

    given = ahead([lambda: 1, fail, lambda: 3], 3)
    assert next(given) == 1
    with pytest.raises(OSError, match="second"):
        next(given)
