"""The training loop: data in, steps, logs, checkpoints; resumes bit for bit (docs/design.md,
"Training step").
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sigma_jax.convert import assets, checkpoint
from sigma_jax.convert.source import RECORD
from sigma_jax.data.shards import seen
from sigma_jax.errors import UserError
from sigma_jax.files import is_full_disk, replaced_folder, writer_lock
from sigma_jax.nn import quant
from sigma_jax.objectives.bind import overlay
from sigma_jax.training import feature_cache
from sigma_jax.training.checkpoints import Checkpoints, parameter_count
from sigma_jax.training.compilation import uncollected
from sigma_jax.training.config import RunConfig
from sigma_jax.training.finite import Recent
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.logs import TrainLog
from sigma_jax.training.run import Run
from sigma_jax.training.signals import Stopped, Wish, deaf_children, stop_wish
from sigma_jax.training.step import TrainState
from sigma_jax.types import Batch, to_batch

TRAINED = 'trained here'  # the format in a saved policy's record


def train(
    config: RunConfig, workdir: str | pathlib.Path, console: Console | None = None
) -> TrainState:
    """Trains to `config.steps`, continuing from the newest checkpoint.

    What costs nothing is checked before the base is read: whether another training is at work here,
    and whether the checkpoints there are of this config.

    Args:
      config: of the run.
      workdir: its folder.
      console: for lines and bars; None: a new one.

    Returns:
      The state after the last step.

    Raises:
      UserError: anything wrong with config, shards, base or checkpoint; a loss that is not finite;
        a full disk.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    console, folder = console or Console(), RunFolder(pathlib.Path(workdir))
    cached = feature_cache.check(config)
    with contextlib.ExitStack() as held:
        if known := folder.path.is_dir():
            held.enter_context(writer_lock(folder.path, 'training'))
            folder.refuse_other_config(config)
        run = Run(config)
        if not known:  # made only for a config that a run could be built from
            held.enter_context(writer_lock(folder.path, 'training'))
        if cached:
            add_features(run, console)
        with told_full_disk(run, folder):
            before = work(run, folder, console)
            if 'params' in run.state.trainable:
                save_policy(run, folder.policy, console, changed=int(run.state.step) > before)
    return run.state


def add_features(run: Any, console: Console) -> None:
    """Has the frozen features computed, where they are not on disk, and read from there.

    Args:
      run: of a training.
      console: for a bar.
    """
    with progress_bar(console) as progress:
        task = progress.add_task('frozen features', total=None, note='')
        run.add_features(lambda done, total: progress.update(task, completed=done, total=total))


