"""Images at the model's resolution: the aspect-preserving resize of openpi and of LeRobot, and JPEG
bytes.
"""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num, UInt8, UInt16
from PIL import Image

JPEG_QUALITY = 95
FULL_COLOUR_BELOW = 128  # pixels a side
STYLES = ('openpi', 'lerobot')
BLACK = -1.0  # in the model's units

Box = tuple[int, int, int, int]  # top, left, height, width of the image on its canvas


def resize_with_pad(
    image: UInt8[np.ndarray, 'h x 3'], height: int, width: int, style: str = 'openpi'
) -> UInt8[np.ndarray, 'height width 3']:
    """Scales an image to fit, keeping the aspect ratio, and centres it on black; sizes and offsets
    round down.

    Args:
      image: RGB; one that has the size already comes back untouched.
      height: of the result, pixels.
      width: of the result, pixels.
      style: 'openpi' gives the same pixels as openpi's client (bilinear in Pillow's sense,
        antialiased when shrinking). 'lerobot' is bilinear between the four nearest pixels, as in
        torch; LeRobot leaves it in float32, here it is rounded to 8 bits.

    Returns:
      RGB.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.processing.images import resize_with_pad
      >>> image = np.full((2, 4, 3), 200, np.uint8)
      >>> resize_with_pad(image, 4, 4)[..., 0].tolist()
      [[0, 0, 0, 0], [200, 200, 200, 200], [200, 200, 200, 200], [0, 0, 0, 0]]
    """
    if image.shape[:2] == (height, width):
        return image
    top, left, rows, cols = content_box(image.shape[:2], height, width)
    canvas = np.zeros((height, width, 3), np.uint8)
    if style == 'openpi':
        inner = np.asarray(Image.fromarray(image).resize((cols, rows), Image.Resampling.BILINEAR))
    else:
        inner = np.rint(bilinear(image, rows, cols)).astype(np.uint8)
    canvas[top : top + rows, left : left + cols] = inner
    return canvas


def content_box(size: Sequence[int], height: int, width: int) -> Box:
    """Where an image of some size lies on a canvas.

    Args:
      size: (rows, columns) of the image.
      height: of the canvas, pixels.
      width: of the canvas, pixels.

    Returns:
      (top, left, height, width), pixels.
    """
    rows, cols = size
    scale = max(cols / width, rows / height)
    inner = (max(1, int(rows / scale)), max(1, int(cols / scale)))
    return (height - inner[0]) // 2, (width - inner[1]) // 2, *inner


