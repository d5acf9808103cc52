"""Batches in their order from any place on: what a checkpoint keeps of a loader is the number of
batches taken.

Grain's own position is that of each worker process, and only as many of them can go on from it. The
number of batches says the same for any count, so a run may continue with another `num_workers`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import grain

from sigma_jax.data.loader.examples import NumpyBatch
from sigma_jax.errors import UserError

Start = Callable[[grain.MapDataset], grain.IterDataset[NumpyBatch]]
NEXT = 'next_index'
# of Grain's interleaved worker processes, each with a NEXT of its own
WORKERS = 'iterators_in_use_states'


class Batches(Iterator[NumpyBatch]):
    """Iterates over `dataset`, whose elements are batches, as `start` reads it; nothing starts
    before the first one.

    `get_state` and `set_state` resume exactly, whatever `start` does to be fast.

    Args:
      dataset: whose elements are batches.
      start: opens an iterator over it.
    """

    def __init__(self, dataset: grain.MapDataset, start: Start):
        self._dataset, self._start = dataset, start
        self._taken = 0
        self._running: Any = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NumpyBatch:
        if self._taken >= len(self._dataset):
            self.close()
            raise StopIteration
        if self._running is None:
            rest = self._dataset[self._taken :] if self._taken else self._dataset
            self._running = iter(self._start(rest))
        batch = next(self._running)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The place in the data, JSON-ready."""
        return {NEXT: self._taken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a place in the data.

        Args:
          state: that `get_state` gave, or Grain's own iterator with any number of workers.

        Raises:
          UserError: it is no such place, or one beyond the end of the data.
        """
        taken = batches_taken(state)
        if taken > len(self._dataset):
            raise UserError(
                f'expected a place within the {len(self._dataset)} batches of the data, got batch '
                f'{taken}; continue with the shards and the batch_size that the run began with'
            )
        self.close()
        self._taken = taken

    def close(self) -> None:
        """Ends threads and worker processes; a next batch starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None


def batches_taken(state: Mapping[str, Any]) -> int:
    """How many batches had been taken: Grain deals them to its workers in turn, so theirs add up.

    Args:
      state: of Grain's iterator.

    Returns:
      The count.

    Raises:
      UserError: it is no such state.
    """
    try:
        workers = state.get(WORKERS, [state])
        counts = [worker[NEXT] for worker in workers if worker is not None]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise TypeError(f'{NEXT} {counts}')
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f'expected the place of a loader in its data ({NEXT}), got {str(state)[:100]}; '
            'continue with the sigma_jax that wrote it'
        ) from error
    return sum(counts)
