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
    """Raw squared units, a branch each (paper 6). Success: all errors below; hard: any error at or
    above.
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
    """mse_vec, mse_chk, mse_trj of each window: mean squared error of the first 1, c, t steps,
    valid steps only.

    The lengths are ours; the paper names the three errors without them.
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
    """Errors of the first c steps; masked steps are 0."""
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
    """Mean squared error at each horizon step, over windows where the step is valid."""
    errors = step_errors(prediction, target, action_mask)
    return errors.square.sum(axis=0) / np.maximum(errors.mask.sum(axis=0), 1)


def tau_l2(tau: Float[np.ndarray, 'n e']) -> Float[np.ndarray, 'n']:
    """L2 norm of the telepathy factor (paper 6)."""
    return np.linalg.norm(np.asarray(tau, np.float64), axis=-1)


def cosine(x: Float[np.ndarray, 'n d'], y: Float[np.ndarray, 'n d']) -> Float[np.ndarray, 'n']:
    """Cosine of each row pair, 0 where a row is zero; `sem_align` is cosine(z_pool, text_pool)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.where(scale > 0, np.sum(x * y, axis=-1) / np.where(scale > 0, scale, 1.0), 0.0)


def is_success(errors: Errors, thresholds: Thresholds) -> Bool[np.ndarray, 'n']:
    """All three errors below their thresholds."""
    return np.logical_and.reduce([errors[f'mse_{k}'] < v for k, v in vars(thresholds).items()])


def is_hard(errors: Errors, thresholds: Thresholds) -> Bool[np.ndarray, 'n']:
    """Any of the three errors at or above its threshold."""
    return np.logical_or.reduce([errors[f'mse_{k}'] >= v for k, v in vars(thresholds).items()])


def paper_summary(
    errors: Errors,
    tau_norm: Float[np.ndarray, 'n'],
    sem_align: Float[np.ndarray, 'n'],
    success: Thresholds,
    hard: Thresholds,
    batch_size: int = 4,
) -> dict:
    """One group of `sigma_eval_report.json` under the paper's keys; hard averages are 0 without
    hard windows.
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
    """Mean as a float; 0 of nothing."""
    return float(np.mean(x)) if np.size(x) else 0.0


def sum_by_episode(
    values: Float[np.ndarray, 'n'], episode: Int[np.ndarray, 'n']
) -> tuple[Int[np.ndarray, 'm'], Float[np.ndarray, 'm'], Int[np.ndarray, 'm']]:
    """Episodes in ascending order, the sum of their windows' values, and their number of
    windows.
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

    Episodes are drawn whole and numerator and denominator together, so that a ratio of two arms is
    paired; with a single seed only episodes are drawn. Percentile limits, expanded for few
    episodes: the normal tail probability is that of sqrt(m / (m - 1)) times Student's t with m - 1
    degrees of freedom. A mean is the ratio of sums to counts; a relative change is the ratio of two
    arms' sums, less one.
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
    """Mean over windows, 95 % interval over episodes."""
    _, sums, counts = sum_by_episode(values, episode)
    return ratio_interval(sums, counts, seed)


def relative_change(
    values: Float[np.ndarray, 'n'],
    reference: Float[np.ndarray, 'n'],
    episode: Int[np.ndarray, 'n'],
    seed: int = 0,
) -> Interval:
    """mean(values) / mean(reference) - 1 on the same windows, paired 95 % interval over
    episodes.
    """
    _, sums, _ = sum_by_episode(values, episode)
    _, reference_sums, _ = sum_by_episode(reference, episode)
    return Interval(*(x - 1 for x in ratio_interval(sums, reference_sums, seed)))
