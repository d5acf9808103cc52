"""One door: every kind of data set opens by its path or hub id, and is prepared by the same
code.
"""

from pathlib import Path

import huggingface_hub.file_download
import numpy as np
import pytest

from configs import data_so101
from sigma_jax.data import sources
from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.pt.dataset import Known, TorchDataset, _runs
from sigma_jax.data.pt.shards import TorchSettings, TorchWindow
from sigma_jax.data.rlds.dataset import RldsDataset
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig, make_plan
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.hub import download
from tests.data_pipeline import recordings, rlds_folder
from tests.hub_server import REVISION, serve

UP, SIDE = recordings.CAMERAS
RLDS = {'fps': 10.0, 'action': ['action/arm', 'action/gripper']}


def test_a_lerobot_folder_is_what_it_was(tmp_path):
    root = recordings.record(tmp_path, (20, 21))
    assert sources.open_source(root) == open_dataset(root)
    assert sources.open_source(root, recordings.config(root)) == open_dataset(root)


def test_cameras_get_our_names(tmp_path):
    root = recordings.record(tmp_path, (5,))
    theirs, ours = open_dataset(root), sources.open_source(root, {'camera_map': {'front': SIDE}})
    assert ours.cameras == ('front', UP) and list(ours.episodes) == [0]
    one, other = ours.read_episode(0), theirs.read_episode(0)
    assert np.array_equal(list(one.frames('front')), list(other.frames(SIDE)))
    assert np.array_equal(list(one.frames(UP)), list(other.frames(UP))) and SIDE not in one.readers
    assert np.array_equal(one.state, other.state) and ours.fps == theirs.fps


@pytest.mark.parametrize('wrong', [{'front': 'wrist'}, {UP: SIDE}, {'a': UP, 'b': UP}])
def test_camera_maps_that_do_not_fit(wrong, tmp_path):
    root = recordings.record(tmp_path, (5,))
    with pytest.raises(
        UserError, match='expected data.camera_map to map new names to different cameras'
    ):
        sources.open_source(root, {'camera_map': wrong})


def test_cameras_can_change_their_names_with_each_other(tmp_path):
    swapped = sources.open_source(
        recordings.record(tmp_path, (5,)), {'camera_map': {UP: SIDE, SIDE: UP}}
    )
    plain = open_dataset(tmp_path)
    assert np.array_equal(
        list(swapped.read_episode(0).frames(UP)), list(plain.read_episode(0).frames(SIDE))
    )


def test_rlds_makes_windows_like_any_other(tmp_path):
    root = rlds_folder.write(tmp_path / '1.0.0', (30, 25, 28, 26))
    dataset = sources.open_source(tmp_path, {'rlds': RLDS})
    assert isinstance(dataset, RldsDataset) and dataset.root == root
    changes = {'cameras': dataset.cameras, 'state_dim': 7, 'max_prompt_len': 200}
    plan = make_plan(dataset, recordings.config(root, **changes))
    table = plan.windows['train']
    for index in plan.splits['train']:
        steps = rlds_folder.episode(index, len(dataset.read_episode(index)))['steps']
        rows = table.take(table.episode == index)
        assert list(rows.frame) == list(range(0, len(steps) - 15, 4)) and set(rows.task) == {
            rlds_folder.TASKS[index % 2]
        }
        arm = np.array([step['action']['arm'] for step in steps], np.float32)
        assert np.array_equal(rows.actions[1, :, :6], arm[4:20])


def test_rlds_is_prepared_by_the_same_code(tmp_path):
    root = rlds_folder.write(tmp_path / 'rlds', (30, 25, 28), files=1)
    settings = data_so101.get_config().data
    settings.rlds = RLDS | {'cameras': (('observation.images.up', 'observation/image'),)}
    settings.update(
        source=str(root),
        cameras=('observation.images.up',),
        state_dim=0,
        max_prompt_len=200,
        image_size=24,
    )
    meta = prepare(DataConfig.from_settings(settings.to_dict()), tmp_path / 'out').meta.to_json()
    assert (
        meta['source_version'] == 'RLDS robot 1.0.0'
        and meta['fps'] == 10
        and meta['rlds']['fps'] == 10
    )
    assert meta['tasks'] == list(rlds_folder.TASKS) and meta['camera_sizes'] == {'up': [24, 32]}
    records = open_shards(tmp_path / 'out').split('train').records()
    episode, frame = int(records.index.episode[1]), int(records.index.frame[1])
    seen = records[1].images[0, 3:21].astype(int)
    drawn = rlds_folder.camera_image(episode, frame)[0, 0]
    assert np.abs(seen - drawn).max() <= 3 and frame == 4


def test_a_damaged_rlds_episode_is_left_out_where_that_is_asked_for(tmp_path):
    root = rlds_folder.write(tmp_path / 'rlds', (20, 21, 22, 23, 24), files=5)
    damaged = root / 'robot-train.tfrecord-00002-of-00005'
    damaged.write_bytes(damaged.read_bytes()[:-1] + b'!')
    changes = {
        'cameras': ('observation.images.image',),
        'state_dim': 7,
        'max_prompt_len': 200,
        'rlds': RLDS,
    }
    meta = prepare(
        recordings.config(root, on_bad_episode='skip', **changes), tmp_path / 'out'
    ).meta.to_json()
    assert (
        list(meta['bad_episodes']) == ['2'] and 'to match its checksum' in meta['bad_episodes']['2']
    )
    assert {n for split in meta['splits'].values() for n in split} == {0, 1, 3, 4}
    assert meta['tasks'] == list(rlds_folder.TASKS)


