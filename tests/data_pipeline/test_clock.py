"""Timestamps of a robot's own clock: the row's frame, or one sentence; never the frame of another
row.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from tests.data_pipeline import films, lerobot_reference, recordings

FPS, LENGTH = recordings.FPS, 60
CAMERA = recordings.CAMERAS[1]
STEADY = np.arange(LENGTH) / FPS
RIGHT = {
    'exact': STEADY,
    'shaken by up to 8 ms': STEADY + np.random.default_rng(0).uniform(-0.008, 0.008, LENGTH),
    'from 5 ms on': STEADY + 0.005,
    'from 7 ms before': STEADY - 0.007,
    'rate 30.1': np.arange(LENGTH) / 30.1,
}
OFF = {
    'rate 29.2': (
        np.arange(LENGTH) / 29.2,
        'got 0.3425 s at frame 10, +0.27 frames off (+1.62 at frame 59)',
    ),
    'rate 30.9': (np.arange(LENGTH) / 30.9, 'at frame 9, -0.26 frames off (-1.72 at frame 59)'),
    'rate 29.7': (np.arange(LENGTH) / 29.7, 'at frame 25, +0.25 frames off'),
    'rate 25': (np.arange(LENGTH) / 25, 'at frame 2, +0.40 frames off'),
    'from 10 ms on': (STEADY + 0.010, 'got 0.0100 s at frame 0, +0.30 frames off'),
    'from 16 ms before': (STEADY - 0.016, 'got -0.0160 s at frame 0, -0.48 frames off'),
    'one frame late from row 40 on': (
        STEADY + (np.arange(LENGTH) >= 40) / FPS,
        'a step of 2.00 frames at frame 39',
    ),
    'slipping between rows 20 and 23': (
        STEADY + np.interp(np.arange(LENGTH), [20, 23], [0, 1]) / FPS,
        'at frame 21, +0.33 frames off (+1.00',
    ),
    'Unix time': (STEADY + 1.7e9, 'expected timestamps from 0 s on in episode 0, got 1700000000.'),
    'one row on': (STEADY + 1 / FPS, 'expected timestamps from 0 s on in episode 0, got 0.033 s'),
}


@pytest.fixture(scope='module')
def steady(tmp_path_factory) -> Path:
    """Videos and rows at one rate."""
    return recordings.record(tmp_path_factory.mktemp('steady'), (LENGTH, LENGTH), kind='video')


def with_clock(steady: Path, folder: Path, times: np.ndarray) -> Path:
    """A copy whose first episode has other timestamps."""
    shutil.copytree(steady, folder / 'data')
    recordings.edit_columns(folder / 'data', 0, timestamp=times)
    return folder / 'data'


def rows_of(frames: list[np.ndarray]) -> list[int]:
    """Which rows the images were drawn for, 12 to a turn of colours."""
    return [round(float(frame[..., 0].mean()) / 20) for frame in frames]


@pytest.mark.parametrize('name', RIGHT)
def test_a_clock_within_a_quarter_frame_gives_each_row_its_frame(
    name: str, steady, tmp_path
) -> None:
    episode = open_dataset(with_clock(steady, tmp_path, RIGHT[name])).read_episode(0)
    assert rows_of(list(episode.frames(CAMERA, range(12)))) == list(range(12))
    whole = zip(
        episode.frames(CAMERA), open_dataset(steady).read_episode(0).frames(CAMERA), strict=True
    )
    assert all(np.array_equal(ours, frame) for ours, frame in whole)


@pytest.mark.parametrize('name', OFF)
def test_a_clock_that_runs_away_is_refused_before_any_row_is_asked_for(
    name: str, steady, tmp_path
) -> None:
    times, words = OFF[name]
    dataset = open_dataset(with_clock(steady, tmp_path, times))
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        dataset.read_episode(0)
    assert 'episode 0' in str(caught.value)
    assert len(dataset.read_episode(1)) == LENGTH


@pytest.mark.parametrize(('stride', 'rate'), [(36, 29.2), (34, 30.9), (59, 29.5)])
def test_windows_that_happen_to_hit_frames_are_no_excuse(
    stride: int, rate: float, steady, tmp_path
) -> None:
    """Rows 0 and `stride` lie within a quarter frame of some frame; the latter's is that of a
    neighbour.
    """
    root = with_clock(steady, tmp_path, np.arange(LENGTH) / rate)
    settings = {'stride': stride, 'horizon': 1, 'chunk': 1, 'split_fractions': (1.0, 0.0, 0.0)}
    with pytest.raises(UserError, match='frames off'):
        prepare(recordings.config(root, **settings), tmp_path / 'out')
    assert not (tmp_path / 'out' / 'meta.json').exists()
    prepare(recordings.config(root, on_bad_episode='skip', **settings), tmp_path / 'skipped')
    meta = json.loads((tmp_path / 'skipped' / 'meta.json').read_text())
    assert meta['splits']['train'] == [1] and 'frames off' in json.dumps(meta)


CELLS = {
    'rate 29.2': np.arange(30) / 29.2,
    'rate 10': np.arange(30) / 10,
    'rate 20': np.arange(30) / 20,
    'rate 60': np.arange(30) / 60,
    'from 20 ms on': np.arange(30) / FPS + 0.02,
    'from an hour on': np.arange(30) / FPS + 3600,
    'Unix time': np.arange(30) / FPS + 1.7e9,
    'Unix time of 32 bits, one value for all': np.float32(np.arange(30) / FPS + 1.7e9),
    'a pause': np.arange(30) / FPS + 2 * (np.arange(30) > 12),
}


@pytest.mark.parametrize('name', CELLS)
def test_images_in_cells_belong_to_their_rows_whatever_the_clock(name: str, tmp_path) -> None:
    root = recordings.record(tmp_path, (30,))
    recordings.edit_columns(root, 0, timestamp=CELLS[name])
    frames = list(open_dataset(root).read_episode(0).frames(CAMERA, [0, 11, 29]))
    assert np.array_equal(frames, [recordings.camera_image(0, row, CAMERA) for row in (0, 11, 29)])


@pytest.mark.parametrize(('row', 'value'), [(7, 0.1), (29, -1.0)])
def test_a_clock_that_runs_back_is_refused_beside_cells_too(
    row: int, value: float, tmp_path
) -> None:
    root = recordings.record(tmp_path, (30,))
    times = np.arange(30) / FPS
    times[row] = value
    recordings.edit_columns(root, 0, timestamp=times)
    with pytest.raises(
        UserError, match=f'timestamps that rise in episode 0, .* at frame {row - 1};'
    ):
        open_dataset(root).read_episode(0)


@pytest.mark.reference
def test_lerobot_gives_no_other_frame_where_one_is_given_and_does_not_read_what_is_refused(
    tmp_path,
) -> None:
    """By both of its readers: of shaken rows it refuses most, of a clock that runs away it gives
    never all rows.
    """
    clocks = RIGHT | {name: times for name, (times, _) in OFF.items()}
    roots, rows = [], [0, 12, 36, 59]
    for n, times in enumerate(clocks.values()):
        root = films.write_dataset(tmp_path / str(n), [LENGTH])
        path = root / 'data/chunk-000/file-000.parquet'
        table = pq.read_table(path)
        column = table.column_names.index('timestamp')
        pq.write_table(table.set_column(column, 'timestamp', pa.array(times, pa.float32())), path)
        roots.append(root)
    found = lerobot_reference.images(roots, films.CAMERA, rows)
    for name, root, theirs in zip(clocks, roots, found, strict=True):
        said = {
            reader: [None if x is None else films.number_of(x) for x in images]
            for reader, (images,) in theirs.items()
        }
        if name in RIGHT:
            ours = [
                films.number_of(x)
                for x in open_dataset(root).read_episode(0).frames(films.CAMERA, rows)
            ]
            assert ours == rows and all(
                x in (None, row) for xs in said.values() for x, row in zip(xs, rows, strict=True)
            )
            assert name != 'exact' or set(map(tuple, said.values())) == {tuple(rows)}
        else:
            with pytest.raises(UserError):
                open_dataset(root).read_episode(0)
            assert rows not in said.values(), name
