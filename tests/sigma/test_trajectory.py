"""Trajectory branch against numpy: the DiT and its refinement loop (paper 3.3, docs/design.md,
"Trajectory branch").
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.sigma import trajectory
from tests import numpy_layers as ref

RNG = np.random.default_rng(0)
B, T, A, Q, S, D, Z, E, STEPS = 2, 4, 3, 2, 5, 6, 8, 4, 3
MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope='module')
def case():
    module = trajectory.TrajectoryDiT(T, A, Z, 2, 2, STEPS, 'float32')
    inputs = (normal(B, Q, Z), normal(B, S, D), MASK, normal(B, E))
    return module, ref.random_params(module, *inputs), inputs


def block(x, condition, context, mask, p):
    parts = np.split(ref.dense(ref.silu(condition), p['modulation'])[:, None], 6, -1)

    def normed(x, j):
        return ref.layer_norm(x) * (1 + parts[2 * j]) + parts[2 * j + 1]

    x = x + ref.attention(normed(x, 0), normed(x, 0), p['self_attention'], 2)
    x = x + ref.attention(normed(x, 1), context, p['cross_attention'], 2, mask)
    return x + ref.mlp(normed(x, 2), p['ffn'])


def reference(p, query, r_high, mask, c_act, x):
    """Deterministic steps along the line x_s = (1 - s) clean + s start, from s = 1 to s = 0."""
    context = np.concatenate(
        [query, ref.dense(ref.layer_norm(r_high, p['context_norm']), p['context_in'])], 1
    )
    mask = np.concatenate([np.ones((B, Q), bool), mask], 1)
    for j in range(STEPS):
        y = x @ p['x_in'] + p['position']
        condition = ref.dense(c_act, p['condition_in']) + p['step_embedding'][j]
        for name in ('blocks_0', 'blocks_1'):
            y = block(y, condition, context, mask, p[name])
        clean = ref.dense(ref.layer_norm(y, p['out_norm']), p['out'])
        now, after = 1 - j / STEPS, 1 - (j + 1) / STEPS
        x = clean + after / now * (x - clean)
    return x


@pytest.mark.parametrize('start', [None, normal(B, T, A)], ids=['zeros', 'noise'])
def test_refinement_loop(case, start):
    module, p, inputs = case
    expected = reference(p, *inputs, np.zeros((B, T, A)) if start is None else start)
    assert ref.close(ref.call(module, p, *inputs, start), expected, 2e-4)


def test_scanned_blocks_have_the_gradient_of_blocks_one_by_one(case):
    module, p, (_, _, mask, _) = case
    x, condition, context = normal(B, T, A), normal(B, Z), normal(B, S, Z)

    def gradient(stacked):
        def denoise(module):
            return module.denoise(
                x, 1, condition, context, mask, module._stacked() if stacked else None
            )

        return jax.grad(lambda p: jnp.sum(jnp.square(module.apply({'params': p}, method=denoise))))(
            p
        )

    one_by_one, scanned = gradient(False), gradient(True)
    assert not np.array_equal(
        *(jax.tree.leaves(one_by_one[f'blocks_{n}']['ffn'])[0] for n in range(2))
    )
    chex.assert_trees_all_close(scanned, one_by_one, rtol=1e-4, atol=1e-5)


def test_a_zero_last_layer_returns_zeros_from_any_start(case):
    module, p, inputs = case
    assert set(p['out']) == {'kernel'}
    assert not np.any(
        ref.call(module, p | {'out': {'kernel': 0 * p['out']['kernel']}}, *inputs, normal(B, T, A))
    )


def test_the_last_prediction_is_the_output():
    x, clean = normal(2, 3), normal(2, 3)
    assert np.array_equal(trajectory.refine(x, clean, STEPS - 1, STEPS), clean)
    assert ref.close(trajectory.refine(x, clean, 0, STEPS), clean + (x - clean) * 2 / 3)
