"""Trains 20 steps on one and on two devices and prints how far they are apart; run by
tests/test_devices.py.

All in float64: what the model takes in float32 whatever its dtype, such as norms and softmax, is
taken in float64 here, so that no rounding but float64's own is between the two.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

jnp.float32 = jnp.float64  # before the model is imported

from sigma_jax.backbones import pi05  # noqa: E402
from sigma_jax.convert.load_base import ModelConfig  # noqa: E402
from sigma_jax.nn import lora  # noqa: E402
from sigma_jax.objectives.flow_matching import FlowMatching  # noqa: E402
from sigma_jax.objectives.sigma import SigmaObjective, init_sigma  # noqa: E402
from sigma_jax.sigma.curriculum import CurriculumConfig  # noqa: E402
from sigma_jax.sigma.losses import LossConfig  # noqa: E402
from sigma_jax.sigma.model import SigmaConfig  # noqa: E402
from sigma_jax.training.devices import Devices  # noqa: E402
from sigma_jax.training.optimizer import OptimizerConfig, make_optimizer  # noqa: E402
from sigma_jax.training.step import init_state, make_step  # noqa: E402
from sigma_jax.types import Frozen  # noqa: E402
from tests import small_run  # noqa: E402
from tests import small_sigma as small  # noqa: E402

OPTIMIZER = make_optimizer(
    OptimizerConfig(sigma_rate=1e-3, lora_rate=1e-3, warmup_steps=1, total_steps=20)
)
STEPS = 20


def train(objective, trainable, frozen, batch, count, accumulate=1, steps=STEPS):
    """(last state, metrics of the last step, rows of the batch on one device)."""
    devices = Devices(jax.devices()[:count])
    frozen = devices.replicate(wide(frozen))
    state = devices.replicate(init_state(0, wide(trainable), OPTIMIZER))
    step = devices.jit(make_step(objective, OPTIMIZER, accumulate=accumulate))
    placed = devices.shard_batch(wide(batch))
    gates = wide(small.gates())
    for _ in range(steps):
        state, metrics = step(state, frozen, placed, gates)
    rows = (
        jax.tree.leaves(devices.replicate(placed) if count == 1 else placed)[0]
        .addressable_shards[0]
        .data.shape[0]
    )
    return jax.device_get((state.trainable, state.opt_state, metrics)), rows


def wide(tree):
    """Floating leaves in float64."""
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype == np.float32 else x, tree
    )


def apart(one, other):
    """Largest difference of two trees of numbers, relative where they are above 1."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    # NaN stays
    return float(
        np.max([np.max(np.abs(x - y) / np.maximum(1, np.abs(x)), initial=0) for x, y in pairs])
    )


def summary(trainable, one, other):
    """How far the second of two results of `train` is from the first, and that from its start."""
    return {
        'devices': jax.device_count(),
        'rows': [other[1], one[1]],
        'moved': apart(one[0][0], wide(trainable)),
        'difference': apart(one[0], other[0]),
    }


def sizes(dropout):
    """The smallest pi0.5 of the tests, all of it in float64."""
    factors = dataclasses.replace(small.LORA, dropout=dropout)
    return ModelConfig.from_section(small_run.MODEL | {'dtype': 'float64'}).build(factors)


def sigma_objective(config):
    """Sigma's heads as small."""
    settings = small_run.SIGMA | {'trajectory_blocks': 2}  # so that their scan is compared too
    heads = SigmaConfig(
        d_model=32, state_dim=small.A, action_dim=small.A, horizon=small.T, chunk=2, **settings
    )
    object.__setattr__(heads, 'dtype', 'float64')  # a config file may not ask for it
    return SigmaObjective(
        config, heads, LossConfig(), CurriculumConfig(ramp_steps=4, tau=(0.01, 0.03))
    )


def noisy(tree):
    """Noise on every leaf, so that no zero hides a path."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.standard_normal(x.shape), tree)


def flow(config, batch):
    """(LoRA factors, frozen, a batch of the policy's own chunks)."""
    params = noisy(jax.jit(lambda key: pi05.init_params(key, config))(jax.random.key(0)))
    lead = (*batch.mask.shape, config.action_horizon)
    actions = np.resize(batch.actions, (*lead, small.A))
    # of each window: devices and micro-batches hold unequal counts
    valid = np.array([[16, 5], [3, 9]])
    mask = np.arange(config.action_horizon) < valid[..., None]
    factors = noisy(lora.init_factors(jax.random.key(1), params, pi05.LAYOUTS, config.lora))
    seen = batch.replace(
        actions=actions, action_mask=mask, mask=np.array([[True, True], [True, False]])
    )
    return {'lora': factors}, Frozen(params, small.frozen().scaling), seen


def small_batch(side):
    """Two sequences of two windows; cameras alone."""
    batch = small.make_batch()
    seen = batch.observation.replace(
        images=batch.observation.images[..., :side, :side, :], depth=None, audio=None
    )
    return jax.tree.map(lambda x: x[:, :2], batch.replace(observation=seen))


def flow_matching():
    """Two devices, and micro-batches against one batch; no dropout, whose masks differ between
    micro-batches.
    """
    config = sizes(0.0)
    trainable, frozen, batch = flow(config, small_batch(config.vision.image_size))
    objective = FlowMatching(config)
    one, two = (train(objective, trainable, frozen, batch, count) for count in (1, 2))
    parts = train(objective, trainable, frozen, batch, 1, accumulate=2)
    return {
        'flow_matching': summary(trainable, one, two),
        'accumulated': summary(trainable, one, parts),
    }


def sigma():
    """Two devices; hard set and InfoNCE over the windows of both."""
    config = sizes(0.1)
    batch = small_batch(config.vision.image_size)
    trainable, frozen, _ = flow(config, batch)
    objective, factors = sigma_objective(config), {'PaliGemma': trainable['lora']['PaliGemma']}
    init = jax.jit(lambda f, b: init_sigma(jax.random.key(2), objective, f, b))
    trainable = {'sigma': noisy(init(frozen, batch)), 'lora': factors}
    one, two = (train(objective, trainable, frozen, batch, count) for count in (1, 2))
    return {'sigma': summary(trainable, one, two)}


if __name__ == '__main__':
    print(json.dumps({'sigma': sigma, 'flow_matching': flow_matching}[sys.argv[1]]()))
