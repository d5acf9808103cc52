"""Trainings compared: seeds pooled, contrasts paired by episode (docs/design.md, "Evaluation
protocol").

Pure numpy on errors of windows. Every method brings a table of errors for each seed; methods that
need no training bring one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sigma_jax.evaluation import metrics
from sigma_jax.evaluation.compare import intervals
from sigma_jax.evaluation.metrics import ERRORS

BASE = 'pi05'


@dataclasses.dataclass(frozen=True)
class PooledMethod:
    """A method's errors on the windows of a split.

    Attributes:
      errors: for each seed {mse_vec, mse_chk, mse_trj: [n]}, squared raw units.
      seeds: in that order; empty where nothing was trained.
      by_step: for each seed the mean error at each step.
    """

    errors: Sequence[metrics.Errors]
    seeds: tuple[int, ...] = ()
    by_step: Sequence[Float[np.ndarray, 't']] = ()

    def table(self, key: str, episode: Int[np.ndarray, 'n']) -> Float[np.ndarray, 's m']:
        """Sums of one error over the windows of each episode.

        Args:
          key: 'mse_vec', 'mse_chk' or 'mse_trj'.
          episode: episode of each window.

        Returns:
          One row a seed, one column an episode.
        """
        return np.stack([metrics.sum_by_episode(errors[key], episode)[1] for errors in self.errors])


def compare(
    methods: Mapping[str, PooledMethod],
    episode: Int[np.ndarray, 'n'],
    pairs: Sequence[tuple[str, str]],
    seed: int = 0,
) -> dict:
    """Every method with its interval over seeds and episodes, and contrasts between them.

    Args:
      methods: methods by name.
      episode: episode of each window.
      pairs: (method, against) of each contrast.
      seed: of the bootstrap.

    Returns:
      {'num_windows', 'num_episodes', 'arms', 'contrasts'}, as the report has them.
    """
    return {
        'num_windows': len(episode),
        'num_episodes': len(np.unique(episode)),
        'arms': {name: method_report(method, episode, seed) for name, method in methods.items()},
        'contrasts': [contrast(methods, pair, episode, seed) for pair in pairs],
    }


def method_report(method: PooledMethod, episode: Int[np.ndarray, 'n'], seed: int) -> dict[str, Any]:
    """One method: means with intervals, means of every seed, and the errors of every seed and
    episode.

    Args:
      method: the method.
      episode: episode of each window.
      seed: of the bootstrap.

    Returns:
      A section of the report.
    """
    episodes, _, counts = metrics.sum_by_episode(episode, episode)
    report: dict[str, Any] = {'seeds': list(method.seeds)}
    for key in ERRORS:
        table = method.table(key, episode)
        report[key] = intervals.ratio(table, counts[None].astype(float), seed)._asdict()
        report[key]['by_seed'] = table.sum(axis=1) / counts.sum()
    if len(method.by_step):
        report['by_step'] = np.mean(method.by_step, axis=0)
    by_episode = {key: method.table(key, episode) / counts for key in ERRORS}
    return report | {'by_episode': {'episode': episodes, 'num_windows': counts} | by_episode}


def contrast(
    methods: Mapping[str, PooledMethod],
    pair: tuple[str, str],
    episode: Int[np.ndarray, 'n'],
    seed: int,
) -> dict[str, Any]:
    """Relative change of one method's errors against another's, on the same windows.

    Args:
      methods: methods by name.
      pair: (method, against).
      episode: episode of each window.
      seed: of the bootstrap.

    Returns:
      A row of the report, an interval for each error.
    """
    one, other = (methods[name] for name in pair)
    changes = {
        key: intervals.change(one.table(key, episode), other.table(key, episode), seed)._asdict()
        for key in ERRORS
    }
    return {'arm': pair[0], 'against': pair[1]} | changes


def pairs(
    methods: Sequence[str], finetuned: Sequence[str], ablations: Sequence[str], full: str | None
) -> list:
    """The contrasts of a comparison.

    Args:
      methods: all methods.
      finetuned: those that are the fine-tuned base.
      ablations: those that are the full model without a part.
      full: the full model; None where there is none.

    Returns:
      (method, against): every method against the base and against the fine-tuned ones, the full
        model against its ablations.
    """
    against_base = [(name, BASE) for name in methods if name != BASE]
    against_finetuned = [
        (name, one) for one in finetuned for name in methods if name not in (BASE, *finetuned)
    ]
    return (
        against_base + against_finetuned + [(full, name) for name in ablations if full is not None]
    )
