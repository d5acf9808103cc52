"""Resizing gives the pixels of openpi's client and of LeRobot; JPEG is close to lossless."""

import numpy as np
import pytest
from PIL import Image

from sigma_jax.processing.images import (
    bilinear,
    content_box,
    decode_image,
    encode_jpeg,
    padded_with,
    resize_with_pad,
)
from tests import golden
from tests.data.resize.make_reference import SHAPES, TARGETS, key, picture, sampled

REFERENCE = golden.DATA / 'resize'


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ('shape', 'size', 'inner'),
    [
        ((480, 640), 224, (168, 224)),
        ((640, 480), 224, (224, 168)),
        ((96, 128), 56, (42, 56)),
        ((100, 30), 33, (33, 9)),
    ],
)
def test_image_is_centred_between_black_bars(
    shape: tuple[int, int], size: int, inner: tuple[int, int]
) -> None:
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


@pytest.mark.parametrize('style', ['openpi', 'lerobot'])
def test_right_size_is_untouched(style: str) -> None:
    image = noise(56, 56)
    assert resize_with_pad(image, 56, 56, style) is image


@pytest.mark.parametrize('shape', SHAPES, ids=lambda shape: 'x'.join(map(str, shape)))
def test_pixels_of_the_public_implementations(shape: tuple[int, int]) -> None:
    """20 shapes, two sizes: openpi's client exactly, its JAX version within 1 of 255, LeRobot's but
    for rounding.
    """
    openpi, lerobot = (np.load(REFERENCE / f'{name}.npz') for name in ('openpi', 'lerobot'))
    for target in TARGETS:
        name, image = key(shape, target), picture(*shape)
        ours = sampled(resize_with_pad(image, *target)).astype(int)
        assert np.array_equal(ours, openpi[f'{name}_client'])
        assert np.abs(ours - openpi[f'{name}_jax']).max() <= 1
        other = sampled(resize_with_pad(image, *target, 'lerobot')).astype(float)
        assert np.abs(other - 255 * lerobot[name]).max() <= 0.5001
        if image.shape[:2] != target:
            top, left, rows, cols = content_box(shape, *target)
            canvas = np.zeros((*target, 3), np.float32)
            canvas[top : top + rows, left : left + cols] = bilinear(image, rows, cols)
            assert np.abs(sampled(canvas) / 255 - lerobot[name]).max() < 1e-5


def test_there_are_20_shapes_of_every_kind() -> None:
    ratios = [rows / cols for rows, cols in SHAPES]
    assert len(set(SHAPES)) == 20 and min(ratios) <= 0.02 and max(ratios) == 50 and 1 in ratios


def test_a_side_that_would_vanish_keeps_a_pixel() -> None:
    image = np.full((1000, 3, 3), 90, np.uint8)
    for style in ('openpi', 'lerobot'):
        lit = resize_with_pad(image, 56, 56, style)[..., 0]
        assert (lit == 90).sum() == 56 and lit.any(0).sum() == 1


def test_padding_in_the_model_s_units() -> None:
    small = resize_with_pad(noise(60, 80), 40, 40)
    box = content_box((60, 80), 40, 40)
    filled = padded_with(small, box, -3.0)
    assert box == (5, 0, 30, 40) and filled.dtype == np.float32
    assert np.all(filled[:5] == -3) and np.all(filled[35:] == -3)
    np.testing.assert_allclose(filled[5:35], small[5:35] / 127.5 - 1, atol=1e-6)


def test_jpeg_keeps_colours_of_single_pixels() -> None:
    image = np.full((56, 56, 3), 120, np.uint8)
    image[20:24, 20:24] = (255, 60, 160)  # a small pink brick
    decoded = decode_image(encode_jpeg(image)).astype(int)
    assert decoded.shape == image.shape
    assert np.abs(decoded - image).mean() < 1
    assert np.abs(decoded[21:23, 21:23] - image[21:23, 21:23]).max() < 16
    assert encode_jpeg(image) == encode_jpeg(image)


def test_a_large_jpeg_keeps_brightness_and_halves_colour() -> None:
    smooth = np.linspace(30, 220, 224).astype(np.uint8)
    grey = np.broadcast_to(smooth[:, None, None], (224, 224, 3))
    stripes = np.zeros((224, 224, 3), np.uint8)
    # columns of one pixel, told apart by colour alone
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 200, 200
    assert np.abs(decode_image(encode_jpeg(grey)).astype(int) - grey).max() <= 2
    large, small = (
        decode_image(encode_jpeg(stripes)),
        decode_image(encode_jpeg(stripes[:112, :112])),
    )
    assert np.ptp(small[50, 50:60, 0]) > 150 and np.ptp(large[50, 50:60, 0]) < 100
