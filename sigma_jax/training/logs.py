"""Training logs: a CSV that starts with the columns of the paper's Table 1, and TensorBoard."""

import csv
import io
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import IO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from sigma_jax.files import atomic_write

LOSSES = ['loss', 'L_act', 'L_sem', 'L_int', 'L_tau', 'L_act_hard']
TABLE_1 = ['step', *LOSSES, 'w_sem', 'w_int', 'w_tau', 'hard_ratio', 'tau_rms']
Row = Mapping[str, str]
BEFORE = {'mse_traj': 'mse_trj'}  # columns of earlier logs, under the names of today


class TrainLog:
    """`train_log.csv` and TensorBoard events in a work folder, cut back to `start` when a run
    continues.

    A row is on disk when `write` returns. The CSV is the truth: TensorBoard's events are written
    anew from its rows when a run continues, so that none is missing or doubled, whatever ended the
    run before (their clock starts anew).

    Args:
      workdir: the folder.
      start: step that the run continues from; later rows are cut off.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        self.file = workdir / 'train_log.csv'
        self._rows = [row for row in read_rows(self.file) if int(row['step']) < start]
        self._columns = columns_of(self._rows)
        if self._rows or self.file.exists():
            self._rewrite()
        self._board = Board(workdir / 'tensorboard', self._rows)

    def __enter__(self) -> 'TrainLog':
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self._board.close()
        except OSError:  # a full disk, reported already by what failed first
            if kind is None:
                raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row: Table 1's columns first, all others in alphabetic order.

        Args:
          step: its number.
          values: {column: number}.
        """
        row = {'step': str(step)} | {k: repr(float(v)) for k, v in values.items()}
        self._rows.append(row)
        if row.keys() <= set(self._columns):
            with self.file.open('a', newline='') as file:
                self._put(file, [row])
                file.flush()
                os.fsync(file.fileno())
        else:
            self._columns = columns_of(self._rows)
            self._rewrite()
        self._board.write(row)

    def _rewrite(self) -> None:
        text = io.StringIO()
        csv.writer(text).writerow(self._columns)
        self._put(text, self._rows)
        atomic_write(self.file, text.getvalue() if self._columns else '')

    def _put(self, file: IO[str], rows: Iterable[Row]) -> None:
        csv.DictWriter(file, self._columns, restval='').writerows(rows)


class Board:
    """TensorBoard's event file, written without a thread, so that what goes wrong is raised where
    it happens.

    Args:
      folder: of the events.
      rows: that are there already.
    """

    def __init__(self, folder: pathlib.Path, rows: Iterable[Row]):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob('events.out.tfevents.*'):
            old.unlink()
        self._writer = EventsWriter(str(folder / 'events'))
        for row in rows:
            self._add(row)
        self._writer.flush()

    def write(self, row: Row) -> None:
        """Writes all values of one row.

        Args:
          row: of the log.
        """
        self._add(row)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _add(self, row: Row) -> None:
        event = event_pb2.Event(step=int(row['step']), wall_time=time.time())
        for key, value in row.items():
            if key != 'step':
                event.summary.value.add(tag=key, simple_value=float(value))
        self._writer.write_event(event)


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Table 1's columns first, all others that any row has in alphabetic order.

    Args:
      rows: of a log.

    Returns:
      Names.
    """
    known = {key for row in rows for key in row}
    return [c for c in TABLE_1 if c in known] + sorted(known - set(TABLE_1))


def read_rows(file: pathlib.Path) -> list[Row]:
    """Rows of a log without their empty cells; a last line that a full disk cut short is left out.

    Args:
      file: train_log.csv.

    Returns:
      The rows.
    """
    if not file.is_file():
        return []
    text = file.read_bytes().decode()
    whole = text[: text.rfind('\n') + 1]
    return [
        {BEFORE.get(k, k): v for k, v in row.items() if v}
        for row in csv.DictReader(io.StringIO(whole, newline=''))
    ]


def last_row(file: pathlib.Path) -> dict[str, float]:
    """The numbers of a log's last row without its step; empty where there is none.

    Args:
      file: a train_log.csv.

    Returns:
      {column: number}.
    """
    rows = read_rows(file)
    return {k: float(v) for k, v in rows[-1].items() if k != 'step'} if rows else {}
