"""Adapters in LeRobot's own PyTorch policy, loaded and saved by peft itself, against our model.

Needs what `tests/convert/lerobot_tiny.py` names; `pytest -m reference`.
"""

import dataclasses
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.convert import assets, checkpoint, source
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.nn import lora
from sigma_jax.training.export import export_run
from tests import golden
from tests.convert import lerobot_tiny
from tests.merged import merge
from tests.training.test_export import (
    LORA,
    base,  # noqa: F401
    make_run,  # noqa: F401
    shards,  # noqa: F401
)

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings('ignore')]
STORED_WITH = '2.13.'  # torch of the stored numbers (tests/data/peft_tiny/README.md)
GEMMA = ('.*/attn/(q|kv|attn_vec)_einsum(_1)?/w',)
EVERYTHING = (
    '.*einsum(_1)?/w',
    '.*(gating_einsum|linear)',
    '.*/img/.*/(query|key|value|out|Dense_.)/kernel',
    '.*head/kernel',
)


@pytest.fixture(scope='module')
def params():
    """The golden weights."""
    return checkpoint.load(golden.FIXTURE / 'lerobot.safetensors').params


def random_factors(params, patterns):
    config = lora.LoraConfig(patterns, rank=4, alpha=10.0, dropout=0.1)
    rng = np.random.default_rng(1)
    start = lora.init_factors(jax.random.key(0), params, pi05.LAYOUTS, config)
    return jax.tree.map(lambda x: np.float32(x + 0.1 * rng.standard_normal(x.shape)), start), config


def ours(params, factors, config):
    """What `lerobot_tiny.compute` gives, from our model."""
    model = pi05.BoundPi05(dataclasses.replace(golden.config(), lora=config), params, factors)
    i, observation = golden.inputs(), golden.observation()
    time = i['time'][:, None, None]
    velocity = model.velocity(observation, time * i['noise'] + (1 - time) * i['actions'], i['time'])
    sampled = model._apply('sample_actions', i['sample_noise'], observation)
    return {'velocity': velocity, 'velocity_float32_time': velocity, 'sampled_actions': sampled}


def differences(one, other):
    return {key: float(np.abs(one[key] - other[key]).max()) for key in one}


def agree(one, other):
    """LeRobot's float64 time alone moves the velocity by 1.4e-5
    (tests/data/peft_tiny/README.md).
    """
    found = differences(one, other)
    print(found)
    return (
        found['velocity_float32_time'] < 1e-5
        and found['sampled_actions'] < 1e-5
        and found['velocity'] < 2e-5
    )


def rounding(exact: float) -> float:
    """The bound with the torch that stored the numbers; another sums in another order."""
    import torch

    return exact if torch.__version__.startswith(STORED_WITH) else 5e-6


def test_the_policy_is_the_golden_one_bit_by_bit():
    found = lerobot_tiny.compute(lerobot_tiny.policy().model)
    for name in ('velocity', 'sampled_actions'):
        np.testing.assert_allclose(found[name], golden.outputs()[name], rtol=0, atol=rounding(0))


@pytest.mark.parametrize('patterns', [GEMMA, EVERYTHING])
@pytest.mark.parametrize('layout', ['lerobot', 'openpi-pytorch'])
def test_peft_loads_our_adapter_and_lerobot_computes_our_numbers(
    params, tmp_path, patterns, layout
):
    from peft import PeftModel

    factors, config = random_factors(params, patterns)
    out = peft.save(factors, config, params, tmp_path / 'adapter', layout=layout)
    policy = lerobot_tiny.policy()
    model = PeftModel.from_pretrained(policy if layout == 'lerobot' else policy.model, out).eval()
    inner = model.base_model.model
    found = lerobot_tiny.compute(inner.model if layout == 'lerobot' else inner)
    assert agree(found, ours(params, factors, config))
    assert np.abs(found['velocity'] - golden.outputs()['velocity']).max() > 0.1
    state = {name: x.detach().numpy() for name, x in model.named_parameters() if 'lora_' in name}
    written = load_file(out / 'adapter_model.safetensors')
    assert {name.replace('.default', ''): x.tobytes() for name, x in state.items()} == {
        name: x.tobytes() for name, x in written.items()
    }


