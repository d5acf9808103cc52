"""Baselines: a window's sample is its own, whatever batch it came in; finished work is kept, other
work refused.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import prepare_data
from configs import data_so101
from sigma_jax.api import preparation
from sigma_jax.backbones.pi05 import BoundPi05
from sigma_jax.convert.load_base import ModelConfig, open_base, read_weights
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.errors import UserError
from sigma_jax.policies import base_actions
from sigma_jax.processing.normalize import read_norm_stats
from sigma_jax.processing.spec import OURS, to_json
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.settings import from_section
from sigma_jax.sigma.model import window_keys
from sigma_jax.types import to_batch
from tests import golden, quick
from tests.loading import make_loader

SPLITS = ('train', 'calibration')


@pytest.fixture
def fresh(small_run, tmp_path):
    """The same shards without baselines."""
    shutil.copytree(
        small_run.shards, tmp_path / 'shards', ignore=shutil.ignore_patterns('baselines*')
    )
    return tmp_path / 'shards'


def fitting_base(config, **how):
    """The base of a script's config, looked at as the script does."""
    settings = config.to_dict()
    asked = from_section(base_actions.BaselineConfig, settings['baselines'], 'baselines')
    base = open_base(asked.folder, asked.model)
    preparation.check_base(DataConfig.from_settings(settings['data']), base, asked, **how)
    return base


def read(shards, split='train'):
    with np.load(shards / f'baselines-{split}.npz') as arrays:
        return arrays['base']


def test_a_record_and_a_row_for_every_window(small_run):
    record = json.loads((small_run.shards / 'baselines.json').read_text())
    assert (
        record['finished'] == list(SPLITS) and record['samples'] == 2 and 'batch_size' not in record
    )
    assert (
        record['base_digest'] == json.loads((small_run.base / 'source.json').read_text())['digest']
    )
    for split in SPLITS:
        base = read(small_run.shards, split)
        assert (
            base.shape == (len(open_shards(small_run.shards).split(split).records()), 2, 16, 6)
            and base.dtype == np.float32
        )
        assert np.isfinite(base).all() and len(np.unique(base[:, :, 0, 0])) == base.shape[0] * 2


def test_a_sample_does_not_depend_on_its_batch(small_run, fresh):
    base_actions.write_baselines(open_shards(fresh), small_run.baseline_config(batch_size=1))
    for split in SPLITS:
        np.testing.assert_allclose(
            read(fresh, split), read(small_run.shards, split), rtol=1e-5, atol=1e-4
        )


def test_a_row_is_the_policys_own_sample_in_raw_units(small_run):
    """Window 1, draw 1: noise keyed by seed, draw, episode and frame; units undone by hand."""
    asked = small_run.baseline_config()
    policy = read_weights(open_base(asked.folder, asked.model))
    loader = make_loader(
        open_shards(small_run.shards).split('train'),
        batch_size=2,
        norm_stats=small_run.base / 'norm_stats.json',
        tokenizer=load_tokenizer('assets/tokenizer/tokenizer.json'),
    )
    batch = jax.tree.map(lambda x: x[1:, 0], to_batch(next(loader)))
    keys = window_keys(
        jax.random.fold_in(jax.random.key(0), 1),
        jnp.asarray(batch.episode),
        jnp.asarray(batch.frame),
    )
    sampled = np.asarray(
        quick.jit(BoundPi05(policy.config, jax.device_put(policy.params)).sample_actions)(
            keys, batch.observation
        )
    )
    stats = read_norm_stats(small_run.base / 'norm_stats.json')['actions']
    want = (sampled[0, :, :6] + 1) / 2 * stats.span + stats.low
    np.testing.assert_allclose(read(small_run.shards)[1, 1], want, rtol=1e-4, atol=1e-3)


