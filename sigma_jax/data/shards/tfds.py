"""ArrayRecord shards that TFDS reads without TensorFlow; every file appears whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from sigma_jax import files
from sigma_jax.errors import UserError

NAME = 'sigma'
VERSION = '1.0.0'
SPLITS = ('train', 'calibration', 'test')
INCOMING = '.incoming'
LOCK = files.LOCK
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


def window_features(
    cameras: Iterable[str],
    image_size: int,
    state_width: int,
    action_width: int,
    horizon: int,
    *,
    depth: Iterable[str] = (),
    audio: tuple[int, str] | None = None,
    language: bool = False,
) -> tfds.features.FeaturesDict:
    """The fields of a record; images are stored as JPEG bytes, depth as 16-bit PNG, audio as
    (samples, dtype).

    Args:
      cameras: names.
      image_size: side of the images, pixels.
      state_width: numbers of a state.
      action_width: numbers of an action.
      horizon: actions of a window.
      depth: names of depth views.
      audio: (samples, dtype); None: none.
      language: whether there is any.

    Returns:
      TFDS features.
    """
    feature = tfds.features
    image = {
        name: feature.Image(shape=(image_size, image_size, 3), encoding_format='jpeg')
        for name in cameras
    }
    square = (image_size, image_size, 1)
    optional: dict[str, Any] = {}
    if maps := {
        name: feature.Image(shape=square, dtype=np.uint16, encoding_format='png') for name in depth
    }:
        optional['depth'] = feature.FeaturesDict(maps)
    if audio is not None:
        optional['audio'] = feature.Tensor(shape=(audio[0],), dtype=np.dtype(audio[1]))
    if language:
        optional['language'] = feature.Text()
    return feature.FeaturesDict(
        optional
        | {
            'images': feature.FeaturesDict(image),
            'state': feature.Tensor(shape=(state_width,), dtype=np.float32),
            'actions': feature.Tensor(shape=(horizon, action_width), dtype=np.float32),
            'action_mask': feature.Tensor(shape=(horizon,), dtype=np.bool_),
            'task': feature.Text(),
            'episode_index': feature.Scalar(np.int64),
            'frame_index': feature.Scalar(np.int64),
            'avg_action_l2': feature.Scalar(np.float32),
            'max_action_l2': feature.Scalar(np.float32),
            'avg_motion': feature.Scalar(np.float32),
        }
    )


def shard_file(split: str, shard: int, count: int) -> str:
    """The name that TFDS gives to a shard.

    Args:
      split: its name.
      shard: number of the shard.
      count: of shards.

    Returns:
      The file's name.
    """
    return f'{NAME}-{split}.array_record-{shard:05d}-of-{count:05d}'


def write_shard(
    path: Path, features: tfds.features.FeaturesDict, examples: Iterable[Mapping[str, Any]]
) -> None:
    """Writes one shard atomically. Equal examples give equal files.

    Args:
      path: of the file.
      features: of `window_features`.
      examples: the records.
    """
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    with incoming(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), 'group_size:1')
        try:
            for example in examples:
                proto = serializer.get_tf_example(features.encode_example(dict(example)))
                writer.write(proto.SerializeToString(deterministic=True))
        finally:
            writer.close()


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Args:
      path: of the file.
      text: its contents.
    """
    with incoming(path) as temporary:
        temporary.write_text(text)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz atomically; equal arrays give equal files.

    Args:
      path: of the file.
      arrays: by name.
    """
    with incoming(path) as temporary, temporary.open('wb') as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_tfds_metadata(
    out: Path, features: tfds.features.FeaturesDict, splits: Mapping[str, tuple[list[int], int]]
) -> None:
    """Writes dataset_info.json and features.json.

    Args:
      out: the folder.
      features: of `window_features`.
      splits: {name: (windows of each shard, bytes)}.
    """
    staging = out / INCOMING / 'metadata'
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    placeholders = [staging / shard_file(name, 0, 1) for name in splits]
    for path in placeholders:
        # TFDS wants to see a file per split, but reads only names when it is given the lengths
        path.touch()
    tfds.folder_dataset.write_metadata(
        data_dir=staging,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=size)
            for name, (lengths, size) in splits.items()
        ],
        version=VERSION,
        filename_template=_TEMPLATE,
        check_data=False,
    )
    for path in placeholders:
        path.unlink()
    for path in sorted(staging.iterdir()):
        publish(path, out / path.name)


@contextlib.contextmanager
def incoming(path: Path) -> Iterator[Path]:
    """A temporary path on the same disk, renamed when the block ends without an error.

    Args:
      path: the final one.

    Returns:
      A context with the temporary path.

    Raises:
      UserError: the disk is full.
    """
    folder = path.parent / INCOMING
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / path.name
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not files.is_full_disk(error):
            raise
        raise UserError(
            f'expected room for {path}, got a full disk; free some and run the same command again'
        ) from error


@contextlib.contextmanager
def disk_full_as_user_error(out: Path) -> Iterator[None]:
    """Turns want of room within the block into a sentence; what is written stays there to be
    continued.

    Args:
      out: the folder.

    Returns:
      A context.

    Raises:
      UserError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not files.is_full_disk(error):
            raise
        raise UserError(
            f'expected room in {out}, got a full disk; free some and run the same command again'
        ) from error


def publish(temporary: Path, path: Path) -> None:
    """Flushes a finished file to disk and gives it its final name.

    Args:
      temporary: path.
      path: the final one.
    """
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def writer_lock(out: Path) -> contextlib.AbstractContextManager[None]:
    """Holds a folder for one preparation.

    Args:
      out: the folder.

    Returns:
      A context.
    """
    return files.writer_lock(out, 'preparation')
