"""A training's folder as one object: config, checkpoints, log, and from which episodes it learned.

    folder = RunFolder(pathlib.Path('runs/sigma'))
    folder.config().objective, folder.steps
    step, leaves = folder.trainable()

In it lie:

    config.json        what was asked for
    acting/            what acting needs beside a checkpoint (`training/acting_record.py`)
    checkpoints/       step_<n>/ each
    train_log.csv      and tensorboard/
    episodes.json      from which episodes it learned (`data/shards/seen.py`)
    policy/            the whole policy, where all its weights were trained
"""

import dataclasses
import json
import pathlib

from sigma_jax.data.shards import seen
from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write
from sigma_jax.training.checkpoints import Checkpoints, step_folder, whole_steps
from sigma_jax.training.config import RunConfig, read_config
from sigma_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a training lies, or will; what it holds is read when it is asked for.

    Attributes:
      path: the folder.
    """

    path: pathlib.Path

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of the checkpoints."""
        return self.path / 'checkpoints'

    @property
    def log(self) -> pathlib.Path:
        """The rows of losses."""
        return self.path / 'train_log.csv'

    @property
    def policy(self) -> pathlib.Path:
        """The folder of the trained policy."""
        return self.path / 'policy'

    @property
    def config_file(self) -> pathlib.Path:
        """The file of the config."""
        return self.path / 'config.json'

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        return whole_steps(self.checkpoints)

    @property
    def finished(self) -> bool:
        """Whether the newest checkpoint is that of the last step."""
        steps = self.steps
        return self.config_file.is_file() and bool(steps) and steps[-1] >= self.config().steps

    @property
    def newest(self) -> tuple[int, int] | None:
        """Step of the newest checkpoint and when it was written (ns), None where there is none:
        another training may have taken its place.
        """
        if not (steps := self.steps):
            return None
        return steps[-1], step_folder(self.checkpoints, steps[-1]).stat().st_mtime_ns

    def config(self) -> RunConfig:
        """The config of the training.

        Raises:
          UserError: there is none, a damaged one, or one that no run has written.
        """
        return read_config(self.path)

    def write_config(self, config: RunConfig) -> None:
        """Writes config.json.

        Args:
          config: of the training.
        """
        atomic_write(self.config_file, json.dumps(config.to_dict(), indent=1))

    def trainable(self, step: int | None = None) -> tuple[int, PyTree]:
        """Trainable leaves of a checkpoint: the running average where one was kept.

        Args:
          step: which; None is the newest.

        Returns:
          step: of the checkpoint.
          leaves: {group: tree}, numpy.

        Raises:
          UserError: there is none of that step, naming those there are.
        """
        if not (steps := self.steps):
            raise UserError(
                f'expected a checkpoint in {self.path}, got none; run train.py to its end'
            )
        if step is not None and step not in steps:
            raise UserError(
                f'expected checkpoint {step} in {self.path}, got steps {steps}; choose one of them '
                'or train on'
            )
        chosen = steps[-1] if step is None else step
        with Checkpoints(self.checkpoints) as checkpoints:
            return chosen, checkpoints.restore_trainable(chosen)

    def refuse_other_config(self, config: RunConfig) -> None:
        """Checks that the newest checkpoint, where there is one, was made with the same config.

        Args:
          config: of the run that is to continue.

        Raises:
          UserError: it was made with another one; names every difference.
        """
        if steps := self.steps:
            with Checkpoints(self.checkpoints) as checkpoints:
                checkpoints.refuse_other(steps[-1], config)

    def note_episodes(self, meta: Meta, base: str | pathlib.Path = '') -> None:
        """Adds episodes to those that the training learned from.

        Args:
          meta: of its shards; their train episodes are added.
          base: the policy that it started from; the episodes which that one learned from are added
            too.
        """
        seen.note(self.path, meta, base)

    def episodes(self) -> dict[str, str] | None:
        """{digest: name} of the episodes that it learned from; None where nothing was noted."""
        return seen.read(self.path)
