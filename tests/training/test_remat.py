"""Half precision and rematerialisation change nothing that matters: gradients and loss curves
beside the plain ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.convert.load_base import ModelConfig
from sigma_jax.nn import lora
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.training.optimizer import OptimizerConfig, make_optimizer
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import Frozen
from tests import quick, small_run
from tests import small_sigma as small

POLICIES = ['save_attention', pytest.param('nothing_saveable', marks=pytest.mark.slow)]
DEEP = {k: {**part, 'depth': 2} for k, part in small_run.MODEL.items() if isinstance(part, dict)}
STEPS = 200


def sizes(dtype='float32', remat=None):
    """A very small pi0.5 of two layers, with LoRA's dropout."""
    section = small_run.MODEL | DEEP | {'dtype': dtype, 'remat': remat}
    return ModelConfig.from_section(section).build(small.LORA)


@functools.cache
def inputs():
    """(LoRA factors, frozen, batch), with noise on every leaf, so that no zero hides a path."""
    config, rng, batch = sizes(), np.random.default_rng(0), small.make_batch()
    params = jax.device_get(quick.jit(lambda key: pi05.init_params(key, config))(jax.random.key(0)))
    factors = lora.init_factors(jax.random.key(1), params, pi05.LAYOUTS, small.LORA)
    params, factors = jax.tree.map(
        lambda x: np.float32(x + 0.1 * rng.standard_normal(x.shape)), (params, factors)
    )
    seen = batch.observation.replace(
        images=batch.observation.images[..., :28, :28, :], depth=None, audio=None
    )
    lead = (*batch.mask.shape, config.action_horizon)
    actions, mask = np.resize(batch.actions, (*lead, small.A)), np.resize(batch.action_mask, lead)
    return (
        {'lora': factors},
        Frozen(params, small.frozen().scaling),
        batch.replace(observation=seen, actions=actions, action_mask=mask),
    )


@functools.cache
def gradient(dtype, remat):
    """Gradient of flow matching by every LoRA factor, {path: array}."""
    wide = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, inputs())
    objective = FlowMatching(sizes(dtype, remat))
    one = quick.jit(jax.grad(objective, has_aux=True))
    return trees.flatten(jax.device_get(one(*wide, small.gates(), jax.random.key(0), 0)[0]))


def farthest(got, want):
    """Largest difference of a leaf, as a share of its largest value; every leaf has a gradient."""
    assert got.keys() == want.keys() and all(np.any(x) for x in want.values())
    return max(np.max(np.abs(got[name] - x)) / np.max(np.abs(x)) for name, x in want.items())


@pytest.mark.parametrize('remat', POLICIES)
def test_gradients_are_those_without_rematerialisation(remat):
    assert farthest(gradient('float32', remat), gradient('float32', None)) < 1e-5
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jnp, 'float32', jnp.float64)  # norms and softmax in float64, too
        assert farthest(gradient('float64', remat), gradient('float64', None)) < 1e-9


@functools.cache
def curve(steps, dtype='float32', remat=None):
    """Losses of a short training, fresh noise each step."""
    trainable, frozen, batch = jax.tree.map(jnp.asarray, inputs())
    optimizer = make_optimizer(OptimizerConfig(lora_rate=3e-3, warmup_steps=5, total_steps=steps))
    step = quick.jit(make_step(FlowMatching(sizes(dtype, remat)), optimizer))
    state, losses = init_state(0, trainable, optimizer), []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch, small.gates())
        losses.append(metrics['loss'])
    return np.asarray(losses)


def stays_close(steps, dtype, remat):
    """Every loss within 1 % of float32's without rematerialisation, in a training that learns."""
    plain = curve(steps)
    assert plain[-5:].mean() < 0.98 * plain[:5].mean()
    return np.max(np.abs(curve(steps, dtype, remat) / plain - 1)) < 0.01


def test_half_precision_follows_the_loss_of_float32():
    assert stays_close(40, 'bfloat16', None)


@pytest.mark.slow
@pytest.mark.parametrize(('dtype', 'remat'), [('bfloat16', None), ('float32', 'save_attention')])
def test_curves_of_200_steps(dtype, remat):
    assert stays_close(STEPS, dtype, remat)