@pytest.mark.parametrize(
    'target_modules', list(lerobot_tiny.ADAPTERS.values()) + [['q_proj', 'v_proj', 'fc1']]
)
def test_we_load_pefts_adapter_and_compute_lerobots_numbers(params, tmp_path, target_modules):
    model = lerobot_tiny.adapted(target_modules, seed=3, use_rslora=True)
    model.save_pretrained(tmp_path)
    adapter = peft.load(tmp_path, params)
    assert agree(
        lerobot_tiny.compute(model.base_model.model.model),
        ours(params, adapter.factors, adapter.config),
    )


def test_lerobots_factory_loads_an_export(make_run, base, tmp_path, monkeypatch):  # noqa: F811
    """The adapter's folder is all that LeRobot asks for; the adapter names the base."""
    lerobot_tiny.modeling()
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import factory

    folder, out = tmp_path / 'base', tmp_path / 'out'
    checkpoint.convert(source.open_source(base[0]), folder, 'lerobot')
    assets.write(folder, 'lerobot', assets.read(base[0]), golden.config())
    workdir, steps = make_run('flow_matching', ('lora',), scale=0.2)
    export_run(workdir, out, base_model=str(folder))
    config = PreTrainedConfig.from_pretrained(out / 'adapter')
    config.pretrained_path, config.device = out / 'adapter', 'cpu'
    monkeypatch.setattr(
        factory,
        'dataset_to_policy_features',
        lambda _: config.input_features | config.output_features,
    )
    data = types.SimpleNamespace(features={}, stats=None, camera_keys=[])
    policy = factory.make_policy(config, ds_meta=data).eval()
    found = lerobot_tiny.compute(policy.base_model.model.model)
    assert agree(found, ours(base[1], steps[4]['lora'], lora.LoraConfig(**LORA)))


def lerobots_default():
    """What LeRobot adapts unless told otherwise: q and v of the action expert, and projections of
    the actions.
    """
    return lerobot_tiny.policy()._get_default_peft_targets()['target_modules']


@pytest.mark.parametrize(
    'target_modules', [*lerobot_tiny.ADAPTERS.values(), 'default', r'.*dense|.*time_mlp_(in|out)']
)
def test_our_merged_weights_are_pefts(params, tmp_path, target_modules):
    model = lerobot_tiny.adapted(
        lerobots_default() if target_modules == 'default' else target_modules
    )
    model.save_pretrained(tmp_path / 'adapter')
    want = model.merge_and_unload().state_dict()
    adapter = peft.load(tmp_path / 'adapter', params, peft.MERGE_LAYOUTS)
    merged = merge(params, adapter.factors, peft.MERGE_LAYOUTS, adapter.config.alpha)
    found = checkpoint.Checkpoint(jax.tree.map(np.asarray, merged), golden.config(), 'lerobot')
    checkpoint.save(found, tmp_path, tmp_path / 'merged', layout='lerobot')
    tensors = load_file(tmp_path / 'merged' / 'model.safetensors')
    worst = max(
        float(np.abs(x - want[k].numpy()).max())
        for k, x in tensors.items()
        if 'gemma_expert.lm_head' not in k
    )
    print(worst)
    assert worst < 1e-6 and trees.digest(merged) != trees.digest(params)


def test_stored_files_are_what_peft_and_lerobot_give(tmp_path):
    lerobot_tiny.write(tmp_path)
    stored = golden.DATA / 'peft_tiny'
    for name in lerobot_tiny.ADAPTERS:
        one, other = (
            load_file(folder / name / 'adapter_model.safetensors') for folder in (tmp_path, stored)
        )
        assert one.keys() == other.keys() and all(
            np.array_equal(one[key], other[key]) for key in one
        )
    one, other = (dict(np.load(folder / 'outputs.npz')) for folder in (tmp_path, stored))
    assert max(differences(one, other).values()) < rounding(1e-6)
