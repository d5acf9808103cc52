"""Training all members of an ablation in one program; each ends as a training folder of its own
(docs/design.md, "Ablations").

In the work folder:

    WORKDIR/checkpoints/               all members as one state: the run stops and continues as one
    WORKDIR/rows/ROW/seedK/            train_log.csv, and at the end config.json and checkpoints/
    WORKDIR/ablations.json             last losses of every member, and where one stopped being a
                                       number
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sigma_jax.ablations import setup, stacked
from sigma_jax.ablations.setup import AblationRun
from sigma_jax.ablations.stacked import ALIVE, Member, StackedState
from sigma_jax.ablations.summary import summary
from sigma_jax.data.shards import seen
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write
from sigma_jax.training import loop
from sigma_jax.training.checkpoints import Checkpoints, parameter_count
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.grid import Grid
from sigma_jax.training.logs import TrainLog
from sigma_jax.training.progress import SILENT, Bars, Reporter
from sigma_jax.types import Batch

SUMMARY = 'ablations.json'


@dataclasses.dataclass(frozen=True)
class AblationResult:
    """What the trainings of an ablation have come to.

    Attributes:
      folder: the work folder of all.
      members: row, seed and gates of each.
      state: theirs after the last step, stacked in the same order.
      losses: {row: [one dictionary a seed]}, as ablations.json has them.
    """

    folder: RunFolder
    members: tuple[Member, ...]
    state: StackedState
    losses: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, tuple[RunFolder, ...]]:
        """The training folders of each row, in the order of its seeds."""
        found: dict[str, tuple[RunFolder, ...]] = {}
        for member in self.members:
            found[member.row] = (*found.get(member.row, ()), place(self.folder, member))
        return found


def train(
    config: RunConfig, grid: Grid, workdir: str | pathlib.Path, reporter: Reporter = SILENT
) -> AblationResult:
    """Trains all members to `config.steps`, continuing from the newest checkpoint in `workdir`.

    Args:
      config: every setting but gates and seed.
      grid: rows and seeds.
      workdir: the work folder of all.
      reporter: receives what is trained, and how far it is.

    Returns:
      Folders, states and last losses of all members.

    Raises:
      UserError: as `trainer.train` does, and when no member is left.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    config, members = with_grid(config, grid)
    setup.check(config)

    def make() -> AblationRun:
        return AblationRun(config, members, grid.at_once)

    with loop.opened(config, workdir, make, reporter) as (run, folder):
        loop.work(
            Many(run, reporter), folder, reporter, functools.partial(save_members, run, folder)
        )
        rows = [place(folder, member) for member in members]
        losses = summary(members, rows, np.asarray(run.state.failed))
        atomic_write(folder.path / SUMMARY, json.dumps(losses, indent=1, allow_nan=False))
    return AblationResult(folder, tuple(members), run.state, losses)


def with_grid(config: RunConfig, grid: Grid) -> tuple[RunConfig, list[Member]]:
    """The config with all rows and seeds in it.

    Args:
      config: of the run.
      grid: rows and seeds.

    Returns:
      config: completed; how many are computed at a time is no part of it.
      members: rows and seeds.
    """
    recorded = dataclasses.replace(grid, at_once=0)
    members = stacked.cross(grid.rows, grid.seeds)
    return dataclasses.replace(config, ablations=recorded), members


def place(folder: RunFolder, member: Member) -> RunFolder:
    """The training folder of one member.

    Args:
      folder: of the ablation.
      member: one row and seed.

    Returns:
      Its folder.
    """
    return RunFolder(folder.path / 'rows' / member.row / f'seed{member.seed}')


