"""A prepared folder as one object: meta.json read and written without loss, old, damaged; splits,
statistics, baselines.
"""

import dataclasses
import hashlib
import json
import pickle

import numpy as np
import pytest

from sigma_jax.data.shards.base_record import BaseRecord
from sigma_jax.data.shards.directory import Shards, is_finished, open_shards
from sigma_jax.data.shards.meta import META, NEEDED, OPTIONAL, Meta, before, source_keys
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import read_norm_stats
from tests import metas
from tests.data_pipeline import recordings

# what the first version wrote, in its order
FIRST = [
    'source',
    'tokenizer',
    'stats_from',
    'source_version',
    'fps',
    'camera_names',
    'state_names',
    'action_names',
    'tasks',
    'norm_stats',
    'near_constant',
    'splits',
    'windows',
    'dropped',
    'files',
    'versions',
    'schema',
    'source_digest',
    'tokenizer_digest',
    'stats_from_digest',
    'cameras',
    'image_size',
    'horizon',
    'chunk',
    'stride',
    'min_motion',
    'min_action_norm',
    'tail',
    'shard_size',
    'split_fractions',
    'split_seed',
    'train_episodes',
    'calibration_episodes',
    'test_episodes',
    'max_prompt_len',
    'max_text_len',
    'state_dim',
    'prompt_state_dim',
]


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    source = recordings.record(tmp_path_factory.mktemp('source'), (40, 33, 36))
    path = tmp_path_factory.mktemp('shards') / 'out'
    prepare(recordings.config(source), path)
    return path


def test_the_file_comes_back_to_the_last_byte(out):
    text = (out / META).read_text()
    assert open_shards(out).meta.text() == text
    rest = set(json.loads(text)) - {'keys', 'unknown'}
    assert rest == {f.name for f in dataclasses.fields(Meta)} - {'keys', 'unknown', *OPTIONAL}


def test_every_setting_of_a_preparation_is_a_field():
    expected = {'env_file'}  # a secret's place, which shapes nothing
    assert {f.name for f in dataclasses.fields(DataConfig)} - expected <= {
        f.name for f in dataclasses.fields(Meta)
    }


def test_a_change_is_written_and_the_rest_is_as_it_was(out):
    found = json.loads((out / META).read_text()) | {'of a later version': [1, {'a': None}]}
    meta = Meta.from_json(found, out)
    assert meta.unknown == {'of a later version': [1, {'a': None}]} and meta.to_json() == found
    changed = dataclasses.replace(meta, horizon=3, bad_episodes={7: 'cut'})
    assert changed.to_json() == found | {'horizon': 3, 'bad_episodes': {'7': 'cut'}}
    assert list(changed.to_json()) == list(found)


def test_the_first_version_s_folders_are_read(out):
    everything = json.loads((out / META).read_text())
    old = {name: everything[name] for name in FIRST}
    assert set(FIRST) >= NEEDED
    meta = Meta.from_json(old, out)
    assert (meta.resize, meta.on_bad_episode, meta.depth_scale) == ('openpi', 'error', 0.001)
    assert meta.camera_sizes is None and meta.episode_digests is None
    assert (meta.bad_episodes, meta.notes, meta.depth_names, meta.audio_samples) == ({}, (), (), 0)
    assert meta.to_json() == old and list(meta.to_json()) == FIRST
    assert (before('resize'), before('depth'), before('horizon')) == ('openpi', [], None)


def test_rows_and_numbers_of_episodes_have_their_types(out):
    meta = open_shards(out).meta
    assert meta.camera_names == ('up', 'side') and meta.camera_sizes['up'] == (24, 32)
    assert sorted(meta.episode_digests) == [0, 1, 2] and meta.splits['train'][0] in (0, 1, 2)
    assert meta.widths == {'state': 6, 'actions': 6}
    assert meta.total == sum(meta.windows.values()) > 0
    assert meta.camera_keys == tuple(recordings.CAMERAS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        meta.horizon = 3


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'windows': None}, "got one without 'windows'"),
        ({'schema': None}, "got 'schema'"),
        ({'schema': 2}, 'expected shards of schema 1 in .*, got 2; prepare them again'),
        ({'horizon': '16'}, "got horizon='16'"),
        ({'horizon': True}, 'got horizon=True'),
        ({'camera_names': 'up'}, "got camera_names='up'"),
        ({'camera_sizes': {'up': [1]}}, r'got camera_sizes=\[1\]'),
        ({'splits': []}, r'got splits=\[\]'),
        ({'bad_episodes': {'one': ''}}, 'invalid literal'),
    ],
)
def test_a_damaged_file_ends_in_a_sentence(change, expected, tmp_path):
    found = metas.meta().to_json() | change
    (tmp_path / META).write_text(
        json.dumps({name: value for name, value in found.items() if value is not None})
    )
    with pytest.raises(UserError, match=expected):
        open_shards(tmp_path)


