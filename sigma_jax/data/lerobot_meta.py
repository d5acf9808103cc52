"""The metadata of a LeRobot data set (v2.1, v3.0): features, tasks, and which file holds which episode."""

import dataclasses
import functools
import json
import posixpath
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sigma_jax.errors import UserError

VERSIONS = ('v2.1', 'v3.0')
_FORMAT_SPEC = re.compile(r'(0?\d{0,2}d)?')


@dataclasses.dataclass(frozen=True)
class EpisodeEntry:
    """Where one episode lies: its parquet file, and per video camera the file and the time of its first frame (s)."""

    index: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]


def read_info(root: Path) -> dict[str, Any]:
    """Returns meta/info.json, or raises UserError for a missing path, bad JSON or an unsupported version."""
    if not root.is_dir():
        raise UserError(f'Expected a LeRobot data set directory, got {root}, which does not exist; check data.source.')
    path = root / 'meta' / 'info.json'
    info = _read_json(path, path.read_text() if path.is_file() else None)
    version = info.get('codebase_version')
    if version not in VERSIONS:
        raise UserError(
            f'Expected codebase_version {" or ".join(VERSIONS)} in {path}, got {version!r}; '
            "convert the data set with LeRobot's own script for its version."
        )
    for key in ('fps', 'features', 'data_path'):
        if not info.get(key):
            raise UserError(f"Expected '{key}' in {path}, got none; the file is damaged, fetch the data set again.")
    return info


def read_tasks(root: Path, version: str) -> dict[int, str]:
    """Returns task_index -> instruction. v3.0 files name the text column `task` or `__index_level_0__`."""
    if version == 'v2.1':
        return {int(row['task_index']): str(row['task']) for row in _read_jsonl(root / 'meta' / 'tasks.jsonl')}
    path = root / 'meta' / 'tasks.parquet'
    table = read_parquet(path)
    names = [name for name in ('task', '__index_level_0__') if name in table.column_names]
    if not names or 'task_index' not in table.column_names:
        raise UserError(
            f'Expected columns task_index and task in {path}, got {table.column_names}; fetch the data set again.'
        )
    return dict(zip(table['task_index'].to_pylist(), map(str, table[names[0]].to_pylist()), strict=True))


def list_episodes(root: Path, info: Mapping[str, Any], videos: tuple[str, ...]) -> dict[int, EpisodeEntry]:
    """Returns every episode by its index; `videos` are the feature keys of dtype video."""
    entries = (
        _episodes_v21(root, info, videos) if info['codebase_version'] == 'v2.1' else _episodes_v30(root, info, videos)
    )
    if not entries:
        raise UserError(f'Expected at least one episode in {root}, got none; record or fetch the data set again.')
    return {entry.index: entry for entry in entries}


def read_schema(path: Path) -> pa.Schema:
    """Returns the columns of a parquet file, or raises UserError when it is missing or damaged."""
    return _guarded(path, pq.read_schema)


def read_parquet(path: Path, **options: Any) -> pa.Table:
    """Reads a parquet file, or raises UserError when it is missing or damaged."""
    return _guarded(path, functools.partial(pq.read_table, partitioning=None, **options))


def _guarded(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise UserError(f'Expected a parquet file at {path}, got nothing there; download or copy the data set again.')
    try:
        return read(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'Expected a readable parquet file at {path}, got "{reason}"; fetch it again.') from error


def safe_path(root: Path, template: str, **fields: Any) -> Path:
    """Fills a path template of info.json; one that leaves `root` or holds other fields raises UserError.

    The check is on the text: a downloaded snapshot may itself consist of links into a cache beside it.
    """
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and (name not in fields or conversion or not _FORMAT_SPEC.fullmatch(spec or '')):
            raise UserError(
                f"Expected only {sorted(fields)} in the path template '{template}', got '{name}'; "
                'correct meta/info.json.'
            )
    relative = posixpath.normpath(template.format(**fields))
    if posixpath.isabs(relative) or relative.split('/')[0] == '..' or '\\' in relative or '\0' in relative:
        raise UserError(f"Expected a path inside the data set, got '{relative}'; do not use this data set.")
    return root / relative


def _episodes_v21(root: Path, info: Mapping[str, Any], videos: tuple[str, ...]) -> list[EpisodeEntry]:
    entries = []
    chunks_size = int(info.get('chunks_size', 1000))
    for row in _read_jsonl(root / 'meta' / 'episodes.jsonl'):
        index = int(row['episode_index'])
        fields = {'episode_chunk': index // chunks_size, 'episode_index': index}
        files = {key: (safe_path(root, info['video_path'], video_key=key, **fields), 0.0) for key in videos}
        entries.append(EpisodeEntry(index, int(row['length']), safe_path(root, info['data_path'], **fields), files))
    return entries


def _episodes_v30(root: Path, info: Mapping[str, Any], videos: tuple[str, ...]) -> list[EpisodeEntry]:
    paths = sorted((root / 'meta' / 'episodes').glob('chunk-*/file-*.parquet'))
    if not paths:
        raise UserError(f'Expected meta/episodes/chunk-*/file-*.parquet in {root}, got none; fetch the data set again.')
    columns = ['episode_index', 'length', 'data/chunk_index', 'data/file_index']
    columns += [f'videos/{key}/{field}' for key in videos for field in ('chunk_index', 'file_index', 'from_timestamp')]
    rows = [row for path in paths for row in _episode_rows(path, columns)]
    return [_entry_v30(root, info, row, videos) for row in rows]


def _episode_rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    table = read_parquet(path)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(f'Expected column {missing[0]} in {path}, got none of that name; fetch the data set again.')
    return table.select(columns).to_pylist()


def _entry_v30(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], videos: tuple[str, ...]) -> EpisodeEntry:
    data = safe_path(root, info['data_path'], chunk_index=row['data/chunk_index'], file_index=row['data/file_index'])
    files = {}
    for key in videos:
        place = {field: row[f'videos/{key}/{field}'] for field in ('chunk_index', 'file_index')}
        path = safe_path(root, info['video_path'], video_key=key, **place)
        files[key] = (path, float(row[f'videos/{key}/from_timestamp']))
    return EpisodeEntry(int(row['episode_index']), int(row['length']), data, files)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.is_file() else [None]
    return [_read_json(path, line) for line in lines if line is None or line.strip()]


def _read_json(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise UserError(f'Expected {path}, got nothing there; this is no LeRobot data set, or a copy of part of one.')
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f'Expected JSON in {path}, got "{error}"; the file is damaged, fetch it again.') from error
