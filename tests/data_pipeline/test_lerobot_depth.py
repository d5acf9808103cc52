"""Depth as LeRobot 0.6 stores it: 12-bit codes in video, TIFF in cells, each in its unit; 0 is no
reading.
"""

import io
import itertools
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sigma_jax.data.lerobot.cells import ORIENTATION
from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.lerobot.depth import Quantiser, depth_keys
from sigma_jax.data.lerobot.images import decode_cell
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.modalities import in_units
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.processing.images import content_box
from sigma_jax.processing.tokenizer import load_tokenizer
from tests.data_pipeline import recordings
from tests.loading import make_loader

DEPTH = 'observation.images.up_depth'
LENGTHS = (20, 18, 19)
SIZE = (24, 32)
RANGES = [
    {},
    {'depth_min': 0.1, 'depth_max': 4.0},
    {'depth_min': 0.0, 'depth_max': 2.0, 'use_log': False},
    {'depth_min': 0.3, 'depth_max': 60.0, 'shift': 0.0},
    {'depth_min': 0.5, 'depth_max': 1.5, 'shift': -0.25},
]


def codes_of(metres: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """12-bit codes of distances, by definition: even steps from depth_min to depth_max, or in the
    logarithm.
    """
    one = {'depth_min': 0.01, 'depth_max': 10.0, 'shift': 3.5, 'use_log': True} | settings
    low, high, at = one['depth_min'], one['depth_max'], metres.astype(np.float64)
    if one['use_log']:
        low, high, at = (np.log(x + one['shift']) for x in (low, high, np.maximum(at, low)))
    return np.rint((at - low) / (high - low) * 4095).clip(0, 4095).astype(np.uint16)


def scene(episode: int, frame: int) -> np.ndarray:
    """Millimetres that name episode and frame; a corner has no reading."""
    down, across = np.arange(SIZE[0])[:, None], np.arange(SIZE[1])
    readings = (600 + 37 * frame + 400 * episode + 11 * across + 5 * down).astype(np.uint16)
    readings[:8, :12] = 0
    return readings


def write_codes(path: Path, maps: list[np.ndarray]) -> None:
    """A lossless video of 12-bit grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {'x265-params': 'lossless=1:log-level=none', 'g': '2'}
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx265', rate=recordings.FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = *maps[0].shape, 'gray12le'
        for one in maps:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(one, format='gray12le')))
        container.mux(stream.encode())


def encoded(values: np.ndarray, kind: str = 'TIFF', tag: int | None = None) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if tag is not None:
        exif[ORIENTATION] = tag
    Image.fromarray(values).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def add_feature(root: Path, kind: str, **info: Any) -> None:
    features = json.loads((root / 'meta/info.json').read_text())['features']
    said = {'info': info} if info else {}
    features[DEPTH] = {
        'dtype': kind,
        'shape': [*SIZE, 1],
        'names': ['height', 'width', 'channels'],
        **said,
    }
    recordings.edit_info(root, features=features)


def with_video(root: Path, settings: dict[str, Any], **info: Any) -> Path:
    recordings.record(root, LENGTHS)
    for index, length in enumerate(LENGTHS):
        maps = [codes_of(scene(index, n) / 1000, settings) for n in range(length)]
        write_codes(root / recordings.video_path(index, DEPTH), maps)
    stated = {f'video.{key}': value for key, value in settings.items()}
    add_feature(root, 'video', is_depth_map=True, **{'video.pix_fmt': 'gray12le'}, **stated, **info)
    return root


def with_cells(root: Path, cell, **info: Any) -> Path:
    """`cell` turns a scene into the bytes of an image."""
    recordings.record(root, LENGTHS)
    for index, length in enumerate(LENGTHS):
        path = root / f'data/chunk-000/episode_{index:06d}.parquet'
        cells = [
            {'bytes': cell(scene(index, n)), 'path': f'frame-{n:06d}.tiff'} for n in range(length)
        ]
        pq.write_table(pq.read_table(path).append_column(DEPTH, pa.array(cells)), path)
    add_feature(root, 'image', **info)
    return root


CELLS = {
    'TIFF of 16 bits, mm': (encoded, {'depth_unit': 'mm'}),
    'PNG of 16 bits, mm': (
        lambda mm: encoded(mm, 'PNG'),
        {'depth_unit': 'mm', 'is_depth_map': True},
    ),
    'TIFF of floats, m': (lambda mm: encoded(mm.astype(np.float32) / 1000), {'depth_unit': 'm'}),
    'TIFF of floats, mm': (lambda mm: encoded(mm.astype(np.float32)), {'depth_unit': 'mm'}),
    'TIFF of floats, not said': (lambda mm: encoded(mm.astype(np.float32) / 1000), {}),
    'TIFF of floats, NaN': (
        lambda mm: encoded(np.where(mm, mm.astype(np.float32) / 1000, np.nan)),
        {'depth_unit': 'm'},
    ),
    'TIFF of floats, infinite': (
        lambda mm: encoded(np.where(mm, mm.astype(np.float32) / 1000, np.inf)),
        {'depth_unit': 'm'},
    ),
}


def test_every_code_is_its_distance_and_the_lowest_is_none():
    codes = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for settings in RANGES:
        quantiser = Quantiser(**settings)
        metres = quantiser.metres(codes)
        assert (
            metres.dtype == np.float32 and metres[0, 0] == 0 and (metres.reshape(-1)[1:] > 0).all()
        )
        assert metres.reshape(-1)[-1] == pytest.approx(quantiser.depth_max, rel=1e-5)
        assert np.array_equal(codes_of(metres, settings).reshape(-1)[1:], codes.reshape(-1)[1:])


@pytest.mark.parametrize('settings', RANGES[:4])
def test_maps_in_video_come_in_metres(tmp_path, settings):
    dataset = open_dataset(with_video(tmp_path, settings))
    assert dataset.cameras == recordings.CAMERAS and dataset.depths == (DEPTH,)
    one = {'depth_min': 0.01, 'depth_max': 10.0} | settings
    step = (one['depth_max'] + 3.5) * math.log(13.5 / 3.51) / 4095 + one['depth_max'] * 2e-3
    for index in (0, 2):
        for row, depth in zip(
            (3, 11), dataset.read_episode(index).frames(DEPTH, [3, 11]), strict=True
        ):
            want = scene(index, row) / 1000
            assert depth.shape == (*SIZE, 1) and depth.dtype == np.float32
            inside = (want > one['depth_min']) & (want < one['depth_max'])
            assert np.array_equal(depth[..., 0] == 0, want == 0)
            assert np.abs(depth[..., 0] - want)[inside].max() <= step


@pytest.mark.parametrize('name', CELLS)
def test_maps_in_cells_come_in_metres(tmp_path, name):
    cell, info = CELLS[name]
    dataset = open_dataset(with_cells(tmp_path, cell, **info))
    assert dataset.cameras == recordings.CAMERAS and dataset.depths == (DEPTH,)
    for row, depth in zip((0, 7), dataset.read_episode(1).frames(DEPTH, [0, 7]), strict=True):
        np.testing.assert_allclose(depth[..., 0], scene(1, row) / 1000, rtol=1e-6, atol=0)


@pytest.mark.parametrize('kind', ['TIFF', 'PNG'])
@pytest.mark.parametrize(
    ('tag', 'seen'), [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))]
)
def test_maps_that_lie_on_their_side_are_turned(tmp_path, tag, seen, kind):
    root = with_cells(
        tmp_path, lambda mm: encoded(np.rot90(mm, tag == 6), kind, tag), depth_unit='mm'
    )
    stored = np.rot90(scene(1, 4), tag == 6) / 1000
    depth = next(iter(open_dataset(root).read_episode(1).frames(DEPTH, [4])))
    np.testing.assert_allclose(depth[..., 0], seen(stored), rtol=1e-6)


def test_maps_beside_the_tables_are_found_by_their_path(tmp_path):
    root = with_cells(tmp_path, encoded, depth_unit='mm')
    (root / 'images').mkdir()
    (root / 'images/far.tiff').write_bytes(encoded(2 * scene(1, 0)))
    cells = [{'bytes': None, 'path': 'images/far.tiff'}] * LENGTHS[1]
    kind = pa.struct({'bytes': pa.binary(), 'path': pa.string()})
    recordings.edit_columns(root, 1, **{DEPTH.replace('.', '__'): pa.array(cells, kind)})
    depth = next(iter(open_dataset(root).read_episode(1).frames(DEPTH, [5])))
    np.testing.assert_allclose(depth[..., 0], scene(1, 0) / 500, rtol=1e-6)


def test_readings_without_a_unit_stay_what_they_are(tmp_path):
    dataset = open_dataset(with_cells(tmp_path, encoded))
    depth = next(iter(dataset.read_episode(1).frames(DEPTH, [7])))
    assert depth.dtype == np.uint16 and np.array_equal(depth[..., 0], scene(1, 7))


@pytest.mark.parametrize(
    ('make', 'exact', 'said'),
    [
        (
            lambda root: with_video(root, RANGES[1], depth_unit='mm'),
            False,
            '12-bit codes of 0.1 to 4 m, logarithmic',
        ),
        (
            lambda root: with_video(root, RANGES[2], depth_unit='m'),
            False,
            '12-bit codes of 0 to 2 m, linear',
        ),
        (
            lambda root: with_cells(root, encoded, depth_unit='mm', is_depth_map=True),
            True,
            'readings in mm',
        ),
        (
            lambda root: with_cells(root, CELLS['TIFF of floats, NaN'][0], depth_unit='m'),
            True,
            'readings in m',
        ),
    ],
)
def test_they_reach_the_batch_in_metres_and_gaps_stay_gaps(tmp_path, make, exact, said):
    source, out = make(tmp_path / 'data'), tmp_path / 'out'
    settings = {
        'image_size': 28,
        'train_episodes': (0, 1),
        'calibration_episodes': (2,),
        'depth_scale': 0.0005,
    }
    prepare(recordings.config(source, depth=(DEPTH,), **settings), out)
    assert said in open_shards(out).meta.depth_told['up_depth']
    tokenizer = load_tokenizer(recordings.SETTINGS['tokenizer'])
    batch = next(
        make_loader(
            open_shards(out).split('train'), batch_size=1, sequence_length=2, tokenizer=tokenizer
        )
    )
    top, left, rows, cols = content_box(SIZE, 28, 28)
    down, across = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in ((rows, SIZE[0]), (cols, SIZE[1]))
    )
    for at in np.ndindex(1, 2):
        want = (
            scene(int(batch['episode'][at]), int(batch['frame'][at]))[np.ix_(down, across)] / 1000
        )
        got = batch['depth'][at][0, top : top + rows, left : left + cols, 0]
        inside = want <= (2 if 'linear' in said else 4)
        assert np.array_equal(got == 0, want == 0), 'no gap is filled, none grows'
        assert np.abs(got - want)[inside].max() <= (1e-6 if exact else 2e-3)
        assert np.where(inside, 0, got).max() <= 4.0003


def test_a_map_without_any_reading_is_absent(tmp_path):
    source = with_cells(tmp_path / 'data', encoded, depth_unit='mm')
    cells = [{'bytes': encoded(0 * scene(0, n)), 'path': None} for n in range(LENGTHS[0])]
    recordings.edit_columns(source, 0, **{DEPTH.replace('.', '__'): pa.array(cells)})
    settings = {'image_size': 28, 'train_episodes': (0, 1), 'calibration_episodes': (2,)}
    prepare(recordings.config(source, depth=(DEPTH,), **settings), tmp_path / 'out')
    tokenizer = load_tokenizer(recordings.SETTINGS['tokenizer'])
    batches = make_loader(
        open_shards(tmp_path / 'out').split('train'),
        batch_size=1,
        sequence_length=1,
        tokenizer=tokenizer,
    )
    seen = {
        int(batch['episode'].item()): bool(batch['depth_mask'].item())
        for batch in itertools.islice(batches, 8)
    }
    assert seen == {0: False, 1: True}


def test_distances_in_units():
    metres = np.float32([[0, 1e-5, 0.0014, 65.535]])
    assert in_units(metres, 0.001, 0).tolist() == [[0, 1, 1, 65535]], 'only what is no reading is 0'
    assert in_units(metres / 10, 0.0001, 0)[0, 3] == 65535
    whole = np.arange(2**16, dtype=np.uint16)[None]
    assert np.array_equal(in_units((whole * 0.001).astype(np.float32), 0.001, 0), whole)
    assert in_units(whole, 0.5, 0) is whole
    with pytest.raises(
        UserError,
        match=r'expected depth up to 6.5535 m .* in episode 3, got '
        r'65.53.* m; raise',
    ):
        in_units(metres, 0.0001, 3)


@pytest.mark.parametrize(
    ('kind', 'shape', 'info', 'depth'),
    [
        ('image', [24, 32, 1], {}, True),
        ('image', [1, 24, 32], {}, True),
        ('image', [24, 32, 3], {}, False),
        ('image', [24, 32, 3], {'info': {'is_depth_map': True}}, False),
        ('video', [24, 32, 3], {'info': {'is_depth_map': False}}, False),
        ('video', [24, 32, 1], {'info': {'is_depth_map': True}}, True),
        ('video', [24, 32, 1], {'video_info': {'video.is_depth_map': True}}, True),
        ('video', [24, 32, 1], {}, False),
        (
            'video',
            [24, 32, 3],
            {'info': {'video.is_depth_map': True, 'video.pix_fmt': 'gray12le'}},
            True,
        ),
        (
            'video',
            [24, 32, 3],
            {'info': {'video.is_depth_map': True, 'video.pix_fmt': 'yuv420p'}},
            False,
        ),
        ('float32', [24], {'info': {'is_depth_map': True}}, False),
    ],
)
def test_which_features_are_depth(kind, shape, info, depth):
    assert depth_keys({'x': {'dtype': kind, 'shape': shape, **info}}) == (('x',) if depth else ())


@pytest.mark.parametrize(
    ('stated', 'message'),
    [
        (
            {'video.depth_min': 4.0, 'video.depth_max': 4.0},
            'expected 0 <= depth_min < depth_max .* got {.*4.0',
        ),
        ({'video.depth_max': 'far'}, "got {'depth_max': 'far'}"),
        ({'video.depth_max': float('nan')}, "got {'depth_max': nan}"),
        ({'video.depth_min': -1.0}, "got {'depth_min': -1.0}"),
        ({'video.shift': -0.01}, "got {'shift': -0.01}"),
        ({'video.use_log': 'yes'}, "got {'use_log': 'yes'}"),
    ],
)
def test_ranges_that_are_none(tmp_path, stated, message):
    root = with_video(tmp_path, {}, **stated)
    with pytest.raises(UserError, match=message):
        list(open_dataset(root).read_episode(0).frames(DEPTH, [0]))


@pytest.mark.parametrize(
    ('cell', 'info', 'message'),
    [
        (
            lambda mm: encoded(mm)[:900],
            {},
            'expected a depth image as PNG in .*up_depth, episode 0, frame 0 .or',
        ),
        (lambda mm: b'II*\0' + bytes(40), {}, 'expected a depth image as PNG in'),
        (lambda mm: encoded(mm[:5]), {}, 'expected depth of 24 x 32 pixels in .*, got 5 x 32'),
        (
            lambda mm: encoded(mm.astype(np.uint8)),
            {},
            'expected 16-bit depth in .*, got an image of mode L',
        ),
        (
            lambda mm: encoded(-mm.astype(np.float32)),
            {},
            'expected depth of 0 or more in .*frame 0, got -1056;',
        ),
        (
            lambda mm: encoded(mm.astype(np.int32) + 2**16),
            {},
            'expected depth of 0 to 65535 in .*, got 66',
        ),
        (
            encoded,
            {'depth_unit': 'inch'},
            "expected depth_unit 'm' or 'mm' for .*up_depth.*, got 'inch'",
        ),
    ],
)
def test_cells_that_hold_no_depth(tmp_path, cell, info, message):
    root = with_cells(tmp_path, cell, **info)
    with pytest.raises(UserError, match=message):
        list(open_dataset(root).read_episode(0).frames(DEPTH, [0]))


def test_video_of_another_kind_is_no_depth(tmp_path):
    root = with_video(tmp_path, {})
    frames = [recordings.camera_image(0, n, DEPTH) for n in range(LENGTHS[0])]
    recordings.write_video(root / recordings.video_path(0, DEPTH), frames)
    with pytest.raises(UserError, match='expected 12-bit depth .gray12le. in .*, got yuv4'):
        list(open_dataset(root).read_episode(0).frames(DEPTH, [0]))


def test_depth_among_the_cameras_is_reported_where_it_belongs(tmp_path):
    root = with_video(tmp_path / 'data', {})
    with pytest.raises(
        UserError, match='depth has a setting of its own, as in --config.data.depth="'
    ) as said:
        prepare(recordings.config(root, cameras=(recordings.CAMERAS[0], DEPTH)), tmp_path / 'out')
    assert f"('{DEPTH}',)" in str(said.value)


def test_colours_in_a_whole_tiff_are_read_and_depth_is_reported_as_such():
    colours = recordings.camera_image(1, 2, 'up')
    assert np.array_equal(decode_cell({'bytes': encoded(colours)}, SIZE, 'up', Path()), colours)
    for depth in (scene(0, 0), scene(0, 0).astype(np.float32)):
        with pytest.raises(
            UserError, match='expected 8-bit colour in up, got mode .*, as depth is stored'
        ) as caught:
            decode_cell({'bytes': encoded(depth)}, SIZE, 'up', Path())
        assert (
            'give it one channel by its shape in meta/info.json and name it in data.depth'
            in str(caught.value)
        )


@pytest.mark.parametrize(
    ('mode', 'kind'), [('LA', 'PNG'), ('1', 'PNG'), ('CMYK', 'JPEG'), ('CMYK', 'TIFF')]
)
def test_other_kinds_of_colour_are_not_called_depth(mode, kind):
    stored = io.BytesIO()
    Image.fromarray(recordings.camera_image(1, 2, 'up')).convert(mode).save(stored, kind)
    with pytest.raises(
        UserError, match=f'expected 8-bit colour in up, .*got mode {mode}; store it as RGB'
    ) as caught:
        decode_cell({'bytes': stored.getvalue()}, SIZE, 'up', Path())
    assert 'depth' not in str(caught.value)


@pytest.mark.parametrize('kind', ['GIF', 'BMP'])
def test_another_format_is_reported_without_addresses(kind):
    stored = io.BytesIO()
    Image.fromarray(recordings.camera_image(1, 2, 'up')).save(stored, kind)
    with pytest.raises(
        UserError, match='got "cannot identify image file"; .* store it as one of these'
    ) as caught:
        decode_cell({'bytes': stored.getvalue()}, SIZE, 'up', Path())
    assert ' at 0x' not in str(caught.value)


def test_a_camera_of_8_bit_grey_is_read_where_the_advice_is_followed(tmp_path):
    """One channel makes it depth; its images say that it is none."""
    root = recordings.record(tmp_path, (9,))
    grey = [Image.fromarray(recordings.camera_image(0, row, 'up')).convert('L') for row in range(9)]
    cells = [{'bytes': encoded(np.asarray(image)), 'path': None} for image in grey]
    camera = recordings.CAMERAS[0]
    recordings.edit_columns(root, 0, **{camera: cells})
    features = json.loads((root / 'meta/info.json').read_text())['features']
    features[camera]['shape'][-1] = 1
    recordings.edit_info(root, features=features)
    with pytest.raises(
        UserError, match='got an image of mode L; .* give it three channels by its shape'
    ):
        list(open_dataset(root).read_episode(0).frames(camera, [0]))
    features[camera]['shape'][-1] = 3
    recordings.edit_info(root, features=features)
    (frame,) = open_dataset(root).read_episode(0).frames(camera, [4])
    assert np.array_equal(frame, np.asarray(grey[4].convert('RGB')))


def test_a_lost_episode_of_depth_is_left_out_where_that_is_asked_for(tmp_path):
    root = with_video(tmp_path / 'data', {})
    path = root / recordings.video_path(1, DEPTH)
    path.write_bytes(path.read_bytes()[:900])
    meta = prepare(
        recordings.config(root, depth=(DEPTH,), on_bad_episode='skip'), tmp_path / 'out'
    ).meta.to_json()
    assert list(meta['bad_episodes']) == ['1'] and DEPTH in meta['bad_episodes']['1']
    assert len(open_shards(tmp_path / 'out').split('train').records()) > 0


LEROBOT = """
import json, pathlib, sys, warnings, logging
warnings.filterwarnings('ignore'); logging.disable(logging.WARNING)
import numpy as np
import torch
from lerobot.configs import DepthEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.depth_utils import dequantize_depth
work, ranges = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
codes = np.arange(4096, dtype=np.uint16).reshape(64, 64)
def read(unit, one):
    return dequantize_depth(torch.from_numpy(codes)[None], output_unit=unit, **one)[0].numpy()
found = {f'{unit}{n}': read(unit, one) for n, one in enumerate(ranges) for unit in ('m', 'mm')}
KEY = 'observation.images.up_depth'
def scene(n, kind):
    mm = (300 + 61 * n + 40 * np.arange(32) + 25 * np.arange(24)[:, None]).astype(np.uint16)
    mm[:8, :12] = 0
    return (mm if kind == 'uint16' else mm.astype(np.float32) / 1000)[..., None]
for name, use, kind, encoder in (
    ('video', True, 'uint16', {}), ('linear', True, 'float32', ranges[2]),
    ('image', False, 'uint16', {}), ('float', False, 'float32', {}),
):
    joints = {'dtype': 'float32', 'shape': (6,), 'names': list('abcdef')}
    depth = {'dtype': 'video' if use else 'image', 'shape': (24, 32, 1),
             'names': ['height', 'width', 'channels'], 'info': {'is_depth_map': True}}
    features = {'observation.state': joints, 'action': joints, KEY: depth}
    d = LeRobotDataset.create('me/x', 30, features, root=work / name, use_videos=use,
                              depth_encoder=DepthEncoderConfig(**encoder))
    for episode in range(2):
        for i in range(12):
            x, seen = np.full(6, i, np.float32), scene(12 * episode + i, kind)
            d.add_frame({'observation.state': x, 'action': x, 'task': 'look', KEY: seen})
        d.save_episode()
    d.finalize()
    for unit in ('m', 'mm'):
        d = LeRobotDataset('me/x', root=work / name, video_backend='pyav', depth_output_unit=unit)
        found[f'{name} {unit}'] = np.stack([d[i][KEY].numpy()[0] for i in range(len(d))])
    found[f'{name} made'] = np.stack([scene(n, kind)[..., 0] for n in range(24)])
np.savez(work / 'found.npz', **found)
"""


@pytest.mark.reference
def test_lerobot_gives_the_same_distances(tmp_path):
    """LeRobot 0.6.1 records and reads, in the Python that REFERENCE_LEROBOT names."""
    python = os.environ.get('REFERENCE_LEROBOT')
    assert python, 'set REFERENCE_LEROBOT to a Python that has lerobot 0.6.1'
    env = os.environ | {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'home')}
    subprocess.run([python, '-c', LEROBOT, tmp_path, json.dumps(RANGES)], check=True, env=env)
    found = np.load(tmp_path / 'found.npz')
    codes = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for n, settings in enumerate(RANGES):
        metres = Quantiser(**settings).metres(codes)
        np.testing.assert_allclose(
            metres[codes > 0], found[f'm{n}'][codes > 0], rtol=2e-6, atol=1e-6
        )
        apart = np.abs(in_units(metres, 0.001, 0) - found[f'mm{n}'])[codes > 0]
        assert apart.max() <= 1 and (apart > 0).mean() < 1e-3, (
            'but for the rounding of a few halves'
        )
    for name in ('video', 'linear', 'image', 'float'):
        dataset = open_dataset(tmp_path / name)
        assert dataset.depths == (DEPTH,) and dataset.cameras == ()
        ours = np.concatenate([np.stack([*dataset.read_episode(i).frames(DEPTH)]) for i in (0, 1)])[
            ..., 0
        ]
        gaps = found[f'{name} made'] == 0
        assert np.array_equal(ours == 0, gaps) and gaps.any()
        np.testing.assert_allclose(ours[~gaps], found[f'{name} m'][~gaps], rtol=2e-6, atol=1e-6)
        units = np.stack([in_units(one, 0.001, 0) for one in ours])
        assert np.array_equal(units[~gaps], np.rint(found[f'{name} mm'][~gaps]))
        # what LeRobot makes of a gap, mm
        nearest = {'video': 10, 'linear': 0, 'image': 0, 'float': 0}[name]
        assert (found[f'{name} mm'][gaps] == nearest).all()
