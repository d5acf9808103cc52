"""How long work tells of itself: lines of text and bars, to whoever listens; nobody by default.

    with reporter.bars() as bars:
        bar = bars.add('windows', total=30)
        bar.update(10)
    reporter.say('done')

The scripts listen with `sigma_jax.cli.reporter.ConsoleReporter`; a test with a list.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Bar(Protocol):
    """One task's progress."""

    def update(
        self, done: int | None = None, total: int | None = None, note: str | None = None
    ) -> None:
        """Sets what is done, of how much, and a short text at the end; None leaves it as it is."""

    def advance(self) -> None:
        """One more is done."""


class Bars(Protocol):
    """Tasks that are shown together."""

    def add(self, name: str, total: int | None = None, done: int = 0, note: str = '') -> Bar:
        """A new one; without a total it is not known how much there is."""


class Reporter(Protocol):
    """Who is told what long work does."""

    def say(self, text: str) -> None:
        """A line, or several, of plain text."""

    def bars(self, unit: str = '') -> contextlib.AbstractContextManager[Bars]:
        """A place for bars while the block runs; `unit` is '' for a count or 'bytes'."""


class Silent:
    """A reporter, its bars and each of them, that tells nobody."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def bars(self, unit: str = '') -> Iterator['Silent']:
        """No bars."""
        yield self

    def add(self, name: str, total: int | None = None, done: int = 0, note: str = '') -> 'Silent':
        """No bar."""
        return self

    def update(
        self, done: int | None = None, total: int | None = None, note: str | None = None
    ) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""


SILENT = Silent()
