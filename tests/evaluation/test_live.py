"""Memory at the peak, against hand-made functions."""

import jax
import jax.numpy as jnp
import pytest

from sigma_jax.evaluation.cost import live

X = jax.ShapeDtypeStruct((1000,), jnp.float32)  # 4000 bytes


def chain(x):
    return jnp.sin(jnp.cos(jnp.exp(x)))


def held(x):
    kept = jnp.exp(x)
    return jnp.sin(jnp.cos(kept)) + kept


def halves(x):
    return x.astype(jnp.bfloat16) * 2


def looped(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(jnp.cos(c)), c[:10]), x, length=50)


@pytest.mark.parametrize(
    ('function', 'bytes_'),
    [
        (lambda x: x, 0),
        (jnp.exp, 4000),
        (chain, 8000),  # one is read while the next is made
        (held, 12000),
        (halves, 4000),
        (jax.jit(chain), 8000),  # a program within counts once
        (looped, 4000 + 50 * 40 + 8000),  # what it gives, and a step of it
    ],
)
def test_what_lives_at_once(function, bytes_):
    assert live.peak(function, X) == pytest.approx(bytes_, rel=0.02, abs=50)


def test_a_product_counts_and_what_it_read_goes():
    def two(x, w):
        return (x @ w) @ w

    x, w = (
        jax.ShapeDtypeStruct((10, 100), jnp.float32),
        jax.ShapeDtypeStruct((100, 100), jnp.float32),
    )
    assert live.peak(two, x, w) == 2 * 4000
