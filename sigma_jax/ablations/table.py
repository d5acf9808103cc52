"""The last losses of an ablation's members, as a table and as JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Column, Table

from sigma_jax.ablations.stacked import ALIVE, Member, mean_and_spread
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.logs import read_rows

SHOWN = ('loss', 'mse_vec', 'mse_chk', 'mse_trj')


def summary(
    members: Sequence[Member], folders: Sequence[RunFolder], failed: np.ndarray
) -> dict[str, Any]:
    """The last row of each member's log.

    All members end on the same batch, so that the rows of a seed are paired; one batch is no
    evaluation.

    Args:
      members: rows and seeds.
      folders: of the members.
      failed: the step at which each failed.

    Returns:
      {row: [one dictionary a seed]}.
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


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Mean and standard deviation over the seeds that went on to the end; names those that did not.

    Args:
      found: of `summary`.

    Returns:
      For the console.
    """
    out = Table(
        Column('row', no_wrap=True),
        *SHOWN,
        'seeds',
        caption='last training batch, mean ± standard deviation over seeds',
    )
    if any(entry['failed'] is not None for entries in found.values() for entry in entries):
        out.add_column('NaN')
    for name, entries in found.items():
        whole = [entry for entry in entries if entry['failed'] is None]
        cells = [
            '{:.4g} ± {:.2g}'.format(*mean_and_spread(e[key] for e in whole if key in e))
            for key in SHOWN
        ]
        lost = ', '.join(
            f'seed {e["seed"]} at step {e["failed"]}' for e in entries if e['failed'] is not None
        )
        out.add_row(
            name, *cells, str(len(whole)), *([lost] if len(out.columns) > len(cells) + 2 else [])
        )
    return out
