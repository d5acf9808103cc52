"""From a folder to its last step: locks, checkpoints, the loop, the stop signal.

What differs between one run and many is a `Work`: `trainer.One` is a run,
`ablations.stacked_trainer.Many` the members of an ablation. Everything here resumes bit for bit
(docs/design.md, "Training step").
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from sigma_jax.errors import UserError
from sigma_jax.files import is_full_disk, writer_lock
from sigma_jax.training import acting_record, feature_cache
from sigma_jax.training.checkpoints import Checkpoints
from sigma_jax.training.compilation import gc_disabled
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.progress import Bars, Reporter
from sigma_jax.training.signals import Stopped, StopSignal, children_ignore_sigint, stop_on_signal
from sigma_jax.types import Batch, to_batch


class Work(Protocol):
    """What the loop asks of its training."""

    run: Any
    """Config, loader, devices and state: a `Run`, or what stands for one."""

    title: str
    """The name of its bar."""

    def announce(self, folder: RunFolder) -> Iterator[str]:
        """Lines on what is trained, on what, where.

        Args:
          folder: where it is trained.

        Returns:
          The lines, one after another.
        """

    def logs(self, folder: RunFolder, start: int) -> contextlib.AbstractContextManager[None]:
        """Opens what `report` writes to, cut back to step `start`.

        Args:
          folder: the work folder.
          start: the step that training goes on from.

        Returns:
          A context, at whose end they are closed.
        """

    def step(self, number: int, batch: Batch) -> None:
        """One optimiser step of everything that is trained.

        Args:
          number: of the step, from 0.
          batch: what it learns from, on the host.
        """

    def finite(self) -> None:
        """Raises UserError where a loss since the last call is no number, and nothing goes on."""

    def report(self, number: int) -> str:
        """Writes rows of the step; returns what the bar says of it. `finite` was called before.

        Args:
          number: of the step, from 0.

        Returns:
          What the bar says of it.
        """


@contextlib.contextmanager
def opened(
    config: RunConfig, workdir: str | pathlib.Path, make: Callable[[], Any], reporter: Reporter
) -> Iterator[tuple[Any, RunFolder]]:
    """(the run that `make` makes, its folder), nobody else at work there, features on disk.

    What costs nothing is checked before the base is read: whether another training is at work here,
    and whether the checkpoints there are of this config.

    Args:
      config: every setting.
      workdir: the work folder.
      make: builds the run, once nothing is known to be wrong.
      reporter: receives of the frozen features.

    Yields:
      The run and its folder.

    Raises:
      UserError: those; and where the block fills the disk, with the step and the last whole
        checkpoint.
    """
    folder = RunFolder(pathlib.Path(workdir))
    cached = feature_cache.check(config)
    with contextlib.ExitStack() as held:
        if known := folder.path.is_dir():
            held.enter_context(writer_lock(folder.path, 'training'))
            folder.refuse_other_config(config)
        run = make()
        if not known:  # made only for a config that a run could be built from
            held.enter_context(writer_lock(folder.path, 'training'))
        if cached:
            with reporter.bars() as bars:
                run.add_features(bars.add('frozen features').update)
        with disk_full_as_user_error(run, folder):
            yield run, folder


@contextlib.contextmanager
def disk_full_as_user_error(run: Any, folder: RunFolder) -> Iterator[None]:
    """Raises UserError, naming the step and the last whole checkpoint, where the block fails for
    want of room.

    Args:
      run: whose state says the step.
      folder: its work folder.

    Raises:
      UserError: a write in the block found no room.
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


