"""Quantiles that are none are recognised from mean, std, min and max, and from single episodes;
real ones never are.
"""

import dataclasses
import json

import numpy as np
import pytest

from sigma_jax.data.lerobot.stats import numeric_stats
from sigma_jax.processing import quantiles
from sigma_jax.processing.normalize import Scaling, statistics_from
from tests import golden

LEROBOT = Scaling('quantile', 'lerobot')


def entry(values):
    return numeric_stats(np.asarray(values, np.float64).reshape(len(values), -1))


def exact(values, scaling=LEROBOT):
    return statistics_from({key: x for key, x in entry(values).items() if key != 'count'}, scaling)


def joined(episodes, how):
    """Statistics of all rows, with q01 and q99 joined as LeRobot has joined them."""
    parts, whole = [entry(one) for one in episodes], entry(np.concatenate(episodes))
    counts = np.array([len(one) for one in episodes])[:, None]
    for key, widest in (('q01', np.min), ('q99', np.max), ('q10', np.min), ('q90', np.max)):
        column = np.array([one[key] for one in parts])
        mean = (column * counts).sum(0) / counts.sum()
        whole[key] = (mean if how == 'averages' else widest(column, axis=0)).tolist()
    return whole, parts


def doubts(whole, scaling=LEROBOT):
    one = statistics_from({key: x for key, x in whole.items() if key != 'count'}, scaling)
    return quantiles.doubts({'state': one}, 'mend it'), one


def far_apart(seed, widths=(1, 1), centres=(0, 4, -5, 8, 45, -38)):
    """Episodes about other centres, the last two short and far off."""
    rng = np.random.default_rng(seed)
    lengths = [110] * (len(centres) - 2) + [30, 25]
    return [c + rng.normal(0, widths, (n, 2)) for c, n in zip(centres, lengths, strict=True)]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('widths', [(1, 1), (6, 2)])
def test_averages_of_episodes_are_impossible_by_the_moments(seed, widths):
    episodes = far_apart(seed, widths)
    (text,), one = doubts(joined(episodes, 'averages')[0])
    # a joint that moves as far in each episode as between them may
    joints = '0, 1' if widths == (1, 1) else '1'
    assert text.startswith(
        f'q01..q99 of state {joints} cannot be quantiles: by mean, std, min and max at least '
    )
    assert text.endswith('as LeRobot up to 0.6.1 writes them, are such; mend it')
    least, true = (
        quantiles.least_outside(one),
        quantiles.share_outside(np.concatenate(episodes), one),
    )
    assert (least <= true).all() and least[1] > 0.05  # a bound, and one that says something


def test_the_bound_is_reached_by_values_at_the_ends_alone():
    values = np.repeat([-10.0, -1.0, 1.0, 10.0], [10, 40, 40, 10])[:, None]
    one = dataclasses.replace(exact(values), q01=np.array([-1.0]), q99=np.array([1.0]))
    np.testing.assert_allclose(quantiles.least_outside(one), [0.2], rtol=1e-12)
    assert quantiles.share_outside(values, one) == 0.2


def test_averages_that_the_moments_admit_are_known_by_their_width():
    rng = np.random.default_rng(0)
    episodes = [c + rng.uniform(-1, 1, (100, 1)) for c in rng.uniform(-1.2, 1.2, 40)]
    found, one = doubts(joined(episodes, 'averages')[0])
    assert (
        quantiles.least_outside(one).max() < 0.035
        and quantiles.share_outside(np.concatenate(episodes), one) > 0.1
    )
    assert len(found) == 1 and ' hardly quantiles: ' in found[0]


def test_the_widest_of_many_episodes_is_impossible():
    rng = np.random.default_rng(0)
    episodes = [rng.normal(0, 1, (100, 1)) for _ in range(400)] + [rng.normal(60, 1, (20, 1))]
    (text,), one = doubts(joined(episodes, 'envelopes')[0])
    assert (
        'cannot be quantiles: by mean and std at most' in text
        and quantiles.most_beyond(one) < 0.005
    )


@pytest.mark.parametrize('scaling', [LEROBOT, Scaling('quantile10', 'lerobot')])
@pytest.mark.parametrize(
    'kind', ['normal', 'uniform', 'arc', 'two', 'skewed', 'rare', 'constant', 'heavy', 'steps']
)
def test_true_quantiles_are_never_impossible(kind, scaling):
    rng = np.random.default_rng(1)
    draws = {
        'normal': rng.normal(5, 3, 4000),
        'uniform': rng.uniform(-1, 1, 4000),
        'heavy': rng.standard_t(2, 4000),
        'arc': np.sin(np.linspace(0, 60, 4000)),
        'two': rng.choice([0.0, 100.0], 4000, p=[0.85, 0.15]),
        'skewed': rng.exponential(1, 4000),
        'rare': np.where(rng.random(4000) < 0.004, 50.0, rng.normal(0, 0.1, 4000)),
        'constant': np.full(4000, 3.3),
        'steps': np.repeat(np.arange(8.0), 500),
    }
    found, one = doubts(entry(draws[kind]), scaling)
    assert (
        not [text for text in found if 'cannot' in text]
        and quantiles.least_outside(one).max() < 0.2 * 1.01
    )
    if kind not in ('rare', 'heavy'):
        assert not found


def test_only_the_ends_in_use_are_doubted_and_absent_numbers_are_no_ground():
    whole = joined(far_apart(0), 'averages')[0]
    assert (
        not doubts(whole, Scaling('mean_std', 'lerobot'))[0]
        and not doubts(whole, Scaling('min_max', 'lerobot'))[0]
    )
    halves = joined(far_apart(0, centres=(40, -40, 40, -40, 0, 0)), 'averages')[0]
    # 10 % of the rows are far off, 20 % may be
    assert not doubts(whole, Scaling('quantile10', 'lerobot'))[0]
    assert doubts(halves, Scaling('quantile10', 'lerobot'))[0][0].startswith('q10..q90 of state')
    bare = {key: whole[key] for key in ('mean', 'std', 'q01', 'q99')}
    assert doubts(bare)[0] == []  # without min and max anything may lie outside
    outside = entry(np.linspace(0, 1, 50)) | {'q99': [3.0]}
    assert 'lie outside min and max' in doubts(outside)[0][0]


def test_policies_and_data_sets_here_are_trusted():
    stored = json.loads((golden.DATA / 'policies' / 'dataset_stats.json').read_text())
    for name in ('state', 'actions'):
        assert not doubts(stored[name])[0]


@pytest.mark.parametrize('how', ['averages', 'envelopes'])
@pytest.mark.parametrize('seed', range(2))
def test_single_episodes_tell_how_a_whole_was_joined(how, seed):
    episodes = far_apart(seed)
    whole, parts = joined(episodes, how)
    assert quantiles.how_joined(whole, parts) == how
    one = doubts(whole)[1]
    true = quantiles.share_outside(np.concatenate(episodes), one)
    np.testing.assert_allclose(quantiles.expected_outside(whole, parts), true, atol=0.03)
    assert quantiles.how_joined(entry(np.concatenate(episodes)), parts) == ''
    assert (
        quantiles.how_joined(parts[0], parts[:1]) == ''
        and quantiles.how_joined(parts[0], [parts[0]] * 4) == ''
    )
