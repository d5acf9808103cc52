"""An episode's rows are found where they are, whatever file the metadata of v3.0 name; what is
missing is reported.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sigma_jax.data.lerobot import rows as lerobot_rows
from sigma_jax.data.lerobot.dataset import ACTION, STATE, LeRobotDataset, open_dataset
from sigma_jax.data.lerobot.tables import INDEX_COLUMNS, tasks_table
from sigma_jax.errors import UserError
from tests.data_pipeline import recordings

LENGTHS = (9, 7, 8, 6, 5)
MOVED = {
    'one episode in the next file': ([0, 0, 1, 1, 1], [0, 0, 0, 1, 1]),
    'all named one file early': ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
    'all named in the first file': ([0, 1, 1, 2, 2], [0, 0, 0, 0, 0]),
    'named two files late': ([0, 0, 1, 1, 1], [2, 2, 1, 1, 1]),
    'named in files that are not there': ([0, 0, 0, 1, 1], [7, 0, 0, 8, 9]),
    'right': ([0, 0, 1, 1, 2], [0, 0, 1, 1, 2]),
}


def data_path(file: int) -> str:
    return f'data/chunk-000/file-{file:03d}.parquet'


def record(
    root: Path, lies_in: Sequence[int | tuple[int, ...]], named: Sequence[int]
) -> tuple[Path, LeRobotDataset]:
    """A v3.0 recording whose episodes lie where `lies_in` says (a tuple: cut over files), and the
    v2.1 one it was.
    """
    old = recordings.record(root / 'old', LENGTHS, kind='video')
    new = recordings.to_v30(old, root / 'new', LENGTHS, per_file=len(LENGTHS))
    whole = pq.read_table(new / data_path(0))
    (new / data_path(0)).unlink()
    parts: dict[int, list] = {}
    for index, places in enumerate(lies_in):
        rows = whole.filter(pc.field('episode_index') == index)
        files = places if isinstance(places, tuple) else (places,)
        for file, piece in zip(
            files, np.array_split(np.arange(len(rows)), len(files)), strict=True
        ):
            parts.setdefault(file, []).append(rows.take(piece))
    for file, tables in parts.items():
        recordings.write_table(new / data_path(file), pa.concat_tables(tables))
    episodes = pq.read_table(new / 'meta/episodes/chunk-000/file-000.parquet').to_pylist()
    first = np.cumsum([0, *LENGTHS]).tolist()
    for row, file in zip(episodes, named, strict=True):
        at = row['episode_index']
        row |= {
            'data/file_index': file,
            'dataset_from_index': first[at],
            'dataset_to_index': first[at + 1],
        }
    recordings.write_table(
        new / 'meta/episodes/chunk-000/file-000.parquet', pa.Table.from_pylist(episodes)
    )
    tell_lerobot(new)
    return new, open_dataset(old)


def tell_lerobot(root: Path) -> None:
    """What LeRobot's reader asks for beside what ours does."""
    features = json.loads((root / 'meta/info.json').read_text())['features']
    features['timestamp'] = {'dtype': 'float32', 'shape': [1], 'names': None}
    features |= {key: {'dtype': 'int64', 'shape': [1], 'names': None} for key in INDEX_COLUMNS}
    sizes = {
        'total_episodes': len(LENGTHS),
        'total_frames': sum(LENGTHS),
        'total_tasks': len(recordings.TASKS),
    }
    recordings.edit_info(root, features=features, splits={'train': f'0:{len(LENGTHS)}'}, **sizes)
    tasks = {task: number for number, task in enumerate(recordings.TASKS)}
    recordings.write_table(root / 'meta/tasks.parquet', tasks_table(tasks))


def assert_same(one: LeRobotDataset, other: LeRobotDataset) -> None:
    for index in other.episodes:
        a, b = one.read_episode(index), other.read_episode(index)
        assert (
            np.array_equal(a.state, b.state)
            and np.array_equal(a.actions, b.actions)
            and a.tasks == b.tasks
        )
        assert np.array_equal(a.timestamps, b.timestamps) and np.array_equal(
            a.frame_index, b.frame_index
        )
        for camera in recordings.CAMERAS:
            errors = [
                np.abs(x.astype(int) - recordings.camera_image(index, n, camera)).max()
                for n, x in enumerate(a.frames(camera))
            ]
            assert max(errors) < 12  # the next frame is 20 away


