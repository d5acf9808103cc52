"""pi0.5 against the numbers of two public implementations (tests/data/pi05_tiny)."""

import ast
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.nn import lora
from tests import golden, quick
from tests.merged import merge


@pytest.fixture(scope='module')
def computed(golden_params):
    """Every quantity of the fixture, from our model."""
    return quick.jit(every_quantity)(golden_params, golden.observation(), golden.inputs())


def every_quantity(params, obs, i):
    backbone = pi05.BoundPi05(golden.config(), params)
    images = backbone.encode_images(obs.images)
    prefix, mask = backbone._apply('embed_prefix', obs)
    time = i['time'][:, None, None]
    velocity = backbone.velocity(obs, time * i['noise'] + (1 - time) * i['actions'], i['time'])
    return {
        'image_embeddings_cam0': images[:, :16],
        'image_embeddings_cam1': images[:, 16:],
        'token_embeddings': backbone.embed_text(obs.prompt),
        'prefix_embeddings': prefix,
        'prefix_mask': mask,
        'prefix_positions': pi05.positions(mask),
        'prefix_hidden': backbone.encode(prefix, mask),
        'time_cond': backbone._apply('time_condition', i['time']),
        'velocity': velocity,
        'loss': (velocity - (i['noise'] - i['actions'])) ** 2,
        'sampled_actions': backbone._apply('sample_actions', i['sample_noise'], obs),
    }


def run(config, method, *inputs):
    """A function (weights, LoRA factors or None) -> what a method of the policy gives, compiled as
    one program: operation by operation it takes twice the time and half a GiB.
    """
    program = quick.jit(
        lambda params, factors, inputs: pi05.BoundPi05(config, params, factors)._apply(
            method, *inputs
        )
    )
    return lambda params, factors=None: program(params, factors, inputs)


TOLERANCE = {'velocity': 1e-4, 'loss': 1e-4, 'sampled_actions': 1e-4, 'time_cond': 1e-4}


@pytest.mark.parametrize('source', ['', '_openpi'])
@pytest.mark.parametrize(
    'name',
    [
        'image_embeddings_cam0',
        'image_embeddings_cam1',
        'token_embeddings',
        'prefix_embeddings',
        'prefix_mask',
        'prefix_positions',
        'prefix_hidden',
        'time_cond',
        'velocity',
        'loss',
        'sampled_actions',
    ],
)
def test_equals_public_implementations(computed, name, source):
    want = golden.outputs().get(name + source, golden.outputs()[name])
    np.testing.assert_allclose(computed[name], want, rtol=0, atol=TOLERANCE.get(name, 2e-5))


def test_full_size_tree_is_openpis():
    rows = (
        line.split('\t')
        for line in (golden.DATA / 'full_size/openpi_jax_params.tsv').read_text().splitlines()
    )
    want = {path: (ast.literal_eval(shape), dtype) for path, shape, dtype in rows}
    got = {
        p: (x.shape, str(x.dtype))
        for p, x in trees.flatten(pi05.abstract_params(pi05.Pi05Config())).items()
    }
    assert got == want
    assert sum(np.prod(shape) for shape, _ in got.values()) == 3_353_433_872


def test_absent_camera_and_prompt_padding_change_nothing(golden_params):
    obs, noise = golden.observation(), golden.inputs()['noise']
    images = np.where(obs.image_mask[:, :, None, None, None], obs.images, 0.7)
    prompt = np.where(obs.prompt_mask, obs.prompt, 9)
    longer = obs.replace(
        images=images,
        prompt=np.pad(prompt, ((0, 0), (0, 5)), constant_values=3),
        prompt_mask=np.pad(obs.prompt_mask, ((0, 0), (0, 5))),
    )
    want = run(golden.config(), 'sample_actions', noise, obs)(golden_params)
    got = run(golden.config(), 'sample_actions', noise, longer)(golden_params)
    chex.assert_trees_all_close(got, want, atol=2e-5)


