"""A second kind of backbone: a spec and a line in the registry, and everything else works on it."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from sigma_jax import trees
from sigma_jax.backbones import kinds
from sigma_jax.convert import checkpoint, sizes
from sigma_jax.convert.load_base import ModelConfig, open_base, read_weights
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.nn.quant import QuantConfig, Quantised
from sigma_jax.policies import base_actions
from sigma_jax.training import memory, memory_check
from sigma_jax.training.build import build
from sigma_jax.training.config import RunConfig
from sigma_jax.training.run import Run
from sigma_jax.types import to_batch
from tests.toy_backbone import TOY, BoundToy, ToyConfig

LORA = {'patterns': ('toy/mix',), 'rank': 2, 'alpha': 2.0, 'dropout': 0.0}


@pytest.fixture(scope='module', autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kinds.KINDS, 'toy', TOY)
        yield


@pytest.fixture(scope='module')
def folder(small_run, tmp_path_factory, registered):
    """A toy's checkpoint, with what lies beside the small base, as `convert` writes it."""
    params = jax.tree.map(np.asarray, TOY.init_params(jax.random.key(0), ToyConfig()))
    loaded = checkpoint.Checkpoint(params, ToyConfig(), 'toy')
    out = tmp_path_factory.mktemp('toy') / 'base'
    return checkpoint.save(loaded, small_run.base, out, 'jax')


@pytest.fixture(scope='module')
def shards(small_run, folder, tmp_path_factory):
    """The small run's shards with the toy's own actions."""
    out = tmp_path_factory.mktemp('toy') / 'shards'
    out.mkdir()
    for file in small_run.shards.iterdir():
        if not file.name.startswith('baselines'):
            (out / file.name).symlink_to(file)
    config = base_actions.BaselineConfig(base=str(folder), batch_size=8)
    base_actions.write_baselines(open_shards(out), config)
    return out


def test_shapes_are_traced_once_a_config_and_given_as_a_tree_of_the_callers_own():
    traced = []

    def init(key, config):
        traced.append(config)
        return TOY.init_params(key, config)

    spec = dataclasses.replace(TOY, init_params=init)
    first = spec.abstract_params(ToyConfig())
    expected = jax.eval_shape(lambda key: TOY.init_params(key, ToyConfig()), jax.random.key(0))
    first.clear()
    assert spec.abstract_params(ToyConfig()) == expected and len(traced) == 1
    spec.abstract_params(ToyConfig(width=32))
    assert len(traced) == 2


def run_config(small_run, folder, shards, **changes) -> RunConfig:
    paths = {'base': str(folder), 'shards': str(shards), 'lora': LORA, 'ema': None}
    return RunConfig.from_dict(small_run.config(**paths | changes))


def test_a_spec_is_found_by_name_config_and_names():
    assert kinds.find('toy') is kinds.of(ToyConfig()) is TOY
    assert kinds.of_names(['head/kernel', 'toy/mix']) is TOY
    assert kinds.of_names(['model.time_mlp_in.bias']) is kinds.find('pi05') is kinds.USUAL
    assert kinds.of_names(['something.else']) is None
    with pytest.raises(UserError, match="model.kind: expected 'pi05' or 'toy', got 'other'"):
        kinds.find('other')
    with pytest.raises(TypeError, match='expected the config of a backbone'):
        kinds.of(object())


def test_tensors_from_elsewhere_tell_nothing_to_a_kind_without_public_checkpoints():
    with pytest.raises(UserError, match='expected a checkpoint that convert_weights.py wrote'):
        TOY.from_tensors({}, {})


def test_a_config_names_its_kind_and_sizes():
    model = ModelConfig.from_section({'kind': 'toy', 'width': 8, 'dtype': 'bfloat16'})
    assert model.sizes == ToyConfig(width=8) and model.build().dtype == 'bfloat16'
    assert ModelConfig.from_section(model.to_section()) == model
    assert 'kind' not in ModelConfig().to_section()
    with pytest.raises(UserError, match=r"unknown keys \['vision'\]"):
        ModelConfig.from_section({'kind': 'toy', 'vision': {}})


def test_a_checkpoint_comes_back_as_its_own_kind(folder):
    base = open_base(str(folder), ModelConfig())
    assert base.spec is TOY and base.config == ToyConfig() and base.folder == folder
    assert json.loads((folder / 'sigma_config.json').read_text()) == sizes.to_json(ToyConfig())
    want = TOY.init_params(jax.random.key(0), ToyConfig())
    assert trees.digest(read_weights(base).params) == trees.digest(want) == base.digest
    assert jax.tree.map(lambda x: x.shape, base.shapes) == jax.tree.map(np.shape, want)


