"""Video files are numbered apart from data files, and each camera's apart from the other's."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.errors import UserError
from tests.data_pipeline import recordings

LENGTHS = (9, 7, 8, 6, 5)
UP, SIDE = recordings.CAMERAS
LAYOUTS = {
    'fewer video files': {UP: (5, [(0, 0)]), SIDE: (3, [(0, 0), (0, 1)])},
    'more video files': {UP: (1, [(0, n) for n in range(5)]), SIDE: (2, [(0, 0), (0, 1), (0, 2)])},
    'other chunks': {
        UP: (2, [(1, 0), (1, 1), (2, 0)]),
        SIDE: (1, [(0, 4), (0, 3), (0, 2), (0, 1), (0, 0)]),
    },
    'as many, in another order': {
        UP: (2, [(0, 2), (0, 0), (0, 1)]),
        SIDE: (2, [(0, 1), (0, 2), (0, 0)]),
    },
}  # camera: (episodes a file, (chunk, file) of each)


def lay_out(root, layout):
    """Writes the videos of a v3.0 set, whose data files hold two episodes each, anew in files of
    another numbering.
    """
    shutil.rmtree(root / 'videos')
    path = root / 'meta/episodes/chunk-000/file-000.parquet'
    rows = pq.read_table(path).to_pylist()
    for camera, (per_file, places) in layout.items():
        for number, (chunk, file) in enumerate(places):
            group = range(number * per_file, min((number + 1) * per_file, len(LENGTHS)))
            frames = [
                recordings.camera_image(i, j, camera) for i in group for j in range(LENGTHS[i])
            ]
            recordings.write_video(
                root / f'videos/{camera}/chunk-{chunk:03d}/file-{file:03d}.mp4', frames
            )
            for i in group:
                start = sum(LENGTHS[group[0] : i]) / recordings.FPS
                place = {'chunk_index': chunk, 'file_index': file, 'from_timestamp': start}
                rows[i] |= {f'videos/{camera}/{field}': value for field, value in place.items()}
    recordings.write_table(path, pa.Table.from_pylist(rows))
    return root


@pytest.fixture(scope='module')
def v30(tmp_path_factory):
    root = tmp_path_factory.mktemp('recording')
    recordings.record(root / 'old', LENGTHS, kind='video')
    return recordings.to_v30(root / 'old', root / 'new', LENGTHS, per_file=2)


@pytest.mark.parametrize('name', LAYOUTS)
def test_frames_come_from_the_file_that_the_video_s_own_numbers_name(v30, tmp_path, name):
    dataset = open_dataset(lay_out(shutil.copytree(v30, tmp_path / 'set'), LAYOUTS[name]))
    drawings = {
        (i, j): recordings.camera_image(i, j, SIDE)
        for i, length in enumerate(LENGTHS)
        for j in range(length)
    }
    for index, length in enumerate(LENGTHS):
        episode = dataset.read_episode(index)
        assert episode.actions.shape == (length, 6)
        for camera in recordings.CAMERAS:
            blue = int(recordings.camera_image(0, 0, camera)[0, 0, 2])
            for row, frame in zip(
                (0, length - 1), episode.frames(camera, (0, length - 1)), strict=True
            ):
                assert abs(int(frame[..., 2].mean()) - blue) < 30, 'the camera asked for'
                said = {
                    at: np.abs(frame[..., :2] - x[..., :2].astype(int)).mean()
                    for at, x in drawings.items()
                }
                assert min(said, key=said.get) == (index, row)


def test_a_video_file_that_is_not_there_is_reported(v30, tmp_path):
    root = lay_out(shutil.copytree(v30, tmp_path / 'set'), LAYOUTS['other chunks'])
    (root / f'videos/{UP}/chunk-002/file-000.mp4').unlink()
    episode = open_dataset(root).read_episode(4)
    with pytest.raises(UserError, match=f'{UP}/chunk-002/file-000.mp4'):
        next(episode.frames(UP, [0]))