def test_prefix_never_sees_actions(golden_params):
    obs, noise = golden.observation(), golden.inputs()['noise']

    def velocity(params, noise):
        return pi05.BoundPi05(golden.config(), params).velocity(obs, noise, jnp.ones(3))

    def first_action(noise):  # actions see each other, and the cached sampler equals the joint pass
        found = velocity(golden_params, noise)
        return found[0, 0].sum(), found

    gradient, found = quick.jit(jax.grad(first_action, has_aux=True))(noise)
    assert np.abs(gradient[0]).min() > 0 and np.abs(gradient[1:]).max() == 0
    one_step = dataclasses.replace(golden.config(), sample_steps=1)
    got = run(one_step, 'sample_actions', noise, obs)(golden_params)
    chex.assert_trees_all_close(got, noise - found, atol=1e-5)


def test_remat_and_samples_keyed_by_window(golden_params):
    obs, config = golden.observation(), golden.config()

    def sample(config):
        return quick.jit(
            lambda keys, obs: pi05.BoundPi05(config, golden_params).sample_actions(keys, obs)
        )

    plain, keys = sample(config), jax.random.split(jax.random.key(3), 3)
    want = plain(keys, obs)
    remat = sample(dataclasses.replace(config, remat='nothing_saveable'))
    chex.assert_trees_all_close(remat(keys, obs), want, atol=1e-6)
    order = np.array([2, 0, 1])
    shuffled = plain(keys[order], jax.tree.map(lambda x: x[order], obs))
    chex.assert_trees_all_close(shuffled, want[order], atol=1e-5)


def test_lora_side_path_equals_merged_weights(golden_params):
    patterns = (
        '.*einsum(_1)?/w',
        '.*(gating_einsum|linear)',
        '.*/MultiHeadDotProductAttention_0/.*/kernel',
    )
    c = lora.LoraConfig(patterns, rank=4, alpha=8.0, dropout=0.0)
    factors = lora.init_factors(jax.random.key(0), golden_params, pi05.LAYOUTS, c)
    obs, i = golden.observation(), golden.inputs()
    side = run(dataclasses.replace(golden.config(), lora=c), 'velocity', obs, i['noise'], i['time'])
    base = run(golden.config(), 'velocity', obs, i['noise'], i['time'])
    plain = base(golden_params)
    chex.assert_trees_all_equal(side(golden_params, factors), plain)
    factors = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), factors
    )
    got = side(golden_params, factors)
    want = base(merge(golden_params, factors, pi05.LAYOUTS, c.alpha))
    assert np.abs(got - plain).max() > 0.01
    chex.assert_trees_all_close(got, want, atol=5e-5)


@pytest.mark.parametrize('remat', [None, 'nothing_saveable', 'save_attention', 'save_products'])
def test_unread_outputs_of_the_last_layer_change_nothing(golden_params, remat):
    """The prefix gives keys and values there, and no more; velocity and gradients are those of the
    whole stack.
    """
    c = lora.LoraConfig(
        ('.*/attn/.*einsum(_1)?/w', '.*(gating_einsum|linear)'), rank=2, dropout=0.0
    )
    factors = lora.init_factors(jax.random.key(0), golden_params, pi05.LAYOUTS, c)
    factors = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), factors
    )
    obs, i = golden.observation(), golden.inputs()
    results = []
    for whole in (True, False):
        config = dataclasses.replace(
            golden.config(), lora=c, remat=None if whole else remat, train_base=whole
        )

        def loss(factors, config=config):
            velocity = pi05.BoundPi05(config, golden_params, factors).velocity(
                obs, i['noise'], i['time']
            )
            return jnp.mean(velocity**2), velocity

        results.append(quick.jit(jax.value_and_grad(loss, has_aux=True))(factors))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.abs(one - other).max() <= 1e-5 * max(np.abs(one).max(), 1e-3)
    last = trees.flatten(results[1][1])['PaliGemma/llm/layers/attn/kv_einsum/w/b'][-1]
    idle = trees.flatten(results[1][1])['PaliGemma/llm/layers/attn/q_einsum/w/b'][-1]
    assert np.abs(last).max() > 0 and not np.any(idle)
