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

PyTree = Any
# settings that may change between a run and its continuation
FREE = ('steps', 'log', 'checkpoint', 'loader', 'compilation_cache', 'triton')


class Checkpoints:
    """A folder of numbered checkpoints; use as a context manager, which waits for the last write.

    With `keep` for training: the newest `keep` of them stay, older ones go when a new one is whole,
    and what a killed run left half written is swept away. Without it for reading, which changes
    nothing, also beside a running training.
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
        except Exception:  # of the last write; where one came first, that one is told
            if kind is None or issubclass(kind, Stopped):
                raise

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None when there is none; whole, but for one that is being
        written here.
        """
        return self._manager.latest_step()

    def raise_errors(self) -> None:
        """Raises what went wrong in the background since the last call."""
        if not self._manager.is_saving_in_progress():
            self._manager.wait_until_finished()

    def save(self, state: TrainState, loader: dict, config: RunConfig) -> None:
        """Writes checkpoint `state.step` in the background, under its final name only when
        whole.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            loader=ocp.args.JsonSave(loader),
            config=ocp.args.JsonSave(config.to_dict()),
        )
        self._manager.save(int(state.step), args=items, force=True)

    def config(self, step: int) -> dict:
        """The config that checkpoint `step` was made with."""
        return self._read(step, config=ocp.args.JsonRestore())['config']

    def refuse_other(self, step: int, config: RunConfig) -> None:
        """Raises UserError when checkpoint `step` was made with another config, naming every
        difference.
        """
        if differences := compare(completed(self.config(step)), config.to_dict()):
            raise UserError(
                f'checkpoint {step} in {self.folder} was made with another config: '
                f'{"; ".join(differences)}; restore those values or choose another --workdir'
            )

    def restore(self, step: int, like: TrainState, config: RunConfig) -> tuple[TrainState, dict]:
        """(state, loader position) of checkpoint `step`, shaped as `like`.

        Raises UserError when it was made with another config, naming every difference.
        """
        self.refuse_other(step, config)
        shapes = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        restored = self._read(step, state=shapes, loader=ocp.args.JsonRestore())
        return restored['state'], restored['loader']

    def restore_trainable(self, step: int) -> PyTree:
        """Trainable leaves of checkpoint `step` for inference, on the host: the running average
        where one was kept.

        Whatever devices wrote it: without the leaves' shapes Orbax would look for these.
        """
        with self._told(step), ocp.StandardCheckpointer() as reader:
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
        with self._told(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _told(self, step: int) -> Iterator[None]:
        """Raises UserError where checkpoint `step` turns out to be damaged."""
        try:
            yield
        except (ValueError, KeyError, OSError) as error:
            # Orbax's own tells the whole path of every call
            reason = str(error)[:200].splitlines()[0]
            others = [other for other in self._manager.all_steps() if other < step]
            instead = f'continue from step {max(others)}' if others else 'start anew'
            raise UserError(
                f'checkpoint {step} in {self.folder} cannot be read ({reason}); if an earlier '
                'sigma_jax wrote it, continue with that one, otherwise delete '
                f'{step_folder(self.folder, step)} to {instead}'
            ) from error


def compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences of two configs (`RunConfig.to_dict`), `FREE` settings left out, as sentences
    'key: saved 1, now 2'.
    """
    old, new = (traverse_util.flatten_dict(dict(c), sep='.') for c in (saved, now))
    keys = sorted(k for k in old | new if k.split('.')[0] not in FREE)
    return [
        f'{k}: saved {old.get(k, "absent")!r}, now {new.get(k, "absent")!r}'
        for k in keys
        if old.get(k) != new.get(k)
    ]


def completed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """An older checkpoint's config with the defaults of what it does not name; as it is where it
    names what is no setting any more.
    """
    try:
        return RunConfig.from_dict(saved).to_dict()
    except UserError:
        return saved


def whole_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, oldest first: half ones have other names."""
    names = (path.name.removeprefix('step_') for path in folder.glob('step_*'))
    return sorted(int(name) for name in names if name.isdigit())


def step_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Where a checkpoint lies in a folder of them."""
    return folder / f'step_{step}'


def parameter_count(trainable: PyTree) -> dict[str, int]:
    """Elements in each group of trainable leaves."""
    return {name: trees.count(tree) for name, tree in trainable.items()}
