"""How long work reports: lines of text and bars, to whoever listens; nobody by default.

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
        """Sets what a bar shows; None leaves it as it is.

        Args:
          done: how much.
          total: of how much.
          note: a short text at the end.
        """

    def advance(self) -> None:
        """One more is done."""


class Bars(Protocol):
    """Tasks that are shown together."""

    def add(self, name: str, total: int | None = None, done: int = 0, note: str = '') -> Bar:
        """A new bar.

        Args:
          name: in front of it.
          total: of how much; None: not known.
          done: so far.
          note: a short text at the end.

        Returns:
          The bar.
        """


class Reporter(Protocol):
    """Who receives what long work reports."""

    def say(self, text: str) -> None:
        """Shows a line, or several, of plain text.

        Args:
          text: to show.
        """

    def bars(self, unit: str = '') -> contextlib.AbstractContextManager[Bars]:
        """A place for bars while the block runs.

        Args:
          unit: '' for a count, or 'bytes'.

        Returns:
          A context with the bars.
        """


class Silent:
    """A reporter, its bars and each of them, that reports to nobody."""

    def say(self, text: str) -> None:
        """Shows nothing.

        Args:
          text: not read.
        """

    @contextlib.contextmanager
    def bars(self, unit: str = '') -> Iterator['Silent']:
        """Shows no bars.

        Args:
          unit: not read.

        Returns:
          A context.
        """
        yield self

    def add(self, name: str, total: int | None = None, done: int = 0, note: str = '') -> 'Silent':
        """Shows no bar.

        Args:
          name: not read.
          total: not read.
          done: not read.
          note: not read.

        Returns:
          Something to update.
        """
        return self

    def update(
        self, done: int | None = None, total: int | None = None, note: str | None = None
    ) -> None:
        """Shows nothing.

        Args:
          done: not read.
          total: not read.
          note: not read.
        """

    def advance(self) -> None:
        """Nothing."""


SILENT = Silent()
