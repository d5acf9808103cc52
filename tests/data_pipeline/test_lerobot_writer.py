"""The LeRobot v3.0 writer against a data set that lerobot 0.4.4 itself wrote, and its statistics
against numpy.
"""

import errno
import json
import os
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from sigma_jax.data.lerobot import stats as lerobot_stats
from sigma_jax.data.lerobot.tables import Recording
from sigma_jax.data.lerobot.writer import LeRobotWriter
from sigma_jax.data.sources import open_source
from sigma_jax.data.video.encode import VideoSettings, VideoWriter
from sigma_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / 'data' / 'lerobot' / 'v3.0'
JOINTS = tuple(json.loads((GOLDEN / 'meta/info.json').read_text())['features']['action']['names'])
RECORDING = Recording(JOINTS, {'up': (96, 128), 'side': (96, 128)})
LENGTHS = (20, 25, 30)
TASKS = ('pick up the lego', 'place it in the box', 'pick up the lego')


def camera_image(episode, frame):
    """Red shows the frame, blue the episode, a green bar moves."""
    image = np.zeros((96, 128, 3), dtype=np.uint8)
    image[..., 0] = 5 * frame
    image[:, frame : frame + 8, 1] = 200
    image[..., 2] = 80 * episode
    return image


def episode(index):
    rng = np.random.default_rng(index)
    frames = np.stack([camera_image(index, i) for i in range(LENGTHS[index])])
    state, action = rng.normal(size=(2, LENGTHS[index], 6))
    return state, action, {'up': frames, 'side': frames[:, ::-1]}, TASKS[index]


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp('written') / 'set'
    with LeRobotWriter(out, RECORDING, VideoSettings(crf=30, gop=10)) as writer:
        for index in range(3):
            writer.add_episode(*episode(index))
        assert not out.exists()  # the name appears last
    return out


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())


def test_files_and_info_are_those_of_lerobot(written):
    assert files(written) == files(GOLDEN)
    ours, theirs = (json.loads((root / 'meta/info.json').read_text()) for root in (written, GOLDEN))
    assert ours == theirs


@pytest.mark.parametrize(
    'name',
    [
        'data/chunk-000/file-000.parquet',
        'meta/episodes/chunk-000/file-000.parquet',
        'meta/tasks.parquet',
    ],
)
def test_columns_and_types_are_those_of_lerobot(written, name):
    ours, theirs = (pq.read_schema(root / name) for root in (written, GOLDEN))
    assert ours.names == theirs.names
    assert ours.types == theirs.types


def test_metadata_for_datasets_and_pandas(written):
    def features(root):
        return json.loads(
            pq.read_schema(root / 'data/chunk-000/file-000.parquet').metadata[b'huggingface']
        )['info']['features']

    def index_columns(root):
        return json.loads(pq.read_schema(root / 'meta/tasks.parquet').metadata[b'pandas'])[
            'index_columns'
        ]

    assert features(written) == features(GOLDEN)
    assert index_columns(written) == index_columns(GOLDEN)


def test_episode_rows_say_where_things_are(written):
    ours, theirs = (
        pq.read_table(root / 'meta/episodes/chunk-000/file-000.parquet').to_pylist()
        for root in (written, GOLDEN)
    )
    for row, golden in zip(ours, theirs, strict=True):
        places = [name for name in golden if not name.startswith('stats/')]
        assert {name: row[name] for name in places} == {name: golden[name] for name in places}
        for key in ('min', 'max', 'mean', 'std', 'count'):  # lerobot's quantiles are estimates
            for feature in ('frame_index', 'index', 'episode_index', 'timestamp'):
                assert row[f'stats/{feature}/{key}'] == pytest.approx(
                    golden[f'stats/{feature}/{key}']
                )