def test_relative_joints_count_from_the_state(small_run, fresh, tmp_path):
    policy = tmp_path / 'policy'
    shutil.copytree(small_run.base, policy)
    (policy / 'policy.json').write_text(
        json.dumps({'relative_joints': [True, False, False, False, False, True]})
    )
    base_actions.write_baselines(open_shards(fresh), small_run.baseline_config(base=str(policy)))
    records = open_shards(fresh).split('train').records()
    state = np.stack([records[n].state for n in range(len(records))])[:, None, None, :]
    moved = read(fresh) - read(small_run.shards)
    want = np.broadcast_to(state * np.array([1, 0, 0, 0, 0, 1]), moved.shape)
    np.testing.assert_allclose(moved, want, rtol=1e-4, atol=1e-3)


def test_finished_splits_are_kept(small_run, fresh):
    for name in ('baselines.json', 'baselines-train.npz'):
        shutil.copy(small_run.shards / name, fresh)
    before = (fresh / 'baselines-train.npz').stat().st_mtime_ns
    said = []
    base_actions.write_baselines(
        open_shards(fresh),
        small_run.baseline_config(),
        lambda done, total: said.append((done, total)),
    )
    assert (fresh / 'baselines-train.npz').stat().st_mtime_ns == before
    assert np.array_equal(read(fresh, 'calibration'), read(small_run.shards, 'calibration'))
    total = sum(len(open_shards(fresh).split(split).records()) for split in SPLITS)
    assert said[-1] == (total, total) and [done for done, _ in said] == sorted(
        done for done, _ in said
    )


@pytest.mark.parametrize(('field', 'value'), [('seed', 1), ('samples', 1), ('dtype', 'bfloat16')])
def test_other_settings_are_refused(small_run, field, value):
    with pytest.raises(
        UserError,
        match=rf'was made with, got others \({field}\); delete '
        r'.*baselines\*',
    ):
        base_actions.write_baselines(
            open_shards(small_run.shards), small_run.baseline_config(**{field: value})
        )


def test_padded_statistics_are_cut_to_the_robot(small_run, fresh, tmp_path):
    """openpi's statistics have 32 entries whatever the robot."""
    policy = tmp_path / 'policy'
    shutil.copytree(small_run.base, policy)
    stats = json.loads((policy / 'norm_stats.json').read_text())
    for quantity in stats['norm_stats'].values():
        for name, values in quantity.items():
            quantity[name] = values + [0.0] * (32 - len(values))
    (policy / 'norm_stats.json').write_text(json.dumps(stats))
    base_actions.write_baselines(open_shards(fresh), small_run.baseline_config(base=str(policy)))
    np.testing.assert_allclose(read(fresh), read(small_run.shards), rtol=1e-5, atol=1e-4)


def test_policies_that_cannot_be_sampled(small_run, fresh, tmp_path):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            base_actions.write_baselines(open_shards(fresh), small_run.baseline_config(**changes))

    refused('expected a converted pi0.5 as the base, got none', base='')
    refused('expected a checkpoint at', base=str(tmp_path / 'nowhere'))
    policy = tmp_path / 'policy'
    shutil.copytree(small_run.base, policy)
    (policy / 'norm_stats.json').unlink()
    refused('expected norm_stats.json in', base=str(policy))
    assert not list(fresh.glob('baselines*'))


def test_what_is_finished_reads_no_weights(small_run, fresh, unread):
    record = base_actions.write_baselines(
        open_shards(small_run.shards), small_run.baseline_config(batch_size=1)
    )
    assert record.base_digest == json.loads((small_run.base / 'source.json').read_text())['digest']
    with pytest.raises(pytest.fail.Exception, match='read the weights'):
        base_actions.write_baselines(open_shards(fresh), small_run.baseline_config())


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'horizon': 17}, 'a policy with at least 17 action steps, got 16 from'),
        ({'image_size': 56}, 'expected images of 28 px, which the base takes, got 56 px'),
    ],
)
def test_shards_that_do_not_fit_are_reported_before_weights_are_read(
    small_run, fresh, unread, wrong, message
):
    meta = json.loads((fresh / 'meta.json').read_text())
    (fresh / 'meta.json').write_text(json.dumps(meta | wrong))
    with pytest.raises(UserError, match=message):
        base_actions.write_baselines(open_shards(fresh), small_run.baseline_config())


