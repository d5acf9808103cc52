"""Runs of consecutive windows, over which the semantic memory is carried (docs/design.md, "The
sequence").
"""

import numpy as np
from jaxtyping import Int

from sigma_jax.data.shards.records import Index

PADDING = -1


def cut_sequences(index: Index, length: int | None) -> Int[np.ndarray, 'sequences g']:
    """Cuts each episode's windows into runs of `length` record numbers; every window lies in
    exactly one run.

    The last run of an episode is filled up with -1. `length` None makes one run of each whole
    episode, as long as the longest. Runs never cross episodes; gaps of dropped windows inside are
    marked by `Index.is_first`.
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
    """Appends runs of padding until whole batches come out."""
    missing = -len(sequences) % batch_size
    return np.pad(sequences, ((0, missing), (0, 0)), constant_values=PADDING)