def test_values_come_back(written):
    table = pq.read_table(written / 'data/chunk-000/file-000.parquet')
    states = np.concatenate([episode(index)[0] for index in range(3)]).astype(np.float32)
    actions = np.concatenate([episode(index)[1] for index in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(np.stack(table['observation.state'].to_pylist()), states)
    np.testing.assert_array_equal(np.stack(table['action'].to_pylist()), actions)
    assert table['index'].to_pylist() == list(range(75))
    assert table['task_index'].to_pylist() == [0] * 20 + [1] * 25 + [0] * 30
    np.testing.assert_allclose(table['timestamp'].to_numpy()[:20], np.arange(20) / 30, rtol=1e-6)
    assert (
        pq.read_table(written / 'meta/tasks.parquet').to_pylist()
        == pq.read_table(GOLDEN / 'meta/tasks.parquet').to_pylist()
    )


@pytest.mark.parametrize('camera', ['up', 'side'])
def test_video_frames_come_back_in_order_at_their_times(written, camera):
    path = written / f'videos/observation.images.{camera}/chunk-000/file-000.mp4'
    expected = np.concatenate([episode(index)[2][camera] for index in range(3)])
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    images = np.stack([frame.to_ndarray(format='rgb24') for frame in frames]).astype(int)
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(75) / 30, atol=1e-6)
    errors = np.abs(images - expected).mean(axis=(1, 2, 3))
    assert errors.max() < 6
    # off by one is worse
    assert (np.abs(images[1:] - expected[:-1]).mean(axis=(1, 2, 3)) > errors[1:]).all()


def test_total_statistics_are_exact(written):
    stats = json.loads((written / 'meta/stats.json').read_text())
    golden = json.loads((GOLDEN / 'meta/stats.json').read_text())
    assert {key: set(value) for key, value in stats.items()} == {
        key: set(value) for key, value in golden.items()
    }
    states = (
        np.concatenate([episode(index)[0] for index in range(3)])
        .astype(np.float32)
        .astype(np.float64)
    )
    np.testing.assert_allclose(stats['observation.state']['std'], states.std(axis=0))
    np.testing.assert_allclose(stats['observation.state']['q99'], np.quantile(states, 0.99, axis=0))
    assert stats['index']['count'] == [75]
    assert np.shape(stats['observation.images.up']['mean']) == (3, 1, 1)


def test_image_statistics_equal_numpy_on_the_sampled_frames():
    images = np.random.default_rng(0).integers(0, 256, size=(50, 6, 8, 3), dtype=np.uint8)
    images[..., 2] //= 3
    chosen = images[lerobot_stats.sampled_frames(50)].reshape(-1, 3) / 255
    stats = lerobot_stats.image_stats(
        lerobot_stats.image_histogram(images), len(lerobot_stats.sampled_frames(50))
    )
    for key in ('min', 'max', 'mean', 'std'):
        np.testing.assert_allclose(np.reshape(stats[key], 3), getattr(chosen, key)(axis=0))
    for key, level in lerobot_stats.QUANTILES.items():
        expected = np.quantile(chosen, level, axis=0, method='inverted_cdf')
        np.testing.assert_allclose(np.reshape(stats[key], 3), expected, atol=1.5 / 255)


def test_an_exception_leaves_nothing_behind(tmp_path):
    with (
        pytest.raises(RuntimeError, match='on purpose'),
        LeRobotWriter(tmp_path / 'set', RECORDING) as writer,
    ):
        writer.add_episode(*episode(0))
        raise RuntimeError('on purpose')
    assert list(tmp_path.iterdir()) == []


def test_no_episode_leaves_nothing_behind(tmp_path):
    with (
        pytest.raises(UserError, match='at least one episode'),
        LeRobotWriter(tmp_path / 'set', RECORDING),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_untouched(tmp_path):
    (tmp_path / 'note').write_text('mine')
    with pytest.raises(UserError, match='exists; choose another name'):
        LeRobotWriter(tmp_path, RECORDING)
    assert files(tmp_path) == ['note']


def broken(change):
    state, action, images, task = episode(0)
    if change == 'nan':
        state[3, 2] = np.nan
    elif change == 'short':
        action = action[:-1]
    elif change == 'camera':
        del images['side']
    else:
        images = {camera: frames[:, :48] for camera, frames in images.items()}
    return state, action, images, task


def test_each_camera_has_its_own_size(tmp_path):
    sizes = {'up': (96, 128), 'side': (64, 46)}
    state, action, images, task = episode(0)
    images['side'] = images['up'][:, :64, :46]
    with LeRobotWriter(tmp_path / 'set', Recording(JOINTS, sizes)) as writer:
        writer.add_episode(state, action, images, task)
    found = open_source(tmp_path / 'set')
    for camera, size in sizes.items():
        key = f'observation.images.{camera}'
        info = json.loads((tmp_path / 'set/meta/info.json').read_text())['features'][key]
        assert info['shape'] == [*size, 3]
        assert (info['info']['video.height'], info['info']['video.width']) == size
        frames = [*found.read_episode(0).frames(key)]
        assert len(frames) == len(state)
        for shown, meant in zip(frames, images[camera], strict=True):
            assert np.abs(shown.astype(int) - meant).mean() < 12


def test_an_episode_that_could_not_be_written_spoils_none_before_it(tmp_path, monkeypatch):
    out, write = tmp_path / 'set', VideoWriter.write
    writer = LeRobotWriter(out, RECORDING, VideoSettings(gop=10))
    writer.add_episode(*episode(0))

    def full(video, images):
        write(video, images[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(VideoWriter, 'write', full)
    with pytest.raises(OSError, match='No space'):
        writer.add_episode(*episode(1))
    writer.finish()
    (found,) = (open_source(out).read_episode(n) for n in open_source(out).episodes)
    state, action, images, _ = episode(0)
    np.testing.assert_array_equal(found.actions, action.astype(np.float32))
    for camera in ('up', 'side'):
        frames = np.stack([*found.frames(f'observation.images.{camera}')])
        assert np.abs(frames.astype(int) - images[camera]).mean() < 12
    stats = json.loads((out / 'meta/stats.json').read_text())
    assert stats['action']['count'] == stats['observation.images.up']['count'] == [len(state)]
    assert pq.read_table(out / 'data/chunk-000/file-000.parquet').num_rows == len(state)


@pytest.mark.parametrize(
    ('change', 'message'),
    [('nan', 'NaN'), ('short', 'actions of shape'), ('camera', 'side'), ('size', '48')],
)
def test_bad_episodes_are_refused(tmp_path, change, message):
    writer = LeRobotWriter(tmp_path / 'set', RECORDING)
    with pytest.raises(UserError, match=message):
        writer.add_episode(*broken(change))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_bad_video_settings_are_refused():
    with pytest.raises(UserError, match="'av1', 'h264'"):
        VideoSettings(codec='mpeg2')
    with pytest.raises(UserError, match='even image height'):
        Recording(JOINTS, {'up': (95, 128)})
