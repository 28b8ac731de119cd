"""Work spread over processes: order, errors, death."""

import multiprocessing

import pytest
from fixtures_workers import set_up, set_up_trouble

from anygpt.data.workers import ordered_map
from anygpt.errors import AnyGPTError


def test_results_come_in_order_from_all_workers() -> None:
    results = list(ordered_map(set_up, range(40), workers=2))
    assert [value for value, _ in results] == [2 * task for task in range(40)]
    assert {number for _, number in results} == {0, 1}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("mistake", AnyGPTError, "a mistake of the user"),
        ("bug", RuntimeError, "KeyError: 'a bug'"),
        ("death", AnyGPTError, "exit code 7"),
    ],
)
def test_trouble_in_a_worker_is_raised_here(trouble: str, error: type[Exception], message: str) -> None:
    results = ordered_map(set_up_trouble, ["fine", trouble, "fine"], workers=1)
    assert next(results) == "fine"
    with pytest.raises(error, match=message):
        next(results)
    assert not multiprocessing.active_children()


def test_closing_ends_the_processes() -> None:
    results = ordered_map(set_up, iter(int, 1), workers=1)
    assert next(results) == (0, 0)
    results.close()
    assert not multiprocessing.active_children()
