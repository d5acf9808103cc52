"""Runs of consecutive windows, over which the semantic memory is carried (docs/design.md, "The
sequence").
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from sigma_jax.data.shards.records import Index
from sigma_jax.errors import UserError

PADDING = -1


@dataclasses.dataclass(frozen=True)
class Order:
    """Which windows come when, and how many at a time.

    The defaults walk through every window in record order. Training: `shuffle=True,
    num_epochs=None, drop_remainder=True`; sequences are shuffled anew each epoch. Whole episodes
    for evaluation: `sequence_length=None`, one sequence an episode, with `reset` only at its start
    and after dropped windows.

    Attributes:
      batch_size: sequences a batch (b).
      sequence_length: windows a sequence (g); None for whole episodes.
      seed: fixes the order, and all that is random in a window.
      shuffle: by that seed, anew each epoch.
      num_epochs: None repeats without end.
      drop_remainder: leaves out the last short batch instead of filling it with masked windows.

    Raises:
      UserError: no window in a batch.
    """

    batch_size: int
    sequence_length: int | None = 1
    seed: int = 0
    shuffle: bool = False
    num_epochs: int | None = 1
    drop_remainder: bool = False

    def __post_init__(self) -> None:
        length = self.sequence_length
        if self.batch_size < 1 or (length is not None and length < 1):
            raise UserError(
                f'expected batch_size and sequence_length of at least 1, got {self.batch_size} and '
                f'{length}; correct them'
            )

    def sequences(self, index: Index) -> Int[np.ndarray, 'n g']:
        """Those of one epoch, unshuffled, filled up to whole batches where none is dropped.

        Args:
          index: of the windows.

        Returns:
          Numbers of windows in the split [n g], -1 on padding.
        """
        cut = cut_sequences(index, self.sequence_length)
        return cut if self.drop_remainder else fill_batches(cut, self.batch_size)

    def drops_all(self, sequences: int) -> bool:
        """Whether all batches are short, and so dropped.

        Args:
          sequences: how many an epoch has.

        Returns:
          False for epochs without end.
        """
        return self.num_epochs is not None and sequences * self.num_epochs < self.batch_size


def cut_sequences(index: Index, length: int | None) -> Int[np.ndarray, 'sequences g']:
    """Cuts each episode's windows into runs; every window lies in exactly one (docs/design.md, "The
    sequence").

    The last run of an episode is filled up with -1. Runs never cross episodes; gaps of dropped
    windows inside are marked by `Index.is_first`.

    Args:
      index: where each window is from.
      length: of a run; None makes one of each whole episode, as long as the longest.

    Returns:
      Record numbers.
    """
    starts = np.flatnonzero(np.diff(index.episode, prepend=index.episode[0] - 1))
    episodes = np.split(np.arange(len(index)), starts[1:])
    length = length or max(map(len, episodes))
    runs = [
        numbers[start : start + length]
        for numbers in episodes
        for start in range(0, len(numbers), length)
    ]
    return np.stack([np.pad(run, (0, length - len(run)), constant_values=PADDING) for run in runs])


def fill_batches(sequences: Int[np.ndarray, 'n g'], batch_size: int) -> Int[np.ndarray, 'm g']:
    """Appends runs of padding until whole batches come out.

    Args:
      sequences: record numbers.
      batch_size: sequences of a batch.

    Returns:
      A multiple of `batch_size` of them.
    """
    missing = -len(sequences) % batch_size
    return np.pad(sequences, ((0, missing), (0, 0)), constant_values=PADDING)
