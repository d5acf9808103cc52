"""Training all members of an ablation in one program; each ends as a training folder of its own
(docs/design.md, "Ablations").

In the work folder:

    WORKDIR/checkpoints/               all members as one state: the run stops and continues as one
    WORKDIR/rows/ROW/seedK/            train_log.csv, and at the end config.json and checkpoints/, as of a plain run
    WORKDIR/ablations.json             last losses of every member, and where one stopped being a number
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from sigma_jax.ablations import setup, stacked
from sigma_jax.ablations.setup import AblationRun
from sigma_jax.ablations.stacked import ALIVE, Member, Rows
from sigma_jax.ablations.table import summary, table
from sigma_jax.data.shards import seen
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write, writer_lock
from sigma_jax.training import feature_cache, trainer
from sigma_jax.training.checkpoints import Checkpoints, parameter_count
from sigma_jax.training.compilation import uncollected
from sigma_jax.training.config import Grid, RunConfig, numbers
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.logs import TrainLog
from sigma_jax.training.signals import Stopped, Wish, stop_wish

SUMMARY = 'ablations.json'


def train(
    config: RunConfig, grid: Mapping, workdir: str | pathlib.Path, console: Console | None = None
) -> tuple[list[Member], Rows]:
    """Trains all members to `config.steps`, continuing from the newest checkpoint.

    Args:
      config: of the whole ablation.
      grid: what a file such as configs/ablations.py returns.
      workdir: the folder.
      console: for lines and bars; None: a new one.

    Returns:
      members: rows and seeds.
      rows: their states.

    Raises:
      UserError: as `trainer.train` does, and when no member is left.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    console, folder = console or Console(), RunFolder(pathlib.Path(workdir))
    config, members = with_grid(config, grid)
    setup.check(config)
    cached = feature_cache.check(config)
    with contextlib.ExitStack() as held:
        if known := folder.path.is_dir():
            held.enter_context(writer_lock(folder.path, 'training'))
            folder.refuse_other_config(config)
        run = AblationRun(config, members, grid.get('at_once', 0))
        if not known:  # made only for a config that a run could be built from
            held.enter_context(writer_lock(folder.path, 'training'))
        if cached:
            trainer.add_features(run, console)
        with trainer.told_full_disk(run, folder):
            work(run, folder, console)
    return members, run.state


def with_grid(config: RunConfig, grid: Mapping) -> tuple[RunConfig, list[Member]]:
    """The config with all rows and seeds in it.

    Args:
      config: of the run.
      grid: what a file such as configs/ablations.py returns.

    Returns:
      config: completed.
      members: rows and seeds.

    Raises:
      UserError: a grid that cannot be meant.
    """
    if missing := {'rows', 'seeds'} - set(grid):
        raise UserError(
            'config.ablations: expected a file with rows and seeds, got none of '
            f'{sorted(missing)} in it'
        )
    own = dataclasses.asdict(config.ablation)
    rows = {
        name: numbers(own | dict(changes), 'ablations')
        for name, changes in dict(grid['rows']).items()
    }
    members = stacked.grid(rows, grid['seeds'])
    made = {member.row: member.gates for member in members}
    return dataclasses.replace(
        config, ablations=Grid(tuple(made.items()), tuple(grid['seeds']))
    ), members


def work(run: AblationRun, folder: RunFolder, console: Console) -> None:
    """Restores, trains, saves: all that needs the work folder.

    Args:
      run: all members.
      folder: of the ablation.
      console: for lines and bars.
    """
    keep = run.config.checkpoint.keep
    rows = [place(folder, member) for member in run.members]
    with stop_wish() as stop, Checkpoints(folder.checkpoints, keep) as checkpoints:
        batches = iter(run.loader)
        trainer.restore(run, batches, checkpoints, console)
        announce(run, folder.path, console)
        folder.write_config(run.config)
        trainer.note_episodes(run, folder)
        with contextlib.ExitStack() as logs, trainer.progress_bar(console) as progress:
            start = run.state.step
            written = [logs.enter_context(TrainLog(row.path, start)) for row in rows]
            loop(run, batches, checkpoints, written, progress, stop)
            save_members(run, batches.get_state(), folder, progress)
    found = summary(run.members, rows, np.asarray(run.state.failed))
    atomic_write(folder.path / SUMMARY, json.dumps(found, indent=1, allow_nan=False))
    console.print(table(found))


