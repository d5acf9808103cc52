"""Training checkpoints: the state, the loader's position and the config, saved together by
Orbax.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from sigma_jax import trees
from sigma_jax.errors import UserError
from sigma_jax.training.config import RunConfig
from sigma_jax.training.signals import Stopped
from sigma_jax.training.step import TrainState
from sigma_jax.types import PyTree

# settings that may change between a run and its continuation
FREE = ('steps', 'log', 'checkpoint', 'loader', 'compilation_cache', 'triton')


class Checkpoints:
    """A folder of numbered checkpoints; use as a context manager, which waits for the last write.

    With `keep` it is open for training: the newest `keep` checkpoints stay, older ones are deleted
    when a new one is complete, and what a killed run left half written is removed. Without it is
    open for reading, which changes nothing, also while another process trains there.

    Args:
      folder: where they are or will be.
      keep: how many stay; None: for reading.

    Raises:
      UserError: `keep` is below 1.
    """

    def __init__(self, folder: str | pathlib.Path, keep: int | None = None):
        if keep is not None and keep < 1:
            raise UserError(f'checkpoint.keep: expected at least 1, got {keep}; correct it')
        self.folder = pathlib.Path(folder)
        writes = {'max_to_keep': keep, 'cleanup_tmp_directories': True}
        reads = {'read_only': True, 'save_interval_steps': 0, 'create': False}
        options = ocp.CheckpointManagerOptions(
            step_prefix='step', **(reads if keep is None else writes)
        )
        self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self._manager.close()
        except Exception:  # of the last write; where one came first, that one is reported
            if kind is None or issubclass(kind, Stopped):
                raise

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None when there is none; complete, except for one that is
        being written here.
        """
        return self._manager.latest_step()

    def raise_errors(self) -> None:
        """Raises what went wrong in the background since the last call."""
        if not self._manager.is_saving_in_progress():
            self._manager.wait_until_finished()

    def save(self, state: TrainState, loader: dict, config: RunConfig) -> None:
        """Writes a checkpoint in the background; it gets its final name only when it is complete.

        Args:
          state: of the training, whose step numbers the checkpoint.
          loader: position of the loader, plain JSON.
          config: of the run.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            loader=ocp.args.JsonSave(loader),
            config=ocp.args.JsonSave(config.to_dict()),
        )
        self._manager.save(int(state.step), args=items, force=True)

    def config(self, step: int) -> dict:
        """The config that a checkpoint was made with.

        Args:
          step: of the checkpoint.

        Returns:
          The nested dictionary.

        Raises:
          UserError: the checkpoint is damaged.
        """
        return self._read(step, config=ocp.args.JsonRestore())['config']

    def refuse_other(self, step: int, config: RunConfig) -> None:
        """Checks that a checkpoint was made with the same config.

        Args:
          step: of the checkpoint.
          config: of the run that is to continue.

        Raises:
          UserError: it was made with another one; names every difference.
        """
        if differences := compare(completed(self.config(step)), config.to_dict()):
            raise UserError(
                f'expected the config that checkpoint {step} in {self.folder} was made with, got '
                'another: '
                f'{"; ".join(differences)}; restore those values or choose another --workdir'
            )

    def restore(self, step: int, like: TrainState, config: RunConfig) -> tuple[TrainState, dict]:
        """What a training continues from.

        Args:
          step: of the checkpoint.
          like: a state of the same shapes, dtypes and devices.
          config: of the run that is to continue.

        Returns:
          state: of the training.
          loader: position of the loader.

        Raises:
          UserError: it was made with another config, or is damaged.
        """
        self.refuse_other(step, config)
        shapes = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        restored = self._read(step, state=shapes, loader=ocp.args.JsonRestore())
        return restored['state'], restored['loader']

    def restore_trainable(self, step: int) -> PyTree:
        """Trainable leaves of a checkpoint for inference: the running average where one was kept.

        They can be read whatever devices wrote them: the shapes are read first, as without them
        Orbax would look for the same devices.

        Args:
          step: of the checkpoint.

        Returns:
          {group: tree}, numpy.

        Raises:
          UserError: the checkpoint is damaged.
        """
        with self._as_user_error(step), ocp.StandardCheckpointer() as reader:
            found = reader.metadata(
                step_folder(self.folder.absolute(), step) / 'state'
            ).item_metadata
            if found is None:
                raise ValueError('nothing says which leaves it has')
            host = jax.tree.map(
                lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), found.tree
            )
        state = self._read(step, state=ocp.args.StandardRestore(host))['state']
        return state['ema'] if state.get('ema') else state['trainable']

    def _read(self, step: int, **items: Any) -> Any:
        """Items of checkpoint `step`. Raises UserError where they are damaged."""
        with self._as_user_error(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _as_user_error(self, step: int) -> Iterator[None]:
        """Raises UserError where checkpoint `step` turns out to be damaged."""
        try:
            yield
        except (ValueError, KeyError, OSError) as error:
            # Orbax's own names the whole path of every call
            reason = str(error)[:200].splitlines()[0]
            others = [other for other in self._manager.all_steps() if other < step]
            instead = f'continue from step {max(others)}' if others else 'start anew'
            raise UserError(
                f'expected a whole checkpoint {step} in {self.folder}, got: {reason}; it cannot be '
                'read: if an earlier sigma_jax wrote it, continue with that one, otherwise delete '
                f'{step_folder(self.folder, step)} to {instead}'
            ) from error


def compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences of two configs, settings that may change apart (`FREE`).

    Args:
      saved: of a checkpoint, as `RunConfig.to_dict` gives it.
      now: of the run that is to continue.

    Returns:
      Clauses such as 'seed: saved 1, now 2'.

    Examples:
      >>> from sigma_jax.training.checkpoints import compare
      >>> compare({'seed': 1, 'steps': 10}, {'seed': 2, 'steps': 20})
      ['seed: saved 1, now 2']
    """
    old, new = (traverse_util.flatten_dict(dict(c), sep='.') for c in (saved, now))
    keys = sorted(k for k in old | new if k.split('.')[0] not in FREE)
    return [
        f'{k}: saved {old.get(k, "absent")!r}, now {new.get(k, "absent")!r}'
        for k in keys
        if old.get(k) != new.get(k)
    ]


def completed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """An older checkpoint's config with the defaults of what it does not name.

    Args:
      saved: the nested dictionary.

    Returns:
      The completed one; `saved` itself where it names what is no setting any more.
    """
    try:
        return RunConfig.from_dict(saved).to_dict()
    except UserError:
        return saved


def whole_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints in a folder; half ones have other names.

    Args:
      folder: of checkpoints.

    Returns:
      Oldest first.
    """
    names = (path.name.removeprefix('step_') for path in folder.glob('step_*'))
    return sorted(int(name) for name in names if name.isdigit())


def step_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The folder of one checkpoint.

    Args:
      folder: of checkpoints.
      step: of the checkpoint.

    Returns:
      Its path.
    """
    return folder / f'step_{step}'


def parameter_count(trainable: PyTree) -> dict[str, int]:
    """Elements in each group of trainable leaves.

    Args:
      trainable: {group: tree}.

    Returns:
      {group: count}.
    """
    return {name: trees.count(tree) for name, tree in trainable.items()}
