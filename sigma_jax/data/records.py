"""Random access to the windows of a finished shard directory, as numpy arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Bool, Float, Int, UInt8

from sigma_jax.data.images import decode_image
from sigma_jax.data.meta import read_meta
from sigma_jax.data.normalize import Statistics, compute_statistics
from sigma_jax.data.shards import NAME, SPLITS, window_features
from sigma_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One window; `state` and `actions` in raw robot units."""

    images: UInt8[np.ndarray, 'i h x 3']
    state: Float[np.ndarray, ' p']
    actions: Float[np.ndarray, 't a']
    action_mask: Bool[np.ndarray, ' t']


@dataclasses.dataclass(frozen=True)
class Index:
    """Columns of <split>-index.npz, one row a window, in record order."""

    episode: Int[np.ndarray, ' m']
    frame: Int[np.ndarray, ' m']
    text_id: Int[np.ndarray, ' m']
    is_first: Bool[np.ndarray, ' m']
    avg_motion: Float[np.ndarray, ' m']
    max_motion: Float[np.ndarray, ' m']

    def __len__(self) -> int:
        return len(self.episode)


class Records:
    """The windows of one split, by record number; images are decoded on access."""

    def __init__(self, shards_dir: str | Path, split: str) -> None:
        self.directory = Path(shards_dir)
        self.split = split
        self.meta = read_meta(self.directory)
        self.index = read_index(self.directory, split)
        self._features = _features(self.meta)
        self._skip = {'images': {name: tfds.decode.SkipDecoding() for name in self.meta['camera_names']}}
        self._source = _open_source(self.directory, split, self.meta)
        if len(self._source) != len(self.index):
            raise UserError(
                f'Expected {len(self.index)} windows in the {split} shards of {self.directory}, '
                f'got {len(self._source)}; the directory mixes two preparations, delete it and prepare again.'
            )

    def __len__(self) -> int:
        return len(self.index)

    def numbers(self, number: int) -> tuple[Float[np.ndarray, ' p'], Float[np.ndarray, 't a']]:
        """State and actions of a window, raw units, its images left undecoded."""
        example = self._features.deserialize_example_np(self._source[int(number)], decoders=self._skip)
        return example['state'], example['actions']

    def __getitem__(self, number: int) -> Record:
        example = self._features.deserialize_example_np(self._source[int(number)], decoders=self._skip)
        views = [decode_image(example['images'][name]) for name in self.meta['camera_names']]
        return Record(np.stack(views), example['state'], example['actions'], example['action_mask'])


def relative_statistics(
    shards_dir: str | Path, statistics: Mapping[str, Statistics], relative_joints: Sequence[bool]
) -> dict[str, Statistics]:
    """`statistics` with those of the actions taken after subtracting the state in relative joints (train split)."""
    if not any(relative_joints):
        return dict(statistics)
    records = Records(shards_dir, 'train')
    pairs = [records.numbers(n) for n in range(len(records))]
    actions = [a - np.where(relative_joints, s, 0) for s, a in pairs]
    return {**statistics, 'actions': compute_statistics(np.concatenate(actions))}


def read_index(shards_dir: str | Path, split: str) -> Index:
    """Reads <split>-index.npz.

    Raises:
      UserError: unknown split, or no finished shards.
    """
    if split not in SPLITS:
        raise UserError(f'Expected a split out of {", ".join(SPLITS)}, got {split!r}; choose one of them.')
    path = Path(shards_dir) / f'{split}-index.npz'
    if not path.is_file():
        raise UserError(f'Expected {path}, got nothing there; run prepare_data.py --out={shards_dir}.')
    with np.load(path) as arrays:
        return Index(**{field.name: arrays[field.name] for field in dataclasses.fields(Index)})


def read_baselines(
    shards_dir: str | Path, split: str, expected: tuple[int, int, int]
) -> Float[np.ndarray, 'm samples t a']:
    """Reads the frozen policy's own actions, raw units; `expected` is (m, t, a).

    Raises:
      UserError: they were not computed, or for other shards.
    """
    path = Path(shards_dir) / f'baselines-{split}.npz'
    if not path.is_file():
        raise UserError(
            f"Expected the base policy's actions at {path}, got nothing there; run prepare_data.py with a base on "
            f'--out={shards_dir}, or train without baselines.'
        )
    with np.load(path) as arrays:
        base = arrays['base']
    if base.ndim != 4 or (base.shape[0], *base.shape[2:]) != expected:
        raise UserError(
            f'Expected baselines of shape [{expected[0]} samples {expected[1]} {expected[2]}] in {path}, '
            f'got {list(base.shape)}; they belong to other shards, run prepare_data.py again.'
        )
    return base.astype(np.float32)


def _features(meta: Mapping[str, Any]) -> tfds.features.FeaturesDict:
    widths = len(meta['state_names']), len(meta['action_names'])
    return window_features(meta['camera_names'], meta['image_size'], *widths, meta['horizon'])


def _open_source(directory: Path, split: str, meta: Mapping[str, Any]) -> ArrayRecordDataSource:
    """Random access to the serialised records of a split's shards, in order."""
    if not meta['windows'][split]:
        raise UserError(f'Expected windows in split {split} of {directory}, got none; prepare with a larger fraction.')
    names = [name for name in sorted(meta['files']) if name.startswith(f'{NAME}-{split}.')]
    gone = [name for name in names if not (directory / name).is_file()]
    if gone:
        raise UserError(
            f'Expected {gone[0]} in {directory}, got nothing there; delete the directory and prepare it again.'
        )
    try:
        return ArrayRecordDataSource([str(directory / name) for name in names])
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'Expected readable shards in {directory}, got "{reason}"; prepare them again.') from error
