"""Resizing keeps aspect ratio and centre, as openpi's client does; JPEG is close to lossless."""

import numpy as np
import pytest
from PIL import Image

from sigma_jax.data.images import decode_image, encode_jpeg, resize_with_pad


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ('shape', 'size', 'inner'),
    [((480, 640), 224, (168, 224)), ((640, 480), 224, (224, 168)), ((96, 128), 56, (42, 56)), ((100, 30), 33, (33, 9))],
)
def test_picture_is_centred_between_black_bars(shape: tuple[int, int], size: int, inner: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    lit = resize_with_pad(image, size, size)[..., 0] > 0
    rows, cols = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    assert (len(rows), len(cols)) == inner
    assert (rows[0], cols[0]) == ((size - inner[0]) // 2, (size - inner[1]) // 2)
    assert np.all(resize_with_pad(image, size, size)[lit] == 200)


def test_pixels_are_pillows_bilinear_ones() -> None:
    image = noise(60, 80)
    expected = np.asarray(Image.fromarray(image).resize((40, 30), Image.Resampling.BILINEAR))
    result = resize_with_pad(image, 40, 40)
    assert np.array_equal(result[5:35], expected)
    assert not result[:5].any() and not result[35:].any()


def test_right_size_is_untouched() -> None:
    image = noise(56, 56)
    assert resize_with_pad(image, 56, 56) is image


def test_jpeg_keeps_colours_of_single_pixels() -> None:
    image = np.full((56, 56, 3), 120, np.uint8)
    image[20:24, 20:24] = (255, 60, 160)  # a small pink brick
    decoded = decode_image(encode_jpeg(image)).astype(int)
    assert decoded.shape == image.shape
    assert np.abs(decoded - image).mean() < 1
    assert np.abs(decoded[21:23, 21:23] - image[21:23, 21:23]).max() < 16
    assert encode_jpeg(image) == encode_jpeg(image)
