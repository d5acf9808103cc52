"""Intervals that hold over training seeds and episodes: a two-way bootstrap of one method's error
relative to another's.

The numbers of a method form a table, seeds x episodes, of sums over the windows of an episode.
Episodes are drawn whole and for both methods together (paired), seeds within each method on their
own: the runs of two methods are not paired, also where they share a seed.

What an interval covers: the ratio of the two methods' expected errors, over training runs with
other seeds and over other episodes of the same kind, less one. With one seed nothing says how much
runs differ, and it covers other episodes for this very checkpoint only.

Plain resampling is too narrow for five seeds, and counts the joint effect of seed and episode more
than once. So the samples give the shape, and their width is set to that of Student's t for the
variance

    V = V_seeds(method) + V_seeds(reference) + V_episodes - V_both   (each its own interaction once)

of the logarithm of the ratio, with Satterthwaite's degrees of freedom.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from sigma_jax.evaluation.metrics import Interval, ratio_interval

Table = Float[np.ndarray, 's m']  # seeds x episodes


class Variance(NamedTuple):
    """Variance of the logarithm of a ratio, and its degrees of freedom."""

    value: float
    freedom: float


def ratio(
    values: Table, reference: Table, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Mean over seeds of the sum over episodes, `values` relative to `reference`, with its interval
    (method in the module's first lines).

    Args:
      values: one method's table.
      reference: the other's, on the same episodes.
      seed: of the bootstrap.
      level: of confidence.
      resamples: how many are drawn.

    Returns:
      The ratio with its limits. They are NaN with a single episode; with one seed on either side it
        is `metrics.ratio_interval`.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.evaluation.compare import intervals
      >>> reference = np.random.default_rng(0).uniform(1, 2, (3, 20))  # 3 seeds, 20 episodes
      >>> change = intervals.change(0.5 * reference, reference)
      >>> round(change.value, 3), change.low < -0.5 < change.high
      (-0.5, True)
    """
    values, reference = np.atleast_2d(values), np.atleast_2d(reference)
    if len(values) == len(reference) == 1:
        return ratio_interval(values, reference, seed, level, resamples)
    top, bottom = float(values.mean(axis=0).sum()), float(reference.mean(axis=0).sum())
    if not top or not bottom:
        return Interval(0.0 if bottom else float('nan'), *(0.0 if bottom else float('nan'),) * 2)
    if values.shape[1] < 2:
        return Interval(top / bottom, float('nan'), float('nan'))
    shape = log_ratios(values, reference, seed, resamples) - np.log(top / bottom)
    variance = log_variance(values, reference)
    spread = float(np.std(shape))
    width = stats.t.ppf((1 + level) / 2, variance.freedom) / stats.norm.ppf((1 + level) / 2)
    scale = width * np.sqrt(variance.value) / spread if spread > 0 else 0.0
    limits = np.quantile(shape, [(1 - level) / 2, (1 + level) / 2])
    low, high = top / bottom * np.maximum(1 + scale * np.expm1(limits), 0.0)
    return Interval(top / bottom, float(low), float(high))


def change(values: Table, reference: Table, seed: int = 0) -> Interval:
    """`ratio` less one: negative where `values` are the smaller errors.

    Args:
      values: one method's table.
      reference: the other's, on the same episodes.
      seed: of the bootstrap.

    Returns:
      The relative change with its limits.
    """
    return Interval(*(x - 1 for x in ratio(values, reference, seed)))


def log_ratios(
    values: Table, reference: Table, seed: int, resamples: int
) -> Float[np.ndarray, 'r']:
    """Logarithms of resampled ratios; samples in which a method has no error at all are left out.

    Args:
      values: one method's table.
      reference: the other's.
      seed: of the bootstrap.
      resamples: how many are drawn.

    Returns:
      One number a sample that is left.
    """
    rng = np.random.default_rng(seed)
    episodes = values.shape[1]
    columns = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    top, bottom = (resample_seeds(table, columns, rng) for table in (values, reference))
    usable = (top > 0) & (bottom > 0)
    return np.log(top[usable] / bottom[usable])


def resample_seeds(
    table: Table, columns: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, 'r']:
    """Mean over drawn seeds of the sum over drawn episodes; a single seed stays as it is.

    Args:
      table: a method's.
      columns: how often each sample holds each episode, [r m].
      rng: draws the seeds.

    Returns:
      One number a sample.
    """
    seeds = len(table)
    sums = columns @ table.T
    if seeds == 1:
        return sums[:, 0]
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(columns))
    return np.einsum('rs,rs->r', rows, sums) / seeds


def log_variance(values: Table, reference: Table) -> Variance:
    """The variance V of the module's first lines, by linearisation: each table divided by its
    total.

    Args:
      values: one method's table.
      reference: the other's.

    Returns:
      The variance and its degrees of freedom.
    """
    shares = [table / table.mean(axis=0).sum() for table in (values, reference)]
    episodes = values.shape[1]
    by_episode = shares[0].mean(axis=0) - shares[1].mean(axis=0)
    parts = [(episodes * float(np.var(by_episode, ddof=1)), episodes - 1)]
    double = 0.0
    for share in shares:
        if len(share) > 1:
            seeds, sums = len(share), share.sum(axis=1)
            parts.append((float(np.var(sums, ddof=1)) / seeds, seeds - 1))
            rest = share - sums[:, None] / episodes - share.mean(axis=0) + share.mean()
            double += episodes * float(np.sum(rest**2)) / ((seeds - 1) * (episodes - 1)) / seeds
    largest = max(value for value, _ in parts)
    total = max(sum(value for value, _ in parts) - double, largest)
    below = sum(value**2 / freedom for value, freedom in parts)
    return Variance(total, total**2 / below if below > 0 else 1.0)
