"""What a finished shard directory holds: meta.json in sections to print, and a choice of windows to
look at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sigma_jax.data.shards.meta import Meta
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.errors import UserError

DIGEST = 12  # characters shown of a sha256
Section = tuple[str, list[tuple[str, str]]]


def sections(meta: Meta) -> list[Section]:
    """Everything in meta.json as (title, [(name, value)]), in the order of reading.

    Args:
      meta: what the shards say.

    Returns:
      In the order of reading.
    """
    said = meta.to_json()
    return [
        ('source', _source(meta)),
        ('windows', [row for split in SPLITS for row in _split(meta, split)]),
        (
            'bad episodes',
            [(f'episode {index}', reason) for index, reason in meta.bad_episodes.items()],
        ),
        (
            'near-constant, clamped',
            [(name, ', '.join(dims)) for name, dims in meta.near_constant.items() if dims],
        ),
        ('settings', [(name, _text(said[name])) for name in _settings() if name in said]),
        ('files', [(name, digest[:DIGEST]) for name, digest in meta.files.items()]),
        ('written by', list(meta.versions.items())),
    ]


def _settings() -> list[str]:
    return [name for name in DataConfig.__dataclass_fields__ if name not in ('source', 'tokenizer')]


def _source(meta: Meta) -> list[tuple[str, str]]:
    sizes = {name: f' {size[0]}×{size[1]}' for name, size in (meta.camera_sizes or {}).items()}
    return [
        (
            'data set',
            f'{meta.source}{" at " + meta.revision if meta.revision else ""}',
        ),
        ('format', f'{meta.source_version}, {meta.fps:g} frames a second'),
        ('sha256', meta.source_digest[:DIGEST]),
        ('cameras', ', '.join(name + sizes.get(name, '') for name in meta.camera_names)),
        ('state', ', '.join(meta.state_names)),
        ('actions', ', '.join(meta.action_names)),
        ('tasks', '\n'.join(meta.tasks)),
        ('tokenizer', f'{meta.tokenizer or "none"} {meta.tokenizer_digest[:DIGEST]}'),
    ]


def _split(meta: Meta, split: str) -> list[tuple[str, str]]:
    episodes = meta.splits[split]
    rows = [
        (
            split,
            f'{meta.windows[split]} windows of {len(episodes)} episodes: {_ranges(episodes)}',
        )
    ]
    dropped = [f'{count} {reason}' for reason, count in meta.dropped[split].items() if count]
    return [*rows, ('  dropped', '\n'.join(dropped) or 'none')]


def _ranges(numbers: Sequence[int]) -> str:
    """'0–3, 7' for 0, 1, 2, 3, 7; '-' for none."""
    parts = (
        np.split(np.asarray(numbers), np.flatnonzero(np.diff(numbers) != 1) + 1)
        if len(numbers)
        else []
    )
    return (
        ', '.join(f'{part[0]}' if len(part) == 1 else f'{part[0]}–{part[-1]}' for part in parts)
        or '-'
    )


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ', '.join(map(str, value)) or '-'
    return '-' if value == '' else str(value)


def choose_windows(counts: Mapping[str, int], number: int) -> list[tuple[str, int]]:
    """Windows of all splits: one of every split, the rest in proportion, evenly over each.

    Args:
      counts: {split: windows}.
      number: how many.

    Returns:
      (split, record number) of each.

    Raises:
      UserError: fewer than one wanted.
    """
    if number < 1:
        raise UserError(
            f'expected at least one window to draw, got {number}; give --windows a larger number'
        )
    filled = {split: counts[split] for split in SPLITS if counts.get(split)}
    chosen = dict.fromkeys(list(filled)[:number], 1)
    while sum(chosen.values()) < min(number, sum(filled.values())):  # to the split that lags most
        split = min(
            (s for s in chosen if chosen[s] < filled[s]), key=lambda s: (chosen[s] / filled[s], s)
        )
        chosen[split] += 1
    return [
        (split, (2 * i + 1) * filled[split] // (2 * n))
        for split, n in chosen.items()
        for i in range(n)
    ]
