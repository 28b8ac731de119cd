"""Rates, intervals and word errors against their definitions."""

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anygpt.evaluation.metrics import compare, estimate, word_errors

words = st.lists(st.sampled_from(["a", "b", "cat", "dog"]), min_size=0, max_size=8)


@given(words, words.filter(len))
def test_word_errors_are_jiwers(said: list[str], truth: list[str]) -> None:
    errors, count = word_errors(" ".join(said), " ".join(truth))
    assert count == len(truth)
    assert errors / count == pytest.approx(jiwer.wer(" ".join(truth), " ".join(said)))


def test_shares_have_wilson_intervals() -> None:
    found = estimate([(1.0, 1.0)] * 150 + [(0.0, 1.0)] * 50)
    assert (found.value, found.cases) == (0.75, 200)
    # Tables of the Wilson interval for 150 of 200.
    assert found.low == pytest.approx(0.6857, abs=1e-3) and found.high == pytest.approx(0.8049, abs=1e-3)
    perfect = estimate([(1.0, 1.0)] * 100)
    assert perfect.value == perfect.high == 1 and perfect.low == pytest.approx(0.963, abs=1e-3)


def test_ratios_weigh_cases_by_their_length() -> None:
    scores = [(1.0, 10.0), (1.0, 2.0), (0.0, 8.0)]
    assert estimate(scores).value == pytest.approx(2 / 20)
    assert estimate(scores) == estimate(scores)


def test_bootstrap_covers_the_true_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        errors = rng.binomial(9, 0.12, 150)
        found = estimate([(float(count), 9.0) for count in errors], seed=seed)
        covered += found.low <= 0.12 <= found.high
    assert 88 <= covered <= 100


def test_a_group_is_right_when_all_of_it_is() -> None:
    groups = {"both": ("shape", "colour"), "colour": ("colour",)}
    truth = {"shape": "round", "colour": "red"}
    assert compare({"shape": "square", "colour": "red"}, truth, groups) == {"both": (0.0, 1.0), "colour": (1.0, 1.0)}
    assert compare(truth, truth, groups) == {"both": (1.0, 1.0), "colour": (1.0, 1.0)}
    assert compare(None, truth, groups) == {"both": (0.0, 1.0), "colour": (0.0, 1.0)}