def test_unknown_settings_and_folders(tmp_path):
    for wrong in ({'camera_map': ('up', 'side')}, {'rlds': {'cameras': 3}}):
        with pytest.raises(UserError, match='expected pairs .ours, theirs. in data'):
            sources.source_settings(wrong)
    assert sources.source_settings({'camera_map': [['a.b', 'c']]}).camera_map == {'a.b': 'c'}
    with pytest.raises(UserError, match="in data.rlds, got unknown 'frames'"):
        sources.source_settings({'rlds': {'frames': 3}})
    with pytest.raises(UserError, match="in data.torch_shards, got unknown 'key'"):
        sources.source_settings({'torch_shards': {'key': 3}})
    with pytest.raises(UserError, match=r'expected .*info.json'):
        sources.open_source(tmp_path)
    with pytest.raises(UserError, match='does not exist'):
        sources.open_source('/no/such/place')


def packed(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob('*') if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))

    def at(endpoint):
        template = endpoint + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', endpoint)
        monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)

    return at


def test_a_data_set_by_hub_id_and_revision(home, tmp_path):
    here = recordings.record(tmp_path / 'here', (20, 22), kind='video')
    with serve(packed(here)) as (endpoint, asked, _):
        home(endpoint)
        settings = {'cameras': ('top',), 'camera_map': {'top': UP}}
        dataset = sources.open_source('robots/tiny@v1', settings)
        names = [
            path.partition(f'{REVISION}/')[2]
            for kind, path, _ in asked
            if kind == 'GET' and '/resolve/' in path
        ]
    assert (
        dataset.revision == REVISION
        and dataset.root.name == REVISION
        and dataset.cameras == ('top', SIDE)
    )
    assert any(UP in name for name in names) and not any(SIDE in name for name in names)
    one, other = dataset.read_episode(1), open_dataset(here).read_episode(1)
    assert np.array_equal(list(one.frames('top', [3, 9])), list(other.frames(UP, [3, 9])))
    assert np.array_equal(one.actions, other.actions)


def test_rlds_by_hub_id(home, tmp_path):
    here = rlds_folder.write(tmp_path / 'here', (6, 7))
    with serve(packed(here)) as (endpoint, _, _):
        home(endpoint)
        dataset = sources.open_source('robots/tiny', {'rlds': RLDS})
    assert dataset.revision == REVISION and len(dataset.read_episode(1)) == 7
    assert download.is_hub_id('robots/tiny') and not download.is_hub_id(here)


def window(episode: int, frame: int, horizon: int = 4, real: int = 4) -> TorchWindow:
    actions = (frame + np.arange(horizon, dtype=np.float32))[:, None] * np.ones(2, np.float32)
    mask = np.arange(horizon) < real
    images = np.full((1, 2, 2, 3), max(frame, 0), np.uint8)
    return TorchWindow(
        images,
        np.full(3, frame, np.float32),
        actions,
        mask,
        f'task {frame // 4}',
        None,
        episode,
        frame,
    )


def test_windows_of_a_shard_join_where_they_follow_each_other():
    places = [(0, 0), (0, 2), (0, 4), (0, 10), (1, 2), (-1, -1), (1, 0), (0, 12)]
    known = [Known(window(*place), Path('shard'), n) for n, place in enumerate(places)]
    runs = [[(one.window.episode, one.window.frame) for one in run] for run in _runs(known, 0)]
    assert runs == [[(0, 0), (0, 2), (0, 4)], [(0, 10), (0, 12)], [(1, 0), (1, 2)], [(-1, -1)]]


def test_joined_windows_keep_states_actions_and_tasks(monkeypatch):
    shard = [window(0, 0), window(0, 2), window(0, 4, real=3)]
    run = tuple(Known(one, Path('shard'), n) for n, one in enumerate(shard))
    monkeypatch.setattr('sigma_jax.data.pt.shards.read_shard', lambda path, settings: shard)
    names = ('a', 'b', 'c')
    dataset = TorchDataset(
        Path('here'), '.pt', 5.0, ('up',), names, names[:2], {}, {0: run}, TorchSettings()
    )
    episode = dataset.read_episode(0)
    assert len(episode) == 7 and np.array_equal(episode.actions[:, 0], np.arange(7))
    assert np.array_equal(episode.state[:, 0], [0, 0, 2, 2, 4, 4, 4])
    assert episode.tasks == ('task 0',) * 4 + ('task 1',) * 3
    assert [int(image.max()) for image in episode.frames('up', [0, 2, 4])] == [0, 2, 4]
    with pytest.raises(
        UserError,
        match=r'starts \(\[0, 2, 4\]\), got 3; set data.horizon and '
        r'data.stride',
    ):
        list(episode.frames('up', [3]))