def bilinear(
    image: UInt8[np.ndarray, 'h x 3'], rows: int, cols: int
) -> Float[np.ndarray, 'rows cols 3']:
    """An image at another size, interpolated between the four nearest pixels.

    Pixel centres lie at halves (align_corners=False).

    Args:
      image: RGB.
      rows: of the result.
      cols: of the result.

    Returns:
      Values 0..255, float32, not rounded.
    """
    above, below, down = _neighbours(image.shape[0], rows)
    before, after, across = _neighbours(image.shape[1], cols)
    down, across = down[:, None, None], across[None, :, None]
    upper, lower = image[above].astype(np.float32), image[below].astype(np.float32)
    mixed = upper + (lower - upper) * down
    return mixed[:, before] + (mixed[:, after] - mixed[:, before]) * across


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the pixels before and after each wanted position, and the weight of the one
    after.
    """
    where = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * np.float32(
        size / new_size
    ) - np.float32(0.5)
    where = np.maximum(where, 0)
    first = np.minimum(where.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), where - first.astype(np.float32)


def unit_range(image: Num[np.ndarray, '*i h x 3']) -> Float[np.ndarray, '*i h x 3']:
    """0..255 -> float32 in [-1, 1], as both originals scale.

    Args:
      image: one image or several.

    Returns:
      The same shape.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.processing.images import unit_range
      >>> unit_range(np.array([[[0, 51, 255]]], np.uint8)).round(2).tolist()
      [[[-1.0, -0.6..., 1.0]]]
    """
    return image.astype(np.float32) / np.float32(255.0) * np.float32(2.0) - np.float32(1.0)


def padded_with(
    image: UInt8[np.ndarray, 'h x 3'], box: Box, padding: float
) -> Float[np.ndarray, 'h x 3']:
    """`unit_range` of a resized image, with another value outside its box.

    Args:
      image: of `resize_with_pad`.
      box: of `content_box`.
      padding: in the model's units, [-1, 1].

    Returns:
      Values in [-1, 1].
    """
    top, left, rows, cols = box
    out = np.full(image.shape, padding, np.float32)
    inside = (slice(top, top + rows), slice(left, left + cols))
    out[inside] = unit_range(image[inside])
    return out


def encode_jpeg(image: UInt8[np.ndarray, 'h x 3'], quality: int = JPEG_QUALITY) -> bytes:
    """An image as JPEG.

    From 128 pixels a side on, colour is kept at half resolution (4:2:0): a camera's H.264 or AV1
    video holds no more, and it decodes a third faster. Below, where a brick's colour is a few
    pixels wide, colour stays whole (4:4:4).

    Args:
      image: RGB.
      quality: 1 to 95.

    Returns:
      The bytes of a file.
    """
    buffer = io.BytesIO()
    subsampling = '4:4:4' if min(image.shape[:2]) < FULL_COLOUR_BELOW else '4:2:0'
    Image.fromarray(image).save(buffer, 'JPEG', quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def decode_image(data: bytes) -> UInt8[np.ndarray, 'h x 3']:
    """An image from JPEG or PNG.

    Args:
      data: the bytes of a file.

    Returns:
      RGB.
    """
    with Image.open(io.BytesIO(data), formats=('JPEG', 'PNG')) as image:
        return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))


def decode_jpeg(data: bytes, size: int) -> UInt8[np.ndarray, 'size size 3']:
    """A square image that `encode_jpeg` wrote; the size is known, so that its header is read once
    only.

    Args:
      data: the bytes of a file.
      size: pixels a side.

    Returns:
      RGB.

    Raises:
      ValueError: damaged bytes.
    """
    return np.asarray(Image.frombytes('RGB', (size, size), data, 'jpeg', 'RGB', ''))


def resize_depth(depth: UInt16[np.ndarray, 'h x'], size: int) -> UInt16[np.ndarray, 'size size']:
    """Depth on the square canvas that `resize_with_pad` gives the colours, each pixel the nearest
    reading.

    Nearest, because a mean over an edge, or with a missing reading (0), is a distance at which
    nothing lies.

    Args:
      depth: readings, 0 where there is none.
      size: pixels a side.

    Returns:
      The same units, 0 outside the image.
    """
    top, left, rows, cols = content_box(depth.shape, size, size)
    down, across = (
        ((np.arange(n) + 0.5) * m / n).astype(int)
        for n, m in ((rows, depth.shape[0]), (cols, depth.shape[1]))
    )
    canvas = np.zeros((size, size), np.uint16)
    canvas[top : top + rows, left : left + cols] = depth[np.ix_(down, across)]
    return canvas


def encode_depth(depth: UInt16[np.ndarray, 'h x']) -> bytes:
    """Depth as a 16-bit PNG, lossless.

    Args:
      depth: readings.

    Returns:
      The bytes of a file.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth, np.uint16)).save(buffer, 'PNG')
    return buffer.getvalue()


def decode_depth(data: bytes) -> UInt16[np.ndarray, 'h x 1']:
    """Depth that `encode_depth` wrote.

    Args:
      data: the bytes of a file.

    Returns:
      The readings, with a channel axis.
    """
    with Image.open(io.BytesIO(data), formats=('PNG',)) as image:
        return np.asarray(image).astype(np.uint16)[..., None]