def test_layouts_of_another_s_public_checkpoint_are_refused(folder, tmp_path):
    loaded = checkpoint.load(folder)
    with pytest.raises(UserError, match="expected layout 'jax' for a model without a public"):
        checkpoint.save(loaded, folder, tmp_path / 'out', 'openpi-pytorch')
    assert not (tmp_path / 'out').exists()


def test_random_weights_need_no_table():
    base = open_base('', ModelConfig(sizes=ToyConfig(width=8)))
    read = read_weights(base, seed=3, tokenizer='assets/tokenizer/tokenizer.json')
    want = TOY.init_params(jax.random.key(3), ToyConfig(width=8))
    assert trees.digest(read.params) == trees.digest(want)


def test_its_own_prompt_reaches_its_own_actions(small_run, folder, shards, monkeypatch):
    """A toy acts by its prompt: had the loader written pi0.5's, the stored actions were others."""
    config = base_actions.BaselineConfig(base=str(folder), batch_size=8)
    stored = open_shards(shards).split('calibration').base_actions()
    monkeypatch.setitem(
        kinds.KINDS, 'toy', dataclasses.replace(TOY, prompt=kinds.find('pi05').prompt)
    )
    for file in shards.glob('baselines*'):
        file.unlink()
    base_actions.write_baselines(open_shards(shards), config)
    others = open_shards(shards).split('calibration').base_actions()
    monkeypatch.undo()
    assert stored.shape == others.shape and np.abs(stored - others).max() > 1e-3
    for file in shards.glob('baselines*'):
        file.unlink()
    base_actions.write_baselines(open_shards(shards), config)
    assert np.array_equal(open_shards(shards).split('calibration').base_actions(), stored)


def test_a_forecast_counts_its_leaves(small_run, folder, shards):
    """By shapes alone: the head, which only acting reads, does not lie on the device."""
    config = run_config(small_run, folder, shards)
    plan = build(config)
    assert 'head' not in plan.frozen.params and set(plan.trainable) == {'sigma', 'lora'}
    assert set(trees.flatten(plan.trainable['lora'])) == {'toy/mix/a', 'toy/mix/b'}
    floats = sum(x.size for x in jax.tree.leaves(plan.base.shapes['toy']))
    assert memory.size(plan.frozen.params) == 4 * floats
    parts = memory.forecast(memory_check.make_job(config)[0])
    assert parts['frozen base'] == memory.size(plan.frozen) and parts['kept activations'] > 0
    small = dataclasses.replace(config, quant=QuantConfig('int8', ('toy/mix',)))
    assert isinstance(build(small).frozen.params['toy']['mix'], Quantised)


def test_sigma_trains_around_it(small_run, folder, shards):
    """Two steps: heads and factors move, the loss is finite, and the head is nowhere."""
    run = Run(run_config(small_run, folder, shards))
    assert 'head' not in run.frozen.params and run.base.spec is TOY
    before, losses = jax.device_get(run.state.trainable), []
    for _ in range(2):
        batch = run.devices.shard_batch(to_batch(next(run.loader)))
        run.state, metrics = run.step(run.state, run.frozen, batch, run.ablation)
        losses.append(float(metrics['loss']))
    after = jax.device_get(run.state.trainable)
    assert np.isfinite(losses).all()
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), before, after)
    assert moved['lora']['toy']['mix']['b'] and any(jax.tree.leaves(moved['sigma']))


def test_what_a_kind_cannot_do_is_reported(small_run, folder, shards):
    other = {'objective': 'flow_matching', 'trainable': ('lora',), 'stats_from': 'shards'}
    with pytest.raises(UserError, match="expected 'sigma' for a base of kind 'toy'"):
        build(run_config(small_run, folder, shards, **other))


def test_factors_that_sigma_does_not_train_through_are_reported(small_run, folder, shards):
    narrow = dataclasses.replace(TOY, encoding=re.compile('toy/out/.*'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kinds.KINDS, 'toy', narrow)
        with pytest.raises(UserError, match="LoRA factors of 'toy/mix', which would never learn"):
            Run(run_config(small_run, folder, shards))


def test_bound_weights_compute_with_factors():
    """With B = 0 the same bits; else another encoding."""
    config = ToyConfig()
    params = TOY.init_params(jax.random.key(0), config)
    x, mask = jax.random.normal(jax.random.key(1), (2, 5, 16)), np.ones((2, 5), bool)
    plain = BoundToy(config, params).encode(x, mask)
    for scale in (0.0, 1.0):
        factors = {'toy': {'mix': {'a': np.ones((2, 16)), 'b': np.full((16, 2), scale)}}}
        got = BoundToy(config, params, factors).encode(x, mask)
        assert np.array_equal(got, plain) == (scale == 0.0)
