"""Every number that is drawn is drawn in float32: in bfloat16 it would have 7 random bits, in 256
steps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones import pi05
from sigma_jax.nn import lora
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.objectives.sigma import init_sigma
from sigma_jax.policies import sampling
from sigma_jax.training.optimizer import OptimizerConfig, make_optimizer
from sigma_jax.training.step import init_state, make_step
from tests import golden
from tests import small_sigma as small

DRAWS = (
    'normal',
    'uniform',
    'beta',
    'gamma',
    'truncated_normal',
    'bernoulli',
    'categorical',
    'randint',
    'choice',
)
HALF = dataclasses.replace(golden.config(), lora=small.LORA, dtype='bfloat16')
DROPOUT_BITS = 8  # of whole numbers, against which a rate is compared; no number is made of them


def equations(jaxpr):
    """All equations of a jaxpr and of those within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
        ):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


def draws(function, *arguments):
    """(bits of each draw, dtypes of the floating numbers made of them) in what a function is traced
    to.
    """
    bits, made = [], []
    for eqn in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if eqn.primitive.name == 'random_bits':
            bits.append(eqn.params['bit_width'])
        if eqn.params.get('name', '').strip('_') in DRAWS:
            made += [
                v.aval.dtype for v in eqn.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)
            ]
    return bits, made


def in_float32(function, *arguments):
    bits, made = draws(function, *arguments)
    return (
        bool(bits)
        and set(bits) <= {32, DROPOUT_BITS}
        and {np.dtype(d) for d in made} <= {np.dtype('float32')}
    )


@pytest.fixture(scope='module')
def frozen():
    """As a base stored for a GPU: bfloat16 but for what is read in float32."""
    given = small.frozen()
    return dataclasses.replace(
        given, params=jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), given.params)
    )


def test_a_draw_in_bfloat16_would_be_seen():
    key = jax.random.key(0)
    for draw in (jax.random.normal, jax.random.uniform):
        assert in_float32(lambda k, d=draw: d(k, (3,)), key)
        assert not in_float32(
            lambda k, d=draw: jax.vmap(lambda one: d(one, (3,), jnp.bfloat16))(k[None]), key
        )
        nested = jax.jit(
            lambda k, d=draw: jax.lax.scan(lambda c, _: (c, d(k, (3,), jnp.bfloat16)), 0, None, 2)
        )
        assert not in_float32(nested, key)
    assert not in_float32(lambda x: x + 1, 1.0), 'nothing drawn is no evidence'


@pytest.mark.parametrize('noise', [0.0, 1.0])
def test_a_step_of_sigma(frozen, noise):
    """Dropout, the noise of the refinement, and the heads' own start."""
    objective = small.sigma_objective(
        config=HALF, sigma=dataclasses.replace(small.SIGMA, noise_scale=noise)
    )
    batch = small.make_batch()
    assert in_float32(lambda key: init_sigma(key, objective, frozen, batch), jax.random.key(0))
    heads = jax.eval_shape(lambda key: init_sigma(key, objective, frozen, batch), jax.random.key(0))
    factors = jax.eval_shape(
        lambda key: lora.init_factors(key, frozen.params, pi05.LAYOUTS, small.LORA),
        jax.random.key(1),
    )
    trainable = {'sigma': heads, 'lora': {'PaliGemma': factors['PaliGemma']}}
    assert whole_step(objective, trainable, frozen, batch)


@pytest.mark.parametrize('trained', ['lora', 'params'])
def test_a_step_of_flow_matching(frozen, trained):
    """Time and noise of the flow, dropout."""
    objective, batch = FlowMatching(HALF), small.make_batch()
    lead = (*batch.mask.shape, HALF.action_horizon)
    batch = batch.replace(
        actions=np.resize(batch.actions, (*lead, small.A)),
        action_mask=np.resize(batch.action_mask, lead),
    )
    factors = jax.eval_shape(
        lambda key: lora.init_factors(key, frozen.params, pi05.LAYOUTS, small.LORA),
        jax.random.key(1),
    )
    trainable = {'lora': factors} if trained == 'lora' else {'params': frozen.params}
    assert whole_step(objective, trainable, frozen, batch)


def whole_step(objective, trainable, frozen, batch):
    optimizer = make_optimizer(OptimizerConfig(total_steps=4))
    state = jax.eval_shape(lambda t: init_state(0, t, optimizer, ema=True), trainable)
    return in_float32(make_step(objective, optimizer, 0.9), state, frozen, batch, small.gates())


def test_the_start_of_weights_and_factors(frozen):
    assert in_float32(lambda key: pi05.init_params(key, HALF), jax.random.key(0))
    assert in_float32(
        lambda key: lora.init_factors(key, frozen.params, pi05.LAYOUTS, small.LORA),
        jax.random.key(0),
    )


def test_the_sampler(frozen):
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), small.make_batch())
    run = sampling.make_sampler(sampling.bind_frozen(HALF), 0, 2, HALF.action_horizon)
    assert in_float32(run, frozen.params, frozen.scaling, batch)
