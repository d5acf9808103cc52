"""Audio of a LeRobot data set: columns of samples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sigma_jax.data.lerobot import columns
from sigma_jax.data.lerobot.meta import EpisodeEntry
from sigma_jax.errors import UserError

AUDIO_TYPES = ('float32', 'int16')

Features = Mapping[str, Mapping[str, Any]]


def audio_columns(features: Features, others: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Vector features that may be audio.

    Args:
      features: of info.json.
      others: columns of state and actions, which are none.

    Returns:
      {key: (samples a row, dtype)}.
    """
    found = {}
    for key, value in features.items():
        shape, kind = value.get('shape'), value.get('dtype')
        if key in others or kind not in AUDIO_TYPES or not isinstance(shape, list):
            continue
        if len(shape) == 1 and type(shape[0]) is int and shape[0] > 1:
            found[key] = (shape[0], str(kind))
    return found


def read_audio(
    table: pa.Table, key: str, kind: tuple[int, str], entry: EpisodeEntry, rows: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yields an episode's samples.

    Args:
      table: the episode's rows.
      key: of the feature.
      kind: (samples a row, dtype).
      entry: the episode, for messages.
      rows: ascending row numbers.

    Returns:
      An iterator of [n], in the dtype of the feature.

    Raises:
      UserError: NaN or infinity, missing values, or rows of another length.
    """
    samples = columns.vectors(table, key, kind[0], entry)
    for row in rows:
        if not np.isfinite(samples[row]).all():
            raise UserError(
                f"expected finite samples in '{key}', episode {entry.index}, got NaN or infinity "
                f'at frame {row}; repair or leave out this episode'
            )
        yield samples[row].astype(kind[1])
