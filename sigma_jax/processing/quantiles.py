"""Are these quantiles? Statistics that a library averaged over episodes, or took as their envelope,
are none.

LeRobot keeps q01 and q99 of each episode and joins them by their mean (0.4 to 0.6), in `stats.json`
and in the processors of every policy trained by it. Here quantiles are tested against the mean,
std, min and max of the same data, which leave only some of them possible.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sigma_jax.processing.normalize import Statistics

LEVELS = {'quantile': 0.01, 'quantile10': 0.1}  # of the data beyond either end
SLACK = 1.75  # times the share expected outside, for quantiles read from histograms
# in std; of its range: a flat distribution is 3.4 std wide, two heaps 2, neither has tails
NARROW, WIDER = 2.8, 1.5
WIDE = 1.25  # times the range of exact quantiles: more than estimates differ by
CDF = {'min': 0.0, 'q01': 0.01, 'q10': 0.1, 'q50': 0.5, 'q90': 0.9, 'q99': 0.99, 'max': 1.0}
OF = 'q01..q99 of'  # begins every doubt
AVERAGED = "averages of the episodes' quantiles, as LeRobot up to 0.6.1 writes them, are such"


def least_outside(one: Statistics) -> Float[np.ndarray, ' p']:
    """The smallest fraction of values outside the ends that mean, std, min and max admit.

    E[(x - low)(high - x)] is (mean - low)(high - mean) - var. Inside the ends the product is
    positive, outside it is no smaller than at min or max.

    Args:
      one: statistics.

    Returns:
      One fraction a dimension; 0 where min and max are not known or the values may all lie inside.
    """
    if one.min is None or one.max is None:
        return np.zeros_like(one.mean)
    low, high = one.ends
    lacking = one.std**2 - (one.mean - low) * (high - one.mean)
    farthest = np.maximum((low - one.min) * (high - one.min), (one.max - low) * (one.max - high))
    share = np.divide(lacking, farthest, out=np.zeros_like(lacking), where=farthest > 0)
    return np.where(_moves(one), np.clip(share, 0, 1), 0)


def most_beyond(one: Statistics) -> Float[np.ndarray, ' p']:
    """The largest fraction of values beyond the rarer end that mean and std admit (Cantelli's
    inequality).

    Args:
      one: statistics.

    Returns:
      One fraction a dimension.
    """
    low, high = one.ends
    away = np.maximum(np.maximum(one.mean - low, high - one.mean), 0)
    return np.where(_moves(one), one.std**2 / np.maximum(one.std**2 + away**2, 1e-30), 1)


def doubts(statistics: Mapping[str, Statistics], advice: str) -> list[str]:
    """What speaks against quantiles being such.

    Args:
      statistics: by quantity.
      advice: ends each sentence.

    Returns:
      A sentence for each quantity whose quantiles are impossible or hardly possible.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.processing import normalize, quantiles
      >>> x = np.random.default_rng(0).normal(size=(1000, 1))
      >>> exact = normalize.compute_statistics(x)
      >>> narrow = normalize.Statistics(exact.mean, exact.std, exact.q01 / 2, exact.q99 / 2,
      ...     min=x.min(0), max=x.max(0))
      >>> doubts = quantiles.doubts({'state': narrow}, 'compute them again')
      >>> doubts[0].split(';')[0]
      'q01..q99 of state 0 are hardly quantiles: 2.4 std apart, min and max 3.0 times as far'
    """
    out = []
    for name, one in statistics.items():
        level = LEVELS.get(one.scaling.mode)
        found = _doubt(one, level) if level else ''
        if found:
            out.append(f'{OF if level == 0.01 else "q10..q90 of"} {name} {found}; {advice}')
    return out


def _doubt(one: Statistics, level: float) -> str:
    low, high = one.ends
    least, most = least_outside(one), most_beyond(one)
    if (bad := least > 2 * level * SLACK).any():
        share = f'at least {least.max():.0%} of the values lie outside, {2 * level:.0%} would'
        return f'{_joints(bad)} cannot be quantiles: by mean, std, min and max {share}; {AVERAGED}'
    if (bad := most < level / SLACK).any():
        share = f'at most {most.min():.2%} of the values lie beyond an end, {level:.0%} would'
        return (
            f'{_joints(bad)} cannot be quantiles: by mean and std {share}; the widest of the '
            "episodes' are such"
        )
    if one.min is None or one.max is None:
        return ''
    range_, wide = high - low, one.max - one.min
    if (
        bad := ((low < one.min - 1e-3 * wide) | (high > one.max + 1e-3 * wide)) & _moves(one)
    ).any():
        return f'{_joints(bad)} cannot be quantiles: they lie outside min and max'
    if level > LEVELS['quantile']:
        return ''  # no bound on the width of 80 % of the values shows it
    if (
        bad := (range_ < NARROW * one.std)
        & (wide > WIDER * range_)
        & ~one.near_constant
        & _moves(one)
    ).any():
        first = int(np.flatnonzero(bad)[0])
        apart = (
            f'{range_[first] / one.std[first]:.1f} std apart, min and max '
            f'{wide[first] / range_[first]:.1f} times'
        )
        return f'{_joints(bad)} are hardly quantiles: {apart} as far; {AVERAGED}'
    return ''


def _moves(one: Statistics) -> np.ndarray:
    return one.std > 1e-6 * (1 + np.abs(one.mean))


def _joints(bad: np.ndarray) -> str:
    return ', '.join(map(str, np.flatnonzero(bad)))


def share_outside(values: Float[np.ndarray, 'n p'], one: Statistics) -> Float[np.ndarray, ' p']:
    """The fraction of rows outside the ends of some statistics.

    Args:
      values: raw units.
      one: statistics of that quantity.

    Returns:
      One fraction a dimension.
    """
    low, high = one.ends
    return ((values < low) | (values > high)).mean(0)


def misfits(
    values: Mapping[str, Float[np.ndarray, 'n p']], statistics: Mapping[str, Statistics]
) -> list[str]:
    """Which quantiles do not fit some data.

    Args:
      values: {quantity: rows}, raw units.
      statistics: by quantity.

    Returns:
      A clause for each quantity of which more rows lie outside than the inaccuracy of estimated
        quantiles explains.
    """
    out = []
    for name, one in statistics.items():
        level = LEVELS.get(one.scaling.mode)
        share = share_outside(values[name], one) if level else np.zeros(1)
        if level and share.max() > 2 * level * SLACK:
            by_joint = f'({share.min():.1%} to {share.max():.1%} by joint)'
            out.append(f'{share.mean():.0%} of {name} lie outside {by_joint}')
    return out


def times_as_wide(one: Statistics, exact: Statistics) -> Float[np.ndarray, ' p']:
    """The range of some statistics in ranges of others.

    Args:
      one: statistics.
      exact: of the same quantity.

    Returns:
      One ratio a dimension; 1 where `exact` has no range.
    """
    (low, high), (first, last) = one.ends, exact.ends
    still = exact.near_constant | (last <= first)
    return np.where(still, 1, (high - low) / np.where(still, 1, last - first))


def how_joined(entry: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    """How q01 and q99 of a whole were made from those of its episodes.

    Args:
      entry: {'q01': [...], 'q99': [...], 'count': ...} of the whole.
      episodes: the same of each episode.

    Returns:
      'averages' or 'envelopes'; '' for neither.
    """
    if len(episodes) < 2 or any(
        not {'q01', 'q99', 'count'} <= set(one) for one in (entry, *episodes)
    ):
        return ''
    weights = np.array([float(np.ravel(one['count'])[0]) for one in episodes])
    whole = {key: np.asarray(entry[key], float) for key in ('q01', 'q99')}
    parts = {key: np.array([one[key] for one in episodes], float) for key in ('q01', 'q99')}
    near = 1e-4 * np.maximum(parts['q99'].max(0) - parts['q01'].min(0), 1e-6)
    if all((np.ptp(parts[key], axis=0) <= 100 * near).all() for key in parts):
        return ''  # all episodes are alike: joined any way, they are the quantiles
    mean = {key: (parts[key] * weights[:, None]).sum(0) / weights.sum() for key in parts}
    ends = {'q01': parts['q01'].min(0), 'q99': parts['q99'].max(0)}
    for name, joined in (('averages', mean), ('envelopes', ends)):
        if all((np.abs(whole[key] - joined[key]) <= near).all() for key in joined):
            return name
    return ''


def expected_outside(
    entry: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]
) -> Float[np.ndarray, ' p']:
    """The fraction of values outside q01..q99 of `entry`, by the quantiles of its episodes with
    straight lines between them.

    Args:
      entry: {'q01': [...], 'q99': [...]} of the whole.
      episodes: their 'count' and quantiles.

    Returns:
      One fraction a dimension.
    """
    out, total = np.zeros(len(entry['q01'])), 0.0
    for one in episodes:
        levels = [key for key in CDF if key in one]
        count = float(np.ravel(one['count'])[0])
        total += count
        for joint, (low, high) in enumerate(zip(entry['q01'], entry['q99'], strict=True)):
            at = np.maximum.accumulate([one[key][joint] for key in levels])
            shares = [CDF[key] for key in levels]
            below, above = (
                np.interp(low, at, shares, left=0, right=1),
                np.interp(high, at, shares, left=0, right=1),
            )
            out[joint] += count * (below + 1 - above)
    return out / max(total, 1.0)
