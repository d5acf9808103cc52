"""Both golden data sets decode frame-exactly; image features and metadata come out as recorded."""

import numpy as np
import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from tests.data_pipeline import recordings

LENGTHS = {0: 20, 1: 25, 2: 30}


def drawn(episode: int, frame: int, camera: str) -> np.ndarray:
    """What a golden frame showed before lossy video: red shows the frame, blue the episode, a green
    bar both ends.
    """
    image = np.zeros((96, 128, 3))
    image[..., 0] = 5 * frame
    image[:, frame : frame + 8, 1] = 200
    image[..., 2] = 80 * episode
    return image[::-1] if camera.endswith('side') else image


def mean_error(image: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(image - expected).mean(axis=(0, 1)).max())


@pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
@pytest.mark.parametrize('rows', [None, [0], [7, 8], [2, 11, 19], [19]])
def test_golden_frames_are_exact(version: str, rows: list[int] | None) -> None:
    dataset = open_dataset(recordings.GOLDEN / version)
    assert dataset.cameras == recordings.CAMERAS
    for index, length in LENGTHS.items():
        episode = dataset.read_episode(index)
        wanted = rows or range(length)
        for camera in dataset.cameras:
            frames = list(episode.frames(camera, rows))
            assert len(frames) == len(wanted)
            for row, frame in zip(wanted, frames, strict=True):
                assert mean_error(frame, drawn(index, row, camera)) < 6


@pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
def test_no_other_golden_frame_fits_better(version: str) -> None:
    """Sharper than the mean error: two neighbouring drawings differ by only 5/255 in red."""
    dataset = open_dataset(recordings.GOLDEN / version)
    drawings = {(i, j): drawn(i, j, 'up') for i, length in LENGTHS.items() for j in range(length)}
    for index in LENGTHS:
        for row, frame in enumerate(dataset.read_episode(index).frames(recordings.CAMERAS[0])):
            assert min(drawings, key=lambda at: np.abs(frame - drawings[at]).mean()) == (index, row)


@pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
def test_golden_columns(version: str) -> None:
    dataset = open_dataset(recordings.GOLDEN / version)
    assert (dataset.fps, dataset.state_names[0], len(dataset.action_names)) == (
        30,
        'shoulder_pan.pos',
        6,
    )
    assert sorted(set(dataset.tasks.values())) == ['pick up the lego', 'place it in the box']
    for index, length in LENGTHS.items():
        episode = dataset.read_episode(index)
        assert len(episode) == length
        assert episode.task == ('place it in the box' if index == 1 else 'pick up the lego')
        np.testing.assert_allclose(
            episode.state, np.arange(length)[:, None] * np.ones(6), atol=0.06
        )
        np.testing.assert_allclose(episode.timestamps, np.arange(length) / 30, atol=1e-6)


def test_both_versions_hold_the_same_numbers() -> None:
    old, new = (open_dataset(recordings.GOLDEN / version) for version in ('v2.1', 'v3.0'))
    for index in LENGTHS:
        a, b = old.read_episode(index), new.read_episode(index)
        assert np.array_equal(a.state, b.state) and np.array_equal(a.actions, b.actions)


def test_v30_with_several_files_equals_v21(tmp_path) -> None:
    lengths = (9, 7, 8, 6, 5)
    old = open_dataset(recordings.record(tmp_path / 'old', lengths, kind='video'))
    new = open_dataset(recordings.to_v30(tmp_path / 'old', tmp_path / 'new', lengths, per_file=2))
    assert new.tasks == old.tasks and sorted(new.episodes) == sorted(old.episodes)
    drawings = {
        (i, j): recordings.camera_image(i, j, 'side')
        for i, length in enumerate(lengths)
        for j in range(length)
    }
    for index in old.episodes:
        a, b = old.read_episode(index), new.read_episode(index)
        assert np.array_equal(a.actions, b.actions) and a.tasks == b.tasks
        for dataset in (old, new):
            frames = list(
                dataset.read_episode(index).frames(recordings.CAMERAS[1], range(1, len(a), 2))
            )
            fits = [
                min(drawings, key=lambda at: np.abs(frame - drawings[at].astype(int)).mean())
                for frame in frames
            ]
            assert fits == [(index, row) for row in range(1, len(a), 2)]


def test_images_inside_parquet_are_bitwise(tmp_path) -> None:
    dataset = open_dataset(recordings.record(tmp_path, (5, 6)))
    for camera in dataset.cameras:
        frames = list(dataset.read_episode(1).frames(camera, [1, 4]))
        expected = [recordings.camera_image(1, frame, camera) for frame in (1, 4)]
        assert np.array_equal(frames, expected)


def test_frames_decode_lazily(tmp_path) -> None:
    root = recordings.record(tmp_path, (6,), kind='video')
    episode = open_dataset(root).read_episode(0)
    stream = episode.frames(recordings.CAMERAS[0])
    (root / recordings.video_path(0, recordings.CAMERAS[1])).unlink()
    assert mean_error(next(stream), recordings.camera_image(0, 0, recordings.CAMERAS[0])) < 6
