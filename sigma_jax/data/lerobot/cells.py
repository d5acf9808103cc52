"""An image cell of a parquet file: its bytes, or a file of the data set that it names."""

import io
import re
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from sigma_jax.data.lerobot.safe_read import require_inside
from sigma_jax.data.lerobot.schema import MAX_PIXELS
from sigma_jax.errors import UserError

ORIENTATION = 0x0112  # the Exif tag; 5 to 8 swap height and width


def cell_source(cell: Any, root: Path, name: str) -> io.BytesIO | Path:
    """What Pillow opens for a cell {'bytes': ..., 'path': ...}, where bytes go first.

    Args:
      cell: its path is relative to the data set, or absolute and within it.
      root: of the data set.
      name: whose image it is, for messages.

    Returns:
      Bytes or a path.

    Raises:
      UserError: neither bytes nor a path, no file there, or one outside the data set.
    """
    fields = (
        cell
        if isinstance(cell, dict)
        else {'path': cell}
        if isinstance(cell, str)
        else {'bytes': cell}
    )
    stored, path = fields.get('bytes'), fields.get('path')
    if isinstance(stored, bytes):
        return io.BytesIO(stored)
    if not isinstance(path, str) or not path or '\0' in path:
        raise UserError(
            f'expected an encoded image in {name}, got neither bytes nor a path; the file is '
            'damaged, fetch it again'
        )
    place = root / path
    if not place.resolve().is_relative_to(root.resolve()) and not place.is_symlink():
        raise UserError(
            f'expected an image inside the data set in {name}, got the path {path!r}; copy the '
            f'images into {root} and name them from there'
        )
    if not require_inside(root, place).is_file():
        raise UserError(
            f'expected an image of {name} at {place}, got no file there; copy the whole data set'
        )
    return place


def reason_of(error: Exception) -> str:
    """The first line of an error, without the address of what was read.

    Args:
      error: any.

    Returns:
      One line.
    """
    first = (str(error).splitlines() or [''])[0]
    return re.sub(r' ?<[^<>]* at 0x[0-9a-fA-F]+>', '', first) or type(error).__name__


def upright(
    image: Image.Image, size: tuple[int, int], name: str, what: str = 'an image'
) -> Image.Image:
    """The image turned as its Exif tag says, in PNG, JPEG, WebP and TIFF; it is decoded for that.

    Args:
      image: opened.
      size: (height, width) in pixels that it must have after or before the turn.
      name: whose image it is, for messages.
      what: it is, at the beginning of messages.

    Returns:
      The image in that size.

    Raises:
      UserError: no tag turns it into that size.
    """
    image.load()
    with warnings.catch_warnings(action='ignore'):  # a tag that cannot be read is none
        turned = (
            ImageOps.exif_transpose(image)
            if image.getexif().get(ORIENTATION) is not None
            else image
        )
    if turned.size == image.size:
        check_size(turned, (size,), name, what)
    return turned


def check_size(
    image: Image.Image, sizes: tuple[tuple[int, int], ...], name: str, what: str = 'an image'
) -> None:
    """Checks an image's size by its header alone.

    Args:
      image: opened.
      sizes: (height, width) in pixels that are allowed.
      name: whose image it is, for messages.
      what: it is, at the beginning of messages.

    Raises:
      UserError: it has none of these sizes.
    """
    if (image.height, image.width) not in sizes or image.height * image.width > MAX_PIXELS:
        raise UserError(
            f'expected {what} of {sizes[0][0]} x {sizes[0][1]} pixels in {name}, got '
            f'{image.height} x {image.width}; correct the shape in meta/info.json or record again'
        )
