"""Parquet columns of one episode as arrays: numbers, the same number of them in every row."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from sigma_jax.data.lerobot.meta import EpisodeEntry
from sigma_jax.errors import UserError


def vectors(
    table: pa.Table, name: str, width: int, entry: EpisodeEntry
) -> Float[np.ndarray, 'n width']:
    """A column of lists (or of scalars, width 1), float32; what float32 cannot hold becomes
    infinite.

    Args:
      table: the episode's rows.
      name: of the column.
      width: numbers of a row.
      entry: the episode, for messages.

    Returns:
      One row a frame.

    Raises:
      UserError: no numbers, missing values, or rows of another width.
    """
    with np.errstate(over='ignore'):
        return _flat(table, name, width, entry).reshape(len(table), width).astype(np.float32)


def seconds(table: pa.Table, name: str, entry: EpisodeEntry) -> Float[np.ndarray, ' n']:
    """A column of scalars, float64.

    Args:
      table: the episode's rows.
      name: of the column.
      entry: the episode, for messages.

    Returns:
      One number a frame.

    Raises:
      UserError: as `vectors`.
    """
    return _flat(table, name, 1, entry).astype(np.float64)


def counts(table: pa.Table, name: str, entry: EpisodeEntry) -> Int[np.ndarray, ' n']:
    """A column of whole numbers, int64.

    Args:
      table: the episode's rows.
      name: of the column.
      entry: the episode, for messages.

    Returns:
      One number a frame.

    Raises:
      UserError: as `vectors`.
    """
    values = _flat(table, name, 1, entry)
    if not np.issubdtype(values.dtype, np.integer):
        raise _refused(name, entry, 'whole numbers', str(values.dtype))
    return values.astype(np.int64)


def _flat(table: pa.Table, name: str, width: int, entry: EpisodeEntry) -> np.ndarray:
    column = table[name].combine_chunks()
    if column.null_count:
        raise _refused(name, entry, f'{width} numbers a row', 'missing values')
    flat = column
    if pa.types.is_nested(column.type):
        flat = column.flatten() if _is_list(column.type) else column
        lengths = (
            pc.list_value_length(column).to_numpy(zero_copy_only=False)
            if _is_list(column.type)
            else []
        )
        other = np.flatnonzero(np.asarray(lengths) != width)
        if len(other):
            got = f'{lengths[other[0]]} at frame {other[0]}'
            raise _refused(name, entry, f'{width} numbers a row', got)
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise _refused(name, entry, f'{width} numbers a row', str(column.type).replace('\n', ' '))
    if len(flat) != len(table) * width:
        raise _refused(name, entry, f'{width} numbers a row', f'{len(flat) / len(table):g}')
    return flat.to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _refused(name: str, entry: EpisodeEntry, expected: str, got: str) -> UserError:
    return UserError(
        f"expected {expected} in column '{name}' of {entry.data}, episode {entry.index}, got "
        f'{got}; its shape in meta/info.json is wrong or the file is damaged'
    )
