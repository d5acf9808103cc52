"""Numbers of a report: errors per window, rates, means by episode and their intervals
(docs/design.md, "Evaluation protocol").

Everything here is numpy in float64 on flat windows: `n` windows, `t` steps, `a` joints, raw action
units.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from sigma_jax.types import Actions

ERRORS = ('mse_vec', 'mse_chk', 'mse_trj')
# spelling of the paper's averages
LONG_NAMES = {'mse_vec': 'vector', 'mse_chk': 'chunk', 'mse_trj': 'traj'}

Errors = Mapping[str, Float[np.ndarray, 'n']]


@dataclass(frozen=True)
class Thresholds:
    """Limits of the errors, one a branch, in squared raw units (paper 6).

    A window succeeds where all errors are below, and is hard where any is at or above.
    """

    vec: float = 0.1
    chk: float = 0.2
    trj: float = 0.2


class Interval(NamedTuple):
    """A value and its confidence limits; the limits are NaN where one episode is all there is."""

    value: float
    low: float
    high: float


def window_errors(
    actions: Actions, target: Float[np.ndarray, 'n t a'], action_mask: Bool[np.ndarray, 'n t']
) -> dict[str, Float[np.ndarray, 'n']]:
    """mse_vec, mse_chk and mse_trj of each window: the mean squared error of its first 1, c and t
    steps (paper 6; the lengths are ours, the paper names the errors without them).

    Args:
      actions: the three branches, raw units.
      target: recorded actions, raw units.
      action_mask: true for valid steps; others do not count.

    Returns:
      {'mse_vec', 'mse_chk', 'mse_trj'}, squared raw units.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.evaluation import metrics
      >>> from sigma_jax.types import Actions
      >>> target, mask = np.zeros((1, 4, 2)), np.array([[True, True, True, False]])
      >>> trajectory = np.array([1.0, 3.0, 5.0, 100.0])[None, :, None] * np.ones(2)
      >>> errors = metrics.window_errors(Actions.from_trajectory(trajectory, 2), target, mask)
      >>> {name: round(float(one[0]), 3) for name, one in errors.items()}
      {'mse_vec': 1.0, 'mse_chk': 5.0, 'mse_trj': 11.667}
    """
    branches: Any = zip(
        ERRORS, (np.asarray(actions.vec)[:, None], actions.chk, actions.traj), strict=True
    )
    return {name: step_errors(x, target, action_mask).mean_over_steps() for name, x in branches}


class StepErrors(NamedTuple):
    """Squared error of each step, mean over joints, and which steps count."""

    square: Float[np.ndarray, 'n t']
    mask: Bool[np.ndarray, 'n t']

    def mean_over_steps(self) -> Float[np.ndarray, 'n']:
        """[n]; 0 for a window without a valid step."""
        return self.square.sum(axis=1) / np.maximum(self.mask.sum(axis=1), 1)


def step_errors(
    prediction: Float[np.ndarray, 'n c a'],
    target: Float[np.ndarray, 'n t a'],
    action_mask: Bool[np.ndarray, 'n t'],
) -> StepErrors:
    """Squared error of each step, mean over joints.

    Args:
      prediction: actions of the first c steps, raw units.
      target: recorded actions, raw units.
      action_mask: true for valid steps.

    Returns:
      Errors of c steps; 0 where a step is not valid.
    """
    prediction = np.asarray(prediction, np.float64)
    steps = prediction.shape[1]
    mask = np.asarray(action_mask[:, :steps], bool)
    square = np.square(prediction - np.asarray(target[:, :steps], np.float64)).mean(axis=2)
    return StepErrors(np.where(mask, square, 0.0), mask)


def error_by_step(
    prediction: Float[np.ndarray, 'n t a'],
    target: Float[np.ndarray, 'n t a'],
    action_mask: Bool[np.ndarray, 'n t'],
) -> Float[np.ndarray, 't']:
    """Mean squared error at each horizon step, over windows where the step is valid.

    Args:
      prediction: actions, raw units.
      target: recorded actions, raw units.
      action_mask: true for valid steps.

    Returns:
      Squared raw units.
    """
    errors = step_errors(prediction, target, action_mask)
    return errors.square.sum(axis=0) / np.maximum(errors.mask.sum(axis=0), 1)


def tau_l2(tau: Float[np.ndarray, 'n e']) -> Float[np.ndarray, 'n']:
    """L2 norm of the telepathy factor (paper 6).

    Args:
      tau: telepathy factor.

    Returns:
      One number a window.
    """
    return np.linalg.norm(np.asarray(tau, np.float64), axis=-1)


def cosine(x: Float[np.ndarray, 'n d'], y: Float[np.ndarray, 'n d']) -> Float[np.ndarray, 'n']:
    """Cosine of each pair of rows; `sem_align` is cosine(z_pool, text_pool).

    Args:
      x: one vector a row.
      y: one vector a row.

    Returns:
      -1 to 1; 0 where a row is zero.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.where(scale > 0, np.sum(x * y, axis=-1) / np.where(scale > 0, scale, 1.0), 0.0)


