"""LeRobot data sets v2.1 and v3.0 without LeRobot: parquet columns and frame-exact video
(docs/design.md, "Data flow").
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sigma_jax.data.episode import Episode, check_clock, check_rising, check_rows, check_steps
from sigma_jax.data.lerobot import audio, depth, language, meta, safe_read
from sigma_jax.data.lerobot import columns as lerobot_columns
from sigma_jax.data.lerobot import tasks as lerobot_tasks
from sigma_jax.data.lerobot.images import decode_cell
from sigma_jax.data.lerobot.joints import ACTION, STATE, column_width, columns_of, joint_names
from sigma_jax.data.lerobot.meta import EpisodeEntry
from sigma_jax.data.lerobot.rows import RowReader
from sigma_jax.data.lerobot.schema import image_size_of, is_image
from sigma_jax.data.video import decode
from sigma_jax.data.video.clock import FileRows, check_video_clock, place_rows
from sigma_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LeRobotDataset:
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
    columns: Mapping[str, tuple[str, ...]]  # those of 'state' and 'actions'
    rows: RowReader = dataclasses.field(compare=False, repr=False)

    @property
    def depths(self) -> tuple[str, ...]:
        """Features that `data.depth` may name: images of one channel and marked depth maps, which
        are no cameras.
        """
        return depth.depth_keys(self.features)

    @property
    def depth_units(self) -> dict[str, str]:
        """What their maps hold, in words."""
        return {key: depth.describe(self.features[key], key) for key in self.depths}

    @property
    def audios(self) -> dict[str, tuple[int, str]]:
        """Features that `data.audio` may name: {key: (samples a row, dtype)}."""
        return audio.audio_columns(
            self.features, (*self.columns['state'], *self.columns['actions'])
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """Columns of language other than the instruction, which the shards carry as they are."""
        return language.language_columns(self.features)

    def read_episode(self, index: int) -> Episode:
        """Reads an episode's columns; its frames follow on demand.

        Args:
          index: one of `episodes`.

        Returns:
          The episode.

        Raises:
          UserError: no such episode, missing or damaged file, wrong width or length, non-finite
            numbers.
        """
        if index not in self.episodes:
            raise UserError(
                f'expected an episode of {self.root} ({len(self.episodes)} episodes, '
                f'{min(self.episodes)} to {max(self.episodes)}), got {index}; correct the episode '
                'lists'
            )
        entry = self.episodes[index]
        joints = (*self.columns['state'], *self.columns['actions'])
        table = self.rows.read(
            entry, list(dict.fromkeys([*joints, 'timestamp', 'frame_index', 'task_index']))
        )
        timestamps = lerobot_columns.seconds(table, 'timestamp', entry)
        episode = Episode(
            index=index,
            state=self._vectors(table, 'state', entry),
            actions=self._vectors(table, 'actions', entry),
            timestamps=timestamps,
            frame_index=lerobot_columns.counts(table, 'frame_index', entry),
            tasks=tuple(
                self._task(entry, i)
                for i in lerobot_columns.counts(table, 'task_index', entry).tolist()
            ),
            readers={
                **{
                    key: functools.partial(self._frames, entry, key, timestamps)
                    for key in self.cameras
                },
                **{
                    key: functools.partial(self._depth, entry, key, timestamps)
                    for key in self.depths
                },
                **{key: functools.partial(self._audio, entry, key) for key in self.audios},
                **(
                    {language.LANGUAGE: functools.partial(self._language, entry)}
                    if self.languages
                    else {}
                ),
            },
        )
        check_rows(episode)
        if any(self.features[key]['dtype'] == 'video' for key in (*self.cameras, *self.depths)):
            check_steps(episode, self.fps)
            check_clock(episode, self.fps)
        else:  # an image in a cell belongs to its row, whatever the time
            check_rising(episode)
        return episode

    @functools.cached_property
    def _file_rows(self) -> Mapping[str, Mapping[int, FileRows]]:
        keys = next(iter(self.episodes.values())).videos
        return {key: place_rows(self.episodes.values(), key) for key in keys}

    def _vectors(self, table: pa.Table, name: str, entry: EpisodeEntry) -> np.ndarray:
        """[n, width]: the columns that make the state or the actions, side by side."""
        keys = self.columns[name]
        widths = [column_width(self.features, key, self.root) for key in keys]
        parts = zip(keys, widths, strict=True)
        return np.concatenate(
            [lerobot_columns.vectors(table, key, width, entry) for key, width in parts], axis=1
        )

    def _task(self, entry: EpisodeEntry, index: int) -> str:
        if index not in self.tasks:
            raise UserError(
                f'expected a task_index of {sorted(self.tasks)} in episode {entry.index}, got '
                f'{index}; add the task to the tasks file of the data set'
            )
        return self.tasks[index]

    def _frames(
        self, entry: EpisodeEntry, camera: str, timestamps: np.ndarray, rows: Sequence[int]
    ) -> Iterator[np.ndarray]:
        if self.features[camera]['dtype'] == 'image':
            return self._stored_images(entry, camera, rows)
        return self._shown_frames(entry, camera, timestamps, rows)

    def _shown_frames(
        self,
        entry: EpisodeEntry,
        camera: str,
        timestamps: np.ndarray,
        rows: Sequence[int],
        **options: Any,
    ) -> Iterator[np.ndarray]:
        path, start = entry.videos[camera]
        path, name = safe_read.require_inside(self.root, path), f'episode {entry.index}'
        times = start + timestamps
        check_video_clock(path, times, self.fps, self._file_rows[camera][entry.index], name)
        size = image_size_of(self.features[camera])
        yield from decode.read_frames(
            path, times[list(rows)].tolist(), self.fps, times[-1], name=name, size=size, **options
        )

    def _depth(
        self, entry: EpisodeEntry, key: str, timestamps: np.ndarray, rows: Sequence[int]
    ) -> Iterator[np.ndarray]:
        feature = self.features[key]
        if feature['dtype'] == 'image':
            name = f'{key}, episode {entry.index}'
            cells = self.rows.read(entry, [key])[key]
            yield from depth.read_cells(cells, feature, key, name, rows, self.root)
            return
        quantiser = depth.Quantiser.of(feature, key)
        for codes in self._shown_frames(entry, key, timestamps, rows, pixels=depth.read_codes):
            yield quantiser.metres(codes)[..., None]

    def _audio(self, entry: EpisodeEntry, key: str, rows: Sequence[int]) -> Iterator[np.ndarray]:
        return audio.read_audio(self.rows.read(entry, [key]), key, self.audios[key], entry, rows)

    def _language(self, entry: EpisodeEntry, rows: Sequence[int]) -> Iterator[Any]:
        return language.read_language(self.rows.read(entry, self.languages), entry, rows)

    def _stored_images(
        self, entry: EpisodeEntry, camera: str, rows: Sequence[int]
    ) -> Iterator[np.ndarray]:
        cells, size = self.rows.read(entry, [camera])[camera], image_size_of(self.features[camera])
        for row in rows:
            yield decode_cell(
                cells[row].as_py(), size, f'{camera}, episode {entry.index}, frame {row}', self.root
            )


def open_dataset(path: str | Path, state: str = STATE, action: str = ACTION) -> LeRobotDataset:
    """Opens a LeRobot data set of format v2.1 or v3.0; only metadata is read.

    Args:
      path: its folder.
      state: column of the state, or several with commas between them (`joints.columns_of`).
      action: column of the actions, likewise.

    Returns:
      The data set.

    Raises:
      UserError: missing path or file, another format version, no state or action feature, or one
        over 32 wide.
    """
    root = Path(path)
    info = meta.read_info(root)
    features = info['features']
    columns = {'state': columns_of(state), 'actions': columns_of(action)}
    depths = depth.depth_keys(features)
    cameras = tuple(key for key, value in features.items() if is_image(value) and key not in depths)
    videos = tuple(key for key in (*cameras, *depths) if features[key]['dtype'] == 'video')
    if videos and not info.get('video_path'):
        raise UserError(
            f'expected video_path in {root}/meta/info.json, got none; fetch the data set again'
        )
    return LeRobotDataset(
        root=root,
        version=info['codebase_version'],
        fps=float(info['fps']),
        features=features,
        cameras=cameras,
        state_names=joint_names(features, columns['state'], 'state_column', root),
        action_names=joint_names(features, columns['actions'], 'action_column', root),
        columns=columns,
        tasks=lerobot_tasks.read_tasks(root, info['codebase_version']),
        episodes=meta.list_episodes(root, info, videos),
        rows=RowReader(root, searches=info['codebase_version'] == 'v3.0'),
    )
