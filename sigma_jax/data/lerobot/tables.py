"""LeRobot v3.0's tables and info: columns, types.

And the Hugging Face and pandas metadata that lerobot 0.4.4 writes.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sigma_jax.errors import UserError

VERSION = 'v3.0'
DATA_PATH = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
INDEX_COLUMNS = ('frame_index', 'episode_index', 'index', 'task_index')


@dataclass(frozen=True)
class Recording:
    """What a data set records.

    Attributes:
      joints: names of the entries of a state, and of an action where `actions` is empty.
      cameras: {name: (height, width) of its images in pixels}; camera `up` becomes the feature
        `observation.images.up`.
      fps: frames per second.
      robot_type: as LeRobot spells it.
      actions: names of the entries of an action, where they are not the joints.
    """

    joints: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]
    fps: int = 30
    robot_type: str = 'so101_follower'
    actions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError for odd image sizes."""
        for camera, (height, width) in self.cameras.items():
            if height % 2 or width % 2:
                raise UserError(
                    'expected an even image height and width for yuv420p video, got '
                    f'{height} x {width} of {camera}; round them up'
                )

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the entries of an action."""
        return self.actions or self.joints

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """{feature of a camera: (height, width)}."""
        return {f'observation.images.{camera}': size for camera, size in self.cameras.items()}


def info(recording: Recording, codec: str, episodes: int, frames: int, tasks: int) -> dict:
    """The content of meta/info.json.

    Args:
      recording: of the data set.
      codec: of its videos.
      episodes: how many.
      frames: how many.
      tasks: how many.

    Returns:
      For JSON.
    """
    return {
        'codebase_version': VERSION,
        'robot_type': recording.robot_type,
        'total_episodes': episodes,
        'total_frames': frames,
        'total_tasks': tasks,
        'chunks_size': 1000,
        'data_files_size_in_mb': 100,
        'video_files_size_in_mb': 200,
        'fps': recording.fps,
        'splits': {'train': f'0:{episodes}'},
        'data_path': DATA_PATH,
        'video_path': VIDEO_PATH,
        'features': features(recording, codec),
    }


def data_schema(recording: Recording) -> pa.Schema:
    """Schema of data/*.parquet, with the features as the datasets library expects them.

    Args:
      recording: of the data set.

    Returns:
      The schema.
    """
    widths = {'action': len(recording.action_names), 'observation.state': len(recording.joints)}
    fields = [pa.field(name, pa.list_(pa.float32(), width)) for name, width in widths.items()]
    fields += [pa.field('timestamp', pa.float32())]
    fields += [pa.field(name, pa.int64()) for name in INDEX_COLUMNS]
    features: dict[str, dict] = {
        name: {
            'feature': {'dtype': 'float32', '_type': 'Value'},
            'length': width,
            '_type': 'List',
        }
        for name, width in widths.items()
    }
    features['timestamp'] = {'dtype': 'float32', '_type': 'Value'}
    features |= {name: {'dtype': 'int64', '_type': 'Value'} for name in INDEX_COLUMNS}
    return pa.schema(fields, metadata={'huggingface': json.dumps({'info': {'features': features}})})


def table(columns: Mapping[str, np.ndarray], schema: pa.Schema) -> pa.Table:
    """A table of [T] and [T, joints] arrays; two-dimensional ones become fixed-size lists.

    Args:
      columns: {name: array}.
      schema: with the same names.

    Returns:
      The table.
    """
    arrays = []
    for field in schema:
        values = columns[field.name]
        flat = pa.array(values.reshape(-1))
        arrays.append(
            pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
        )
    return pa.Table.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema
    )


def episodes_table(rows: Sequence[dict], recording: Recording) -> pa.Table:
    """The table of meta/episodes with LeRobot's types: nested lists for image statistics.

    Int64 where the feature is integral.

    Args:
      rows: one dictionary an episode.
      recording: of the data set.

    Returns:
      The table.
    """
    fields = []
    for name in rows[0]:
        kind = pa.int64() if isinstance(rows[0][name], int) else pa.float64()
        if name == 'tasks':
            kind = pa.list_(pa.string())
        elif name.startswith('stats/'):
            _, feature, key = name.split('/')
            kind = _stats_type(feature, key, recording.image_sizes)
        fields.append(pa.field(name, kind))
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields))


def _stats_type(feature: str, key: str, images: Collection[str]) -> pa.DataType:
    if key == 'count' or (feature in INDEX_COLUMNS and key in ('min', 'max')):
        return pa.list_(pa.int64())
    deep = pa.list_(pa.list_(pa.list_(pa.float64())))
    return deep if feature in images else pa.list_(pa.float64())


def tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """meta/tasks.parquet as pandas writes a frame whose unnamed index is the task text.

    Args:
      tasks: {text: index}.

    Returns:
      The table.
    """
    index = '__index_level_0__'
    column = {
        'name': 'task_index',
        'field_name': 'task_index',
        'pandas_type': 'int64',
        'numpy_type': 'int64',
        'metadata': None,
    }
    text = {
        'name': None,
        'field_name': index,
        'pandas_type': 'unicode',
        'numpy_type': 'object',
        'metadata': None,
    }
    names = {
        'name': None,
        'field_name': None,
        'pandas_type': 'unicode',
        'numpy_type': 'object',
        'metadata': {'encoding': 'UTF-8'},
    }
    pandas = {
        'index_columns': [index],
        'column_indexes': [names],
        'columns': [column, text],
        'attributes': {},
    }
    schema = pa.schema(
        [('task_index', pa.int64()), (index, pa.large_string())],
        metadata={'pandas': json.dumps(pandas)},
    )
    return pa.table({'task_index': list(tasks.values()), index: list(tasks)}, schema=schema)


def features(recording: Recording, codec: str) -> dict:
    """The features of meta/info.json.

    Args:
      recording: of the data set.
      codec: of its videos.

    Returns:
      {key: description}.
    """
    numbers = {'action': recording.action_names, 'observation.state': recording.joints}
    features: dict[str, dict] = {
        key: {'dtype': 'float32', 'shape': [len(names)], 'names': list(names)}
        for key, names in numbers.items()
    }
    features |= {
        key: _video(size, codec, recording.fps) for key, size in recording.image_sizes.items()
    }
    features['timestamp'] = {'dtype': 'float32', 'shape': [1], 'names': None}
    return features | {
        name: {'dtype': 'int64', 'shape': [1], 'names': None} for name in INDEX_COLUMNS
    }


def _video(size: tuple[int, int], codec: str, fps: int) -> dict:
    """The feature of a camera."""
    height, width = size
    info = {
        'video.height': height,
        'video.width': width,
        'video.codec': codec,
        'video.pix_fmt': 'yuv420p',
        'video.is_depth_map': False,
        'video.fps': fps,
        'video.channels': 3,
        'has_audio': False,
    }
    return {
        'dtype': 'video',
        'shape': [height, width, 3],
        'names': ['height', 'width', 'channels'],
        'info': info,
    }