@pytest.mark.parametrize('text', ['', '{"schema"', '[1]', '"schema"', 'null'])
def test_what_is_no_settings_ends_in_a_sentence(text, tmp_path):
    (tmp_path / META).write_text(text)
    with pytest.raises(UserError, match=r'expected a meta\.json of .* prepare it again'):
        open_shards(tmp_path)


def test_renamed_cameras_keep_their_own_keys():
    assert source_keys(('a', 'b'), {'a': 'x'}) == source_keys(('a', 'b'), [['a', 'x']])
    assert source_keys(('a', 'b'), {'a': 'x'}) == ('x', 'b') and source_keys(('a',), ()) == ('a',)


def test_a_folder_gives_what_its_files_hold(out):
    shards = open_shards(str(out))
    assert shards.digest == hashlib.sha256((out / META).read_bytes()).hexdigest()
    assert all(
        np.array_equal(shards.statistics[name].mean, one.mean)
        for name, one in read_norm_stats(out / 'norm_stats.json').items()
    )
    assert shards.features == out / 'features' and shards.baselines is None
    for name in ('train', 'calibration', 'test'):
        split = shards.split(name)
        assert split.windows == len(split.index) == len(split.records())
        assert set(split.index.episode) <= set(split.episodes)
    with pytest.raises(UserError, match="a split out of train, calibration, test, got 'val'"):
        shards.split('val')
    assert pickle.loads(pickle.dumps(shards)) == shards, 'loaders run in processes of their own'


def test_a_folder_that_is_not_finished(tmp_path):
    assert not is_finished(tmp_path)
    with pytest.raises(UserError, match=r'expected finished shards in .* got no meta\.json; run'):
        open_shards(tmp_path)


RECORD = BaseRecord(
    base='pi05', tokenizer='t.json', samples=2, seed=3, dtype='float32', base_digest='abc'
)


def test_the_record_of_the_base_comes_back(tmp_path):
    shards = Shards(tmp_path, metas.meta())
    whole = dataclasses.replace(RECORD, finished=('train',))
    shards.base_record_file.write_text(whole.text())
    assert list(json.loads(whole.text())) == [
        'base', 'tokenizer', 'samples', 'seed', 'dtype', 'base_digest', 'finished',
    ]  # fmt: skip
    assert shards.baselines == whole and whole.differences(RECORD) == []
    other = dataclasses.replace(RECORD, seed=4, samples=1)
    assert whole.differences(other) == ['samples', 'seed']


@pytest.mark.parametrize('text', ['', '{', '[1]', '{}', '{"base_digest": 3}'])
def test_a_damaged_record_ends_in_a_sentence(text, tmp_path):
    shards = Shards(tmp_path, metas.meta())
    shards.base_record_file.write_text(text)
    with pytest.raises(UserError, match=r'expected the record of a base policy in .*; delete'):
        _ = shards.baselines


def test_actions_of_the_base_must_be_of_these_windows(out, tmp_path):
    split = Shards(tmp_path, open_shards(out).meta).split('train')
    with pytest.raises(UserError, match='run prepare_data.py --out='):
        _ = split.index
    split = open_shards(out).split('train')
    wanted = np.arange(split.windows * 2 * 16 * 6, dtype=np.float64).reshape(-1, 2, 16, 6)
    np.savez(split.base_file, base=wanted)
    assert np.array_equal(split.base_actions(), wanted)
    assert split.base_actions().dtype == np.float32
    np.savez(split.base_file, base=wanted[:, :, :3])
    with pytest.raises(UserError, match=r'baselines of shape \[\d+ samples 16 6\].*other shards'):
        split.base_actions()
    split.base_file.unlink()
    with pytest.raises(UserError, match="the base policy's actions at .*baselines-train.npz"):
        split.base_actions()
