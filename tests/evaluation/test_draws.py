"""What the bootstrap draws: episodes for both methods together, seeds within each method on their
own.
"""

import numpy as np
import pytest

from sigma_jax.evaluation.compare import intervals

MANY = 20_000


def spread_of_means(levels):
    """Standard deviation of the mean of as many values as there are, drawn with replacement."""
    return np.std(levels) / np.sqrt(len(levels))


@pytest.mark.parametrize('levels', [[1.0, 1.1, 1.2, 1.3, 1.4], [2.0, 2.5], [1.0, 1.0, 1.6]])
def test_seeds_are_drawn_where_episodes_are_all_alike(levels):
    """Only seeds differ, so that all spread is theirs."""
    table = np.array(levels)[:, None] * np.ones(12)
    one = np.exp(intervals.log_ratios(table, np.ones((1, 12)), 0, MANY))
    assert np.std(one) == pytest.approx(spread_of_means(levels), rel=0.03)
    other = np.exp(-intervals.log_ratios(np.ones((1, 12)), table, 0, MANY))
    assert np.std(other) == pytest.approx(spread_of_means(levels), rel=0.03), (
        'those of the reference are drawn too'
    )


def test_seeds_of_two_arms_are_drawn_apart():
    """Equal tables: had both methods the same seeds in a draw, no draw would differ from one."""
    table = np.array([1.0, 1.2, 1.4])[:, None] * np.ones(12)
    logs = intervals.log_ratios(table, table, 0, MANY)
    assert np.std(logs) == pytest.approx(
        np.sqrt(2) * spread_of_means([1.0, 1.2, 1.4]) / 1.2, rel=0.05
    )


def test_episodes_are_drawn_for_both_arms_together():
    hard = np.array([[1.0, 2.0, 4.0, 8.0]])
    assert np.std(intervals.log_ratios(hard, 3 * hard, 0, MANY)) < 1e-12
    shares = np.exp(intervals.log_ratios(hard, np.ones((1, 4)), 0, MANY))
    assert np.std(shares) == pytest.approx(spread_of_means(hard[0]), rel=0.03), (
        'sums over episodes drawn, over four'
    )


@pytest.mark.parametrize('seeds', [2, 5])
def test_an_interval_is_as_wide_as_the_runs_differ(seeds):
    levels = 1 + 0.1 * np.arange(seeds)
    found = intervals.ratio(levels[:, None] * np.ones(12), np.ones((1, 12)))
    assert (
        found.value == pytest.approx(levels.mean())
        and found.low < found.value - 0.02 < found.value + 0.02 < found.high
    )
