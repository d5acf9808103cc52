"""Shared layers against numpy, and where plain ones would give NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.nn.layers import (
    attention,
    pad_keys_to_tile,
    remat_policy,
    safe_cosine,
    safe_norm,
    uses_fused_attention,
)
from tests.numpy_layers import softmax

RNG = np.random.default_rng(0)
Q, K, V = (
    RNG.standard_normal((2, length, n, 5)).astype(np.float32)
    for length, n in ((3, 4), (6, 2), (6, 2))
)
MASK = RNG.random((2, 3, 6)) < 0.6
MASK[0, 0] = [True, False, False, False, False, False]


def by_hand(q, k, v, mask):
    """One example, query and head at a time; heads 0, 1 read key-value head 0, heads 2, 3 read
    1.
    """
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = mask[b, t]
        # no BLAS: it may warn of lanes that it discards
        weights = softmax((k[b, seen, n // 2] * q[b, t, n]).sum(-1))
        out[b, t, n] = (weights[:, None] * v[b, seen, n // 2]).sum(0)
    return out


def test_attention_with_shared_key_value_heads():
    np.testing.assert_allclose(
        attention(Q, K, V, MASK), by_hand(Q, K, V, MASK), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        attention(Q, K, V), by_hand(Q, K, V, MASK | True), rtol=1e-5, atol=1e-6
    )


def test_attention_never_reads_masked_positions_and_survives_rows_without_any():
    mask = MASK.copy()
    mask[0, :, 4] = False
    mask[1] = False

    def total(k, v):
        return attention(Q, k, v, mask)[0].sum()

    hidden = ~mask[0].any(0)
    grads = jax.grad(total, argnums=(0, 1))(K, V)
    assert all(np.isfinite(g).all() for g in grads)
    assert hidden[4] and not np.any(grads[0][0, hidden]) and not np.any(grads[1][0, hidden])
    assert np.isfinite(attention(Q, K, V, mask)).all()


def test_attention_keeps_half_precision_outside_and_float32_inside():
    half = [x.astype(jnp.bfloat16) for x in (Q, K, V)]
    got = attention(*half, MASK)
    assert got.dtype == jnp.bfloat16
    want = by_hand(*(np.asarray(x, np.float32) for x in half), MASK)
    np.testing.assert_allclose(got.astype(np.float32), want, atol=0.02)


def test_attention_softmax_is_taken_in_float32():
    """Logits of 100 and 100.25, which bfloat16 holds as one number; both weights can be recognised
    by exact values.
    """
    q = jnp.array([10.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
    k = jnp.array([[10.0, 0.0], [10.0, 0.25]], jnp.bfloat16).reshape(1, 2, 1, 2)
    got = attention(q, k, jnp.eye(2, dtype=jnp.bfloat16).reshape(1, 2, 1, 2)).astype(np.float32)
    np.testing.assert_allclose(got.ravel(), np.exp([0, 0.25]) / np.exp([0, 0.25]).sum(), atol=2e-3)


@pytest.mark.parametrize(('keys', 'now'), [(64, 128), (192, 256), (128, 128), (200, 200)])
def test_half_a_tile_of_keys_is_filled_with_masked_ones(keys, now):
    k, v = RNG.standard_normal((2, 2, keys, 2, 5)).astype(np.float32)
    mask = RNG.random((2, 3, keys)) < 0.6
    filled = pad_keys_to_tile(k, v, mask)
    assert [x.shape[axis] for x, axis in zip(filled, (1, 1, 2), strict=True)] == [now] * 3
    np.testing.assert_allclose(attention(Q, *filled), by_hand(Q, k, v, mask), rtol=1e-4, atol=1e-5)
    assert pad_keys_to_tile(k, v, None)[0] is k


@pytest.mark.gpu
@pytest.mark.parametrize('width', [32, 256])
@pytest.mark.parametrize('length', [128, 160, 192, 200, 320, 762])
def test_fused_attention_and_its_gradient_equal_plain_ones(length, width):
    """Queries that see nothing, such as a prompt's padding, included: what they get is read by
    nobody.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (
        jax.random.normal(key, (4, length, n, width), jnp.bfloat16)
        for key, n in zip(keys, (8, 1, 1, 8), strict=True)
    )
    assert uses_fused_attention(q, k), (
        'expected a GPU whose cuDNN has this attention; run JAX_PLATFORMS=cuda pytest -m gpu'
    )
    valid = np.arange(length) < np.array([length, length - 9, length // 2, length - 1])[:, None]
    mask, weight = (
        jnp.asarray(valid[:, None, :] & valid[:, :, None]),
        weight * valid[..., None, None],
    )

    def total(q, k, v):
        out = attention(q * width**-0.5, k, v, mask) * weight
        return jnp.sum(out.astype(jnp.float32)), out

    both = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    fused, plain = both(q, k, v), both(*(x.astype(jnp.float32) for x in (q, k, v)))
    for got, want in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        largest = np.abs(want).max()
        np.testing.assert_allclose(got.astype(np.float32), want, atol=0.02 * largest, rtol=0.02)


def test_norm_and_cosine_equal_numpy():
    x, y = RNG.standard_normal((2, 4, 7)).astype(np.float32)
    np.testing.assert_allclose(safe_norm(x), np.linalg.norm(x, axis=-1), rtol=1e-6)
    np.testing.assert_allclose(
        safe_norm(x, axis=0, keepdims=True), np.linalg.norm(x, axis=0, keepdims=True), rtol=1e-6
    )
    want = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(safe_cosine(x, y), want, rtol=1e-5)
    np.testing.assert_allclose(safe_cosine(x, -3 * x), -np.ones(4), rtol=1e-6)


@pytest.mark.parametrize('size', [0.0, 1e-8, 1e-30])
def test_value_and_gradient_near_zero_are_zero(size):
    tiny, other = np.full(5, size, np.float32), np.ones(5, np.float32)
    for function in (
        safe_norm,
        lambda x: safe_cosine(x, other),
        lambda x: safe_cosine(other, x),
        lambda x: safe_cosine(x, x),
    ):
        value, gradient = jax.value_and_grad(function)(tiny)
        assert value == 0 and np.array_equal(gradient, np.zeros(5))


def test_gradient_of_the_norm_is_the_direction():
    x = RNG.standard_normal(6).astype(np.float32)
    np.testing.assert_allclose(jax.grad(safe_norm)(x), x / np.linalg.norm(x), rtol=1e-5)
    assert np.abs(np.dot(jax.grad(safe_cosine)(x, np.ones(6, np.float32)), x)) < 1e-6


def test_an_unknown_remat_policy_is_named():
    known = 'save_attention, save_products, .*nothing_saveable.*'
    with pytest.raises(UserError, match=f"expected one of {known}, got 'save_all'"):
        remat_policy('save_all')
    assert remat_policy('nothing_saveable') is jax.checkpoint_policies.nothing_saveable
