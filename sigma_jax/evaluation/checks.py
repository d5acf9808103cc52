"""The paper's own tables: averages over all windows, telepathy switch x adapter, CHECK A and CHECK
B (paper 5.3, 6).
"""

import math
from collections.abc import Mapping

import jax
import numpy as np

from sigma_jax.evaluation import metrics
from sigma_jax.evaluation.metrics import ERRORS, Thresholds
from sigma_jax.evaluation.replay import CARRIED, TAU_OFF, ReplayedWindows
from sigma_jax.types import PyTree

BASE = 'pi05'
ADAPTED = '+adapter'
GROUPS = (('sigma', CARRIED), ('pi05_base', BASE))  # the paper's two groups and our methods

ErrorTable = Mapping[str, Mapping[str, metrics.Errors]]  # split -> method -> error -> [n]


def two_by_two(split_methods: Mapping[str, dict]) -> dict:
    """The paper's telepathy switch x adapter on one checkpoint (paper 5.3).

    Args:
      split_methods: methods of a split in the report.

    Returns:
      For the report.
    """
    names = {
        'telepathy_on': {'adapter_off': CARRIED, 'adapter_on': CARRIED + ADAPTED},
        'telepathy_off': {'adapter_off': TAU_OFF, 'adapter_on': TAU_OFF + ADAPTED},
    }
    return {
        switch: {
            use: {key: split_methods[method][key]['value'] for key in ERRORS}
            for use, method in row.items()
            if method in split_methods
        }
        for switch, row in names.items()
    }


def pooled(
    splits: Mapping[str, ReplayedWindows], errors: ErrorTable, method: str
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A method's windows of all splits together.

    Args:
      splits: replayed windows.
      errors: {split: {method: errors}}.
      method: name of the method.

    Returns:
      errors: of the method.
      tau_norm: of Sigma.
      sem_align: of Sigma.
    """
    runs = [windows.predictions[CARRIED] for windows in splits.values()]
    tau = np.concatenate([metrics.tau_l2(run.tau) for run in runs])
    align = np.concatenate([run.sem_align for run in runs])
    return (
        {key: np.concatenate([errors[split][method][key] for split in splits]) for key in ERRORS},
        tau,
        align,
    )


def paper_report(
    splits: Mapping[str, ReplayedWindows],
    errors: ErrorTable,
    success: Thresholds,
    hard: Thresholds,
    batch_size: int,
) -> dict:
    """The paper's keys: all windows of all splits together, Sigma and the base, both with Sigma's
    tau (paper 6).

    Args:
      splits: replayed windows.
      errors: {split: {method: errors}}.
      success: thresholds, squared raw units.
      hard: thresholds, squared raw units.
      batch_size: windows that the paper counts as a batch.

    Returns:
      For the report.
    """
    groups = {
        group: metrics.paper_summary(*pooled(splits, errors, method), success, hard, batch_size)
        for group, method in GROUPS
    }
    shared = ('num_samples', 'num_batches', 'hard_thresholds', 'success_thresholds')
    return {key: groups['sigma'][key] for key in shared} | {'windows_of': list(splits)} | groups


def head_statistics(params: PyTree | None) -> dict:
    """CHECK A: number, mean, std and rms of the tensors of the heads ('sigma' leaves), in float64
    (paper 6).

    Args:
      params: trained `sigma` leaves; None: none.

    Returns:
      For the report.
    """
    leaves = [np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(params)]
    count = max(sum(x.size for x in leaves), 1)
    mean = sum(float(x.sum()) for x in leaves) / count
    square = sum(float(np.square(x).sum()) for x in leaves) / count
    variance = sum(float(np.square(x - mean).sum()) for x in leaves) / count
    return {
        'heads_tensors': len(leaves),
        'mean': mean,
        'std': math.sqrt(variance),
        'rms': math.sqrt(square),
    }


def check_b(
    splits: Mapping[str, ReplayedWindows], errors: ErrorTable, batch_size: int, every: int
) -> dict[str, list[dict]]:
    """CHECK B: means of single batches, one in `every` (more often where that gives under ten
    rows).

    Args:
      splits: replayed windows.
      errors: {split: {method: errors}}.
      batch_size: windows that the paper counts as a batch.
      every: batches from one row to the next.

    Returns:
      {group: rows}.
    """
    result = {}
    for group, method in GROUPS:
        values, tau, align = pooled(splits, errors, method)
        columns = values | {'tau_l2': tau, 'sem_align': align}
        batches = -(-len(tau) // batch_size)
        step = max(1, min(every, batches // 10))
        result[group] = [
            {'batch': i}
            | {
                k: float(v[i * batch_size : (i + 1) * batch_size].mean())
                for k, v in columns.items()
            }
            for i in range(0, batches, step)
        ]
    return result
