"""Pictures that lie inside parquet cells: 8-bit PNG, JPEG or WebP of the size that the data set declares."""

import io
import struct
import warnings
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sigma_jax.data.lerobot_features import MAX_PIXELS
from sigma_jax.errors import UserError

FORMATS = ('PNG', 'JPEG', 'WEBP')  # Pillow knows others that start a program, such as EPS
MODES = ('RGB', 'RGBA', 'L', 'P')
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)


def decode_cell(cell: Any, size: tuple[int, int], name: str) -> UInt8[np.ndarray, 'h x 3']:
    """RGB of a cell {'bytes': ..., 'path': ...}; `name` says in messages whose picture it is.

    Raises:
      UserError: no picture, a damaged one, not 8 bits a channel, or not of `size` (height, width).
    """
    try:
        with warnings.catch_warnings(action='error'), Image.open(io.BytesIO(cell['bytes']), formats=FORMATS) as image:
            _check(image, size, name)
            return np.asarray(image.convert('RGB'))
    except UserError:
        raise
    except (*_DAMAGE, *_BOMBS) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'Expected an encoded image in {name}, got "{reason}"; the file is damaged, fetch it again.'
        ) from error


def _check(image: Image.Image, size: tuple[int, int], name: str) -> None:
    """Looks at the header only: nothing is decoded yet."""
    if (image.height, image.width) != size or image.height * image.width > MAX_PIXELS:
        raise UserError(
            f'Expected an image of {size[0]} x {size[1]} pixels in {name}, got {image.height} x {image.width}; '
            'correct the shape in meta/info.json or record again.'
        )
    if image.mode not in MODES:
        raise UserError(
            f'Expected 8-bit colour in {name}, got mode {image.mode}, as depth is stored; leave out this camera.'
        )