@pytest.mark.parametrize('name', MOVED)
def test_episodes_are_read_where_they_lie(tmp_path, name):
    new, old = record(tmp_path, *MOVED[name])
    assert_same(open_dataset(new), old)


@pytest.mark.parametrize('named', [[0] * 5, [1, 1, 1, 1, 1], [2, 0, 0, 2, 5]])
def test_an_episode_cut_over_files_is_joined(tmp_path, named):
    new, old = record(tmp_path, [0, (0, 1), 1, (1, 2, 3), 3], named)
    assert_same(open_dataset(new), old)


def test_images_in_cells_are_found_as_well(tmp_path):
    new, _ = record(tmp_path, [0, 0, 1, 1, 1], [0, 0, 0, 1, 1])
    features = json.loads((new / 'meta/info.json').read_text())['features']
    for camera in recordings.CAMERAS:
        features[camera]['dtype'] = 'image'
    recordings.edit_info(new, features=features)
    for file, episodes in ((0, (0, 1)), (1, (2, 3, 4))):
        table = pq.read_table(new / data_path(file))
        for camera in recordings.CAMERAS:
            frames = [
                recordings.camera_image(i, j, camera) for i in episodes for j in range(LENGTHS[i])
            ]
            cells = [{'bytes': recordings.png(frame), 'path': None} for frame in frames]
            table = table.append_column(camera, pa.array(cells))
        pq.write_table(table, new / data_path(file))
    got = list(open_dataset(new).read_episode(2).frames(recordings.CAMERAS[1], [0, 5]))
    assert np.array_equal(
        got, [recordings.camera_image(2, n, recordings.CAMERAS[1]) for n in (0, 5)]
    )


def test_other_files_are_read_only_where_the_index_is_wrong(tmp_path, monkeypatch):
    new, _ = record(tmp_path, *MOVED['right'])
    asked = []

    def spy(path, **options):
        asked.append(path.name)
        return read(path, **options)

    read = lerobot_rows.read_parquet
    monkeypatch.setattr(lerobot_rows, 'read_parquet', spy)
    dataset = open_dataset(new)
    for index in dataset.episodes:
        dataset.read_episode(index)
    assert asked == ['file-000.parquet'] * 2 + ['file-001.parquet'] * 2 + ['file-002.parquet']
    (tmp_path / 'stale').mkdir()
    dataset = open_dataset(record(tmp_path / 'stale', *MOVED['one episode in the next file'])[0])
    asked.clear()
    dataset.read_episode(2)
    dataset.read_episode(2)
    searched = ['file-000.parquet', 'file-000.parquet', 'file-001.parquet', 'file-001.parquet']
    assert asked == [*searched, 'file-000.parquet', 'file-001.parquet'], 'the search is done once'


@pytest.mark.parametrize(
    ('kept', 'got'),
    [
        (pc.field('episode_index') != 2, 0),
        ((pc.field('episode_index') != 2) | (pc.field('frame_index') != 7), 7),
        (pc.field('index') > 10**6, 0),
    ],
)
def test_rows_that_are_nowhere_are_reported(tmp_path, kept, got):
    new, _ = record(tmp_path, *MOVED['one episode in the next file'])
    pq.write_table(pq.read_table(new / data_path(1)).filter(kept), new / data_path(1))
    with pytest.raises(
        UserError, match=f'expected 8 rows .* of episode 2 in .*file-000.parquet, got {got};'
    ):
        open_dataset(new).read_episode(2)


def test_a_repeated_row_is_reported(tmp_path):
    new, _ = record(tmp_path, *MOVED['one episode in the next file'])
    table = pq.read_table(new / data_path(1))
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), new / data_path(1))
    with pytest.raises(UserError, match='expected 8 rows .* got 9;'):
        open_dataset(new).read_episode(2)


