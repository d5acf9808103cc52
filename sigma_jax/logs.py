"""Training logs: a CSV that starts with the columns of the paper's Table 1, and TensorBoard."""

import csv
import io
import pathlib
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from sigma_jax.files import atomic_write

LOSSES = ['loss', 'L_act', 'L_sem', 'L_int', 'L_tau', 'L_act_hard']
TABLE_1 = ['step', *LOSSES, 'w_sem', 'w_int', 'w_tau', 'hard_ratio', 'tau_rms']


class TrainLog:
    """`train_log.csv` and TensorBoard events in a work folder, cut back to `start` when a run continues."""

    def __init__(self, workdir: pathlib.Path, start: int):
        self.file = workdir / 'train_log.csv'
        self._rows = [row for row in self._read() if int(row['step']) < start] if start else []
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start or None)

    def __enter__(self) -> 'TrainLog':
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def _read(self) -> list[dict]:
        rows = csv.DictReader(io.StringIO(self.file.read_text())) if self.file.is_file() else []
        return [{key: value for key, value in row.items() if value} for row in rows]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row: Table 1's columns first, all others in alphabetic order."""
        self._rows.append({'step': step} | {k: repr(float(v)) for k, v in values.items()})
        known = {key for row in self._rows for key in row}
        columns = [c for c in TABLE_1 if c in known] + sorted(known - set(TABLE_1))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval='')
        writer.writeheader()
        writer.writerows(self._rows)
        atomic_write(self.file, text.getvalue())
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
