"""Episodes are known by what they are; what a training has learned from is written into its
folder.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards import seen
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.file_digests import source_digest
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from tests import metas
from tests.data_pipeline import recordings

LENGTHS = (40, 44, 36)
ONE_CAMERA = {
    'cameras': recordings.CAMERAS[:1],
    'train_episodes': (0,),
    'calibration_episodes': (1,),
}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return recordings.record(tmp_path_factory.mktemp('source'), LENGTHS, kind='video')


def test_an_episode_is_its_states_and_actions(source, tmp_path):
    episode = open_dataset(source).read_episode(1)
    digest = seen.episode_digest(episode)
    again = recordings.to_v30(source, tmp_path / 'v30', LENGTHS, 2)
    assert digest == seen.episode_digest(open_dataset(again).read_episode(1))
    assert digest == seen.episode_digest(
        dataclasses.replace(episode, index=7, tasks=('else',) * 44, readers={})
    )
    for name in ('state', 'actions'):
        values = getattr(episode, name).copy()
        values[-1, -1] = np.nextafter(values[-1, -1], np.float32(9e9))
        assert digest != seen.episode_digest(dataclasses.replace(episode, **{name: values}))
    shorter = dataclasses.replace(episode, state=episode.state[1:], actions=episode.actions[1:])
    assert digest != seen.episode_digest(shorter)


def test_a_preparation_records_every_episode(source, tmp_path):
    meta = prepare(recordings.config(source, **ONE_CAMERA), tmp_path / 'out').meta
    wanted = {n: seen.episode_digest(open_dataset(source).read_episode(n)) for n in range(3)}
    assert {index: wanted[index] for index in meta.episode_digests} == meta.episode_digests
    assert seen.of_split(meta, 'train') == {wanted[0]: 0}
    assert seen.of_split(metas.meta(), 'train') is None


def test_folders_add_up_what_they_learned_from(tmp_path):
    """A run that goes on with other shards, on a policy that was itself trained here."""
    base, run = tmp_path / 'base', tmp_path / 'run'
    for folder in (base, run):
        folder.mkdir()
    numbered = [{1: 'a', 2: 'b'}, {3: 'c'}, {1: 'd'}]
    first, second, third = (
        metas.meta(episode_digests=of, splits={'train': tuple(of)}) for of in numbered
    )
    seen.note(base, first)
    seen.note(run, second, base)
    seen.note(run, third, base)
    seen.note(
        run, metas.meta(splits={'train': (9,)}), base
    )  # shards from before episodes were recorded
    assert set(seen.read(run)) == set('abcd') and set(seen.read(base)) == set('ab')
    assert seen.read(tmp_path) is None
    (run / seen.FILE).write_text('{"train"')
    with pytest.raises(UserError, match='restore the file, or remove it'):
        seen.read(run)


def test_a_camera_that_comes_later_makes_no_other_data_set(source, tmp_path):
    """Its video, and a README; shards are finished, and a stopped preparation goes on."""
    data, config = tmp_path / 'data', recordings.config(tmp_path / 'data', **ONE_CAMERA)
    unused = recordings.CAMERAS[1]
    shutil.copytree(source, data, ignore=shutil.ignore_patterns(f'*{unused}*'))
    prepare(config, tmp_path / 'out')
    before = (tmp_path / 'out' / 'meta.json').read_text()
    for index in range(3):
        video = data / recordings.video_path(index, unused)
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / recordings.video_path(index, unused), video)
    (data / 'README.md').write_text('new')
    assert prepare(config, tmp_path / 'out').was_complete
    found = open_shards(tmp_path / 'out').meta.to_json()
    (tmp_path / 'out' / 'unfinished.json').write_text(json.dumps(found))
    (tmp_path / 'out' / 'meta.json').unlink()
    assert not prepare(config, tmp_path / 'out').was_complete
    assert (tmp_path / 'out' / 'meta.json').read_text() == before


@pytest.mark.parametrize('changed', ['video', 'table', 'info'])
def test_what_is_read_still_makes_another(changed, source, tmp_path):
    data, config = tmp_path / 'data', recordings.config(tmp_path / 'data', **ONE_CAMERA)
    shutil.copytree(source, data)
    prepare(config, tmp_path / 'out')
    if changed == 'video':
        path = data / recordings.video_path(0, recordings.CAMERAS[0])
        path.write_bytes(path.read_bytes() + bytes(8))
    elif changed == 'table':
        recordings.edit_columns(data, 0, action=list(np.ones((LENGTHS[0], 6), np.float32)))
    else:
        recordings.edit_info(data, robot_type='another')
    with pytest.raises(UserError, match='source_digest'):
        prepare(config, tmp_path / 'out')


def test_older_shards_which_recorded_all_files_are_still_finished(source, tmp_path):
    config = recordings.config(source, **ONE_CAMERA)
    prepare(config, tmp_path / 'out')
    meta = open_shards(tmp_path / 'out').meta.to_json()
    older = {k: v for k, v in meta.items() if k != 'episode_digests'} | {
        'source_digest': source_digest(source)
    }
    assert older['source_digest'] != meta['source_digest']
    (tmp_path / 'out' / 'meta.json').write_text(json.dumps(older))
    assert prepare(config, tmp_path / 'out').was_complete