@pytest.mark.parametrize('places', [(0, 1), (1, 2), (0, 1, 2)])
def test_the_files_over_which_rows_lie_are_named(tmp_path, places):
    new, _ = record(tmp_path, [0, 0, places, 1, 2], [0, 0, 0, 1, 2])
    last = new / data_path(places[-1])
    table = pq.read_table(last)
    again = table.filter(pc.field('episode_index') == 2).slice(0, 1)
    pq.write_table(pa.concat_tables([table, again]), last)
    with pytest.raises(UserError, match='expected 8 rows .* got 9;') as caught:
        open_dataset(new).read_episode(2)
    assert all(data_path(file) in str(caught.value) for file in places)


def test_a_data_file_that_is_not_there_is_reported(tmp_path):
    new, _ = record(tmp_path, *MOVED['right'])
    (new / data_path(1)).unlink()
    dataset = open_dataset(new)
    assert len(dataset.read_episode(1)) == LENGTHS[1]
    with pytest.raises(
        UserError, match='expected a parquet file at .*file-001.parquet, got nothing there'
    ):
        dataset.read_episode(2)


def test_parts_of_other_types_are_reported(tmp_path):
    new, _ = record(tmp_path, [0, (0, 1), 1, 1, 1], [0, 0, 1, 1, 1])
    table = pq.read_table(new / data_path(1))
    texts = pa.array([['x'] * 6] * len(table))
    pq.write_table(
        table.set_column(table.column_names.index(STATE), STATE, texts), new / data_path(1)
    )
    with pytest.raises(
        UserError, match='expected the parts of episode 1 to have columns of the same types'
    ):
        open_dataset(new).read_episode(1)


def test_files_of_v21_hold_what_their_names_say(tmp_path):
    root = recordings.record(tmp_path, (5, 6))
    one, other = (root / f'data/chunk-000/episode_{i:06d}.parquet' for i in (0, 1))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    with pytest.raises(UserError, match='expected 5 rows .* of episode 0 .* got 0;'):
        open_dataset(root).read_episode(0)


LEROBOT = """
import json, sys, warnings, logging
warnings.filterwarnings('ignore'); logging.disable(logging.ERROR)
import numpy as np
from lerobot.datasets import LeRobotDataset
d = LeRobotDataset('me/data', root=sys.argv[1], video_backend='pyav')
items = [d[i] for i in range(len(d))]
np.savez(sys.argv[2], task=[item['task'] for item in items],
         **{key: np.stack([item[key].numpy() for item in items]) for key in sys.argv[3:]})
"""


@pytest.mark.reference
@pytest.mark.parametrize('name', MOVED)
def test_lerobot_reads_the_same_rows(tmp_path, name):
    """LeRobot 0.6.1, in the Python that REFERENCE_LEROBOT names."""
    python = os.environ.get('REFERENCE_LEROBOT')
    assert python, 'set REFERENCE_LEROBOT to a Python that has lerobot 0.6.1'
    new, _ = record(tmp_path, *MOVED[name])
    env = os.environ | {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'home')}
    keys = [STATE, ACTION, 'episode_index', recordings.CAMERAS[0]]
    subprocess.run(
        [python, '-c', LEROBOT, new, tmp_path / 'theirs.npz', *keys], check=True, env=env
    )
    theirs, ours = np.load(tmp_path / 'theirs.npz'), open_dataset(new)
    episodes = [ours.read_episode(index) for index in ours.episodes]
    assert np.array_equal(theirs[STATE], np.concatenate([one.state for one in episodes]))
    assert np.array_equal(theirs[ACTION], np.concatenate([one.actions for one in episodes]))
    assert theirs['episode_index'].tolist() == [
        one.index for one in episodes for _ in range(len(one))
    ]
    assert theirs['task'].tolist() == [task for one in episodes for task in one.tasks]
    frames = np.concatenate([list(one.frames(recordings.CAMERAS[0])) for one in episodes])
    pixels = np.rint(theirs[recordings.CAMERAS[0]].transpose(0, 2, 3, 1) * 255)
    assert np.abs(pixels - frames).max() <= 3
