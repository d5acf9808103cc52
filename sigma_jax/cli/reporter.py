"""Long work on a console: lines as they come, bars while it goes on."""

import contextlib
import dataclasses
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ConsoleReporter:
    """A `training.progress.Reporter` that prints.

    Args:
      console: where to; by default the standard output.
      indent: what each line begins with.
      soft_wrap: leave long lines to the terminal.
    """

    def __init__(self, console: Console | None = None, indent: str = '', soft_wrap: bool = False):
        self.console, self.indent, self.soft_wrap = console or Console(), indent, soft_wrap

    def say(self, text: str) -> None:
        """A line, its signs taken literally.

        Args:
          text: what is printed.
        """
        self.console.print(
            f'{self.indent}{text}', highlight=False, markup=False, soft_wrap=self.soft_wrap
        )

    @contextlib.contextmanager
    def bars(self, unit: str = '') -> Iterator['ConsoleBars']:
        """Bars that stay on the console when the block ends.

        Args:
          unit: '' for a count, 'bytes' for a transfer.

        Yields:
          What rows are added to.
        """
        with Progress(*columns(unit), console=self.console) as progress:
            yield ConsoleBars(progress)


def columns(unit: str) -> tuple[ProgressColumn, ...]:
    """Count, elapsed and remaining time and a note; of bytes their speed.

    Args:
      unit: '' for a count, 'bytes' for a transfer.

    Returns:
      The columns, in order.
    """
    name, bar, left = TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn()
    if unit == 'bytes':
        return name, bar, DownloadColumn(), TransferSpeedColumn(), left
    note = TextColumn('{task.fields[note]}')
    return name, bar, MofNCompleteColumn(), TimeElapsedColumn(), left, note


@dataclasses.dataclass(frozen=True)
class ConsoleBars:
    """`training.progress.Bars` of one display."""

    progress: Progress

    def add(
        self, name: str, total: int | None = None, done: int = 0, note: str = ''
    ) -> 'ConsoleBar':
        """A new row.

        Args:
          name: what is done.
          total: how much there is; None where that is not known yet.
          done: how much was done before.
          note: a short text at its end.

        Returns:
          The row, which is redrawn by `update`.
        """
        task = self.progress.add_task(name, total=total, completed=done, note=note)
        return ConsoleBar(self.progress, task)


@dataclasses.dataclass(frozen=True)
class ConsoleBar:
    """`training.progress.Bar`: one row of a display."""

    progress: Progress
    task: TaskID

    def update(
        self, done: int | None = None, total: int | None = None, note: str | None = None
    ) -> None:
        """Redraws the row.

        Args:
          done: how much is done.
          total: how much there is.
          note: a short text.
        """
        self.progress.update(self.task, completed=done, total=total)
        if note is not None:
            self.progress.update(self.task, note=note)

    def advance(self) -> None:
        """One more is done."""
        self.progress.advance(self.task)
