"""pi0.5 that goes on from a chunk: what is differentiated, what a time of each step changes, and
that nothing changes where nothing is bound.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones import flow, pi05
from sigma_jax.types import Continuation
from tests import golden, quick

KEYS = jax.random.split(jax.random.key(3), 3)
STEPS, WIDTH = 10, 8
RNG = np.random.default_rng(1)
EARLIER = np.float32(0.5 * RNG.standard_normal((3, STEPS, WIDTH)))
WEIGHTS = np.float32(np.clip(1.3 - np.arange(STEPS) / 6, 0, 1)) * np.array([[1], [0.5], [0]])


def bound(mode, weights=WEIGHTS, earlier=EARLIER):
    beta = np.full(3, 5.0, np.float32)
    return Continuation(earlier, np.float32(weights), beta, mode=mode)


@pytest.fixture(scope='module')
def model(golden_params):
    return pi05.BoundPi05(golden.config(), golden_params)


def going_on(model, keys, observation, after):
    return model.flow_from(model.draw_noise(keys), observation, after)


def compiled(chunks):
    """Chunks of pi0.5, as users compile them: weights are an argument."""

    def run(params, *inputs):
        return chunks(pi05.BoundPi05(golden.config(), params), *inputs)

    return jax.jit(run)


@pytest.fixture(scope='module')
def free(golden_params):
    """Chunks of the plain sampler."""
    inputs = KEYS, golden.observation()
    return np.asarray(compiled(pi05.BoundPi05.sample_actions)(golden_params, *inputs))


@pytest.mark.parametrize('mode', ['guided', 'lerobot', 'trained'])
def test_bound_to_nothing_it_is_the_plain_sampler(golden_params, free, mode):
    """From the same noise; also beside windows that are bound, in the same program."""
    run, inputs = compiled(going_on), (golden_params, KEYS, golden.observation())
    nothing = run(*inputs, bound(mode, 0 * WEIGHTS))
    np.testing.assert_allclose(nothing, free, rtol=0, atol=1e-5)
    held = np.asarray(run(*inputs, bound(mode)))
    assert run._cache_size() == 1
    assert (np.abs(held - free)[:2].max((1, 2)) > 0.05).all()
    np.testing.assert_allclose(held[2], free[2], rtol=0, atol=1e-5)
    assert np.array_equal(held[:2, :2], EARLIER[:2, :2]) == (mode == 'trained')
    near = np.abs(held - EARLIER)[0, :3].mean() / np.abs(free - EARLIER)[0, :3].mean()
    assert near < 0.5


def test_guidance_takes_the_jacobian_of_the_velocity(model):
    """A step by hand: the Jacobian as a matrix, of the pass without a cache, in which the prefix
    stands beside the actions.
    """
    observation, i, weights = golden.observation(), golden.inputs(), WEIGHTS[:, :, None]
    x, time = i['sample_noise'], jnp.float32(1)

    @quick.jit
    @jax.vmap
    def by_hand(observation, x, earlier, weights):
        one = jax.tree.map(lambda leaf: leaf[None], observation)

        def denoised(x):
            v = model.velocity(one, x[None], time[None])[0]
            return x - time * v, v

        jacobian, v = jax.jacrev(denoised, has_aux=True)(x)
        error = weights * (earlier - (x - time * v))
        return x - (v - 5.0 * jnp.einsum('ta,tabc->bc', error, jacobian))

    @quick.jit
    def in_one_step(x):
        seen = model._apply('read_prefix', observation, STEPS)
        return flow.integrate(
            lambda x, time: model._apply('denoise', x, time, seen), x, 1, bound('guided')
        )

    want = by_hand(observation, x, EARLIER, weights)
    np.testing.assert_allclose(in_one_step(x), want, rtol=1e-4, atol=1e-4)


@jax.custom_vjp
def sealed(x):
    """x, of which no gradient is to be asked."""
    return x


class Asked(Exception):
    """A gradient was."""


def refuse(kept, gradient):
    raise Asked


sealed.defvjp(lambda x: (x, None), refuse)


def test_only_the_action_expert_is_differentiated(model, monkeypatch):
    """No gradient goes to the prefix's keys and values, nor to a weight; one does go to the
    actions.
    """
    apply = pi05.BoundPi05._apply
    seals = {'read_prefix': True, 'denoise': False}

    def sealing(self, method, *inputs):
        weights = dataclasses.replace(self, params=jax.tree.map(sealed, self.params))
        out = apply(weights, method, *inputs)
        return jax.tree.map(sealed, out) if seals[method] else out

    monkeypatch.setattr(pi05.BoundPi05, '_apply', sealing)

    def trace():
        inputs = KEYS, golden.observation(), bound('guided')
        return jax.eval_shape(functools.partial(going_on, model), *inputs)

    assert trace().shape == (3, STEPS, WIDTH)
    seals['denoise'] = True
    with pytest.raises(Asked):  # by the expert's own actions: a seal does tell
        trace()


def test_a_gradient_through_the_cache_would_be_seen(model):
    """What the seals above rest on; one of the weights too."""
    seen = jax.jit(lambda: model._apply('read_prefix', golden.observation(), STEPS))()

    def through(cache, params):
        cache, params = (jax.tree.map(sealed, tree) for tree in (cache, params))
        weights, given = pi05.BoundPi05(model.config, params), seen._replace(cache=cache)
        return weights._apply('denoise', EARLIER, jnp.ones(3), given).sum()

    for argument in (0, 1):
        with pytest.raises(Asked):
            jax.eval_shape(jax.grad(through, argnums=argument), seen.cache, model.params)


def test_a_time_of_each_step(model):
    """The same for all steps, it is the window's; else the joint pass and the cached one agree, and
    a step's own time counts for it first.
    """
    observation, x = golden.observation(), golden.inputs()['sample_noise']
    joint = quick.jit(lambda time: model.velocity(observation, x, time))
    seen = jax.jit(lambda: model._apply('read_prefix', observation, STEPS))()
    cached = quick.jit(lambda time: model._apply('denoise', x, time, seen))
    time = np.float32([0.9, 0.5, 0.2])
    each = np.tile(time[:, None], (1, STEPS))
    np.testing.assert_allclose(joint(each), joint(time), rtol=0, atol=2e-5)
    np.testing.assert_allclose(cached(each), joint(time), rtol=0, atol=2e-5)
    mixed = each * (np.arange(STEPS) >= 4)
    np.testing.assert_allclose(cached(mixed), joint(mixed), rtol=0, atol=2e-5)
    moved = np.abs(joint(mixed) - joint(time)).mean((0, 2))
    assert moved[:4].min() > 2 * moved[4:].max() > 0
