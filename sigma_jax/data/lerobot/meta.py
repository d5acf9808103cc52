"""The metadata of a LeRobot data set (v2.1, v3.0): features, and which file holds which episode."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma_jax.data.lerobot.safe_read import (
    read_json,
    read_jsonl,
    read_parquet,
    require_inside,
    rows_of,
    safe_path,
    whole,
)
from sigma_jax.data.lerobot.schema import check_features
from sigma_jax.errors import UserError

VERSIONS = ('v2.1', 'v3.0')
MAX_FPS = 10_000


@dataclasses.dataclass(frozen=True)
class EpisodeEntry:
    """Where one episode lies: its parquet file, and per video camera the file and the time of its
    first frame (s).
    """

    index: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]


def read_info(root: Path) -> dict[str, Any]:
    """Reads meta/info.json.

    Args:
      root: of the data set.

    Returns:
      Its keys and values.

    Raises:
      UserError: missing path, bad JSON, an unsupported version, or a value that no recording has.
    """
    if not root.is_dir():
        raise UserError(
            f'expected the folder of a data set, got {root}, which does not exist; check the path '
            '(data.source)'
        )
    path = root / 'meta' / 'info.json'
    info = read_json(require_inside(root, path))
    version = info.get('codebase_version')
    if version not in VERSIONS:
        raise UserError(
            f'expected codebase_version {" or ".join(VERSIONS)} in {path}, got {version!r}; '
            "convert the data set with LeRobot's own script for its version"
        )
    for key in ('features', 'data_path'):
        if not info.get(key):
            raise UserError(
                f"expected '{key}' in {path}, got none; the file is damaged, fetch "
                'the data set again'
            )
    fps = info.get('fps')
    if (
        not isinstance(fps, int | float)
        or isinstance(fps, bool)
        or not math.isfinite(fps)
        or not 0 < fps <= MAX_FPS
    ):
        raise UserError(
            f"expected 'fps' in {path} to be a number from 0 to {MAX_FPS}, got "
            f'{fps!r}; correct it there'
        )
    check_features(info['features'], path)
    return info


def list_episodes(
    root: Path, info: Mapping[str, Any], videos: tuple[str, ...]
) -> dict[int, EpisodeEntry]:
    """Every episode of a data set.

    Args:
      root: of the data set.
      info: of `read_info`.
      videos: feature keys of dtype video.

    Returns:
      {index: entry}.

    Raises:
      UserError: missing or damaged files, an episode that is there twice, or fewer than info.json
        counts.
    """
    read = _episodes_v21 if info['codebase_version'] == 'v2.1' else _episodes_v30
    entries = read(root, info, videos)
    if not entries:
        raise UserError(
            f'expected at least one episode in {root}, got none; record or fetch the data set again'
        )
    indices = [entry.index for entry in entries]
    if len(set(indices)) != len(indices):
        twice = next(index for index in indices if indices.count(index) > 1)
        raise UserError(
            f'expected every episode once in {root}/meta, got {twice} twice; fetch '
            'the data set again'
        )
    for key, have in (
        ('total_episodes', len(entries)),
        ('total_frames', sum(entry.length for entry in entries)),
    ):
        if info.get(key) is not None and info[key] != have:
            raise UserError(
                f'expected {info[key]} ({key} in {root}/meta/info.json) in the list of episodes, '
                f'got {have}; part of the metadata is missing, fetch it again'
            )
    return {entry.index: entry for entry in entries}


def _episodes_v21(
    root: Path, info: Mapping[str, Any], videos: tuple[str, ...]
) -> list[EpisodeEntry]:
    entries = []
    path = require_inside(root, root / 'meta' / 'episodes.jsonl')
    chunks_size = whole(
        {'chunks_size': 1000, **info}, 'chunks_size', root / 'meta' / 'info.json', least=1
    )
    for row in read_jsonl(path):
        index = whole(row, 'episode_index', path)
        fields = {'episode_chunk': index // chunks_size, 'episode_index': index}
        files = {
            key: (safe_path(root, info['video_path'], video_key=key, **fields), 0.0)
            for key in videos
        }
        data = safe_path(root, info['data_path'], **fields)
        entries.append(EpisodeEntry(index, whole(row, 'length', path), data, files))
    return entries


def _episodes_v30(
    root: Path, info: Mapping[str, Any], videos: tuple[str, ...]
) -> list[EpisodeEntry]:
    paths = sorted((root / 'meta' / 'episodes').glob('chunk-*/file-*.parquet'))
    if not paths:
        raise UserError(
            f'expected meta/episodes/chunk-*/file-*.parquet in {root}, got none; '
            'fetch the data set again'
        )
    columns = ['episode_index', 'length', 'data/chunk_index', 'data/file_index']
    columns += [
        f'videos/{key}/{field}'
        for key in videos
        for field in ('chunk_index', 'file_index', 'from_timestamp')
    ]
    places = [
        (row, path) for path in paths for row in _episode_rows(require_inside(root, path), columns)
    ]
    return [_entry_v30(root, info, row, videos, path) for row, path in places]


def _episode_rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    table = read_parquet(path)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(
            f'expected column {missing[0]} in {path}, got none of that name; fetch '
            'the data set again'
        )
    return rows_of(path, table.select(columns))


def _entry_v30(
    root: Path,
    info: Mapping[str, Any],
    row: Mapping[str, Any],
    videos: tuple[str, ...],
    where: Path,
) -> EpisodeEntry:
    def place(prefix: str) -> dict[str, int]:
        return {
            field: whole(row, f'{prefix}/{field}', where) for field in ('chunk_index', 'file_index')
        }

    files = {}
    for key in videos:
        path = safe_path(root, info['video_path'], video_key=key, **place(f'videos/{key}'))
        files[key] = (path, _seconds(row, f'videos/{key}/from_timestamp', where))
    data = safe_path(root, info['data_path'], **place('data'))
    return EpisodeEntry(
        whole(row, 'episode_index', where), whole(row, 'length', where), data, files
    )


def _seconds(row: Mapping[str, Any], key: str, where: Path) -> float:
    value = row[key]
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise UserError(
            f"expected seconds for '{key}' in {where}, got {value!r}; fetch the data set again"
        )
    return float(value)
