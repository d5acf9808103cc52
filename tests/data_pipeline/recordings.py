"""LeRobot v2.1 data sets made on the spot, small enough for a test, and the settings to prepare
them.
"""

import io
import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sigma_jax.data.shards.plan import DataConfig

FPS = 30
GOLDEN = Path(__file__).parents[1] / 'data' / 'lerobot'
CAMERAS = ('observation.images.up', 'observation.images.side')
TASKS = ('lift the pink lego brick', 'touch the pink lego brick')
SETTINGS: dict[str, Any] = {
    'source': '',
    'cameras': CAMERAS,
    'image_size': 32,
    'resize': '',
    'horizon': 16,
    'chunk': 8,
    'stride': 4,
    'min_motion': 0.0,
    'min_action_norm': 0.0,
    'tail': 'drop',
    'shard_size': 8,
    'split_fractions': (0.6, 0.2, 0.2),
    'split_seed': 0,
    'train_episodes': (),
    'calibration_episodes': (),
    'test_episodes': (),
    'on_bad_episode': 'error',
    'depth': (),
    'depth_scale': 0.001,
    'audio': '',
    'audio_rate': 16000,
    'stats_from': '',
    'tokenizer': str(Path(__file__).parents[2] / 'assets' / 'tokenizer' / 'tokenizer.json'),
    'max_prompt_len': 48,
    'max_text_len': 16,
    'state_dim': 6,
    'prompt_state_dim': 0,
}


def config(source: Path, **changes: Any) -> DataConfig:
    """Settings for a small data set."""
    return DataConfig.from_settings(SETTINGS | {'source': str(source)} | changes)


def record(
    root: Path, lengths: tuple[int, ...], *, kind: str = 'image', seed: int = 0, width: int = 6
) -> Path:
    """Writes a v2.1 data set of random walks with images that show their frame; `kind` is 'image'
    or 'video'.
    """
    rng = np.random.default_rng(seed)
    first = 0
    for index, length in enumerate(lengths):
        columns = episode_columns(rng, index, length, first, width)
        for camera in CAMERAS:
            frames = [camera_image(index, i, camera) for i in range(length)]
            if kind == 'image':
                columns[camera] = [{'bytes': png(frame), 'path': None} for frame in frames]
            else:
                write_video(root / video_path(index, camera), frames)
        write_table(root / f'data/chunk-000/episode_{index:06d}.parquet', pa.table(columns))
        first += length
    write_meta(root, lengths, kind, width)
    return root


def episode_columns(
    rng: np.random.Generator, index: int, length: int, first: int, width: int
) -> dict[str, Any]:
    """The parquet columns of one episode."""
    walk = np.cumsum(rng.normal(size=(length + 1, width)), axis=0).astype(np.float32)
    frame = np.arange(length)
    return {
        'observation.state': list(walk[:-1]),
        'action': list(walk[1:]),
        'timestamp': (frame / FPS).astype(np.float32),
        'frame_index': frame,
        'episode_index': np.full(length, index),
        'index': first + frame,
        'task_index': np.full(length, index % 2),
    }


