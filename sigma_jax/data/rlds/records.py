"""The records of an RLDS split, an episode each, in TFRecord or ArrayRecord files."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource

from sigma_jax.data.rlds import tfrecord
from sigma_jax.errors import UserError

INFO = 'dataset_info.json'
_FILE = re.compile(
    r'.+-(?P<split>[\w.]+)\.(?P<format>tfrecord|array_record)-(?P<number>\d+)-of-(?P<count>\d+)'
)

Record = Callable[[], bytes]


def list_split(root: Path, split: str) -> list[Record]:
    """Readers of the serialised episodes of a split, in the order of the files; nothing but lengths
    is read.

    Args:
      root: folder with dataset_info.json.
      split: its name.

    Returns:
      One reader an episode.

    Raises:
      UserError: no such split, missing files, damaged ones, or another number of episodes than
        dataset_info.json says.
    """
    found = {
        path: match for path in sorted(root.iterdir()) if (match := _FILE.fullmatch(path.name))
    }
    splits = sorted({match['split'] for match in found.values()})
    files = [path for path, match in found.items() if match['split'] == split]
    if not files:
        raise UserError(
            f"expected records of the split '{split}' in {root}, got {splits or 'none'}; set "
            'data.rlds.split to one of these'
        )
    expected = int(found[files[0]]['count'])
    if sorted(int(found[path]['number']) for path in files) != list(range(expected)):
        raise UserError(
            f"expected {expected} files of the split '{split}' in {root}, got "
            f'{len(files)}; copy the rest'
        )
    records = [record for path in files for record in _records(path, found[path]['format'])]
    _check_count(root, split, len(records))
    return records


def _records(path: Path, kind: str) -> list[Record]:
    if kind == 'tfrecord':
        return [
            functools.partial(tfrecord.read_record, place) for place in tfrecord.list_records(path)
        ]
    try:
        source = ArrayRecordDataSource([str(path)])
        return [
            functools.partial(_array_record, source, path, number) for number in range(len(source))
        ]
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _array_record(source: ArrayRecordDataSource, path: Path, number: int) -> bytes:
    try:
        return source[number]
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f'expected a readable ArrayRecord file at {path}, got "{reason}"; copy it again'
    )


def _check_count(root: Path, split: str, count: int) -> None:
    """Compares with dataset_info.json, where there is one."""
    path = root / INFO
    if not path.is_file():
        return
    try:
        splits = {one['name']: one for one in json.loads(path.read_text()).get('splits', ())}
        lengths = (
            [int(length) for length in splits[split].get('shardLengths', ())]
            if split in splits
            else []
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'expected the splits of TFDS in {path}, got "{error}"; copy the data set again'
        ) from error
    if lengths and sum(lengths) != count:
        raise UserError(
            f"expected {sum(lengths)} episodes in the split '{split}' of {root}, as {INFO} says, "
            f'got {count}; metadata and records are from different copies, copy both again'
        )
