"""A video's colours are read as its tags say: matrix and range, against the formula of the
standards in numpy.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.video.decode import read_frames
from tests.data_pipeline import films, lerobot_reference, recordings

# tag of the matrix in H.273: the weights of red and blue in brightness
MATRICES = {
    'untagged': (2, 0.299, 0.114),
    'bt709': (1, 0.2126, 0.0722),
    'fcc': (4, 0.30, 0.11),
    'bt601, 625 lines': (5, 0.299, 0.114),
    'bt601, 525 lines': (6, 0.299, 0.114),
    'smpte 240m': (7, 0.212, 0.087),
    'bt2020': (9, 0.2627, 0.0593),
}
RANGES = {'untagged': 0, 'limited': 1, 'full': 2}
PATCH, ROWS, COLUMNS = 16, 6, 8
LOSSLESS = {
    'libx264': {'qp': '0'},
    'libx265': {'x265-params': 'lossless=1:bframes=0:log-level=none'},
    'libsvtav1': {'crf': '1'},
}


def colours() -> np.ndarray:
    """Y, Cb, Cr of 48 patches: the corners of the limited range and what lies between, none out of
    RGB by far.
    """
    grid = np.random.default_rng(0).integers(0, 256, (ROWS * COLUMNS, 3))
    luma, blue, red = (16, 126, 235), (64, 128, 192), (64, 128, 192)
    grid[:27] = np.stack(np.meshgrid(luma, blue, red, indexing='ij'), -1).reshape(-1, 3)
    grid[27:] = grid[27:] // 3 + (60, 85, 85)
    return grid.reshape(ROWS, COLUMNS, 3)


def expected(matrix: str, span: str) -> np.ndarray:
    """RGB of the patches by ITU-R BT.601, 709, 2020, SMPTE 240M and the FCC's rule; 8 bits,
    clipped.
    """
    _, red, blue = MATRICES[matrix]
    y, cb, cr = np.moveaxis(colours().astype(float), -1, 0)
    y, cb, cr = (y, cb - 128, cr - 128) if span == 'full' else (
        (y - 16) * 255 / 219, (cb - 128) * 255 / 224, (cr - 128) * 255 / 224
    )  # fmt: skip
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.clip(np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1), 0, 255)


def write(
    path: Path,
    matrix: str,
    span: str,
    *,
    codec: str = 'libx264',
    pix: str = 'yuv444p',
    count: int = 2,
) -> None:
    """A video of the patches whose planes are exactly these numbers, tagged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = colours().repeat(PATCH, 0).repeat(PATCH, 1)
    deep = pix.endswith('10le')
    with av.open(str(path), 'w') as out:
        stream = cast(av.VideoStream, out.add_stream(codec, rate=30, options=LOSSLESS[codec]))
        stream.height, stream.width, stream.pix_fmt = *planes.shape[:2], pix
        stream.codec_context.colorspace, stream.codec_context.color_range = (
            MATRICES[matrix][0],
            RANGES[span],
        )
        for i in range(count):
            frame = av.VideoFrame(planes.shape[1], planes.shape[0], pix)
            for n, plane in enumerate(frame.planes):
                step = 2 if n and '420' in pix else 1
                values = planes[::step, ::step, n] * (4 if deep else 1)
                wide = np.zeros(
                    (plane.height, plane.line_size // (2 if deep else 1)),
                    np.uint16 if deep else np.uint8,
                )
                wide[:, : values.shape[1]] = values
                plane.update(wide.tobytes())
            frame.colorspace, frame.color_range = MATRICES[matrix][0], RANGES[span]
            frame.pts, frame.time_base = i, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def centres(image: np.ndarray) -> np.ndarray:
    """The pixel amid each patch, far from where colour is interpolated."""
    return image[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].astype(float)


def worst(path: Path, matrix: str, span: str) -> float:
    (image,) = read_frames(path, [1 / 30], 30, 1 / 30, size=(ROWS * PATCH, COLUMNS * PATCH))
    return np.abs(centres(image) - expected(matrix, span)).max()


@pytest.mark.parametrize('span', RANGES)
@pytest.mark.parametrize('matrix', MATRICES)
@pytest.mark.parametrize('pix', ['yuv444p', 'yuv420p'])
def test_colours_follow_the_tags(matrix: str, span: str, pix: str, tmp_path) -> None:
    write(tmp_path / 'v.mp4', matrix, span, pix=pix)
    assert worst(tmp_path / 'v.mp4', matrix, span) <= (1 if pix == 'yuv444p' else 3)


@pytest.mark.parametrize('span', ['limited', 'full'])
@pytest.mark.parametrize('matrix', ['bt709', 'bt601, 525 lines', 'bt2020'])
@pytest.mark.parametrize(
    ('codec', 'pix'), [('libx265', 'yuv420p'), ('libx264', 'yuv420p10le'), ('libsvtav1', 'yuv420p')]
)
def test_colours_follow_the_tags_of_other_codecs(
    matrix: str, span: str, codec: str, pix: str, tmp_path
) -> None:
    write(tmp_path / 'v.mp4', matrix, span, codec=codec, pix=pix)
    assert worst(tmp_path / 'v.mp4', matrix, span) <= 4


def test_another_matrix_or_range_would_be_seen() -> None:
    """By how much the answers differ that the tags choose among."""
    right = expected('bt709', 'limited')
    assert np.abs(right - expected('bt601, 525 lines', 'limited')).max() > 20
    assert np.abs(right - expected('bt709', 'full')).max() > 15


@pytest.mark.reference
def test_lerobot_reads_the_same_colours(tmp_path) -> None:
    """By torchcodec, within 3 levels; PyAV 15, which LeRobot 0.6.1 pins, takes all tags for BT.601
    of limited range.
    """
    kinds = [
        (matrix, span)
        for matrix in ('untagged', 'bt709', 'bt601, 525 lines', 'bt2020')
        for span in RANGES
    ]
    roots = []
    for matrix, span in kinds:
        root = films.write_dataset(tmp_path / f'{matrix}-{span}', [2])
        write(root / films.VIDEO.format(0), matrix, span, pix='yuv420p')
        features = json.loads((root / 'meta/info.json').read_text())['features']
        features[films.CAMERA] = features[films.CAMERA] | {
            'shape': [ROWS * PATCH, COLUMNS * PATCH, 3]
        }
        recordings.edit_info(root, features=features)
        roots.append(root)
    found = lerobot_reference.images(roots, films.CAMERA, [1])
    for (matrix, span), root, theirs in zip(kinds, roots, found, strict=True):
        (image,), (frame,) = (
            theirs['torchcodec'][0],
            open_dataset(root).read_episode(0).frames(films.CAMERA, [1]),
        )
        assert image is not None and np.abs(centres(image) - centres(frame)).max() <= 3, (
            matrix,
            span,
        )
