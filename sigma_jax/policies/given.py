"""What a caller hands over, checked before anything is computed: numbers, and rows of robots."""

import operator
from typing import Any

import numpy as np

from sigma_jax.errors import UserError

NUMBERS = 2**31  # of episodes and frames: they key noise as int32


def floats(value: Any) -> np.ndarray:
    """Numbers as float32; what is too large for it becomes infinite.

    Args:
      value: an array or nested lists.

    Returns:
      The array; one of no dimension and NaN where a value holds no numbers: text, flags, complex
        ones, or rows of several lengths.

    Examples:
      >>> from sigma_jax.policies.given import floats
      >>> floats([1, 2]).tolist(), floats(['1', '2']).tolist()
      ([1.0, 2.0], nan)
    """
    try:
        found = np.asarray(value)
    except (ValueError, TypeError):
        return np.array(np.nan, np.float32)
    if found.size and found.dtype.kind not in 'iuf':
        return np.array(np.nan, np.float32)
    with np.errstate(over='ignore'):
        return found.astype(np.float32)


def number(name: str, value: Any) -> int:
    """The number of an episode or a frame.

    Args:
      name: of it, for the message.
      value: given.

    Returns:
      The number.

    Raises:
      UserError: it is none from 0 to 2^31 - 1.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = -1
    if isinstance(value, bool) or not 0 <= found < NUMBERS:
        raise UserError(
            f'expected {name} as a whole number from 0 to {NUMBERS - 1}, got {value!r}; count them'
        )
    return found


def of_each(name: str, rows: Any, robots: int | None = None) -> list[Any]:
    """One thing of each robot.

    Args:
      name: of it, for the message.
      rows: given.
      robots: how many there are; None: as many as rows, one at least.

    Returns:
      The rows.

    Raises:
      UserError: they are not as many, or no rows at all.
    """
    try:
        found = list(rows)
    except TypeError:
        found = []
    if len(found) != (robots or max(len(found), 1)):
        many = 'each robot' if robots is None else f'each of {robots} robots'
        got = f'{len(found)}' if hasattr(rows, '__iter__') else repr(rows)
        raise UserError(f'expected {name} of {many} in a list, got {got}; pass one of each')
    return found
