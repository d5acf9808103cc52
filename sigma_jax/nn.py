"""Layers that backbones and workspaces share: the LoRA-aware projection, attention, safe norms."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sigma_jax import lora

MASKED = -2.3819763e38  # added nowhere, put in place of masked logits: finite, so an all-masked row stays finite


def project(
    module: nn.Module,
    name: str,
    x: Float[Array, '...'],
    shape: tuple[int, ...],
    layout: lora.Layout,
    config: lora.LoraConfig,
    init: Callable = nn.initializers.lecun_normal(),
) -> Float[Array, '...']:
    """Weight `name` of `module` applied to `x [... inputs]`, plus its LoRA side path where one is given.

    Returns `[stack ... outputs]` in x's dtype. The side path exists where the collection `lora` holds this
    leaf; dropout is on when a 'dropout' rng is given.
    """
    w = module.param(name, init, shape)
    y = jnp.einsum(layout.equation(), x, w.astype(x.dtype))
    if not module.has_variable('lora', name):
        return y
    if config.dropout and module.has_rng('dropout'):
        keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - config.dropout, x.shape)
        x = jnp.where(keep, x / (1 - config.dropout), 0).astype(x.dtype)
    size = dict(zip(layout.weight, shape, strict=True))
    outputs = tuple(size[axis] for axis in layout.outputs)
    return y + lora.side_path(x, module.get_variable('lora', name), layout, outputs, config.alpha)


def attention(
    q: Float[Array, 'b t n h'],
    k: Float[Array, 'b s k h'],
    v: Float[Array, 'b s k h'],
    mask: Bool[Array, 'b t s'] | None = None,
) -> Float[Array, 'b t n h']:
    """Softmax attention with n query heads over k key-value heads; q comes scaled; softmax in float32."""
    b, t, n, h = q.shape
    q = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
    logits = jnp.einsum('btkmh,bskh->bkmts', q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bkmts,bskh->btkmh', weights, v).reshape(b, t, n, h)


def safe_norm(x: Array, axis: int = -1, eps: float = 1e-6, keepdims: bool = False) -> Array:
    """L2 norm whose gradient at zero is zero, not NaN: sqrt(sum x^2) where that is above eps, else 0."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims)
    nonzero = square > eps**2
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def safe_cosine(x: Array, y: Array, axis: int = -1, eps: float = 1e-6) -> Array:
    """Cosine of the angle between x and y; 0 where either is shorter than eps, with finite gradients."""
    scale = safe_norm(x, axis, eps) * safe_norm(y, axis, eps)
    valid = scale > 0
    return jnp.where(valid, jnp.sum(x * y, axis=axis) / jnp.where(valid, scale, 1.0), 0.0)
