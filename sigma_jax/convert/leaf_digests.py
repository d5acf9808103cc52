"""Digests of leaves that arrive slice by slice."""

import collections
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sigma_jax import trees
from sigma_jax.convert.slices import Slice

PREFETCH = 3  # slices waiting while the next is read


class Digests:
    """SHA-256 of leaves whose slices arrive in order, computed on a thread of its own.

    Args:
      shapes: of the leaves.
      dtypes: of the leaves.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]):
        self._running = {
            path: trees.start_digest(dtypes[path], shape) for path, shape in shapes.items()
        }
        self._seen: set[str] = set()
        self._pool = ThreadPoolExecutor(1)
        self._pending: collections.deque[Future] = collections.deque()

    def __enter__(self) -> 'Digests':
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def add(self, part: Slice, array: np.ndarray) -> np.ndarray:
        """Takes the next slice, and gives it back.

        Args:
          part: which slice.
          array: its numbers.

        Returns:
          The same array.
        """
        self._seen.add(part.path)
        self._pending.append(
            self._pool.submit(lambda: self._running[part.path].update(trees.as_bytes(array)))
        )
        while len(self._pending) > PREFETCH:
            self._pending.popleft().result()
        return array

    @property
    def leaves(self) -> dict[str, str]:
        """Path -> digest, of the leaves that came."""
        while self._pending:
            self._pending.popleft().result()
        return {path: self._running[path].hexdigest() for path in sorted(self._seen)}
