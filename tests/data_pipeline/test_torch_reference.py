"""`.pt` shards with torch itself: windows -> .pt -> windows is exact, and what others write is
read.

Needs torch; `pytest -m reference`.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sigma_jax.data.pt import shards as torch_shards
from sigma_jax.data.pt.dataset import open_torch_shards
from sigma_jax.data.pt.shards import TorchSettings, read_windows
from sigma_jax.data.shards import export_pt
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.data.shards.windows import cut_windows
from sigma_jax.data.sources import open_source
from sigma_jax.errors import UserError
from tests.data_pipeline import recordings
from tests.data_pipeline.test_torch_shards import REFUSED, write

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings('ignore')]
LENGTHS = (40, 35, 30, 28)


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """A finished preparation with padded windows, and made-up actions of a base policy."""
    root = tmp_path_factory.mktemp('torch')
    source = recordings.record(root / 'source', LENGTHS)
    prepare(recordings.config(source, tail='pad'), root / 'shards')
    for split in SPLITS:
        count = len(open_shards(root / 'shards').split(split).records())
        base = np.random.default_rng(0).normal(size=(count, 2, 16, 6)).astype(np.float32)
        np.savez(root / f'shards/baselines-{split}.npz', base=base)
    return root / 'shards'


@pytest.fixture(scope='module')
def exported(shards):
    export_pt.export(open_shards(shards), shards.parent / 'pt', shard_size=10)
    return shards.parent / 'pt'


def test_windows_to_pt_to_windows_is_exact(shards, exported):
    back = list(read_windows(exported))
    assert len(list(exported.glob('shard_*.pt'))) == -(-len(back) // 10)
    place = 0
    for split in SPLITS:
        records = open_shards(shards).split(split).records()
        with np.load(shards / f'baselines-{split}.npz') as arrays:
            base = arrays['base']
        for n in range(len(records)):
            window, record = back[place], records[n]
            for name in ('images', 'state', 'actions', 'action_mask'):
                one, other = getattr(window, name), getattr(record, name)
                assert one.dtype == other.dtype and np.array_equal(one, other)
            assert window.text == records.meta.tasks[records.index.text_id[n]]
            assert (window.episode, window.frame) == (
                records.index.episode[n],
                records.index.frame[n],
            )
            assert np.array_equal(window.base, base[n])
            place += 1
    assert place == len(back)


def test_plain_torch_reads_the_papers_entries(shards, exported):
    import torch

    samples = torch.load(exported / 'shard_00000.pt', weights_only=True)
    with np.load(shards / 'baselines-train.npz') as arrays:
        base = arrays['base']
    skip = {'images': {name: tfds.decode.SkipDecoding() for name in ('up', 'side')}}
    source = tfds.builder_from_directory(shards).as_data_source('train', decoders=skip)
    for n, sample in enumerate(samples):
        stored = source[n]
        assert sample['vision_inputs'].dtype == torch.uint8 and sample['vision_inputs'].shape == (
            2,
            32,
            32,
            3,
        )
        trajectory = sample['gt_action_trajectory']
        assert torch.equal(sample['gt_action_vector'], trajectory[0])
        assert torch.equal(sample['gt_action_chunk'], trajectory[:8])
        assert torch.equal(sample['base_action_trajectory'], torch.from_numpy(base[n, 0]))
        assert (
            sample['avg_action_l2'] == stored['avg_action_l2']
            and sample['max_action_l2'] == stored['max_action_l2']
        )
        assert sample['text'] in recordings.TASKS


def test_torch_itself_refuses_what_the_first_look_would_let_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('os.system', 'eval', 'a class', 'numpy array', 'torch itself'):
        path = write(tmp_path / 'shard_00000.pt', REFUSED[name][0], 'shard_00000/data.pkl')
        monkeypatch.setattr(torch_shards, 'check_pickle', lambda path: None)
        with pytest.raises(UserError, match='expected a readable shard'):
            torch_shards.read_shard(path)
    assert [path.name for path in tmp_path.iterdir()] == ['shard_00000.pt']


def test_the_same_windows_make_the_same_files(shards, exported):
    export_pt.export(open_shards(shards), shards.parent / 'again', shard_size=10)
    for path in exported.iterdir():
        assert path.read_bytes() == (shards.parent / 'again' / path.name).read_bytes()
    with pytest.raises(UserError, match='not to exist yet'):
        export_pt.export(open_shards(shards), shards.parent / 'again')


def test_a_failure_leaves_nothing(shards, tmp_path, monkeypatch):
    import torch

    def full(batch, path):
        path.write_bytes(b'half')
        raise RuntimeError('PytorchStreamWriter failed writing file data/0: file write failed')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(UserError, match=r'expected to write shard_00000.pt .* free some room'):
        export_pt.export(open_shards(shards), tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_episodes_of_shards_cut_into_the_same_windows(exported):
    dataset = open_source(exported)
    assert (dataset.fps, dataset.cameras) == (30, recordings.CAMERAS) and dataset.state_names[
        0
    ] == 'joint_0.pos'
    assert sorted(dataset.origins.values()) == [0, 1, 2, 3]
    known = {(window.episode, window.frame): window for window in read_windows(exported)}
    for index in dataset.episodes:
        episode = dataset.read_episode(index)
        assert len(episode) == LENGTHS[dataset.origins[index]]
        table = cut_windows(episode, horizon=16, stride=4, tail='pad')
        views = zip(
            *(episode.frames(camera, table.frame.tolist()) for camera in dataset.cameras),
            strict=True,
        )
        for n, images in enumerate(views):
            window = known.pop((dataset.origins[index], int(table.frame[n])))
            assert np.array_equal(images, window.images) and np.array_equal(
                table.state[n], window.state
            )
            assert (
                np.array_equal(table.action_mask[n], window.action_mask)
                and table.task[n] == window.text
            )
            assert np.array_equal(
                table.actions[n][window.action_mask], window.actions[window.action_mask]
            )
    assert not known


def rows(folder, split):
    """((episode, frame), (state, actions)) of all windows."""
    records = open_shards(folder).split(split).records()
    places = zip(records.index.episode.tolist(), records.index.frame.tolist(), strict=True)
    return [(place, records.numbers(n)) for n, place in enumerate(places)]


def test_shards_can_be_prepared_like_any_data_set(shards, exported, tmp_path):
    dataset = open_torch_shards(exported)
    prepare(recordings.config(exported, tail='pad', shard_size=50), tmp_path / 'out')
    of = {origin: index for index, origin in dataset.origins.items()}
    before = {key: numbers for split in SPLITS for key, numbers in rows(shards, split)}
    after = {key: numbers for split in SPLITS for key, numbers in rows(tmp_path / 'out', split)}
    assert {(of[episode], frame) for episode, frame in before} == set(after)
    for (episode, frame), numbers in before.items():
        assert all(
            np.array_equal(one, other)
            for one, other in zip(numbers, after[of[episode], frame], strict=True)
        )
    with pytest.raises(UserError, match='set data.horizon and data.stride'):
        list(dataset.read_episode(0).frames(recordings.CAMERAS[0], [1]))
    with pytest.raises(UserError, match='got 9; correct the episode lists'):
        dataset.read_episode(9)
    assert dataset.tasks == dict(enumerate(recordings.TASKS))


def foreign(torch, **changes):
    """A sample as somebody else may have written it."""
    sample = {
        'rgb': torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5),
        'robot_state': torch.arange(3.0, dtype=torch.float64),
        'gt_action_trajectory': torch.ones(4, 3, dtype=torch.bfloat16),
        'text': 'lift',
    }
    return {name: value for name, value in (sample | changes).items() if value is not None}


SETTINGS = TorchSettings(fps=10.0, keys={'vision_inputs': 'rgb'}, channels_first=True)


def test_other_spellings_are_mapped(tmp_path):
    import torch

    sample = foreign(torch)
    torch.save([sample, sample], tmp_path / 'shard_00000.pt')
    one, _ = read_windows(tmp_path, SETTINGS)
    assert (
        np.array_equal(one.images, np.moveaxis(sample['rgb'].numpy(), 1, -1))
        and one.images.flags.c_contiguous
    )
    assert one.state.dtype == one.actions.dtype == np.float32 and (one.episode, one.base) == (
        -1,
        None,
    )
    dataset = open_source(tmp_path, {'torch_shards': dataclasses.asdict(SETTINGS)})
    assert len(dataset.episodes) == 2 and dataset.cameras == (
        'observation.images.0',
        'observation.images.1',
    )
    episode = dataset.read_episode(1)
    assert len(episode) == 4 and np.array_equal(
        next(episode.frames('observation.images.1', [0])), one.images[1]
    )
    with pytest.raises(UserError, match='expected frames a second'):
        open_torch_shards(tmp_path, dataclasses.replace(SETTINGS, fps=0.0))


def test_shards_that_do_not_fit_are_reported(tmp_path):
    import torch

    path = tmp_path / 'shard_00000.pt'
    cases = {
        "expected 'rgb'": [foreign(torch, rgb=None)],
        'a list of dictionaries': {'samples': [foreign(torch)]},
        'got [[2, 4, 5, 3], [3], [4, 3], [4]] of': [foreign(torch, rgb=torch.zeros(2, 3, 4, 5))],
        'and int; save them so': [foreign(torch, text=3)],
        'more than the file holds': [foreign(torch, robot_state=torch.zeros(1).expand(10**9))],
        'expected windows of one shape': [
            foreign(torch),
            foreign(torch, robot_state=torch.zeros(4)),
        ],
        "got {'state': 33": [foreign(torch, robot_state=torch.zeros(33))],
    }
    for expected, samples in cases.items():
        torch.save(samples, path)
        with pytest.raises(UserError) as caught:
            open_torch_shards(tmp_path, SETTINGS)
        assert expected in str(caught.value) and '\n' not in str(caught.value)
    torch.save([{**foreign(torch), 'more': np.zeros(3)}], path)
    with pytest.raises(UserError, match='nothing of it was run'):
        torch_shards.read_shard(path, SETTINGS)
