"""Intervals over seeds and episodes hold the truth as often as they say, on synthetic data whose
truth is known.
"""

import numpy as np
import pytest

from sigma_jax.evaluation import metrics
from sigma_jax.evaluation.compare import intervals

TIMES = 500  # simulations
SPREADS = {'seed': 0.1, 'episode': 0.5, 'both': 0.2, 'arm': 0.1}  # of logarithms


def simulate(rng, seeds, others, episodes, seed=0.1, episode=0.5, both=0.2, arm=0.1):
    """Two methods' tables [seeds, episodes] and the ratio of their expectations; a single seed is a
    fixed model.

    `episode` is what both methods share of an episode's difficulty, `arm` what is a method's own of
    it, `both` what seed and episode do together.
    """
    shared, counts = rng.normal(0, episode, episodes), rng.integers(20, 60, episodes)

    def table(n, level):
        runs = rng.normal(0, seed if n > 1 else 0, (n, 1))
        logs = shared + rng.normal(0, arm, episodes) + runs + rng.normal(0, both, (n, episodes))
        return counts * level * np.exp(logs)

    excess = [np.exp((seed**2 if n > 1 else 0) / 2) for n in (seeds, others)]
    return table(seeds, 1.0), table(others, 2.0), excess[0] / excess[1] / 2


def coverage(function, times=TIMES, **settings):
    rng = np.random.default_rng(4)
    hits = 0
    for n in range(times):
        values, reference, truth = simulate(rng, **settings)
        interval = function(values, reference, n)
        hits += interval.low <= truth <= interval.high
    return hits / times


def two_way(values, reference, seed):
    return intervals.ratio(values, reference, seed, resamples=300)


@pytest.mark.parametrize(
    ('seeds', 'others', 'episodes'), [(5, 5, 100), (5, 1, 100), (5, 5, 11), (3, 3, 30)]
)
def test_coverage_is_near_95_per_cent(seeds, others, episodes):
    # three standard errors of the simulation below
    lowest = 0.95 - 3 * (0.95 * 0.05 / TIMES) ** 0.5
    assert lowest <= coverage(two_way, seeds=seeds, others=others, episodes=episodes) <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize(
    'spreads',
    [{}, {'seed': 0.3}, {'seed': 0.02}, {'both': 0.5}, {'episode': 1.0, 'arm': 0.3}],
    ids=str,
)
@pytest.mark.parametrize('others', [5, 1])
def test_coverage_at_the_size_of_the_experiment(spreads, others):
    """Five seeds, a hundred episodes, against five runs or one policy; 4000 simulations tell it to
    0.35 points.
    """
    found = coverage(two_way, 4000, seeds=5, others=others, episodes=100, **spreads)
    print(f'{spreads} against {others}: {100 * found:.2f} %')
    assert 0.93 <= found <= 0.97


def test_taking_runs_for_one_run_covers_too_seldom():
    """Only episodes drawn: blind to what another run would give, where runs differ more than
    episodes.
    """

    def episodes_alone(values, reference, seed):
        return metrics.ratio_interval(
            values.mean(axis=0), reference.mean(axis=0), seed, resamples=300
        )

    runs_differ = {'seeds': 5, 'others': 5, 'episodes': 100, 'seed': 0.3, 'both': 0.05}
    assert coverage(episodes_alone, 100, **runs_differ) < 0.5
    assert coverage(two_way, 100, **runs_differ) >= 0.91


def test_more_seeds_give_narrower_intervals():
    def width(seeds):
        rng = np.random.default_rng(0)
        found = [simulate(rng, seeds, seeds, 50, seed=0.3)[:2] for _ in range(20)]
        return np.mean([two_way(*tables, 0).high - two_way(*tables, 0).low for tables in found])

    assert width(10) < 0.6 * width(3)


def test_a_single_seed_is_the_interval_over_episodes():
    values, reference, _ = simulate(np.random.default_rng(0), 1, 1, 12)
    assert intervals.ratio(values, reference, 3) == metrics.ratio_interval(values, reference, 3)


def test_pairing_by_episode_narrows():
    """The same episodes are hard for both methods; shuffled, that is lost."""
    rng = np.random.default_rng(0)
    values, reference, _ = simulate(rng, 5, 5, 40, episode=1.0, seed=0.01)
    paired = two_way(values, reference, 0)
    apart = two_way(values, reference[:, rng.permutation(40)], 0)
    assert paired.high - paired.low < 0.4 * (apart.high - apart.low)
    assert apart.value == pytest.approx(paired.value)


def test_equal_arms_differ_by_nothing():
    table = simulate(np.random.default_rng(0), 1, 1, 12)[0]
    assert intervals.change(table, table) == (0.0, 0.0, 0.0)


def test_arms_without_error_and_single_episodes():
    ones = np.ones((2, 5))
    assert intervals.ratio(0 * ones, ones) == (0.0, 0.0, 0.0)
    assert np.isnan(intervals.ratio(ones, 0 * ones)).all()
    one = intervals.ratio(ones[:, :1], 2 * ones[:, :1])
    assert one.value == 0.5 and np.isnan(one.low) and np.isnan(one.high)
