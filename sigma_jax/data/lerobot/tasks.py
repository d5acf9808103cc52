"""The instructions of a LeRobot data set: a line each in v2.1, a frame that pandas wrote in
v3.0.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from sigma_jax.data.lerobot.safe_read import (
    read_jsonl,
    read_parquet,
    require_inside,
    rows_of,
    text,
    whole,
)
from sigma_jax.errors import UserError

INDEX = 'task_index'
# of the text where pandas' metadata name none; the second is pandas' own
NAMES = ('task', '__index_level_0__')


def read_tasks(root: Path, version: str) -> dict[int, str]:
    """Reads the instructions.

    Args:
      root: of the data set.
      version: of its format, 'v2.1' or 'v3.0'.

    Returns:
      {task_index: instruction}.

    Raises:
      UserError: missing or damaged file, a repeated index, a text that is empty or no text.
    """
    name = 'tasks.jsonl' if version == 'v2.1' else 'tasks.parquet'
    path = require_inside(root, root / 'meta' / name)
    rows = read_jsonl(path) if version == 'v2.1' else _task_rows(path)
    tasks = {whole(row, INDEX, path): text(row, 'task', path) for row in rows}
    if not rows or len(tasks) != len(rows):
        problem = 'one of them twice' if rows else 'none'
        raise UserError(
            f'expected tasks with an index each in {path}, got {problem}; fetch the file again'
        )
    return tasks


def _task_rows(path: Path) -> list[dict[str, Any]]:
    table = read_parquet(path)
    name = _text_column(table)
    if name is None or table.column_names.count(INDEX) != 1:
        raise UserError(
            f'expected columns task_index and task in {path}, got {table.column_names}; fetch the '
            f'data set again{_ambiguity(table) if name is None else ""}'
        )
    return [
        {INDEX: row[INDEX], 'task': row[name]} for row in rows_of(path, table.select([INDEX, name]))
    ]


def _text_column(table: pa.Table) -> str | None:
    """The frame's index, whatever its name, as LeRobot takes it; else a column of a known name,
    else the only text.
    """
    names = [
        name for name in table.column_names if table.column_names.count(name) == 1 and name != INDEX
    ]
    texts = _texts(table)
    chosen = [name for name in (*_pandas_index(table.schema), *NAMES) if name in texts]
    if chosen:
        return chosen[0]
    # no texts: what is wrong with them is reported value by value
    known = [name for name in NAMES if name in names]
    return texts[0] if len(texts) == 1 else next(iter(known), None)


def _ambiguity(table: pa.Table) -> str:
    texts = _texts(table)
    said = (
        f' or, as any of the texts {texts} may be the instruction, rename the one that is it '
        "to 'task'"
    )
    return said if len(texts) > 1 else ''


def _texts(table: pa.Table) -> list[str]:
    names = [
        name for name in table.column_names if table.column_names.count(name) == 1 and name != INDEX
    ]
    return [name for name in names if _is_text(table.schema.field(name).type)]


def _pandas_index(schema: pa.Schema) -> list[str]:
    """Columns that were the frame's index; a counting index is stored as a description and is none
    of them.
    """
    try:
        stored = json.loads((schema.metadata or {})[b'pandas'])['index_columns']
        return [name for name in stored if isinstance(name, str)]
    except (KeyError, ValueError, TypeError):  # nothing depends on it where there is none
        return []


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return (
        pa.types.is_string(inner)
        or pa.types.is_large_string(inner)
        or pa.types.is_string_view(inner)
    )
