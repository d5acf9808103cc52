"""openpi's `assets/<asset_id>/norm_stats.json` beside weights: which of a source's go along, and
what is written anew.

openpi reads the one that its training config names, so that no file here may hold other numbers
than the policy's.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from sigma_jax.convert.lerobot import write
from sigma_jax.convert.lerobot.read import NormStats
from sigma_jax.convert.stats_source import NORM_STATS
from sigma_jax.processing.normalize import (
    EPSILONS,
    Scaling,
    Statistics,
    norm_stats_json,
    statistics_from,
)

ASSETS, NEW_ASSET = 'assets/', 'robot'
RENAME = (
    f'openpi looks for statistics in assets/<asset_id>: rename assets/{NEW_ASSET} to its '
    "config's asset_id"
)


@dataclasses.dataclass(frozen=True)
class Assets:
    """`kept` go along as they are, {place: file}; `text` is written at `place`, '' where nothing
    is.
    """

    kept: Mapping[str, pathlib.Path]
    place: str = ''
    text: str = ''
    notes: tuple[str, ...] = ()


def current(
    files: Mapping[str, pathlib.Path], statistics: NormStats | None, required: bool
) -> Assets:
    """openpi's assets for some statistics.

    Where some file holds these numbers, the others are left out: they are another robot's. Where
    none does, the only one is written anew under its id, and several give way to a new one.

    Args:
      files: of a source, by place.
      statistics: or None.
      required: whether openpi is to find some in any case.

    Returns:
      The assets.
    """
    if statistics is None:
        return Assets(files)
    same = {place: file for place, file in files.items() if holds(file, statistics)}
    others = sorted(
        place.removeprefix(ASSETS).removesuffix(f'/{NORM_STATS}')
        for place in files
        if place not in same
    )
    if same:
        return Assets(same, notes=(_left_out(others),) if others else ())
    if not files and not required:
        return Assets({})
    text = norm_stats_json({name: as_quantiles(one) for name, one in statistics.items()})
    if len(files) == 1:
        note = (
            f'{next(iter(files))} holds the statistics that are written, not those that stood '
            'there before'
        )
        return Assets({}, next(iter(files)), text, (note,))
    notes = (_left_out(others), RENAME) if files else (RENAME,)
    return Assets({}, f'{ASSETS}{NEW_ASSET}/{NORM_STATS}', text, notes)


def _left_out(names: list[str]) -> str:
    return (
        f"assets of {', '.join(names)} are left out: they hold other statistics than this policy's"
    )


def holds(file: pathlib.Path, statistics: NormStats) -> bool:
    """Whether openpi would read some statistics from a file: as they are, or as quantiles that
    compute the same.

    Args:
      file: norm_stats.json.
      statistics: of 'state' and 'actions'.

    Returns:
      Whether it would.
    """
    try:
        body = json.loads(file.read_text())['norm_stats']
        found = {
            name: statistics_from(body[name], Scaling('identity', 'lerobot')) for name in statistics
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return any(
        all(_same(form(one), found[name]) for name, one in statistics.items())
        for form in (lambda x: x, as_quantiles)
    )


def _same(ours: Statistics, theirs: Statistics) -> bool:
    mine = ours.columns()
    return all(key in mine and np.array_equal(mine[key], x) for key, x in theirs.columns().items())


def as_quantiles(one: Statistics) -> Statistics:
    """Statistics with which openpi's quantile formula computes what `one` computes.

    Args:
      one: statistics.

    Returns:
      Quantiles.
    """
    scaling = Scaling('quantile', 'openpi')
    if one.scaling.mode == 'quantile':
        return dataclasses.replace(write.guarded(one), scaling=scaling)
    low, span = one.low.astype(np.float64), one.exact_span.astype(np.float64)
    return Statistics(one.mean, one.std, low, low + span - EPSILONS['openpi'], scaling=scaling)
