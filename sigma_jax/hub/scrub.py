"""What no message may show: tokens, and the signatures of addresses that give a file to whoever has
them.
"""

import logging
import re
from collections.abc import Iterable

SECRET = re.compile(r'\bhf_\w+|(?<=[Bb]earer )[\w.~+/=<>-]+')
LOGIN = re.compile(r'(?<=://)[^/\s@\'"]+@')  # user:password@
QUERY = re.compile(r'((?:https?:/)?/[^\s?\'"<>]*)\?[^\s\'"]+')


def scrub(text: str, tokens: Iterable[str | None] = ()) -> str:
    """A text without tokens, what looks like one, log-ins in addresses, and all that follows an
    address's `?`.

    Args:
      text: any.
      tokens: that are known.

    Returns:
      The text.
    """
    for token in tokens:
        text = text.replace(token, '<token>') if token else text
    return QUERY.sub(r'\1?<hidden>', LOGIN.sub('<log-in>@', SECRET.sub('<token>', text)))


class Scrubbed(logging.Filter):
    """Scrubs what a library logs, before a handler writes it.

    Args:
      tokens: that are known.
    """

    def __init__(self, tokens: Iterable[str | None] = ()):
        super().__init__()
        self._tokens = tuple(tokens)

    def filter(self, record: logging.LogRecord) -> bool:
        """Scrubs a record.

        Args:
          record: of a log.

        Returns:
          True.
        """
        record.msg, record.args = scrub(record.getMessage(), self._tokens), ()
        return True