@pytest.mark.parametrize(
    ('where', 'wrong', 'message'),
    [
        ('data', {'horizon': 17}, 'a policy with at least 17 action steps, got 16 from'),
        ('data', {'image_size': 56}, 'expected images of 28 px, which the base takes, got 56 px'),
        ('baselines', {'tokenizer': 'nowhere'}, 'nowhere'),
        ('baselines', {'base': 'nowhere'}, 'expected a checkpoint at nowhere'),
        ('baselines', {'draws': 2}, r"unknown keys \['draws'\]"),
    ],
)
def test_a_base_that_does_not_fit_is_reported_before_anything_is_prepared(
    small_run, unread, where, wrong, message
):
    config = data_so101.get_config()
    config.baselines.base, config.data.image_size = str(small_run.base), 28
    assert fitting_base(config).policy.resize == 'openpi'
    with config.unlocked():
        config[where].update(wrong)
    with pytest.raises(UserError, match=message):
        fitting_base(config)


def test_shards_that_only_follow_the_base(small_run, unread, tmp_path):
    """Without sampling: images and prompts as the base takes them, whatever its horizon,
    statistics, tokenizer.
    """
    shutil.copytree(small_run.base, tmp_path / 'base')
    (tmp_path / 'base/norm_stats.json').unlink()
    seen = dataclasses.replace(OURS, resize='lerobot', prompt_state_dim=8)
    (tmp_path / 'base/policy.json').write_text(to_json(seen))
    config = data_so101.get_config()
    config.baselines.tokenizer = 'nowhere'
    config.data.update(source=str(golden.DATA / 'lerobot/v3.0'), image_size=28, horizon=17)
    config.data.update(train_episodes=(0, 1, 2), min_motion=0.0)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    settings = {'out': str(tmp_path / 'shards'), 'base': str(tmp_path / 'base'), 'sample': False}
    with flagsaver.flagsaver(**settings):
        prepare_data.main(config)
    meta = open_shards(tmp_path / 'shards').meta.to_json()
    assert (meta['resize'], meta['prompt_state_dim'], meta['horizon']) == ('lerobot', 8, 17)
    assert not list((tmp_path / 'shards').glob('baselines*'))
    config.baselines.base, config.data.image_size = settings['base'], 56
    with pytest.raises(
        UserError, match='expected images of 28 px, which the base takes, got 56 px'
    ):
        fitting_base(config, sampled=False)


def test_weights_without_a_record_are_read_to_know_them(small_run, fresh, tmp_path):
    shutil.copytree(small_run.base, tmp_path / 'base')
    (tmp_path / 'base/source.json').unlink()
    described = open_base(str(tmp_path / 'base'), ModelConfig())
    assert described.digest == '' and described.params is None
    for file in small_run.shards.glob('baselines*'):
        shutil.copy(file, fresh)
    record = json.loads((fresh / 'baselines.json').read_text())
    (fresh / 'baselines.json').write_text(json.dumps(record | {'base': 'base'}))
    got = base_actions.write_baselines(
        open_shards(fresh), small_run.baseline_config(base=str(tmp_path / 'base'))
    )
    assert got.base_digest == record['base_digest']
    assert base_actions.check_baselines(open_shards(fresh), '') == got


def test_training_checks_whose_baselines_they_are(small_run, fresh):
    with pytest.raises(
        UserError, match='expected the baselines of the base policy in .*, got none'
    ):
        base_actions.check_baselines(open_shards(fresh), 'x')
    with pytest.raises(UserError, match='expected baselines of the policy another'):
        base_actions.check_baselines(open_shards(small_run.shards), 'another')
    digest = json.loads((small_run.base / 'source.json').read_text())['digest']
    found = base_actions.check_baselines(open_shards(small_run.shards), digest)
    assert found.base_digest == digest
