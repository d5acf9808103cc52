"""A prepared folder as one object: what it says, its statistics, windows and the base's actions.

    shards = open_shards('out')
    shards.meta.camera_names
    train = shards.split('train')
    train.records()[0].images, train.base_actions()

Nothing else reads the files of such a folder. They are opened where they are asked for.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sigma_jax.data.shards import base_record
from sigma_jax.data.shards.base_record import BaseRecord, read_base_record
from sigma_jax.data.shards.file_digests import file_digest
from sigma_jax.data.shards.meta import META, Meta
from sigma_jax.data.shards.records import Index, Records, read_base_actions, read_index
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import (
    Statistics,
    compute_statistics,
    first_joints,
    read_norm_stats,
)


@dataclasses.dataclass(frozen=True)
class Shards:
    """A finished preparation: its folder and what meta.json says of it.

    Attributes:
      path: the folder.
      meta: what its meta.json says: cameras, horizon, splits, what was dropped.
    """

    path: Path
    meta: Meta

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of meta.json, which holds those of all files."""
        return file_digest(self.path / META)

    @functools.cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Of the train episodes, by 'state' and 'actions', as norm_stats.json has them."""
        return read_norm_stats(self.path / self.meta.norm_stats)

    def relative_statistics(self, relative_joints: Sequence[bool]) -> dict[str, Statistics]:
        """Statistics for a policy with relative joints, from the train split.

        Args:
          relative_joints: one flag an action; true where the state is subtracted from it first.

        Returns:
          {'state', 'actions'}: `statistics`, those of the actions taken after the subtraction.
        """
        if not any(relative_joints):
            return self.statistics
        records = self.split('train').records()
        pairs = [records.numbers(n) for n in range(len(records))]
        actions = [a - np.where(relative_joints, first_joints(s, a.shape[-1]), 0) for s, a in pairs]
        return {**self.statistics, 'actions': compute_statistics(np.concatenate(actions))}

    @property
    def baselines(self) -> BaseRecord | None:
        """Which policy's actions lie here; None where there are none."""
        return read_base_record(self.path)

    @property
    def base_record_file(self) -> Path:
        """The file of `baselines`."""
        return self.path / base_record.FILE

    @property
    def features(self) -> Path:
        """The folder of the frozen features (`data/loader/cached_features.py`)."""
        return self.path / 'features'

    def split(self, name: str) -> 'Split':
        """The windows of a split.

        Args:
          name: 'train', 'calibration' or 'test'.

        Returns:
          The split; its files are opened when they are read.

        Raises:
          UserError: there is no such split.
        """
        if name not in SPLITS:
            raise UserError(
                f'expected a split out of {", ".join(SPLITS)}, got {name!r}; choose one of them'
            )
        return Split(self, name)


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a preparation.

    Attributes:
      shards: the preparation.
      name: 'train', 'calibration' or 'test'.
    """

    shards: Shards
    name: str

    @property
    def windows(self) -> int:
        """How many it has."""
        return self.shards.meta.windows[self.name]

    @property
    def episodes(self) -> tuple[int, ...]:
        """The episodes that its windows are of."""
        return self.shards.meta.splits[self.name]

    @functools.cached_property
    def index(self) -> Index:
        """Where each window is from."""
        return read_index(self.shards.path / f'{self.name}-index.npz')

    def records(self) -> Records:
        """The windows themselves, by number.

        Raises:
          UserError: a split without windows, or damaged shards.
        """
        return Records(self.shards.path, self.name, self.shards.meta, self.index)

    @property
    def base_file(self) -> Path:
        """The file of the base's actions."""
        return self.shards.path / f'baselines-{self.name}.npz'

    def base_actions(self) -> Float[np.ndarray, 'm samples t a']:
        """The base policy's own actions in every window, raw units.

        Raises:
          UserError: they were not computed, or for other shards.
        """
        meta = self.shards.meta
        expected = len(self.index), meta.horizon, len(meta.action_names)
        return read_base_actions(self.base_file, expected)


def open_shards(path: str | Path) -> Shards:
    """Opens a finished preparation.

    Args:
      path: the folder that prepare_data.py has written.

    Returns:
      The preparation; its files are opened when they are read.

    Raises:
      UserError: none there, a damaged meta.json, or one of another schema.
    """
    path = Path(path)
    if not is_finished(path):
        raise UserError(
            f'expected finished shards in {path}, got no {META}; run prepare_data.py --out={path}'
        )
    try:
        found = json.loads((path / META).read_text())
    except ValueError as error:
        raise UserError(
            f'expected a {META} of prepare_data.py in {path}, got {error}; prepare it again'
        ) from error
    return Shards(path, Meta.from_json(found, path))


def is_finished(path: str | Path) -> bool:
    """Whether a preparation has come to its end.

    Args:
      path: its folder.

    Returns:
      Whether meta.json, which is written last, is there.
    """
    return (Path(path) / META).is_file()
