"""Random access to the windows of a finished shard directory, as numpy arrays."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from tensorflow_datasets.proto import tf_example_pb2

from sigma_jax.data.shards.meta import Meta
from sigma_jax.data.shards.tfds import NAME
from sigma_jax.errors import UserError
from sigma_jax.processing.images import decode_depth, decode_image, decode_jpeg

JPEG = b'\xff\xd8'  # how every file of the kind begins


@dataclasses.dataclass(frozen=True)
class Record:
    """One window; `state` and `actions` in raw robot units.

    `depth` as it was recorded, 0 where there is no reading; `audio` float32, -1 to 1 where it was
    recorded as int16.
    """

    images: UInt8[np.ndarray, 'i h x 3']
    state: Float[np.ndarray, ' p']
    actions: Float[np.ndarray, 't a']
    action_mask: Bool[np.ndarray, ' t']
    depth: UInt16[np.ndarray, 'j h x 1'] | None = None
    audio: Float[np.ndarray, ' samples'] | None = None


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
    """The windows of one split, by record number; images are decoded on access.

    Args:
      directory: of the shards.
      split: its name.
      meta: what the shards say.
      index: of the split.

    Raises:
      UserError: a split without windows, or damaged shards.
    """

    def __init__(self, directory: Path, split: str, meta: Meta, index: Index) -> None:
        self.directory, self.split, self.meta, self.index = directory, split, meta, index
        self._source = _open_source(self.directory, split, self.meta)
        if len(self._source) != len(self.index):
            raise UserError(
                f'expected {len(self.index)} windows in the {split} shards of {self.directory}, '
                f'got {len(self._source)}; the directory mixes two preparations, delete it and '
                'prepare again'
            )

    def __len__(self) -> int:
        return len(self.index)

    def numbers(self, number: int) -> tuple[Float[np.ndarray, ' p'], Float[np.ndarray, 't a']]:
        """State and actions of a window, its images left undecoded.

        Args:
          number: of the record.

        Returns:
          state: raw units.
          actions: raw units.
        """
        return self._numbers(self._fields(number))

    def __getitem__(self, number: int) -> Record:
        fields = self._fields(number)
        names, side = self.meta.camera_names, self.meta.image_size
        views = np.empty((len(names), side, side, 3), np.uint8)
        for view, name in zip(views, names, strict=True):
            view[:] = self._view(fields, name)
        mask = np.array(fields['action_mask'].int64_list.value, bool)
        return Record(views, *self._numbers(fields), mask, self._depth(fields), self._audio(fields))

    def _fields(self, number: int) -> Mapping[str, Any]:
        """The record's `tf.train.Example`, field by field: TFDS's own reader takes longer than
        decoding an image.
        """
        try:
            return tf_example_pb2.Example.FromString(self._source[int(number)]).features.feature
        except (DecodeError, OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f'expected a readable record {number} in the {self.split} shards of '
                f'{self.directory}, got "{reason}"; delete the directory and prepare it again'
            ) from error

    def _view(self, fields: Mapping[str, Any], name: str) -> np.ndarray:
        data, side = _bytes(fields, f'images/{name}'), self.meta.image_size
        return decode_jpeg(data, side) if data.startswith(JPEG) else decode_image(data)

    def _numbers(self, fields: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        state, actions = (
            np.array(fields[name].float_list.value, np.float32) for name in ('state', 'actions')
        )
        return state, actions.reshape(-1, len(self.meta.action_names))

    def _depth(self, fields: Mapping[str, Any]) -> np.ndarray | None:
        names = self.meta.depth_names
        return (
            np.stack([decode_depth(_bytes(fields, f'depth/{name}')) for name in names])
            if names
            else None
        )

    def _audio(self, fields: Mapping[str, Any]) -> np.ndarray | None:
        if not self.meta.audio_samples:
            return None
        if self.meta.audio_dtype == 'int16':
            return np.array(fields['audio'].int64_list.value, np.float32) / np.float32(2**15)
        return np.array(fields['audio'].float_list.value, np.float32)


def read_index(path: Path) -> Index:
    """Reads <split>-index.npz.

    Args:
      path: of the file.

    Returns:
      Where each window is from.

    Raises:
      UserError: no finished shards.
    """
    if not path.is_file():
        raise UserError(
            f'expected {path}, got nothing there; run prepare_data.py --out={path.parent}'
        )
    with np.load(path) as arrays:
        return Index(**{field.name: arrays[field.name] for field in dataclasses.fields(Index)})


def read_base_actions(
    path: Path, expected: tuple[int, int, int]
) -> Float[np.ndarray, 'm samples t a']:
    """Reads baselines-<split>.npz.

    Args:
      path: of the file.
      expected: (m, t, a).

    Returns:
      Raw units.

    Raises:
      UserError: they were not computed, or for other shards.
    """
    if not path.is_file():
        raise UserError(
            f"expected the base policy's actions at {path}, got nothing there; run "
            f'prepare_data.py with a base on --out={path.parent}, or train without baselines'
        )
    with np.load(path) as arrays:
        base = arrays['base']
    if base.ndim != 4 or (base.shape[0], *base.shape[2:]) != expected:
        raise UserError(
            f'expected baselines of shape [{expected[0]} samples {expected[1]} {expected[2]}] in '
            f'{path}, got {list(base.shape)}; they belong to other shards, run prepare_data.py '
            'again'
        )
    return base.astype(np.float32)


def _bytes(fields: Mapping[str, Any], name: str) -> bytes:
    return fields[name].bytes_list.value[0]


def _open_source(directory: Path, split: str, meta: Meta) -> ArrayRecordDataSource:
    """Random access to the serialised records of a split's shards, in order."""
    if not meta.windows[split]:
        raise UserError(
            f'expected windows in split {split} of {directory}, got none; prepare '
            'with a larger fraction'
        )
    names = [name for name in sorted(meta.files) if name.startswith(f'{NAME}-{split}.')]
    gone = [name for name in names if not (directory / name).is_file()]
    if gone:
        raise UserError(
            f'expected {gone[0]} in {directory}, got nothing there; delete the directory and '
            'prepare it again'
        )
    try:
        return ArrayRecordDataSource([str(directory / name) for name in names])
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'expected readable shards in {directory}, got "{reason}"; prepare them again'
        ) from error
