"""The rows of one episode: in the parquet file that the metadata names or, in v3.0, where they
truly are.

Converters of LeRobot 0.4.0 to 0.4.3 name, for every episode that begins a file, the file before it.
LeRobot joins all files and goes by the rows; here the others are searched only where the named file
does not hold the whole episode.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sigma_jax.data.lerobot.meta import EpisodeEntry
from sigma_jax.data.lerobot.safe_read import read_parquet, read_schema, require_inside
from sigma_jax.errors import UserError

EPISODE = 'episode_index'


class RowReader:
    """Reads episodes of one data set; what a search has found is remembered.

    Args:
      root: of the data set.
      searches: whether an episode may lie in other files than the one that its entry names.
    """

    def __init__(self, root: Path, searches: bool) -> None:
        """Nothing is read yet."""
        self._root, self._searches = root, searches

    def read(self, entry: EpisodeEntry, columns: Sequence[str]) -> pa.Table:
        """All rows of an episode, in order.

        Args:
          entry: the episode.
          columns: to read.

        Returns:
          A table.

        Raises:
          UserError: a missing or damaged file, a missing column, or another number of rows than the
            metadata say.
        """
        table = self._named(entry, columns) if entry.data.is_file() or not self._searches else None
        if self._searches and (table is None or not _is_whole(table, entry)):
            places = self.files.get(entry.index, ())
            if places and places != (entry.data,):
                parts = [_part(self._root, path, entry.index, columns) for path in places]
                return _complete(_joined(parts, entry), entry, places)
        return _complete(self._named(entry, columns) if table is None else table, entry)

    @functools.cached_property
    def files(self) -> dict[int, tuple[Path, ...]]:
        """{episode: the data files with rows of it, in the order in which LeRobot joins them}, of
        all episodes.
        """
        found: dict[int, tuple[Path, ...]] = {}
        for path in sorted(self._root.glob('data/*/*.parquet')):
            _require_columns(require_inside(self._root, path), [])
            for index in pc.unique(read_parquet(path, columns=[EPISODE])[EPISODE]).to_pylist():
                found[index] = (*found.get(index, ()), path)
        return found

    def _named(self, entry: EpisodeEntry, columns: Sequence[str]) -> pa.Table:
        return _part(self._root, entry.data, entry.index, columns)


def _part(root: Path, path: Path, index: int, columns: Sequence[str]) -> pa.Table:
    _require_columns(require_inside(root, path), columns)
    return read_parquet(path, columns=[*columns], filters=[(EPISODE, '==', index)])


def _joined(parts: Sequence[pa.Table], entry: EpisodeEntry) -> pa.Table:
    try:
        return pa.concat_tables(
            [part.replace_schema_metadata(None) for part in parts], promote_options='permissive'
        )
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'expected the parts of episode {entry.index} to have columns of the same types, got '
            f'"{reason}"; fetch the data set again'
        ) from error


def _is_whole(table: pa.Table, entry: EpisodeEntry) -> bool:
    return len(table) == entry.length > 0


def _complete(table: pa.Table, entry: EpisodeEntry, places: Sequence[Path] = ()) -> pa.Table:
    if not _is_whole(table, entry):
        others = [path for path in places if path != entry.data]
        where = ' and '.join(
            map(str, [*others, entry.data] if entry.data.is_file() or not others else others)
        )
        raise UserError(
            f'expected {entry.length} rows (at least 1) of episode {entry.index} in {where}, '
            f'got {len(table)}; metadata and data are from different copies, fetch both again'
        )
    return table


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    schema = read_schema(path)
    missing = [name for name in [*columns, EPISODE] if schema.names.count(name) != 1]
    if missing:
        raise UserError(
            f"expected one column '{missing[0]}' in {path}, got {schema.names}; fetch it again "
            'or, where meta/info.json calls a column otherwise than the file, correct it there'
        )
