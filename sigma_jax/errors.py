"""The one exception for everything a user can cause; scripts print its text and exit with status
2.
"""

from collections.abc import Iterable


class UserError(ValueError):
    """A wrong path, shape, unit, version, setting or file: says what was expected, what came, what
    to do next.
    """


def few(items: Iterable[str], separator: str = '; ', most: int = 4) -> str:
    """The first items of a list and how many more there are: a message names some tensors, not
    hundreds.

    Args:
      items: texts.
      separator: stands between two.
      most: how many are named.

    Returns:
      One text.

    Examples:
      >>> from sigma_jax.errors import few
      >>> few(['a', 'b', 'c'], most=2)
      'a; b and 1 more'
    """
    items = list(items)
    rest = f' and {len(items) - most:,} more' if len(items) > most else ''
    return separator.join(items[:most]) + rest
