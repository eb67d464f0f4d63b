"""Numbers of training curves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.meta.scores import (
    diverged,
    interquartile_mean,
    interval,
    steps_to,
    trailing_mean,
)


def test_trailing_mean_is_over_a_tenth():
    losses = [float(i) for i in range(50)]
    assert trailing_mean(losses)[:3] == [0.0, 0.5, 1.0]
    assert trailing_mean([3.0, 1.0]) == [3.0, 1.0]
    assert trailing_mean([1.0] * 49 + [float("inf")])[-1] == float("inf")


def test_steps_to_a_target_count_from_one_and_need_a_whole_window():
    assert steps_to([5.0, 4.0, 3.0, 2.0], 3.0) == 3
    assert steps_to([5.0, 4.0], 3.0) is None
    lucky = [0.0] + [5.0] * 74  # the first batch alone is below
    assert steps_to(lucky, 1.0) is None
    assert steps_to([float("inf")] * 3, 1.0) is None


@pytest.mark.parametrize(
    ("losses", "answer"),
    [
        ([2.0, 1.0], False),
        ([2.0, 2.5], True),
        ([2.0, float("inf")], True),
        ([float("nan"), 1.0], True),
    ],
)
def test_divergence(losses, answer):
    assert diverged(losses) is answer


def test_interquartile_mean_by_hand():
    assert interquartile_mean(torch.tensor([100.0, 2.0, 4.0, -50.0])).item() == 3.0
    assert interquartile_mean(torch.tensor([7.0])).item() == 7.0
    # Of six values 1.5 are cut off at each end: two whole ones are left, and two halves.
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 99.0])
    assert interquartile_mean(values).item() == pytest.approx((0.5 + 2 + 3 + 5) / 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.floats(-5, 5))
def test_interquartile_mean_lies_between_the_extremes_and_moves_along(values, shift):
    x = torch.tensor(values, dtype=torch.float64)
    found = interquartile_mean(x).item()
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert interquartile_mean(x + shift).item() == pytest.approx(found + shift, abs=1e-9)


def test_bootstrap_interval_holds_the_truth_about_as_often_as_it_says():
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(60):
        rows = {"a": torch.randn(20, generator=generator).tolist()}
        mean, low, high = interval(rows, generator=generator, resamples=300)
        assert low <= mean <= high
        hits += low <= 0 <= high
    assert 48 <= hits <= 60


def test_seeds_of_a_task_stay_with_it():
    """With equal seeds within each task nothing is left to draw."""
    rows = {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0]}
    mean, low, high = interval(rows, generator=torch.Generator().manual_seed(0))
    assert mean == low == high == pytest.approx(2.0)
