"""Counted arithmetic against what it is by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax.evaluation.cost import flops
from sigma_jax.nn import layers
from sigma_jax.training import memory


def test_products_and_convolutions():
    a, b = np.ones((3, 4, 5)), np.ones((3, 5, 6))
    assert flops.count(lambda a, b: jnp.einsum('bij,bjk->bik', a, b), a, b) == 2 * 3 * 4 * 5 * 6
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 7))
    layout = ('NHWC', 'HWIO', 'NHWC')

    def patches(x, k):
        return jax.lax.conv_general_dilated(x, k, (4, 4), 'VALID', dimension_numbers=layout)

    assert flops.count(patches, image, kernel) == 2 * (2 * 2 * 2 * 7) * (4 * 4 * 3)


def test_loops_count_as_often_as_they_run_and_jit_changes_nothing():
    w = np.ones((8, 8))

    def loop(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=5)[0]

    once = 2 * 4 * 8 * 8
    assert flops.count(jax.jit(loop), np.ones((4, 8))) == 5 * once
    # as on a GPU
    with_options = jax.jit(loop, compiler_options={'xla_cpu_enable_fast_math': False})
    assert flops.count(with_options, np.ones((4, 8))) == 5 * once
    assert flops.count(jax.checkpoint(jax.vmap(loop)), np.ones((3, 4, 8))) == 15 * once


def test_of_branches_the_dearest_counts():
    w = np.ones((8, 8))

    def choose(x, yes):
        return jax.lax.cond(yes, lambda x: x @ w @ w, lambda x: x, x)

    assert flops.count(choose, np.ones((4, 8)), True) == 2 * (2 * 4 * 8 * 8)
    assert flops.count(jnp.tanh, np.ones(3)) == 0


def test_fused_attention_counts_as_the_plain_one():
    """At lengths from which a GPU fuses, eight query heads on one of keys."""
    q, k = jnp.ones((2, 200, 8, 64), jnp.bfloat16), jnp.ones((2, 200, 1, 64), jnp.bfloat16)
    mask = jnp.ones((2, 200, 200), bool)
    # a function of its own: JAX keeps what it traced
    plain = flops.count(lambda *of: layers.attention(*of), q, k, k, mask)
    with memory.emulate(9.0):
        jaxpr = jax.make_jaxpr(lambda *of: layers.attention(*of))(q, k, k, mask)
    assert 'dot_product_attention' in str(jaxpr)
    assert flops.of_jaxpr(jaxpr.jaxpr) == plain == 2 * 2 * (2 * 200 * 200 * 8 * 64)
