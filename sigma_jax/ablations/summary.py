"""The last losses of an ablation's members."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sigma_jax.ablations.stacked import ALIVE, Member
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.logs import read_rows

SHOWN = ('loss', 'mse_vec', 'mse_chk', 'mse_trj')


def summary(
    members: Sequence[Member], folders: Sequence[RunFolder], failed: np.ndarray
) -> dict[str, Any]:
    """{row: [one dictionary a seed]}: the values of its last row in train_log.csv, and the step at
    which it failed.

    All members end on the same batch, so that the rows of a seed are paired; one batch is no
    evaluation.

    Args:
      members: row and seed of each.
      folders: theirs, in the same order.
      failed: the step at which each stopped being a number.

    Returns:
      What ablations.json holds.
    """
    found: dict[str, list[dict]] = {}
    for member, folder, step in zip(members, folders, failed, strict=True):
        rows = read_rows(folder.log)
        last = {k: float(v) for k, v in rows[-1].items() if k in SHOWN} if rows else {}
        entry = {'seed': member.seed, 'failed': None if step == ALIVE else int(step)}
        found.setdefault(member.row, []).append(
            entry | {k: v for k, v in last.items() if math.isfinite(v)}
        )
    return found
