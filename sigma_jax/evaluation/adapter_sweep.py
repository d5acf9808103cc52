"""How much of the residual to use: least and largest scale of the adapter, chosen on calibration,
reported on test.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax.evaluation.replay import CARRIED, ReplayedWindows, views
from sigma_jax.sigma import adapter
from sigma_jax.sigma.adapter import AdapterState

LEAST = (0.0, 0.25, 0.5, 0.75, 1.0)
LARGEST = (0.5, 0.75, 1.0, 1.25, 1.5)
RELATIVE = jax.jit(adapter.relative_error)


def sweep(splits: Mapping[str, ReplayedWindows], state: Any) -> dict:
    """Errors relative to the base's, mean of the three branches, for every pair of least and
    largest scale, on every split but train.

    The row `chosen` is the best on calibration. The adapter in use keeps a least scale of 0
    whatever this table says: above it, no risk however large would bring back the base.

    Args:
      splits: replayed windows.
      state: the fitted adapter.

    Returns:
      For the report.
    """
    rows = []
    for least, largest in itertools.product(LEAST, LARGEST):
        if least <= largest:
            limits = {'min_scale': jnp.float32(least), 'max_scale': jnp.float32(largest)}
            errors = {
                name: error(windows, state.replace(**limits)) for name, windows in splits.items()
            }
            rows.append({'min_scale': least, 'max_scale': largest} | errors)
    chosen = (
        int(np.argmin([row['calibration'] for row in rows])) if 'calibration' in splits else None
    )
    return {'rows': rows, 'chosen': chosen}


def error(windows: ReplayedWindows, state: AdapterState) -> float:
    """`adapter.relative_error` of Sigma on these windows; cut-off windows only where all are.

    Args:
      windows: replayed.
      state: the adapter.

    Returns:
      Without units.
    """
    whole = windows.action_mask.all(axis=1)
    windows = windows.select(whole) if whole.any() else windows
    run = windows.predictions[CARRIED]
    base, target = (
        views(np.asarray(x, np.float32), windows.chunk) for x in (windows.base, windows.actions)
    )
    return float(RELATIVE(base, run.actions, target, run.tau, run.c_act0, state))