def write_meta(root: Path, lengths: tuple[int, ...], kind: str, width: int) -> None:
    """Writes info.json, tasks.jsonl and episodes.jsonl."""
    image = {
        'dtype': kind,
        'shape': list(camera_image(0, 0, CAMERAS[0]).shape),
        'names': ['height', 'width', 'channels'],
    }
    vector = {
        'dtype': 'float32',
        'shape': [width],
        'names': [f'joint_{i}.pos' for i in range(width)],
    }
    info = {
        'codebase_version': 'v2.1',
        'fps': FPS,
        'chunks_size': 1000,
        'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
        'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/'
        'episode_{episode_index:06d}.mp4',
        'features': {'observation.state': vector, 'action': vector} | dict.fromkeys(CAMERAS, image),
    }
    (root / 'meta').mkdir(parents=True, exist_ok=True)
    (root / 'meta/info.json').write_text(json.dumps(info))
    tasks = [{'task_index': i, 'task': task} for i, task in enumerate(TASKS)]
    episodes = [{'episode_index': i, 'length': length} for i, length in enumerate(lengths)]
    for name, rows in (('tasks', tasks), ('episodes', episodes)):
        (root / f'meta/{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def camera_image(episode: int, frame: int, camera: str) -> np.ndarray:
    """A flat colour that names episode, frame and camera."""
    return np.full(
        (24, 32, 3), (20 * frame % 256, 40 * episode % 256, 200 * (camera == CAMERAS[0])), np.uint8
    )


def png(frame: np.ndarray) -> bytes:
    """Lossless bytes of an image."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'PNG')
    return buffer.getvalue()


def video_path(index: int, camera: str) -> str:
    """Where a v2.1 data set keeps a video."""
    return f'videos/chunk-000/{camera}/episode_{index:06d}.mp4'


def write_video(path: Path, frames: list[np.ndarray], first: int = 0) -> None:
    """Writes an H.264 file with one frame an image, the first of them shown `first` frames
    late.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=FPS)
        stream.height, stream.width = frames[0].shape[:2]
        for i, pixels in enumerate(frames, first):
            frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def to_v30(old: Path, new: Path, lengths: tuple[int, ...], per_file: int) -> Path:
    """Writes a v2.1 video recording again as v3.0, with `per_file` episodes in each parquet and
    video file.
    """
    shutil.copytree(old / 'meta', new / 'meta')
    rows = []
    for number, start in enumerate(range(0, len(lengths), per_file)):
        group = range(start, min(start + per_file, len(lengths)))
        tables = [pq.read_table(old / f'data/chunk-000/episode_{i:06d}.parquet') for i in group]
        write_table(new / f'data/chunk-000/file-{number:03d}.parquet', pa.concat_tables(tables))
        for camera in CAMERAS:
            frames = [camera_image(i, j, camera) for i in group for j in range(lengths[i])]
            write_video(new / f'videos/{camera}/chunk-000/file-{number:03d}.mp4', frames)
        rows += [episode_row(i, lengths[i], number, sum(lengths[start:i])) for i in group]
    write_table(new / 'meta/episodes/chunk-000/file-000.parquet', pa.Table.from_pylist(rows))
    write_table(new / 'meta/tasks.parquet', pa.table({'task_index': [0, 1], 'task': list(TASKS)}))
    place = 'chunk-{chunk_index:03d}/file-{file_index:03d}'
    paths = {
        'data_path': f'data/{place}.parquet',
        'video_path': 'videos/{video_key}/' + place + '.mp4',
    }
    edit_info(new, codebase_version='v3.0', **paths)
    return new


def episode_row(index: int, length: int, file: int, frames_before: int) -> dict[str, Any]:
    """A row of v3.0's meta/episodes."""
    row: dict[str, Any] = {
        'episode_index': index,
        'length': length,
        'data/chunk_index': 0,
        'data/file_index': file,
    }
    for camera in CAMERAS:
        place = {'chunk_index': 0, 'file_index': file, 'from_timestamp': frames_before / FPS}
        row |= {f'videos/{camera}/{field}': value for field, value in place.items()}
    return row


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a parquet file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def edit_info(root: Path, **changes: Any) -> None:
    """Overwrites entries of info.json."""
    path = root / 'meta/info.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_columns(root: Path, index: int, **changes: Any) -> None:
    """Overwrites columns of an episode's parquet file; None drops one. Double underscores stand for
    dots.
    """
    path = root / f'data/chunk-000/episode_{index:06d}.parquet'
    table = pq.read_table(path)
    columns = {name: table[name] for name in table.column_names}
    columns |= {name.replace('__', '.'): value for name, value in changes.items()}
    pq.write_table(
        pa.table({name: value for name, value in columns.items() if value is not None}), path
    )
