"""Writes LeRobot v3.0 data sets with pyarrow, PyAV and numpy: one parquet file and one video per
camera.

The layout, the columns, their types and the Hugging Face and pandas metadata are those that lerobot
0.4.4 writes. The data set appears under its name only when it is complete.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow.parquet as pq

from sigma_jax.data.lerobot import stats as lerobot_stats
from sigma_jax.data.lerobot import tables
from sigma_jax.data.lerobot.tables import Recording
from sigma_jax.data.video.encode import VideoSettings, VideoWriter
from sigma_jax.errors import UserError

_FIRST = {'chunk_index': 0, 'file_index': 0}
_FLOATS = ['action.list.element', 'observation.state.list.element', 'timestamp']


class LeRobotWriter:
    """Writes one data set, episode by episode; use it as a context manager, an exception leaves
    nothing behind. After an episode that could not be written no other fits; `finish` keeps those
    before it.

    Args:
      out: the new data set's folder.
      recording: rate, joints and cameras.
      video: settings of the encoder; None: the default.

    Raises:
      UserError: `out` exists.
    """

    def __init__(self, out: str | Path, recording: Recording, video: VideoSettings | None = None):
        """Opens the files in a hidden folder next to `out`."""
        self.out = Path(out)
        if self.out.exists():
            raise UserError(
                f'expected a new folder for the data set, got {self.out}, which exists; choose '
                'another name'
            )
        self.recording = recording
        self._settings = video or VideoSettings()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f'.{self.out.name}.', dir=self.out.parent))
        self._folder.chmod(0o755)
        self._tasks: dict[str, int] = {}
        self._rows: list[dict] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._histograms = {
            key: np.zeros((3, 256), dtype=np.int64) for key in recording.image_sizes
        }
        self._sampled = 0
        self._frames = 0
        self._schema = tables.data_schema(recording)
        try:
            self._open()
        except BaseException:  # on a full disk, say
            self.abort()
            raise

    def _open(self) -> None:
        self._parquet = pq.ParquetWriter(
            self._path(tables.DATA_PATH),
            self._schema,
            compression='zstd',
            use_dictionary=list(tables.INDEX_COLUMNS),
            use_byte_stream_split=_FLOATS,
        )  # smooth float columns compress far better as byte streams than as dictionaries
        self._videos = {
            key: VideoWriter(
                self._path(tables.VIDEO_PATH, video_key=key),
                *size,
                self.recording.fps,
                self._settings,
            )
            for key, size in self.recording.image_sizes.items()
        }

    def add_episode(
        self, states: np.ndarray, actions: np.ndarray, images: Mapping[str, np.ndarray], task: str
    ) -> None:
        """Appends an episode.

        Args:
          states: [T, p] joint positions, raw units.
          actions: [T, a] joint targets, raw units.
          images: {camera: uint8 [T, height, width, 3]}, of each camera's own size.
          task: the instruction.

        Raises:
          UserError: where shapes or lengths disagree, or a value is not finite.
        """
        self._check(states, actions, images)
        task_index = self._tasks.get(task, len(self._tasks))
        columns = self._numeric_columns(states, actions, task_index)
        sampled = len(lerobot_stats.sampled_frames(len(states)))
        pairs = [*zip(self.recording.cameras, self.recording.image_sizes, strict=True)]
        for camera, key in pairs:  # rows follow their frames: those of a failed episode lie behind
            self._videos[key].write(images[camera])
        self._parquet.write_table(tables.table(columns, self._schema))
        histograms = {key: lerobot_stats.image_histogram(images[camera]) for camera, key in pairs}
        shown = {key: lerobot_stats.image_stats(x, sampled) for key, x in histograms.items()}
        counted = {key: lerobot_stats.numeric_stats(values) for key, values in columns.items()}
        stats = {key: counted.pop(key) for key in ('action', 'observation.state')}
        self._rows.append(self._episode_row(len(states), task, stats | shown | counted))
        self._tasks[task] = task_index
        for key, values in columns.items():
            self._columns.setdefault(key, []).append(values)
        for key, histogram in histograms.items():
            self._histograms[key] += histogram
        self._sampled += sampled
        self._frames += len(states)

    def finish(self) -> Path:
        """Closes the files, writes the metadata and gives the data set its name.

        Raises:
          UserError: where nothing was added.
        """
        if not self._rows:
            raise UserError(
                f'expected at least one episode for {self.out}, got none; add '
                'episodes before finish()'
            )
        self._close()
        pq.write_table(
            tables.episodes_table(self._rows, self.recording),
            self._path('meta/episodes/chunk-000/file-000.parquet'),
            compression='zstd',
        )
        pq.write_table(tables.tasks_table(self._tasks), self._path('meta/tasks.parquet'))
        counts = (len(self._rows), self._frames, len(self._tasks))
        self._write_json(
            'meta/info.json', tables.info(self.recording, self._settings.codec, *counts)
        )
        self._write_json('meta/stats.json', self._total_stats())
        os.rename(self._folder, self.out)
        return self.out

    def abort(self) -> None:
        """Closes and removes everything written so far."""
        with contextlib.suppress(Exception):  # on a full disk nothing can be closed
            self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> 'LeRobotWriter':
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the data set, or removes it after an exception."""
        if kind is not None:
            self.abort()
            return
        try:
            self.finish()
        except BaseException:
            self.abort()
            raise

    def _path(self, template: str, **values: str) -> Path:
        path = self._folder / template.format(**_FIRST, **values)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _check(
        self, states: np.ndarray, actions: np.ndarray, images: Mapping[str, np.ndarray]
    ) -> None:
        length = len(states)
        shapes: dict[str, tuple[np.ndarray, tuple[int, ...]]]
        shapes = {
            'states': (states, (length, len(self.recording.joints))),
            'actions': (actions, (length, len(self.recording.action_names))),
        }
        missing = [camera for camera in self.recording.cameras if camera not in images]
        if missing or not length:
            raise UserError(
                f'expected frames of the cameras {", ".join(self.recording.cameras)}, got '
                f'{length}, without {missing}'
            )
        shapes |= {
            camera: (images[camera], (length, *size, 3))
            for camera, size in self.recording.cameras.items()
        }
        for name, (values, shape) in shapes.items():
            if values.shape != shape:
                raise UserError(
                    f'expected {name} of shape {shape}, got {values.shape}; record every frame of '
                    'every stream'
                )
        if not (np.isfinite(states).all() and np.isfinite(actions).all()):
            raise UserError(
                'expected finite states and actions, got NaN or infinity; drop this episode'
            )

    def _numeric_columns(
        self, states: np.ndarray, actions: np.ndarray, task_index: int
    ) -> dict[str, np.ndarray]:
        frames = np.arange(len(states), dtype=np.int64)
        return {
            'action': actions.astype(np.float32),
            'observation.state': states.astype(np.float32),
            'timestamp': (frames / self.recording.fps).astype(np.float32),
            'frame_index': frames,
            'episode_index': np.full_like(frames, len(self._rows)),
            'index': frames + self._frames,
            'task_index': np.full_like(frames, task_index),
        }

    def _episode_row(
        self, length: int, task: str, stats: Mapping[str, lerobot_stats.Stats]
    ) -> dict:
        fps = self.recording.fps
        row = {'episode_index': len(self._rows), 'tasks': [task], 'length': length}
        row |= {f'data/{name}': 0 for name in _FIRST}
        row |= {'dataset_from_index': self._frames, 'dataset_to_index': self._frames + length}
        for key in self.recording.image_sizes:
            row |= {f'videos/{key}/{name}': 0 for name in _FIRST}
            row[f'videos/{key}/from_timestamp'] = self._frames / fps
            row[f'videos/{key}/to_timestamp'] = (self._frames + length) / fps
        return row | lerobot_stats.flatten(stats) | {f'meta/episodes/{name}': 0 for name in _FIRST}

    def _total_stats(self) -> dict[str, lerobot_stats.Stats]:
        stats = {
            key: lerobot_stats.numeric_stats(np.concatenate(parts))
            for key, parts in self._columns.items()
        }
        images = {
            key: lerobot_stats.image_stats(histogram, self._sampled)
            for key, histogram in self._histograms.items()
        }
        return stats | images

    def _write_json(self, name: str, content: dict) -> None:
        self._path(name).write_text(json.dumps(content, indent=4) + '\n')

    def _close(self) -> None:
        self._parquet.close()
        for video in self._videos.values():
            video.close()
