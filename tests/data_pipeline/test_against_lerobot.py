"""Windows, numbers and frames are those that LeRobot 0.4.4's own reader gives (marker `reference`).

Run inside an environment with lerobot 0.4.4 and torch beside this project. Videos are decoded by
PyAV on both sides, so that frames must be equal bit by bit. LeRobot 0.4.4 reads v3.0 only: v2.1
data sets go through its own converter first.
"""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sigma_jax.data.lerobot.dataset import LeRobotDataset, open_dataset
from sigma_jax.data.lerobot.tables import Recording
from sigma_jax.data.lerobot.writer import LeRobotWriter
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.shards.windows import cut_windows
from sigma_jax.data.video.encode import VideoSettings
from sigma_jax.processing.images import resize_with_pad
from tests.data_pipeline import recordings

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings('ignore')]
lerobot_reader = importlib.import_module('benchmarks.lerobot_reader')
HORIZON, STRIDE, EPISODES = 16, 4, 20
JOINTS = tuple(f'joint_{i}.pos' for i in range(6))
SIZES = {'up': (96, 128), 'side': (64, 110)}


def as_pixels(image) -> np.ndarray:
    """LeRobot's float [3 h x] in 0..1 as the uint8 [h x 3] that it was made of."""
    return np.rint(image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)


def compare(ours: LeRobotDataset, theirs) -> int:
    """Asserts that every window of every episode is the same on both sides; returns how many there
    were.
    """
    assert (
        len(theirs) == sum(entry.length for entry in ours.episodes.values())
        and theirs.fps == ours.fps
    )
    first = np.cumsum([0, *[ours.episodes[i].length for i in sorted(ours.episodes)]])
    count = 0
    for number, index in enumerate(sorted(ours.episodes)):
        episode = ours.read_episode(index)
        table = cut_windows(episode, horizon=HORIZON, stride=STRIDE, tail='pad')
        rows = table.frame.tolist()
        frames = {camera: list(episode.frames(camera, rows)) for camera in ours.cameras}
        for n, row in enumerate(rows):
            item = theirs[int(first[number]) + row]
            same = (int(item['episode_index']), int(item['frame_index']), item['task'])
            assert same == (index, row, table.task[n])
            assert float(item['timestamp']) == np.float32(episode.timestamps[row])
            assert np.array_equal(item['observation.state'].numpy(), table.state[n])
            assert np.array_equal(item['action'].numpy(), table.actions[n])
            assert np.array_equal(~item['action_is_pad'].numpy(), table.action_mask[n])
            for camera in ours.cameras:
                assert np.array_equal(as_pixels(item[camera]), frames[camera][n]), (
                    index,
                    row,
                    camera,
                )
            count += 1
    return count


def to_v30(old: Path, folder: Path) -> Path:
    """LeRobot's own conversion of a v2.1 data set."""
    lerobot_reader.stand_in_for_torchvision()
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

    shutil.copytree(old, folder / 'local' / 'data')
    convert_dataset('local/data', root=folder, push_to_hub=False)
    return folder / 'local' / 'data'


def test_golden_v30():
    source = recordings.GOLDEN / 'v3.0'
    assert compare(open_dataset(source), lerobot_reader.open_lerobot(source, HORIZON)) == 20


def test_golden_v21_through_lerobot_s_converter(tmp_path):
    source = recordings.GOLDEN / 'v2.1'
    new = to_v30(source, tmp_path)
    assert json.loads((new / 'meta/info.json').read_text())['codebase_version'] == 'v3.0'
    theirs = lerobot_reader.open_lerobot(new, HORIZON)
    assert compare(open_dataset(source), theirs) == compare(open_dataset(new), theirs) == 20


def moving(episode: int, length: int, camera: str) -> np.ndarray:
    """Textured frames that show episode, frame and camera."""
    rng, (height, width) = np.random.default_rng((episode, len(camera))), SIZES[camera]
    surface = np.kron(rng.integers(0, 256, (20, 30, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    rolled = (np.roll(surface, (2 * n, 3 * n), (0, 1)) for n in range(length))
    return np.stack([image[:height, :width] for image in rolled])


@pytest.fixture(scope='module', params=['av1', 'h264'])
def twenty(request, tmp_path_factory) -> Path:
    """A v3.0 data set of 20 episodes and 2 cameras, one video file a camera."""
    out = tmp_path_factory.mktemp(request.param) / 'data'
    with LeRobotWriter(
        out, Recording(JOINTS, SIZES), VideoSettings(request.param, gop=20)
    ) as writer:
        for n in range(EPISODES):
            rng, length = np.random.default_rng(n), 24 + n
            walk = np.cumsum(rng.normal(size=(length + 1, 6)), axis=0).astype(np.float32)
            films = {name: moving(n, length, name) for name in SIZES}
            writer.add_episode(walk[:-1], walk[1:], films, recordings.TASKS[n % 2])
    return out


def test_twenty_episodes_of_two_cameras(twenty):
    expected = sum(len(range(0, 24 + n, STRIDE)) for n in range(EPISODES))
    assert compare(open_dataset(twenty), lerobot_reader.open_lerobot(twenty, HORIZON)) == expected


def test_shards_hold_what_lerobot_reads(twenty, tmp_path):
    prepare(recordings.config(twenty, stride=STRIDE, image_size=64), tmp_path / 'out')
    theirs, ours = (
        lerobot_reader.open_lerobot(twenty, HORIZON),
        open_shards(tmp_path / 'out').split('train').records(),
    )
    first, worst = np.cumsum([0, *[24 + n for n in range(EPISODES)]]), 0.0
    for number in range(0, len(ours), 7):
        record = ours[number]
        item = theirs[int(first[ours.index.episode[number]] + ours.index.frame[number])]
        assert np.array_equal(record.state, item['observation.state'].numpy())
        assert np.array_equal(record.actions, item['action'].numpy())
        for i, camera in enumerate(recordings.CAMERAS):
            want = resize_with_pad(as_pixels(item[camera]), 64, 64)
            worst = max(worst, np.abs(record.images[i].astype(float) - want).mean())
    assert worst < 2, 'JPEG of quality 95 stays within 2 levels on average'
