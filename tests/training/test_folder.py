"""A training's folder: its names, what is read of it, and what is reported where it lacks
something.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.training.checkpoints import Checkpoints
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.step import TrainState
from tests import metas

CONFIG = RunConfig(steps=4, batch_size=3)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 2, without a running average, and 4, with one; step 9 was being written."""
    found = RunFolder(tmp_path / 'run')
    found.path.mkdir()
    found.write_config(CONFIG)
    with Checkpoints(found.checkpoints, keep=3) as checkpoints:
        for step, ema in ((2, None), (4, {'w': jnp.full(2, 7.0)})):
            state = TrainState(
                jnp.asarray(step),
                jax.random.key_data(jax.random.key(0)),
                {'w': jnp.full(2, float(step))},
                {},
                ema,
            )
            checkpoints.save(state, {}, CONFIG)
    (found.checkpoints / 'step_9.orbax-checkpoint-tmp-1').mkdir()
    return found


def test_names_are_those_on_disk(folder):
    assert folder.config_file.name == 'config.json' and folder.log.name == 'train_log.csv'
    assert folder.checkpoints.name == 'checkpoints' and folder.policy.name == 'policy'
    assert folder.config() == CONFIG
    assert json.loads(folder.config_file.read_text()) == CONFIG.to_dict()


def test_the_newest_whole_checkpoint_is_taken_where_none_is_named(folder):
    assert folder.steps == [2, 4] and folder.finished
    step, leaves = folder.trainable()
    assert step == 4 and np.array_equal(leaves['w'], [7, 7]), 'the running average'
    step, leaves = folder.trainable(2)
    assert step == 2 and np.array_equal(leaves['w'], [2, 2])
    written = (folder.checkpoints / 'step_4').stat().st_mtime_ns
    assert folder.newest == (4, written)
    with pytest.raises(UserError, match=r'expected checkpoint 9 in .*run, got steps \[2, 4\]'):
        folder.trainable(9)


def test_one_that_stopped_early_is_not_finished(folder):
    folder.write_config(dataclasses.replace(CONFIG, steps=5))
    assert not folder.finished
    folder.config_file.unlink()
    assert not folder.finished


def test_a_folder_without_a_training_ends_in_a_sentence(tmp_path):
    nothing = RunFolder(tmp_path / 'nowhere')
    assert nothing.steps == [] and nothing.newest is None and not nothing.finished
    assert nothing.episodes() is None
    with pytest.raises(UserError, match='training folder at .*nowhere, got no config.json'):
        nothing.config()
    with pytest.raises(UserError, match='expected a checkpoint in .*, got none; run train.py'):
        nothing.trainable()
    nothing.refuse_other_config(CONFIG)  # nothing there is of another config
    assert not list(tmp_path.iterdir()), 'looking makes nothing'


def test_another_config_is_refused(folder):
    folder.refuse_other_config(dataclasses.replace(CONFIG, steps=9))
    with pytest.raises(UserError, match='checkpoint 4 in .*batch_size: saved 3, now 5'):
        folder.refuse_other_config(dataclasses.replace(CONFIG, batch_size=5))


def test_it_knows_from_which_episodes_it_learned(folder, tmp_path):
    folder.note_episodes(metas.meta(episode_digests={0: 'a'}))
    assert folder.episodes() == {'a': '0'}
    other = RunFolder(tmp_path / 'other')
    other.path.mkdir()
    other.note_episodes(metas.meta(episode_digests={0: 'b'}), folder.path)
    assert set(other.episodes()) == {'a', 'b'}