class Many:
    """The members of an ablation as `loop` works on them.

    Args:
      run: all of them.
      reporter: receives who has stopped being a number.
    """

    def __init__(self, run: AblationRun, reporter: Reporter = SILENT):
        self.run, self.reporter = run, reporter
        self.title = f'{len(run.members)} trainings'
        self._logs: list[TrainLog] = []
        self._metrics: Mapping[str, jax.Array] = {}
        self._alive: list[int] = []
        self._reported: set[int] = set()

    def announce(self, folder: RunFolder) -> Iterator[str]:
        """One line on what is trained, on what, how.

        Args:
          folder: where they are trained.

        Yields:
          The line.
        """
        run, count = self.run, len(self.run.members)
        parts = parameter_count(run.state.state.trainable).items()
        counts = ', '.join(f'{name} {n // count:,}' for name, n in parts)
        yield (
            f'{count} trainings in one program, {run.at_once} at a time on {run.devices.count} x '
            f'{jax.devices()[0].device_kind}; trainable in each {counts}; rows in '
            f'{folder.path}/rows'
        )

    @contextlib.contextmanager
    def logs(self, folder: RunFolder, start: int) -> Iterator[None]:
        """A log for each member.

        Args:
          folder: the work folder.
          start: the step that training goes on from.
        """
        with contextlib.ExitStack() as held:
            rows = [place(folder, member) for member in self.run.members]
            self._logs = [held.enter_context(TrainLog(row.path, start)) for row in rows]
            yield

    def step(self, number: int, batch: Batch) -> None:
        """One optimiser step of every member on the same batch.

        Args:
          number: of the step, from 0.
          batch: what all of them learn from, on the host.
        """
        run = self.run
        placed = run.devices.replicate(batch)
        run.state, self._metrics = run.step(run.state, run.frozen, placed, run.gates)

    def finite(self) -> None:
        """Names the members that have stopped since the last look.

        Raises:
          UserError: none is left.
        """
        failed = np.asarray(self.run.state.failed)
        stopped = [m for m, step in enumerate(failed) if step != ALIVE]
        for m in sorted(set(stopped) - self._reported):
            member = self.run.members[m]
            self.reporter.say(
                f'{member.row}, seed {member.seed}: loss or gradient is no number at step '
                f'{failed[m]}; it stays as it was before that step, the others go on'
            )
        self._reported |= set(stopped)
        if len(stopped) == len(failed):
            raise UserError(
                f'step {max(failed)}: expected a finite loss in some row, got none in all '
                f'{len(failed)}; the last checkpoint is intact: lower optimizer rates, then start '
                'again'
            )
        self._alive = [m for m in range(len(failed)) if m not in self._reported]

    def report(self, number: int) -> str:
        """A row in the log of each member that goes on.

        Args:
          number: of the step, from 0.

        Returns:
          What the bar says of it.
        """
        values = {k: np.asarray(v) for k, v in jax.device_get(dict(self._metrics)).items()}
        for m in self._alive:
            self._logs[m].write(number, {k: float(v[m]) for k, v in values.items()})
        return f'mean loss {values["loss"][self._alive].mean():.4g}'


def save_members(run: AblationRun, folder: RunFolder, position: dict, bars: Bars) -> None:
    """A training folder for each member: its state, and a config of its own; those that are there
    stay.

    Args:
      run: after its last step.
      folder: the work folder of all.
      position: the place in the data.
      bars: where its bar is shown.
    """
    rows = jax.device_get(run.state)
    bar = bars.add('saving', total=len(run.members))
    for m, member in enumerate(run.members):
        own, state = place(folder, member), stacked.member_state(rows, m)
        config = dataclasses.replace(
            run.config, ablations='', ablation=member.gates, seed=member.seed
        )
        with Checkpoints(own.checkpoints, keep=1) as checkpoints:
            if checkpoints.latest() != int(state.step):
                checkpoints.save(state, position, config)
        own.write_config(config)
        loop.keep_record(run, own)
        if (folder.path / seen.FILE).is_file():
            atomic_write(own.path / seen.FILE, (folder.path / seen.FILE).read_bytes())
        bar.advance()
