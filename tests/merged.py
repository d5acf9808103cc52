"""Whole trees of base weights with their LoRA factors merged in: what `convert.merge` does a slice
at a time, as one einsum a leaf.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from sigma_jax import trees
from sigma_jax.nn.lora import find_layout


def merge(base, factors, layouts, alpha):
    """base + alpha / r * B A in float32; leaves without factors are the same arrays."""
    pairs = trees.flatten(
        factors, is_leaf=lambda x: isinstance(x, Mapping) and set(x) == {'a', 'b'}
    )

    def one(path, w):
        if path not in pairs:
            return w
        layout = find_layout(path, layouts)
        a, b = (pairs[path][n].astype(jnp.float32) for n in 'ab')
        size = dict(zip(layout.weight, w.shape[w.ndim - len(layout.weight) :], strict=True))
        delta = jnp.einsum('...or,...ri->...oi', b, a, precision='highest') * (alpha / a.shape[-2])
        extra = w.ndim - len(layout.weight)
        inner = layout.stack + layout.outputs + layout.inputs
        delta = delta.reshape(*w.shape[:extra], *(size[x] for x in inner))
        order = [*range(extra), *(extra + inner.index(x) for x in layout.weight)]
        return w.astype(jnp.float32) + delta.transpose(order)

    return trees.map_with_path(one, base)
