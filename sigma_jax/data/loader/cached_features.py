"""What the frozen policy makes of a window's images and text, kept beside the shards and read by
record number.

    features/train.json       what made them, and how they are stored
    features/train-00000.npy  [FILE f w], features of the first FILE windows of the split, and so on
    features/train-texts.npy  [k l w], float32, embeddings of the tasks in the order of `text_id`

numpy has no bfloat16: such features are stored as the 16 bits they are.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import grain
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from sigma_jax.errors import UserError

NumpyBatch = dict[str, np.ndarray]
FILE = 256  # windows a file: half a gigabyte at full size in bfloat16
# of the policy: (dtype of the numbers, dtype in the file)
DTYPES: dict[str, tuple[np.dtype, np.dtype]] = {
    'float32': (np.dtype(np.float32), np.dtype(np.float32)),
    'bfloat16': (np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16)),
}


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of one split, written or yet to be, in the `folder` of its shards
    (`Shards.features`); small enough to hand to a process.
    """

    folder: Path
    split: str
    dtype: str

    @property
    def record(self) -> Path:
        """The file that says what made them."""
        return self.folder / f'{self.split}.json'

    @property
    def texts(self) -> Path:
        """The file with the embeddings of the tasks."""
        return self.folder / f'{self.split}-texts.npy'

    def part(self, n: int) -> Path:
        """One file of the cache.

        Args:
          n: number of the file; it holds the windows from `n * FILE` on.

        Returns:
          Its path.
        """
        return self.folder / f'{self.split}-{n:05d}.npy'

    def parts(self, windows: int) -> list[Path]:
        """All files that so many windows take.

        Args:
          windows: how many.

        Returns:
          Their paths.
        """
        return [self.part(n) for n in range(-(-windows // FILE))]

    def fingerprint(self) -> dict[str, Any] | None:
        """What made those that are there; None where nothing readable says so."""
        try:
            return dict(json.loads(self.record.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def encode(self, array: np.ndarray) -> np.ndarray:
        """An array as a file holds it.

        Args:
          array: float.

        Returns:
          In the dtype of the files.
        """
        kind, stored = DTYPES[self.dtype]
        return np.ascontiguousarray(array, kind).view(stored)

    def window(self, number: int) -> Float[np.ndarray, 'f w']:
        """The features of one window.

        Args:
          number: of the record.

        Returns:
          float32.

        Raises:
          UserError: its file is gone or damaged.
        """
        return opened(self.part(number // FILE))[number % FILE].view(DTYPES[self.dtype][0])


def opened(path: Path) -> np.ndarray:
    """The array in a file, read from disk where it is looked at.

    Args:
      path: of the file.

    Returns:
      A memory map.

    Raises:
      UserError: it is gone or damaged.
    """
    try:
        return _mapped(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f'expected frozen features in {path}, got "{error}"; delete {path.parent}, it is made '
            'again'
        ) from error


@functools.lru_cache(maxsize=256)
def _mapped(path: Path, made: int) -> np.ndarray:
    """`made`: when; a file that was made again is opened again."""
    return np.load(path, mmap_mode='r')


@dataclasses.dataclass(frozen=True)
class AddFeatures(grain.transforms.Map):
    """Adds `features` [g f w] and `text_embeddings` [g l w] to a run of windows; padding gets those
    of window 0.
    """

    features: Features

    def map(self, element: NumpyBatch) -> NumpyBatch:
        """Adds the features; everything else stays.

        Args:
          element: windows of a sequence.

        Returns:
          The element with `features`.
        """
        numbers: Int[np.ndarray, ' g'] = np.maximum(element['record'], 0)
        seen = np.stack([self.features.window(int(n)) for n in numbers])
        texts = opened(self.features.texts)[element['text_id']]
        return {**element, 'features': seen, 'text_embeddings': texts}