def place(folder: RunFolder, member: Member) -> RunFolder:
    """The training folder of one member.

    Args:
      folder: of the ablation.
      member: one row and seed.

    Returns:
      Its folder.
    """
    return RunFolder(folder.path / 'rows' / member.row / f'seed{member.seed}')


def loop(
    run: AblationRun,
    batches: Any,
    checkpoints: Checkpoints,
    logs: list[TrainLog],
    progress: Progress,
    stop: Wish,
) -> None:
    """Steps to `config.steps`; rows, checkpoints and the wish to stop as in `trainer.loop`.

    Args:
      run: all members.
      batches: of the loader.
      checkpoints: open for training.
      logs: one a member.
      progress: of a bar.
      stop: whether a signal came.
    """
    config, start = run.config, run.state.step
    steps, every = config.steps, config.log.every
    told: set[int] = set()
    task = progress.add_task(
        f'{len(run.members)} trainings', total=steps, completed=start, note='compiling'
    )
    for n in range(start, steps):
        batch = run.devices.everywhere(trainer.next_batch(batches, first=n == start))
        with uncollected() if n == start else contextlib.nullcontext():
            run.state, metrics = run.step(run.state, run.frozen, batch, run.gates)
        last, stops = n + 1 == steps, stop.number is not None
        saves = last or stops or (n + 1) % config.checkpoint.every == 0
        if n % every == 0 or saves:
            alive = tell_failed(run, progress, told)
        if n % every == 0 or last:
            values = {k: np.asarray(v) for k, v in jax.device_get(metrics).items()}
            for m in alive:
                logs[m].write(n, {k: float(v[m]) for k, v in values.items()})
            progress.update(task, note=f'mean loss {values["loss"][alive].mean():.4g}')
        progress.update(task, completed=n + 1)
        if saves:
            checkpoints.save(run.state, batches.get_state(), config)
        checkpoints.raise_errors()
        if stops and not last:
            raise Stopped(stop.number, n + 1)


def tell_failed(run: AblationRun, progress: Progress, told: set[int]) -> list[int]:
    """Names the members that have stopped since the last look.

    Args:
      run: all members.
      progress: of a bar.
      told: numbers of those named before; new ones are added.

    Returns:
      Numbers of the members that go on.

    Raises:
      UserError: none is left.
    """
    failed = np.asarray(run.state.failed)
    stopped = [m for m, step in enumerate(failed) if step != ALIVE]
    for m in sorted(set(stopped) - told):
        member = run.members[m]
        progress.console.print(
            f'{member.row}, seed {member.seed}: loss or gradient is no number at step '
            f'{failed[m]}; it stays as it was before that step, the others go on'
        )
    told |= set(stopped)
    if len(stopped) == len(failed):
        raise UserError(
            f'step {max(failed)}: expected a finite loss in some row, got none in all '
            f'{len(failed)}; the last checkpoint is intact: lower optimizer rates, then start '
            'again'
        )
    return [m for m in range(len(failed)) if m not in told]


def announce(run: AblationRun, workdir: pathlib.Path, console: Console) -> None:
    """One line on what is trained, on what, how.

    Args:
      run: all members.
      workdir: the folder.
      console: for the line.
    """
    count = len(run.members)
    counts = ', '.join(
        f'{k} {n // count:,}' for k, n in parameter_count(run.state.state.trainable).items()
    )
    console.print(
        f'{count} trainings in one program, {run.at_once} at a time on {run.devices.count} x '
        f'{jax.devices()[0].device_kind}; trainable in each {counts}; rows in {workdir}/rows'
    )


def save_members(run: AblationRun, position: dict, folder: RunFolder, progress: Progress) -> None:
    """A training folder for each member: its state, and a config of its own; those that are there
    stay.

    Args:
      run: all members.
      position: of the loader.
      folder: of the ablation.
      progress: of a bar.
    """
    rows = jax.device_get(run.state)
    task = progress.add_task('saving', total=len(run.members), note='')
    for m, member in enumerate(run.members):
        own, state = place(folder, member), stacked.member_state(rows, m)
        config = dataclasses.replace(
            run.config, ablations='', ablation=member.gates, seed=member.seed
        )
        with Checkpoints(own.checkpoints, keep=1) as checkpoints:
            if checkpoints.latest() != int(state.step):
                checkpoints.save(state, position, config)
        own.write_config(config)
        if (folder.path / seen.FILE).is_file():
            atomic_write(own.path / seen.FILE, (folder.path / seen.FILE).read_bytes())
        progress.advance(task)
