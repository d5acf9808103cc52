"""Images at the model's resolution: openpi's aspect-preserving resize, and JPEG bytes."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

JPEG_QUALITY = 95


def resize_with_pad(image: UInt8[np.ndarray, 'h x 3'], height: int, width: int) -> UInt8[np.ndarray, 'height width 3']:
    """Scales to fit, keeping the aspect ratio, and centres on black; the same pixels as openpi's client.

    Bilinear in Pillow's sense (antialiased when shrinking); sizes and offsets round down. An image of the wanted
    size comes back untouched.
    """
    rows, cols = image.shape[:2]
    if (rows, cols) == (height, width):
        return image
    scale = max(cols / width, rows / height)
    inner = (max(1, int(rows / scale)), max(1, int(cols / scale)))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    resized = Image.fromarray(image).resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
    canvas[top : top + inner[0], left : left + inner[1]] = np.asarray(resized)
    return canvas


def encode_jpeg(image: UInt8[np.ndarray, 'h x 3'], quality: int = JPEG_QUALITY) -> bytes:
    """Encodes without chroma subsampling: at 56 to 224 pixels a brick's colour is a few pixels wide."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=quality, subsampling=0)
    return buffer.getvalue()


def decode_image(data: bytes) -> UInt8[np.ndarray, 'h x 3']:
    """Decodes JPEG (or any format Pillow reads) to RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert('RGB'))
