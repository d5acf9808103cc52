"""Depth and audio of a LeRobot data set: single-channel 16-bit PNG in parquet cells, and columns of samples."""

import io
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt16
from PIL import Image

from sigma_jax.data import lerobot_columns
from sigma_jax.data.lerobot_features import MAX_PIXELS, picture_size
from sigma_jax.data.lerobot_meta import EpisodeEntry
from sigma_jax.errors import UserError

AUDIO_TYPES = ('float32', 'int16')
DEPTH_MODES = ('I;16', 'I;16B', 'I')  # Pillow's names of 16-bit grey; older ones open it as 32-bit
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, MemoryError)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Features = Mapping[str, Mapping[str, Any]]


def depth_keys(features: Features) -> tuple[str, ...]:
    """Image features of one channel; that they have 16 bits shows when they are read."""
    pictures = [key for key, value in features.items() if value.get('dtype') == 'image']
    shapes = {key: features[key]['shape'] for key in pictures}
    return tuple(key for key, (first, _, last) in shapes.items() if last == 1 or (first == 1 and last not in (3, 4)))


def audio_columns(features: Features, others: Sequence[str]) -> dict[str, tuple[int, str]]:
    """{key: (samples a row, dtype)} of vector features other than `others`, which are state and action."""
    found = {}
    for key, value in features.items():
        shape, kind = value.get('shape'), value.get('dtype')
        if key in others or kind not in AUDIO_TYPES or not isinstance(shape, list):
            continue
        if len(shape) == 1 and type(shape[0]) is int and shape[0] > 1:
            found[key] = (shape[0], str(kind))
    return found


def read_depth(
    cells: pa.ChunkedArray, feature: Mapping[str, Any], name: str, rows: Sequence[int]
) -> Iterator[UInt16[np.ndarray, 'h x 1']]:
    """Yields the depth maps at `rows`; `name` says in messages whose they are.

    Raises:
      UserError: no picture, a damaged one, one of another size, or not 16 bits.
    """
    for row in rows:
        yield _decode(cells[row].as_py(), picture_size(feature), f'{name}, frame {row}')


def read_audio(
    table: pa.Table, key: str, kind: tuple[int, str], entry: EpisodeEntry, rows: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yields the samples [n] at `rows`, in the dtype of the feature; raises UserError for gaps and for NaN."""
    samples = lerobot_columns.vectors(table, key, kind[0], entry)
    for row in rows:
        if not np.isfinite(samples[row]).all():
            raise UserError(
                f"Expected finite samples in '{key}', episode {entry.index}, got NaN or infinity at frame {row}; "
                'repair or leave out this episode.'
            )
        yield samples[row].astype(kind[1])


def _decode(cell: Any, size: tuple[int, int], name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings(action='error'), Image.open(io.BytesIO(cell['bytes']), formats=('PNG',)) as image:
            _check(image, size, name)
            values = np.asarray(image)
    except UserError:
        raise
    except (*_DAMAGE, *_BOMBS) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'Expected a depth picture as PNG in {name}, got "{reason}"; the file is damaged, fetch it again.'
        ) from error
    if values.min() < 0 or values.max() >= 2**16:
        raise UserError(f'Expected depth of 0 to 65535 in {name}, got {values.max()}; record it again as 16 bits.')
    return values.astype(np.uint16)[..., None]


def _check(image: Image.Image, size: tuple[int, int], name: str) -> None:
    """Looks at the header only."""
    if (image.height, image.width) != size or image.height * image.width > MAX_PIXELS:
        raise UserError(
            f'Expected depth of {size[0]} x {size[1]} pixels in {name}, got {image.height} x {image.width}; '
            'correct the shape in meta/info.json or record again.'
        )
    if image.mode not in DEPTH_MODES:
        raise UserError(
            f'Expected 16-bit depth in {name}, got a picture of mode {image.mode}; take it out of data.depth.'
        )
