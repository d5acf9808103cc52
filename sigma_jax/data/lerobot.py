"""LeRobot data sets v2.1 and v3.0 without LeRobot: parquet columns and frame-exact video (DESIGN 4)."""

import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from PIL import Image

from sigma_jax.data import lerobot_meta, video
from sigma_jax.data.episode import Episode, check_episode
from sigma_jax.data.lerobot_meta import EpisodeEntry
from sigma_jax.errors import UserError

STATE = 'observation.state'
ACTION = 'action'
MAX_WIDTH = 32  # pi0.5's action and state width


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened data set; nothing but metadata is in memory."""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    tasks: Mapping[int, str]
    episodes: Mapping[int, EpisodeEntry]

    def read_episode(self, index: int) -> Episode:
        """Reads an episode's columns; its frames follow on demand.

        Raises:
          UserError: no such episode, missing or damaged file, wrong width or length, non-finite numbers.
        """
        if index not in self.episodes:
            raise UserError(
                f'Expected an episode of {self.root} ({len(self.episodes)} episodes, {min(self.episodes)} to '
                f'{max(self.episodes)}), got {index}; correct the episode lists.'
            )
        entry = self.episodes[index]
        table = self._rows(entry, [STATE, ACTION, 'timestamp', 'frame_index', 'task_index'])
        timestamps = _column(table, 'timestamp', 1, entry)[:, 0].astype(np.float64)
        episode = Episode(
            index=index,
            state=_column(table, STATE, len(self.state_names), entry),
            actions=_column(table, ACTION, len(self.action_names), entry),
            timestamps=timestamps,
            frame_index=_column(table, 'frame_index', 1, entry)[:, 0].astype(np.int64),
            tasks=tuple(self._task(entry, i) for i in table['task_index'].to_pylist()),
            readers={key: functools.partial(self._frames, entry, key, timestamps) for key in self.cameras},
        )
        check_episode(episode, self.fps)
        return episode

    def _rows(self, entry: EpisodeEntry, columns: list[str]) -> pa.Table:
        schema = lerobot_meta.read_schema(entry.data)
        missing = [name for name in [*columns, 'episode_index'] if name not in schema.names]
        if missing:
            raise UserError(f"Expected a column '{missing[0]}' in {entry.data}, got {schema.names}; fetch it again.")
        table = lerobot_meta.read_parquet(entry.data, columns=columns, filters=[('episode_index', '==', entry.index)])
        if len(table) != entry.length or not entry.length:
            raise UserError(
                f'Expected {entry.length} rows (at least 1) of episode {entry.index} in {entry.data}, '
                f'got {len(table)}; metadata and data are from different copies, fetch both again.'
            )
        return table

    def _task(self, entry: EpisodeEntry, index: int) -> str:
        if index not in self.tasks:
            raise UserError(
                f'Expected a task_index of {sorted(self.tasks)} in episode {entry.index}, got {index}; '
                'add the task to the tasks file of the data set.'
            )
        return self.tasks[index]

    def _frames(
        self, entry: EpisodeEntry, camera: str, timestamps: np.ndarray, rows: Sequence[int]
    ) -> Iterator[np.ndarray]:
        if self.features[camera]['dtype'] == 'image':
            return self._stored_images(entry, camera, rows)
        path, start = entry.videos[camera]
        return video.read_frames(path, [start + timestamps[row] for row in rows], self.fps, start + timestamps[-1])

    def _stored_images(self, entry: EpisodeEntry, camera: str, rows: Sequence[int]) -> Iterator[np.ndarray]:
        cells = self._rows(entry, [camera])[camera]
        for row in rows:
            cell = cells[row].as_py()
            try:
                with Image.open(io.BytesIO(cell['bytes'])) as image:
                    yield np.asarray(image.convert('RGB'))
            except (OSError, TypeError, KeyError, Image.DecompressionBombError) as error:
                raise UserError(
                    f'Expected an encoded image in {camera}, episode {entry.index}, frame {row}, got '
                    f'"{error}"; the file is damaged, fetch it again.'
                ) from error


def open_dataset(path: str | Path) -> Dataset:
    """Opens a LeRobot data set of format v2.1 or v3.0.

    Raises:
      UserError: missing path or file, another format version, no state or action feature, or one over 32 wide.
    """
    root = Path(path)
    info = lerobot_meta.read_info(root)
    features = info['features']
    cameras = tuple(key for key, value in features.items() if value.get('dtype') in ('video', 'image'))
    videos = tuple(key for key in cameras if features[key]['dtype'] == 'video')
    if videos and not info.get('video_path'):
        raise UserError(f'Expected video_path in {root}/meta/info.json, got none; fetch the data set again.')
    return Dataset(
        root=root,
        version=info['codebase_version'],
        fps=float(info['fps']),
        features=features,
        cameras=cameras,
        state_names=_joint_names(features, STATE, root),
        action_names=_joint_names(features, ACTION, root),
        tasks=lerobot_meta.read_tasks(root, info['codebase_version']),
        episodes=lerobot_meta.list_episodes(root, info, videos),
    )


def _joint_names(features: Mapping[str, Mapping[str, Any]], key: str, root: Path) -> tuple[str, ...]:
    if key not in features:
        raise UserError(
            f"Expected a feature '{key}' in {root}/meta/info.json, got {sorted(features)}; rename it there."
        )
    shape = list(features[key].get('shape', ()))
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_WIDTH:
        raise UserError(f"Expected '{key}' of shape [1] to [{MAX_WIDTH}], got {shape}; pi0.5 takes no other.")
    names = features[key].get('names')
    if isinstance(names, dict):  # some recordings group the joints: {'motors': [...]}
        names = [name for group in names.values() for name in group]
    if not names or len(names) != shape[0]:
        names = [f'{key}.{i}' for i in range(shape[0])]
    return tuple(map(str, names))


def _column(table: pa.Table, name: str, width: int, entry: EpisodeEntry) -> Float[np.ndarray, 'n width']:
    """A parquet column as an array; scalar columns come out as width 1."""
    column = table[name].combine_chunks()
    flat = column.flatten() if pa.types.is_nested(column.type) else column
    if column.null_count or len(flat) != len(table) * width:
        got = 'missing values' if column.null_count else f'{len(flat) / len(table):g}'
        raise UserError(
            f"Expected {width} numbers a row in column '{name}' of {entry.data}, got {got}; "
            'its shape in meta/info.json is wrong or the file is damaged.'
        )
    values = flat.to_numpy(zero_copy_only=False).reshape(len(table), width)
    return values if name in ('timestamp', 'frame_index') else values.astype(np.float32)
