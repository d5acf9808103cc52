"""Images that lie inside parquet cells: 8-bit PNG, JPEG, WebP or TIFF of the size that the data
set declares.
"""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sigma_jax.data.lerobot.cells import cell_source, check_size, reason_of, upright
from sigma_jax.errors import UserError

FORMATS = ('PNG', 'JPEG', 'WEBP', 'TIFF')  # Pillow knows others that start a program, such as EPS
MODES = ('RGB', 'RGBA', 'L', 'P')
DEPTHS = ('I;16', 'I;16B', 'I;16L', 'I', 'F')  # of `data.depth`
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)


def decode_cell(
    cell: Any, size: tuple[int, int], name: str, root: Path
) -> UInt8[np.ndarray, 'h x 3']:
    """RGB of a cell {'bytes': ..., 'path': ...}, turned as its Exif tag says.

    Args:
      cell: of a parquet file.
      size: (height, width) in pixels that it must have.
      name: whose image it is, for messages.
      root: of the data set.

    Returns:
      The image.

    Raises:
      UserError: no image, a damaged one, not 8 bits a channel, or not of `size` (height, width).
    """
    source = cell_source(cell, root, name)
    try:
        with warnings.catch_warnings(action='error'), Image.open(source, formats=FORMATS) as image:
            _check(image, size, name)
            return np.asarray(upright(image, size, name).convert('RGB'))
    except UserError:
        raise
    except (*_DAMAGE, *_BOMBS) as error:
        raise UserError(
            f'expected an encoded image in {name}, got "{reason_of(error)}"; the file is damaged '
            f'or none of {", ".join(FORMATS)}, fetch it again or store it as one of these'
        ) from error


def _check(image: Image.Image, size: tuple[int, int], name: str) -> None:
    """Looks at the header only: nothing is decoded yet, and it may lie on its side."""
    check_size(image, (size, size[::-1]), name)
    if image.mode in DEPTHS:
        raise UserError(
            f'expected 8-bit colour in {name}, got mode {image.mode}, as depth is stored; leave '
            'out this camera, or give it one channel by its shape in meta/info.json and name it '
            'in data.depth'
        )
    if image.mode not in MODES:
        raise UserError(
            f'expected 8-bit colour in {name}, an image of mode {", ".join(MODES)}, got mode '
            f'{image.mode}; store it as RGB or leave out this camera'
        )