@contextlib.contextmanager
def told_full_disk(run: Any, folder: RunFolder) -> Iterator[None]:
    """Turns want of room within the block into a sentence with the step and the last whole
    checkpoint.

    Args:
      run: of a training.
      folder: its folder.

    Returns:
      A context.

    Raises:
      UserError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full_disk(error):
            raise
        whole = folder.steps
        left = f'checkpoint {whole[-1]} is whole' if whole else 'there is no checkpoint yet'
        raise UserError(
            f'step {int(run.state.step)}: expected room in {folder.path}, got a full disk; {left}: '
            'free some and run the same command again'
        ) from error


def work(run: Run, folder: RunFolder, console: Console) -> int:
    """Restores, trains, saves: all that needs the work folder.

    Args:
      run: of a training.
      folder: its folder.
      console: for lines and bars.

    Returns:
      The step that it went on from.
    """
    keep = run.config.checkpoint.keep
    with stop_wish() as stop, Checkpoints(folder.checkpoints, keep) as checkpoints:
        batches = iter(run.loader)
        restore(run, batches, checkpoints, console)
        announce(run, folder.path, console)
        folder.write_config(run.config)
        note_episodes(run, folder)
        start = int(run.state.step)
        with TrainLog(folder.path, start) as log, progress_bar(console) as progress:
            loop(run, batches, checkpoints, log, progress, stop)
    return start


def note_episodes(run: Any, folder: RunFolder) -> None:
    """Writes down from which episodes a training folder learns, whatever becomes of its shards.

    Args:
      run: of a training.
      folder: its folder.
    """
    if shards := getattr(run, 'shards', None):
        folder.note_episodes(shards.meta, run.config.base)


def restore(run: Any, batches: Any, checkpoints: Checkpoints, console: Console) -> None:
    """State and place in the data of the newest checkpoint, where there is one.

    Args:
      run: of a training.
      batches: of the loader.
      checkpoints: open for training.
      console: for a line.
    """
    if (step := checkpoints.latest()) is not None:
        run.state, position = checkpoints.restore(step, run.state, run.config)
        batches.set_state(position)
        console.print(f'continuing from step {step}')


def next_batch(batches: Any, first: bool) -> Batch:
    """The loader's next batch; with the first one its processes start, which leave Ctrl-C to this
    one.

    Args:
      batches: of the loader.
      first: whether it is the first.

    Returns:
      The batch.
    """
    with deaf_children() if first else contextlib.nullcontext():
        return to_batch(next(batches))


def loop(
    run: Run,
    batches: Any,
    checkpoints: Checkpoints,
    log: TrainLog,
    progress: Progress,
    stop: Wish,
) -> None:
    """Steps from `run.state.step` to `config.steps`; the only place where training has side
    effects.

    Args:
      run: of a training.
      batches: of the loader.
      checkpoints: open for training.
      log: of the training.
      progress: of a bar.
      stop: whether a signal came.
    """
    config, start = run.config, int(run.state.step)
    steps, every, recent = config.steps, config.log.every, Recent()
    task = progress.add_task('training', total=steps, completed=start, note='compiling')
    for n in range(start, steps):
        batch = next_batch(batches, first=n == start)
        placed = run.devices.split(batch)
        with uncollected() if n == start else contextlib.nullcontext():
            run.state, metrics = run.step(run.state, run.frozen, placed, run.ablation)
        recent.add(n, metrics, batch)
        # asked once: a signal may come at any time
        last, stops = n + 1 == steps, stop.number is not None
        saves = last or stops or (n + 1) % config.checkpoint.every == 0
        if n % every == 0 or saves:  # before a checkpoint too, so that every one of them is finite
            values = recent.finite()
        if n % every == 0 or last:
            if config.log.shares and config.kind.weighs_terms and n % config.log.shares == 0:
                values |= {k: float(v) for k, v in run.shares(placed, jax.random.key(n)).items()}
            log.write(n, values)
            progress.update(task, note=f'loss {values["loss"]:.4g}')
        progress.update(task, completed=n + 1)
        if saves:
            checkpoints.save(run.state, batches.get_state(), config)
        checkpoints.raise_errors()
        if stops and not last:
            raise Stopped(stop.number, n + 1)


def announce(run: Run, workdir: pathlib.Path, console: Console) -> None:
    """One line on what is trained, on what, where; and on what of the base was assumed.

    Args:
      run: of a training.
      workdir: its folder.
      console: for the line.
    """
    for note in run.base.notes:
        console.print(note, highlight=False, markup=False)
    counts = ', '.join(f'{name} {n:,}' for name, n in parameter_count(run.state.trainable).items())
    frozen, c = quant.count(run.frozen.params), run.config
    console.print(
        f'{c.objective}: trainable {counts}; frozen {frozen:,}; {c.windows_per_step} windows a '
        'step; '
        f'{jax.devices()[0].device_kind}; logs and checkpoints in {workdir}'
    )


def save_policy(run: Run, out: pathlib.Path, console: Console, changed: bool = False) -> None:
    """The trained policy as a converted folder, with the statistics it was trained with.

    A folder that a run has saved here is replaced where it is of another step, or the weights have
    changed since; a folder of anybody else's is left as it is.

    Args:
      run: of a training.
      out: the policy's folder.
      console: for a line.
      changed: whether the weights have.
    """
    step, found = int(run.state.step), saved_at(out)
    if out.exists() and (found is None or (found == step and not changed)):
        why = 'of another origin' if found is None else f'of step {found}'
        console.print(f'{out} exists, {why}, and is left as it is')
        return
    trained_params = (run.state.ema or run.state.trainable)['params']
    params = jax.tree.map(np.asarray, overlay(run.frozen.params, trained_params))
    base = assets.read(run.base.folder) if run.base.folder else assets.Beside(run.base.policy)
    around = assets.trained_with(
        base,
        run.statistics.policy,
        run.statistics.relative_joints,
        run.shards.meta,
    )
    trained = checkpoint.Checkpoint(params, run.base.config, TRAINED, (f'{step} steps',))
    with replaced_folder(out) as new:
        checkpoint.save(trained, out.parent, new, around=around)
        seen.note(new, run.shards.meta, run.base.folder or '')
    console.print(f'policy saved in {out}')


def saved_at(policy: pathlib.Path) -> int | None:
    """The step at which a run saved its policy.

    Args:
      policy: its folder.

    Returns:
      The step; None where there is no folder, or another's.
    """
    try:
        record = json.loads((policy / RECORD).read_text())
        counts = [
            note.removesuffix(' steps') for note in record['notes'] if note.endswith(' steps')
        ]
        return int(counts[0]) if record['format'] == TRAINED else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar with count, elapsed and remaining time and a note.

    Args:
      console: for the bar.

    Returns:
      A context with it.
    """
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn('{task.fields[note]}'), console=console
    ) as progress:
        yield progress
