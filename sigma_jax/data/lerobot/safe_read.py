"""Files of a data set that a stranger may have made: JSON and parquet, read within limits, nothing
executed.
"""

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

MAX_TEXT = 2**28  # bytes of a JSON file; LeRobot's largest hold a line an episode
MAX_ROWS = 2**25  # frames of one parquet file: 13 days at 30 a second
MAX_GROWTH = 100  # times its size on disk that a parquet file may claim to hold ...
FREE_GROWTH = 2**28  # ... once it claims more than these bytes
_FORMAT_SPEC = re.compile(r'(0?\d{0,2}d)?')
_DAMAGE = (pa.ArrowException, OSError, ValueError, MemoryError)


def safe_path(root: Path, template: Any, **fields: Any) -> Path:
    """Fills a path template of info.json.

    Args:
      root: of the data set.
      template: such as 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'.
      **fields: what may stand in it.

    Returns:
      A path within `root`.

    Raises:
      UserError: the path leaves `root`, or the template holds other fields.
    """
    for name, spec, conversion in _template_fields(template):
        if name is not None and (
            name not in fields or conversion or not _FORMAT_SPEC.fullmatch(spec or '')
        ):
            raise UserError(
                f"expected only {sorted(fields)} in the path template '{template}', got '{name}'; "
                'correct meta/info.json'
            )
    relative = posixpath.normpath(template.format(**fields))
    if (
        posixpath.isabs(relative)
        or relative.split('/')[0] == '..'
        or '\\' in relative
        or '\0' in relative
    ):
        raise UserError(
            f'expected a path inside the data set, got {relative!r}; do not use this data set'
        )
    return root / relative


def _template_fields(template: Any) -> list[tuple[str | None, str | None, str | None]]:
    try:
        return [part[1:] for part in string.Formatter().parse(template)]
    except (ValueError, TypeError) as error:
        raise UserError(
            f'expected a path template, got {template!r} ({error}); correct meta/info.json'
        ) from error


def require_inside(root: Path, path: Path) -> Path:
    """Checks that a path lies within a data set, also after its links are followed.

    A snapshot in a hub cache consists of links into `blobs`, a neighbour of `snapshots`; those are
    followed.

    Args:
      root: of the data set.
      path: of a file.

    Returns:
      `path`.

    Raises:
      UserError: links lead out of `root`.
    """
    home, target = root.resolve(), path.resolve()
    blobs = [home.parents[1] / 'blobs'] if home.parent.name == 'snapshots' else []
    if not any(target.is_relative_to(place) for place in (home, *blobs)):
        raise UserError(
            f'expected {path} inside the data set, got a link to {target}; copy the file there if '
            'you trust it'
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: of the file.

    Returns:
      Its keys and values.

    Raises:
      UserError: no such file, not UTF-8, not JSON, or no object.
    """
    return _parse(path, _read_text(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line.

    Args:
      path: of the file.

    Returns:
      One dictionary a line.

    Raises:
      UserError: as `read_json`.
    """
    return [_parse(path, line) for line in _read_text(path).split('\n') if line.strip()]


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f'expected {path}, got no file there; this is no LeRobot data set, or a '
            'copy of part of one'
        )
    if path.stat().st_size > MAX_TEXT:
        raise UserError(
            f'expected at most {MAX_TEXT} bytes in {path}, got {path.stat().st_size}; '
            'fetch it again'
        )
    try:
        return path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'expected UTF-8 text in {path}, got "{error}"; fetch the file again'
        ) from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'expected JSON in {path}, got "{error}"; the file is damaged, fetch it again'
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f'expected a JSON object in {path}, got a {type(value).__name__}; fetch the file again'
        )
    return value


def whole(row: Mapping[str, Any], key: str, where: Path, least: int = 0) -> int:
    """A whole number in a row.

    Args:
      row: of a file.
      key: of the number.
      where: the row is from, for messages.
      least: that it may be.

    Returns:
      The number.

    Raises:
      UserError: anything else is there.
    """
    value = row.get(key)
    if type(value) is not int or not least <= value < 2**31:
        raise UserError(
            f"expected a whole number of at least {least} for '{key}' in {where}, got {value!r}; "
            'fetch the file again'
        )
    return value


def text(row: Mapping[str, Any], key: str, where: Path) -> str:
    """A text in a row.

    Args:
      row: of a file.
      key: of the text.
      where: the row is from, for messages.

    Returns:
      The text.

    Raises:
      UserError: it is absent, empty, no text or no Unicode.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"expected a text for '{key}' in {where}, got {value!r}; write one into the file"
        )
    # half a character: JSON allows it
    if any('\ud800' <= character <= '\udfff' for character in value):
        raise UserError(
            f"expected Unicode for '{key}' in {where}, got {value!r}; write the text again"
        )
    return value


def read_schema(path: Path) -> pa.Schema:
    """The columns of a parquet file.

    Args:
      path: of the file.

    Returns:
      Names and types.

    Raises:
      UserError: it is missing or damaged.
    """
    return _guarded(path, pq.read_schema)


def read_parquet(path: Path, **options: Any) -> pa.Table:
    """Reads a parquet file.

    Args:
      path: of the file.
      **options: for `pyarrow.parquet`.

    Returns:
      The table.

    Raises:
      UserError: it is missing, damaged or claims more than it can hold.
    """
    metadata = _guarded(path, pq.read_metadata)
    groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    allowed = max(FREE_GROWTH, MAX_GROWTH * path.stat().st_size)
    if metadata.num_rows > MAX_ROWS or min([0, *groups]) < 0 or sum(groups) > allowed:
        raise UserError(
            f'expected at most {MAX_ROWS} rows and {allowed} bytes in {path}, got a claim of '
            f'{metadata.num_rows} rows and {sum(groups)} bytes; do not use this file'
        )
    return _guarded(path, functools.partial(pq.read_table, partitioning=None, **options))


def rows_of(path: Path, table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries.

    Args:
      path: of its file, for messages.
      table: read from there.

    Returns:
      One dictionary a row.

    Raises:
      UserError: text that is not UTF-8.
    """
    return _guarded(path, lambda _: table.to_pylist())


def _guarded(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        there = 'a folder' if path.is_dir() else 'nothing'
        raise UserError(
            f'expected a parquet file at {path}, got {there} there; download or copy '
            'the data set again'
        )
    try:
        return read(path)
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'expected a readable parquet file at {path}, got "{reason}"; fetch it again'
        ) from error