def is_success(errors: Errors, thresholds: Thresholds) -> Bool[np.ndarray, 'n']:
    """Whether all three errors are below their thresholds (paper 6).

    Args:
      errors: of `window_errors`.
      thresholds: squared raw units.

    Returns:
      One flag a window.
    """
    return np.logical_and.reduce([errors[f'mse_{k}'] < v for k, v in vars(thresholds).items()])


def is_hard(errors: Errors, thresholds: Thresholds) -> Bool[np.ndarray, 'n']:
    """Whether any of the three errors is at or above its threshold (paper 6).

    Args:
      errors: of `window_errors`.
      thresholds: squared raw units.

    Returns:
      One flag a window.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.evaluation import metrics
      >>> errors = {name: np.array([0.05, 0.15]) for name in metrics.ERRORS}
      >>> limits = metrics.Thresholds(vec=0.1, chk=0.2, trj=0.2)
      >>> metrics.is_success(errors, limits).tolist(), metrics.is_hard(errors, limits).tolist()
      ([True, False], [False, True])
    """
    return np.logical_or.reduce([errors[f'mse_{k}'] >= v for k, v in vars(thresholds).items()])


def paper_summary(
    errors: Errors,
    tau_norm: Float[np.ndarray, 'n'],
    sem_align: Float[np.ndarray, 'n'],
    success: Thresholds,
    hard: Thresholds,
    batch_size: int = 4,
) -> dict:
    """One group of `sigma_eval_report.json` under the paper's keys.

    Args:
      errors: of `window_errors`.
      tau_norm: of `tau_l2`.
      sem_align: cosine(z_pool, text_pool).
      success: thresholds below which a window succeeds.
      hard: thresholds from which on it is hard.
      batch_size: windows that the paper counts as a batch.

    Returns:
      {key: number}; averages over hard windows are 0 where there is none.
    """
    count, chosen = len(tau_norm), is_hard(errors, hard)
    summary: dict[str, Any] = {'num_samples': count, 'num_batches': -(-count // batch_size)}
    summary |= {f'avg_mse_{LONG_NAMES[name]}': mean(errors[name]) for name in ERRORS}
    summary |= {'avg_tau_l2': mean(tau_norm), 'avg_semantic_text_alignment': mean(sem_align)}
    summary |= {'hard_thresholds': dict(vars(hard)), 'success_thresholds': dict(vars(success))}
    summary |= {'success_rate': mean(is_success(errors, success))}
    summary |= {'hard_sample_fraction': mean(chosen), 'total_hard_samples': int(chosen.sum())}
    return summary | {
        f'avg_hard_mse_{LONG_NAMES[name]}': mean(errors[name][chosen]) for name in ERRORS
    }


def mean(x: np.ndarray) -> float:
    """Mean as a float.

    Args:
      x: numbers.

    Returns:
      The mean; 0 of nothing.
    """
    return float(np.mean(x)) if np.size(x) else 0.0


def sum_by_episode(
    values: Float[np.ndarray, 'n'], episode: Int[np.ndarray, 'n']
) -> tuple[Int[np.ndarray, 'm'], Float[np.ndarray, 'm'], Int[np.ndarray, 'm']]:
    """Sums over the windows of each episode.

    Args:
      values: one number a window.
      episode: episode of each window.

    Returns:
      episodes: ascending.
      sums: of their windows' values.
      counts: of their windows.
    """
    episodes, index, counts = np.unique(episode, return_inverse=True, return_counts=True)
    return episodes, np.bincount(index, weights=values, minlength=len(episodes)), counts


def ratio_interval(
    numerator: Float[np.ndarray, 's m'],
    denominator: Float[np.ndarray, 's m'],
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """sum(numerator) / sum(denominator) with a bootstrap interval over seeds (rows) and episodes
    (columns).

    Episodes are drawn whole, and numerator and denominator together, so that a ratio of two methods
    is paired; with a single seed only episodes are drawn. The limits are percentiles, expanded for
    few episodes: the normal tail probability is that of sqrt(m / (m - 1)) times Student's t with m
    - 1 degrees of freedom. A mean is the ratio of sums to counts; a relative change is the ratio of
    two methods' sums, less one.

    Args:
      numerator: sums over the windows of an episode.
      denominator: likewise.
      seed: of the bootstrap.
      level: of confidence.
      resamples: how many are drawn.

    Returns:
      The ratio with its limits; they are NaN with a single episode.
    """
    numerator, denominator = np.atleast_2d(numerator), np.atleast_2d(denominator)
    value = float(numerator.sum() / denominator.sum()) if denominator.sum() else float('nan')
    seeds, episodes = numerator.shape
    if episodes < 2 or not denominator.sum():
        return Interval(value, float('nan'), float('nan'))
    rng = np.random.default_rng(seed)
    columns = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    top = np.einsum('rs,sm,rm->r', rows, numerator, columns)
    bottom = np.einsum('rs,sm,rm->r', rows, denominator, columns)
    spread = stats.t.ppf((1 + level) / 2, episodes - 1) * np.sqrt(episodes / (episodes - 1))
    tail = stats.norm.cdf(-spread)
    draws = top[bottom > 0] / bottom[bottom > 0]
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def mean_interval(
    values: Float[np.ndarray, 'n'], episode: Int[np.ndarray, 'n'], seed: int = 0
) -> Interval:
    """Mean over windows, 95 % interval over episodes.

    Args:
      values: one number a window.
      episode: episode of each window.
      seed: of the bootstrap.

    Returns:
      The mean with its limits, in the units of `values`.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.evaluation import metrics
      >>> values, episode = np.array([1.0, 3.0, 2.0, 2.0]), np.array([0, 0, 1, 1])
      >>> metrics.mean_interval(values, episode)  # both episodes have the same mean
      Interval(value=2.0, low=2.0, high=2.0)
    """
    _, sums, counts = sum_by_episode(values, episode)
    return ratio_interval(sums, counts, seed)


def relative_change(
    values: Float[np.ndarray, 'n'],
    reference: Float[np.ndarray, 'n'],
    episode: Int[np.ndarray, 'n'],
    seed: int = 0,
) -> Interval:
    """mean(values) / mean(reference) - 1 on the same windows, paired 95 % interval over episodes.

    Args:
      values: one number a window.
      reference: one number a window.
      episode: episode of each window.
      seed: of the bootstrap.

    Returns:
      The change with its limits; negative where `values` are smaller.
    """
    _, sums, _ = sum_by_episode(values, episode)
    _, reference_sums, _ = sum_by_episode(reference, episode)
    return Interval(*(x - 1 for x in ratio_interval(sums, reference_sums, seed)))
