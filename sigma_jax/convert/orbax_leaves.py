"""Leaves of an Orbax checkpoint, a slice at a time: Orbax's tree, TensorStore for the arrays.

Orbax reads and writes whole leaves; the largest of pi0.5, a stack of 18 layers, has 4.8 GB in
float32.
"""

import contextlib
import json
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from sigma_jax import trees
from sigma_jax.convert import orbax_tree
from sigma_jax.errors import UserError

Index = tuple[int | slice, ...]
# bytes; smaller leaves are one chunk, larger ones a chunk per slice that `write` gets
LARGEST_CHUNK = 64 * 2**20


def read_names(folder: pathlib.Path) -> tuple[dict[str, str], bool, str]:
    """The weights in an Orbax folder, from its JSON.

    Paths are those of the weights (`orbax_tree`); a last element `value` (openpi's training loop)
    is dropped. Orbax's own `metadata()` opens every array in the background and reports damage
    after it has returned.

    Args:
      folder: of the checkpoint.

    Returns:
      names: {path: array's name in the store}.
      zarr3: whether arrays are zarr 3.
      which: weights they are, in words.
    """
    try:
        data = json.loads((folder / '_METADATA').read_text())
        keys = [
            tuple(str(key['key']) for key in one['key_metadata'])
            for one in data['tree_metadata'].values()
        ]
        zarr3 = bool(data.get('use_zarr3', False))
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(f'{folder}/_METADATA', error) from error
    chosen = orbax_tree.choose([key for key in keys if key], str(folder))
    return {path: '.'.join(key) for path, key in chosen.leaves.items()}, zarr3, chosen.note


def _damaged(where: object, error: Exception) -> UserError:
    # the rest names each call's path
    reason = str(error)[:200].splitlines()[0] if str(error) else type(error).__name__
    return UserError(f'expected an orbax checkpoint in {where}, got: {reason}; copy it again')


class LeafReader:
    """Reads slices of the leaves of one Orbax checkpoint, OCDBT or not, zarr 2 or 3.

    Args:
      folder: of the checkpoint.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()
        self._names, zarr3, self.note = read_names(folder)
        self._driver = 'zarr3' if zarr3 else 'zarr'
        self._kept: tuple[str, np.ndarray | None] = ('', None)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for path in self._names:
            store = self._open(path)
            self.shapes[path], self.dtypes[path] = tuple(store.shape), store.dtype.numpy_dtype

    def read(self, path: str, index: Index = ()) -> np.ndarray:
        """A slice of a leaf, as stored.

        A leaf whose chunks hold more than the slice (openpi's are one chunk each) is read once and
        kept until the next.

        Args:
          path: of the leaf.
          index: of the slice; (): the whole leaf.

        Returns:
          The slice.

        Raises:
          UserError: lost or truncated chunks.
        """
        if path != self._kept[0]:
            store, self._kept = self._open(path), (path, None)
            chunk = store.chunk_layout.read_chunk.shape or ()
            if math.prod(int(n or 1) for n in chunk) > store[index].size:
                self._kept = path, self._fetch(path, store)
        kept = self._kept[1]
        return self._fetch(path, self._open(path)[index]) if kept is None else kept[index]

    def whole(self, path: str) -> np.ndarray:
        """A whole leaf, while what `read` keeps of another stays.

        Args:
          path: of the leaf.

        Returns:
          The leaf.

        Raises:
          UserError: as `read`.
        """
        return self._fetch(path, self._open(path))

    def _fetch(self, path: str, store: ts.TensorStore) -> np.ndarray:
        try:
            return np.asarray(store.read().result())
        except (ValueError, OSError) as error:
            raise _damaged(f'{self.folder} ({path})', error) from error

    def _open(self, path: str) -> ts.TensorStore:
        try:
            return ts.open(self._spec(path), read=True).result()
        except (ValueError, OSError) as error:
            raise _damaged(f'{self.folder} ({path})', error) from error

    def _spec(self, path: str) -> dict:
        name = self._names[path]
        if (self.folder / 'manifest.ocdbt').is_file():
            store: dict = {'driver': 'ocdbt', 'base': f'file://{self.folder}/', 'path': f'{name}/'}
        else:
            store = {'driver': 'file', 'path': f'{self.folder}/{name}/'}
        return {'driver': self._driver, 'kvstore': store, 'fill_missing_data_reads': False}


class LeafWriter:
    """Writes an Orbax checkpoint {'params': tree} whose leaves arrive slice by slice, in order.

    Orbax lays out the tree, with a number in place of each leaf; TensorStore replaces the numbers
    by arrays.

    Args:
      folder: of the new checkpoint.
      leaves: {path: (shape, dtype)}.
    """

    def __init__(
        self, folder: pathlib.Path, leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    ):
        self.folder, self._leaves = folder.absolute(), leaves
        numbers = {f'params/{path}': np.zeros(1, dtype) for path, (_, dtype) in leaves.items()}
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
        with _no_word_of_merging(), ocp.Checkpointer(handler) as writer:
            writer.save(self.folder, trees.unflatten(numbers))
        self._store: tuple[str, ts.TensorStore] | None = None
        self._whole: np.ndarray | None = None

    def write(self, path: str, index: Index, part: np.ndarray) -> Any:
        """Starts to write one slice.

        All slices of a leaf have one shape, but for the last rows of one that is cut by rows.

        Args:
          path: of the leaf.
          index: of the slice.
          part: its numbers.

        Returns:
          Something that waits for the disk; None: the slice is kept until its leaf is complete.
        """
        shape, dtype = self._leaves[path]
        whole = math.prod(shape) * dtype.itemsize <= LARGEST_CHUNK
        if self._store is None or self._store[0] != path:
            chunk = shape if whole else (1,) * (len(shape) - part.ndim) + part.shape
            self._store = path, self._create(path, shape, dtype, chunk)
            self._whole = np.empty(shape, dtype) if whole else None
            self._left = math.prod(shape)
        if self._whole is None:
            return self._store[1][index].write(part)
        self._whole[index] = part
        self._left -= part.size
        return None if self._left else self._store[1].write(self._whole)

    def _create(
        self, path: str, shape: tuple[int, ...], dtype: np.dtype, chunk: tuple[int, ...]
    ) -> ts.TensorStore:
        name = '.'.join(['params', *path.split('/')])
        spec = {
            'driver': 'zarr',
            'kvstore': {'driver': 'file', 'path': f'{self.folder}/{name}/'},
            'metadata': {'chunks': list(chunk), 'compressor': None},  # weights do not compress
            'store_data_equal_to_fill_value': True,
        }
        return ts.open(
            spec, create=True, delete_existing=True, shape=shape, dtype=ts.dtype(dtype.name)
        ).result()


@contextlib.contextmanager
def _no_word_of_merging() -> Iterator[None]:
    """Keeps Orbax from warning that it finds no OCDBT parts to merge, where none were asked for."""

    def passes(record: logging.LogRecord) -> bool:
        return 'Skipping merge of OCDBT' not in str(record.msg)

    log = logging.getLogger('absl')
    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)