def work(
    one: Work,
    folder: RunFolder,
    reporter: Reporter,
    finish: Callable[[dict, Bars], None] = lambda position, bars: None,
) -> int:
    """Restores, trains, saves: all that needs the work folder. Returns the step that it went on
    from.

    Args:
      one: what is trained.
      folder: the work folder.
      reporter: receives what is trained, and how far it is.
      finish: gets the place in the data after the last step, while bars are still shown.

    Returns:
      The step that it went on from.
    """
    run = one.run
    with (
        stop_on_signal() as stop,
        Checkpoints(folder.checkpoints, run.config.checkpoint.keep) as saved,
    ):
        batches = iter(run.loader)
        if restore(run, batches, saved):
            check_steps(int(run.state.step), run.config.steps, folder)
            reporter.say(f'continuing from step {int(run.state.step)}')
        for line in one.announce(folder):
            reporter.say(line)
        folder.write_config(run.config)
        note_episodes(run, folder)
        keep_record(run, folder)
        start = int(run.state.step)
        with one.logs(folder, start), reporter.bars() as bars:
            loop(one, batches, saved, bars, stop)
            finish(batches.get_state(), bars)
    return start


def restore(run: Any, batches: Any, checkpoints: Checkpoints) -> bool:
    """State and place in the data of the newest checkpoint; whether there is one.

    Args:
      run: whose state is replaced.
      batches: the iterator of its loader, which is moved.
      checkpoints: those of its folder.

    Returns:
      False where training starts from step 0.
    """
    if (step := checkpoints.latest()) is None:
        return False
    run.state, position = checkpoints.restore(step, run.state, run.config)
    batches.set_state(position)
    return True


def note_episodes(run: Any, folder: RunFolder) -> None:
    """Writes down from which episodes a training folder learns, whatever becomes of its shards.

    Args:
      run: with its shards, if it has some.
      folder: its work folder.
    """
    if shards := getattr(run, 'shards', None):
        folder.note_episodes(shards.meta, run.config.base)


def keep_record(run: Any, folder: RunFolder) -> None:
    """Writes down what acting needs beside what is learned, so that it needs no shards.

    Args:
      run: with base and data, if it has some.
      folder: a work folder.
    """
    if blueprint := getattr(run, 'blueprint', None):
        acting_record.keep(blueprint, run.base, folder.path)


def check_steps(reached: int, steps: int, folder: RunFolder) -> None:
    """Checks that a training is not asked to end before where it is.

    Args:
      reached: step of its newest checkpoint.
      steps: that it is to have.
      folder: its work folder.

    Raises:
      UserError: it is; nothing was written.
    """
    if steps < reached:
        raise UserError(
            f'expected steps of at least {reached}, which the training in {folder.path} has '
            f'reached, got {steps}; name more, or another workdir for a shorter training'
        )


def loop(one: Work, batches: Any, checkpoints: Checkpoints, bars: Bars, stop: StopSignal) -> None:
    """Steps from `run.state.step` to `config.steps`; the only place where training has side
    effects.

    Args:
      one: what is trained.
      batches: the iterator of its loader.
      checkpoints: where states go.
      bars: where its bar is shown.
      stop: asked after every step.

    Raises:
      UserError: a loss is no number.
      Stopped: a signal came; the state is saved.
    """
    run, config = one.run, one.run.config
    steps, every, start = config.steps, config.log.every, int(run.state.step)
    bar = bars.add(one.title, total=steps, done=start, note='compiling')
    for n in range(start, steps):
        batch = next_batch(batches, first=n == start)
        with gc_disabled() if n == start else contextlib.nullcontext():
            one.step(n, batch)
        # asked once: a signal may come at any time
        last, stops = n + 1 == steps, stop.number is not None
        saves = last or stops or (n + 1) % config.checkpoint.every == 0
        if n % every == 0 or saves:  # before a checkpoint too, so that every one of them is finite
            one.finite()
        if n % every == 0 or last:
            bar.update(note=one.report(n))
        bar.update(n + 1)
        if saves:
            checkpoints.save(run.state, batches.get_state(), config)
        checkpoints.raise_errors()
        if stops and not last:
            raise Stopped(stop.number, n + 1)


def next_batch(batches: Any, first: bool) -> Batch:
    """The loader's next batch; with the first one its processes start, which leave Ctrl-C to this
    one.

    Args:
      batches: the iterator of a loader.
      first: whether it is the first one of this process.

    Returns:
      The batch, on the host.
    """
    with children_ignore_sigint() if first else contextlib.nullcontext():
        return to_batch(next(batches))
