"""Training one run: what is trained in a step, what the log says of it, the policy at the end."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from sigma_jax.convert import assets, checkpoint
from sigma_jax.convert.source import RECORD
from sigma_jax.data.shards import seen
from sigma_jax.files import replaced_folder
from sigma_jax.nn import quant
from sigma_jax.objectives.bind import overlay
from sigma_jax.training import loop
from sigma_jax.training.checkpoints import parameter_count
from sigma_jax.training.config import RunConfig
from sigma_jax.training.finite import Recent
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.logs import TrainLog, last_row
from sigma_jax.training.progress import SILENT, Reporter
from sigma_jax.training.run import Run
from sigma_jax.training.step import TrainState
from sigma_jax.types import Batch

TRAINED = 'trained here'  # the format in a saved policy's record


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training has come to.

    Attributes:
      folder: its config, checkpoints and log.
      state: the trainable leaves, moments and running average after the last step.
      losses: the last row of the log, by its columns.
    """

    folder: RunFolder
    state: TrainState
    losses: Mapping[str, float]

    @property
    def step(self) -> int:
        """Optimiser steps that the state has seen."""
        return int(self.state.step)


def train(
    config: RunConfig, workdir: str | pathlib.Path, reporter: Reporter = SILENT
) -> TrainingResult:
    """Trains to `config.steps`, continuing from the newest checkpoint in `workdir`.

    Args:
      config: every setting.
      workdir: the work folder.
      reporter: receives what is trained, and how far it is.

    Returns:
      The folder, the state after the last step and the last losses.

    Raises:
      UserError: anything wrong with config, shards, base or checkpoint; a loss that is not finite;
        a full disk.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    with loop.opened(config, workdir, lambda: Run(config), reporter) as (run, folder):
        before = loop.work(One(run), folder, reporter)
        if 'params' in run.state.trainable:
            save_policy(run, folder.policy, reporter, changed=int(run.state.step) > before)
    return TrainingResult(folder, run.state, last_row(folder.log))


class One:
    """A run as `loop` works on it.

    Args:
      run: what is trained.
    """

    title = 'training'

    def __init__(self, run: Run):
        self.run = run
        self._recent, self._values = Recent(), dict[str, float]()
        self._log: TrainLog | None = None
        self._placed: Batch | None = None

    def announce(self, folder: RunFolder) -> Iterator[str]:
        """What of the base was assumed; one line on what is trained, on what, where.

        Args:
          folder: where it is trained.

        Yields:
          The lines, one after another.
        """
        run, c = self.run, self.run.config
        yield from run.base.notes
        parts = parameter_count(run.state.trainable).items()
        counts = ', '.join(f'{name} {n:,}' for name, n in parts)
        yield (
            f'{c.objective}: trainable {counts}; frozen {quant.count(run.frozen.params):,}; '
            f'{c.windows_per_step} windows a step; {jax.devices()[0].device_kind}; '
            f'logs and checkpoints in {folder.path}'
        )

    @contextlib.contextmanager
    def logs(self, folder: RunFolder, start: int) -> Iterator[None]:
        """Its one log.

        Args:
          folder: the work folder.
          start: the step that training goes on from.
        """
        with TrainLog(folder.path, start) as self._log:
            yield

    def step(self, number: int, batch: Batch) -> None:
        """One optimiser step; its losses are looked at when `finite` asks.

        Args:
          number: of the step, from 0.
          batch: what it learns from, on the host.
        """
        run = self.run
        self._placed = run.devices.shard_batch(batch)
        run.state, metrics = run.step(run.state, run.frozen, self._placed, run.ablation)
        self._recent.add(number, metrics, batch)

    def finite(self) -> None:
        """Raises UserError naming the step and the windows where a loss is no number."""
        self._values = self._recent.finite()

    def report(self, number: int) -> str:
        """A row of losses, with each term's share of the gradient where it is due.

        Args:
          number: of the step, from 0.

        Returns:
          What the bar says of it.
        """
        assert self._log is not None and self._placed is not None
        values, log = dict(self._values), self.run.config.log
        if log.shares and self.run.config.kind.weighs_terms and number % log.shares == 0:
            shares = self.run.gradient_norms(self._placed, jax.random.key(number))
            values |= {k: float(v) for k, v in shares.items()}
        self._log.write(number, values)
        return f'loss {values["loss"]:.4g}'


def save_policy(run: Run, out: pathlib.Path, reporter: Reporter, changed: bool = False) -> None:
    """The trained policy as a converted folder, with the statistics it was trained with.

    One that a run has saved here is replaced where it is of another step, or the weights have
    `changed` since; a folder of anybody else's is left as it is.

    Args:
      run: after its last step.
      out: the folder of the policy.
      reporter: receives where the policy is, or why not.
      changed: whether the weights are others than when this call began.
    """
    step, found = int(run.state.step), saved_at(out)
    if out.exists() and (found is None or (found == step and not changed)):
        why = 'of another origin' if found is None else f'of step {found}'
        reporter.say(f'{out} exists, {why}, and is left as it is')
        return
    trained_params = (run.state.ema or run.state.trainable)['params']
    params = jax.tree.map(np.asarray, overlay(run.frozen.params, trained_params))
    base = assets.read(run.base.folder) if run.base.folder else assets.PolicyAssets(run.base.policy)
    policy_assets = assets.trained_with(
        base,
        run.statistics.policy,
        run.statistics.relative_joints,
        run.shards.meta,
        max_delay=run.config.rtc.max_delay,
    )
    trained = checkpoint.Checkpoint(params, run.base.config, TRAINED, (f'{step} steps',))
    with replaced_folder(out) as new:
        checkpoint.save(trained, out.parent, new, policy_assets=policy_assets)
        seen.note(new, run.shards.meta, run.base.folder or '')
    reporter.say(f'policy saved in {out}')


def saved_at(policy: pathlib.Path) -> int | None:
    """The step at which a run saved its policy; None where there is no folder, or another's.

    Args:
      policy: the folder of the policy.

    Returns:
      The step, from its source.json.
    """
    try:
        record = json.loads((policy / RECORD).read_text())
        counts = [
            note.removesuffix(' steps') for note in record['notes'] if note.endswith(' steps')
        ]
        return int(counts[0]) if record['format'] == TRAINED else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
