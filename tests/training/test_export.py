"""What a run gives to others: adapter, heads and merged weights are those of the checkpoint that
was asked for.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import defaults
from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.convert import checkpoint, heads
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.data.shards.base_record import BaseRecord
from sigma_jax.errors import UserError
from sigma_jax.nn import lora
from sigma_jax.processing import normalize
from sigma_jax.processing.spec import read_policy
from sigma_jax.sigma.model import SigmaConfig
from sigma_jax.training.checkpoints import Checkpoints
from sigma_jax.training.config import RunConfig
from sigma_jax.training.export import export_run
from sigma_jax.training.step import TrainState
from tests import golden, metas
from tests.merged import merge

LORA = {'patterns': ('.*/attn/(q|kv)_einsum/w',), 'rank': 2, 'alpha': 6.0, 'dropout': 0.1}
NAMES = ('pan', 'lift', 'grip')
CUT = {'camera_names': ('up',), 'prompt_state_dim': 32, 'max_prompt_len': 120}


@pytest.fixture(scope='module')
def shards(base, tmp_path_factory):
    """The files of prepared data that an export reads."""
    folder = tmp_path_factory.mktemp('shards')
    metas.write(folder, state_names=NAMES, action_names=NAMES, **CUT)
    values = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    stats = {
        key: normalize.compute_statistics(values * n)
        for n, key in enumerate(('state', 'actions'), 1)
    }
    (folder / 'norm_stats.json').write_text(normalize.norm_stats_json(stats))
    record = BaseRecord(base_digest=trees.digest(base[1]))
    (folder / 'baselines.json').write_text(record.text())
    return folder


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """The golden base as a converted folder: (path, weights)."""
    loaded = checkpoint.load(golden.FIXTURE / 'lerobot.safetensors')
    out = tmp_path_factory.mktemp('base') / 'base'
    checkpoint.save(loaded, golden.FIXTURE, out)
    return out, loaded.params


def trainable(groups, base, seed, scale):
    """Random leaves of each group."""
    rng = np.random.default_rng(seed)
    out = {
        'lora': lora.init_factors(jax.random.key(0), base, pi05.LAYOUTS, lora.LoraConfig(**LORA)),
        'sigma': {'vision': {'w': jnp.zeros((2, 3))}, 'action': {'b': jnp.zeros(3)}},
        'params': {
            'action_in_proj': base['action_in_proj'],
            'time_mlp_in': {'bias': base['time_mlp_in']['bias']},
        },
    }

    def random(leaf):
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(scale)

    return {group: jax.tree.map(random, out[group]) for group in groups}


@pytest.fixture(scope='module')
def make_run(shards, base, tmp_path_factory):
    """A training folder with checkpoints 2 and 4, with running averages: (folder, {step:
    averages}).
    """

    def make(objective, groups, scale=1.0, **changes):
        workdir = tmp_path_factory.mktemp('run')
        config = defaults.get_config().to_dict() | {
            'objective': objective,
            'base': str(base[0]),
            'ema': 0.5,
        }
        config |= {'shards': str(shards), 'lora': LORA, 'stats_from': 'shards'} | changes
        (workdir / 'config.json').write_text(json.dumps(config))
        steps = {step: trainable(groups, base[1], step, scale) for step in (2, 4)}
        with Checkpoints(workdir / 'checkpoints') as checkpoints:
            for step, ema in steps.items():
                last = jax.tree.map(lambda x: x + 1, ema)
                state = TrainState(
                    jnp.asarray(step), jax.random.key_data(jax.random.key(0)), last, {}, ema
                )
                checkpoints.save(state, {}, RunConfig.from_dict(config))
        return workdir, steps

    return make


@pytest.fixture(scope='module')
def sigma_run(make_run):
    return make_run('sigma', ('sigma', 'lora'))


def same(one, other):
    return trees.digest(one) == trees.digest(other)


def test_adapter_and_heads_are_the_newest_checkpoints(sigma_run, base, shards, tmp_path):
    workdir, steps = sigma_run
    out = export_run(workdir, tmp_path / 'out', base_model='lerobot/pi05_base')
    adapter = peft.load(out / 'adapter', base[1])
    assert same(adapter.factors, steps[4]['lora'])
    assert (adapter.config.rank, adapter.config.alpha, adapter.config.dropout) == (2, 6.0, 0.1)
    settings = json.loads((out / 'adapter' / 'adapter_config.json').read_text())
    assert settings['base_model_name_or_path'] == 'lerobot/pi05_base'
    found, config = heads.load_heads(out / 'sigma.safetensors')
    assert same(found, steps[4]['sigma'])
    sizes = SigmaConfig(**config)
    assert (sizes.d_model, sizes.state_dim, sizes.action_dim, sizes.horizon) == (64, 3, 3, 16)
    record = json.loads((out / 'export.json').read_text())
    assert record['step'] == 4 and record['weights'] == 'running average, decay 0.5'
    assert record['base'] == {'name': 'base', 'digest': trees.digest(base[1])}
    assert (
        set(record['files'])
        == {'adapter', 'sigma.safetensors', 'norm_stats.json', 'statistics', 'tokenizer.json'}
        == names(out) - {'export.json'}
    )
    both = (
        normalize.read_norm_stats(folder / 'norm_stats.json')['actions'] for folder in (out, shards)
    )
    assert np.array_equal(*(one.std for one in both))


@pytest.mark.parametrize(
    ('objective', 'stats_from', 'whose'),
    [
        ('sigma', 'shards', 'shards'),
        # residuals of the heads count in the data's units whatever the base's
        ('sigma', 'base', 'shards'),
        ('flow_matching', 'shards', 'shards'),
        ('flow_matching', 'base', 'base'),
    ],
)
def test_statistics_are_those_that_the_run_was_trained_with(
    make_run, base, shards, tmp_path, objective, stats_from, whose
):
    own = shutil.copytree(base[0], tmp_path / 'base')
    values = np.random.default_rng(5).standard_normal((50, 3)) * [3.0, 5.0, 7.0]
    statistics = {key: normalize.compute_statistics(values) for key in ('state', 'actions')}
    (own / 'norm_stats.json').write_text(normalize.norm_stats_json(statistics))
    groups = ('sigma', 'lora') if objective == 'sigma' else ('lora',)
    workdir, _ = make_run(objective, groups, base=str(own), stats_from=stats_from)
    out = export_run(workdir, tmp_path / 'out')
    got, want = (
        normalize.read_norm_stats(folder / 'norm_stats.json')
        for folder in (out, own if whose == 'base' else shards)
    )
    for key in ('state', 'actions'):
        np.testing.assert_allclose(got[key].std, want[key].std, rtol=1e-6)


def names(folder):
    return {one.name for one in folder.iterdir()}


@pytest.mark.parametrize(
    ('settings', 'want'),
    [
        ({}, (32, None)),
        ({'prompt_state_dim': 0, 'max_prompt_len': 200}, (0, 200)),
        ({'prompt_state_dim': -1, 'max_prompt_len': 80}, (-1, 80)),
    ],
)
def test_a_policy_says_which_prompt_it_was_trained_with(make_run, base, tmp_path, settings, want):
    """What its base leaves open is as the shards were cut; a live policy would guess it otherwise,
    and a base with settings of its own wrote the prompts of the training by them.
    """
    own = tmp_path / 'base'
    shutil.copytree(base[0], own)
    (own / 'policy.json').write_text(json.dumps(settings))
    workdir, _ = make_run('flow_matching', ('lora',), base=str(own))
    out = export_run(workdir, tmp_path / 'out', merge=True)
    for folder in (out / 'adapter', out / 'merged'):
        found = read_policy(folder)
        assert (found.prompt_state_dim, found.max_prompt_len) == want, folder


def test_a_policy_says_from_how_many_steps_it_learned_to_go_on(make_run, tmp_path):
    workdir, _ = make_run('flow_matching', ('lora',), rtc={'max_delay': 3})
    out = export_run(workdir, tmp_path / 'out', merge=True)
    assert [read_policy(out / name).max_delay for name in ('adapter', 'merged')] == [3, 3]


def test_an_earlier_step_in_the_other_layout(sigma_run, base, tmp_path):
    out = export_run(sigma_run[0], tmp_path / 'out', step=2, layout='openpi-pytorch')
    assert same(peft.load(out / 'adapter', base[1]).factors, sigma_run[1][2]['lora'])
    settings = json.loads((out / 'adapter' / 'adapter_config.json').read_text())
    assert settings['target_modules'].startswith('paligemma_with_expert')
    assert json.loads((out / 'export.json').read_text())['step'] == 2


def test_merged_weights_are_base_and_factors_in_float32(make_run, base, tmp_path):
    workdir, steps = make_run('flow_matching', ('lora',))
    out = export_run(workdir, tmp_path / 'out', merge=True)
    acting = {'statistics', 'tokenizer.json'}
    assert names(out) == {'adapter', 'merged', 'norm_stats.json', 'export.json', *acting}
    found = checkpoint.load(out / 'merged')
    assert found.format == 'lerobot'
    want = trees.flatten(merge(base[1], steps[4]['lora'], pi05.LAYOUTS, 6.0))
    for path, leaf in trees.flatten(found.params).items():
        np.testing.assert_allclose(leaf, want[path], rtol=0, atol=1e-5)
        touched = '/q_einsum/' in path or '/kv_einsum/' in path
        assert leaf.dtype == np.float32 and np.array_equal(leaf, trees.flatten(base[1])[path]) == (
            not touched
        )
    assert (out / 'merged' / 'norm_stats.json').read_text() == (out / 'norm_stats.json').read_text()
    settings = json.loads((out / 'adapter' / 'config.json').read_text())
    assert settings['type'] == 'pi05' and settings['use_peft'] is True
    assert 'use_peft' not in (out / 'merged' / 'config.json').read_text()


def test_trained_base_weights_come_merged_or_not_at_all(make_run, base, tmp_path):
    workdir, steps = make_run(
        'flow_matching', ('lora', 'params'), relative_joints=(False, False, False)
    )
    with pytest.raises(UserError, match='got trained base weights at step 4; export them merged'):
        export_run(workdir, tmp_path / 'out')
    out = export_run(workdir, tmp_path / 'out', merge=True)
    assert names(out) == {'merged', 'norm_stats.json', 'export.json'}
    found = trees.flatten(checkpoint.load(out / 'merged').params)
    for path, leaf in trees.flatten(steps[4]['params']).items():
        assert np.array_equal(found[path], leaf)
    path = 'PaliGemma/llm/layers/attn/q_einsum/w'
    want = trees.flatten(merge(base[1], steps[4]['lora'], pi05.LAYOUTS, 6.0))[path]
    np.testing.assert_allclose(found[path], want, rtol=0, atol=1e-5)
    policy = read_policy(out / 'merged')
    assert policy.relative_joints == (False,) * 3 and policy.cameras == ('up',)


def test_a_base_without_record_is_read_for_its_digest(make_run, base, tmp_path):
    workdir, _ = make_run('sigma', ('sigma',), base=str(golden.FIXTURE / 'lerobot.safetensors'))
    out = export_run(workdir, tmp_path / 'out')
    assert json.loads((out / 'export.json').read_text())['base']['digest'] == trees.digest(base[1])


def test_folders_without_the_checkpoint(sigma_run, tmp_path):
    def refused(message, workdir=sigma_run[0], **request):
        with pytest.raises(UserError, match=message):
            export_run(workdir, tmp_path / 'out', **request)
        assert not (tmp_path / 'out').exists()

    refused(r'expected checkpoint 3 in .*, got steps \[2, 4\]', step=3)
    refused('expected a training folder at .*, got no config.json', workdir=tmp_path / 'nowhere')
    shutil.copy(sigma_run[0] / 'config.json', tmp_path)
    refused(r'expected a checkpoint in .*, got none; run train.py to its end', workdir=tmp_path)
    refused("got 'tensorflow' and", layout='tensorflow')
    (tmp_path / 'out').mkdir()
    with pytest.raises(UserError, match='not to exist yet'):
        export_run(sigma_run[0], tmp_path / 'out')
