"""Videos whose images show their own number, with any clock, codec and container, and v3.0 data
sets around them.
"""

import json
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data_pipeline import recordings

CAMERA = 'observation.images.up'
HEIGHT, WIDTH, BITS = 64, 128, 8
VIDEO = f'videos/{CAMERA}/chunk-000/file-{{:03d}}.mp4'


def numbered(number: int) -> np.ndarray:
    """Eight bars, bright where a bit of `number` is set, the lowest on the left; grey below."""
    bars = np.array([number >> bit & 1 for bit in range(BITS)]).repeat(WIDTH // BITS)
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    image[: HEIGHT // 2] = (20 + 210 * bars)[None, :, None]
    return image


def number_of(image: np.ndarray) -> int:
    """The number that an image shows."""
    bars = image[4 : HEIGHT // 2 - 4].mean((0, 2)).reshape(BITS, -1)[:, 4:-4].mean(1)
    return sum(1 << bit for bit in range(BITS) if bars[bit] > 128)


def write_film(
    path: Path,
    numbers: Sequence[int],
    *,
    fps: Fraction | int = 30,
    codec: str = 'libx264',
    pix: str = 'yuv420p',
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    base: Fraction | None = None,
    pts: list[int] | None = None,
) -> None:
    """Writes images at `pts` (default: one after another from 0) in units of `base` (default: a
    frame).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base = base or 1 / Fraction(fps)
    with av.open(str(path), 'w', options=container or {}) as out:
        stream = cast(
            av.VideoStream,
            out.add_stream(codec, rate=fps, options=options or {'g': '8', 'bf': '0'}),
        )
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix
        stream.codec_context.time_base = base
        for i, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(numbered(number), format='rgb24')
            frame.pts, frame.time_base = i if pts is None else pts[i], base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def write_dataset(
    root: Path,
    lengths: list[int],
    *,
    fps: float = 30,
    listed: list[int] | None = None,
    late: float = 0.0,
    **film: Any,
) -> Path:
    """A v3.0 data set of one camera and one file; row r of episode e shows the number of rows
    before it.

    `listed` are the episodes that the metadata knows (default: all), `late` seconds are added to
    every start.
    """
    starts = np.cumsum([0, *lengths]).tolist()
    listed = list(range(len(lengths))) if listed is None else listed
    tables, rows = [], []
    for index in listed:
        rng = np.random.default_rng(index)
        columns = recordings.episode_columns(rng, index, lengths[index], starts[index], 6)
        columns['timestamp'] = (np.arange(lengths[index]) / fps).astype(np.float32)
        tables.append(pa.table(columns | {'task_index': np.zeros(lengths[index], int)}))
        begin, end = (starts[index + i] / fps + late for i in (0, 1))
        row: dict[str, Any] = {'episode_index': index, 'length': lengths[index], 'tasks': ['pick']}
        row |= {'dataset_from_index': starts[index], 'dataset_to_index': starts[index + 1]}
        row |= {
            f'{place}/{field}': 0
            for place in ('data', 'meta/episodes')
            for field in ('chunk_index', 'file_index')
        }
        row |= {f'videos/{CAMERA}/{field}': 0 for field in ('chunk_index', 'file_index')}
        rows.append(
            row | {f'videos/{CAMERA}/from_timestamp': begin, f'videos/{CAMERA}/to_timestamp': end}
        )
    recordings.write_table(root / 'data/chunk-000/file-000.parquet', pa.concat_tables(tables))
    recordings.write_table(
        root / 'meta/episodes/chunk-000/file-000.parquet', pa.Table.from_pylist(rows)
    )
    write_tasks(root)
    write_film(
        root / VIDEO.format(0),
        range(starts[-1]),
        **({'fps': Fraction(fps).limit_denominator(1001)} | film),
    )
    write_info(root, fps, [lengths[index] for index in listed])
    return root


def write_tasks(root: Path) -> None:
    """One task, as pandas writes a frame whose index is the text."""
    index = '__index_level_0__'
    pandas: dict[str, Any] = {'index_columns': [index], 'column_indexes': [], 'columns': []}
    for field, kind in (('task_index', 'int64'), (None, 'unicode')):
        described = {
            'name': field,
            'field_name': field or index,
            'pandas_type': kind,
            'metadata': None,
        }
        pandas['columns'].append(described | {'numpy_type': 'int64' if field else 'object'})
    table = pa.table({'task_index': [0], index: ['pick']}).replace_schema_metadata(
        {'pandas': json.dumps(pandas)}
    )
    recordings.write_table(root / 'meta/tasks.parquet', table)


def write_info(root: Path, fps: float, lengths: list[int]) -> None:
    """meta/info.json and meta/stats.json, as far as LeRobot and this project read them."""
    joints: dict[str, Any] = {
        'dtype': 'float32',
        'shape': [6],
        'names': [f'joint_{i}.pos' for i in range(6)],
    }
    image: dict[str, Any] = {
        'dtype': 'video',
        'shape': [HEIGHT, WIDTH, 3],
        'names': ['height', 'width', 'channels'],
    }
    features = {'observation.state': joints, 'action': joints, CAMERA: image}
    features['timestamp'] = {'dtype': 'float32', 'shape': [1], 'names': None}
    counts = ('frame_index', 'episode_index', 'index', 'task_index')
    features |= {name: {'dtype': 'int64', 'shape': [1], 'names': None} for name in counts}
    place = 'chunk-{chunk_index:03d}/file-{file_index:03d}'
    info: dict[str, Any] = {
        'codebase_version': 'v3.0',
        'robot_type': 'so101',
        'fps': fps,
        'features': features,
    }
    info |= {
        'total_episodes': len(lengths),
        'total_frames': sum(lengths),
        'total_tasks': 1,
        'chunks_size': 1000,
    }
    info |= {
        'data_path': f'data/{place}.parquet',
        'video_path': f'videos/{{video_key}}/{place}.mp4',
    }
    info |= {
        'splits': {'train': f'0:{len(lengths)}'},
        'data_files_size_in_mb': 100,
        'video_files_size_in_mb': 200,
    }
    (root / 'meta/info.json').write_text(json.dumps(info))
    zeros = {
        'min': [0.0] * 6,
        'max': [1.0] * 6,
        'mean': [0.0] * 6,
        'std': [1.0] * 6,
        'count': [sum(lengths)],
    }
    (root / 'meta/stats.json').write_text(json.dumps({'observation.state': zeros, 'action': zeros}))


def set_matrix(path: Path, right: tuple[float, float], down: tuple[float, float]) -> None:
    """Writes into an mp4 where a step to the right and a step down of its images lead, each as
    (right, down).
    """
    data = bytearray(path.read_bytes())
    place = data.index(b'tkhd') + 44
    values = [int(x * 2**16) for x in (*right, 0, *down, 0, 0, 0)]
    data[place : place + 36] = struct.pack('>9i', *values, 2**30)
    path.write_bytes(data)


def replace_video_by_cells(root: Path, cells: list[dict], shape: tuple[int, int]) -> None:
    """Puts an image into each row's cell instead of the video, as the datasets library describes
    them.
    """
    path = root / 'data/chunk-000/file-000.parquet'
    table = pq.read_table(path)
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    pq.write_table(table.append_column(CAMERA, pa.array(cells, kind)), path)
    features = json.loads((root / 'meta/info.json').read_text())['features']
    features[CAMERA] = features[CAMERA] | {'dtype': 'image', 'shape': [*shape, 3]}
    recordings.edit_info(root, features=features)
