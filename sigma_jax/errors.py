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
    """
    items = list(items)
    rest = f' and {len(items) - most:,} more' if len(items) > most else ''
    return separator.join(items[:most]) + rest
