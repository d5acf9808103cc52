"""Layers that more than one workspace is built from.

Parameters are float32. Large matrix products run in `dtype` and accumulate in float32; softmax,
norms and the residual stream are float32. GELU is the tanh form, as in the backbone. Key
projections carry no bias: softmax does not see one, so it would be a parameter without a gradient.
"""

import functools
import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sigma_jax.nn.layers import attention

lecun_normal = nn.initializers.lecun_normal()
Norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False)


def keep(gate: float | Float[Array, ''], value: Array, removed: Array | float) -> Array:
    """An ablation gate: `value` where the gate is above 0, else `removed`, bit for bit
    (docs/design.md, "Ablations").

    Args:
      gate: a number, may be traced.
      value: the part that is there.
      removed: what stands for it where it is not; broadcast against `value`.

    Returns:
      An array of the shape of `value`.
    """
    return jnp.where(jnp.asarray(gate) > 0, value, removed)


def linear(x: Array, kernel: Array, bias: Array | None, dtype: str) -> Float[Array, '...']:
    """x W + b, with the product in `dtype` and a float32 result.

    Args:
      x: [... inputs].
      kernel: W, [inputs outputs].
      bias: b, [outputs]; None: none.
      dtype: 'float32' or 'bfloat16'.

    Returns:
      [... outputs], float32.
    """
    y = jnp.dot(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
    return y if bias is None else y + bias


def masked_mean(x: Float[Array, 'b s d'], mask: Bool[Array, 'b s']) -> Float[Array, 'b d']:
    """Mean over the valid tokens; zeros where there is none.

    Args:
      x: tokens.
      mask: true for the valid ones.

    Returns:
      One vector a sequence.
    """
    total = jnp.sum(jnp.where(mask[..., None], x, 0.0), axis=-2)
    return total / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)


def attend(
    query: Float[Array, 'b m h z'],
    key: Float[Array, 'b s h z'],
    value: Float[Array, 'b s h z'],
    mask: Bool[Array, 'b s'] | None,
    dtype: str,
) -> Float[Array, 'b m h z']:
    """softmax(Q K^T / sqrt(z)) V for `h` heads of width `z`.

    Args:
      query: Q.
      key: K.
      value: V.
      mask: true for valid keys; None: all are. Masked keys weigh nothing; where all are masked, the
        result is 0.
      dtype: of the products, 'float32' or 'bfloat16'.

    Returns:
      What each query reads, float32.
    """
    scale = 1.0 / math.sqrt(query.shape[-1])
    query, key, value = (x.astype(dtype) for x in (query * scale, key, value))
    if mask is None:
        return attention(query, key, value).astype(jnp.float32)
    pairs = jnp.broadcast_to(mask[:, None, :], (mask.shape[0], query.shape[1], mask.shape[1]))
    read = attention(query, key, value, pairs).astype(jnp.float32)
    return jnp.where(jnp.any(mask, axis=-1)[:, None, None, None], read, 0.0)


class Linear(nn.Module):
    """One affine map; `zero=True` starts at zero and has no bias, as the last layer of a decoder
    (docs/design.md, "Actions as residuals").
    """

    features: int
    dtype: str
    bias: bool = True
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Float[Array, '...']:
        """x W + b.

        Args:
          x: [... inputs].

        Returns:
          [... features], float32.
        """
        init = nn.initializers.zeros if self.zero else lecun_normal
        kernel = self.param('kernel', init, (x.shape[-1], self.features))
        has_bias = self.bias and not self.zero
        return linear(
            x,
            kernel,
            self.param('bias', nn.initializers.zeros, (self.features,)) if has_bias else None,
            self.dtype,
        )


class Mlp(nn.Module):
    """W_2 gelu(W_1 x + b_1) + b_2; with `zero_out` W_2 starts at zero and b_2 does not exist."""

    hidden: int
    features: int
    dtype: str
    zero_out: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Float[Array, '...']:
        """Both layers.

        Args:
          x: [... inputs].

        Returns:
          [... features], float32.
        """
        w_1 = self.param('w_1', lecun_normal, (x.shape[-1], self.hidden))
        b_1 = self.param('b_1', nn.initializers.zeros, (self.hidden,))
        h = nn.gelu(linear(x, w_1, b_1, self.dtype))
        if self.zero_out:
            return linear(
                h,
                self.param('w_2', nn.initializers.zeros, (self.hidden, self.features)),
                None,
                self.dtype,
            )
        w_2 = self.param('w_2', lecun_normal, (self.hidden, self.features))
        return linear(
            h, w_2, self.param('b_2', nn.initializers.zeros, (self.features,)), self.dtype
        )


class MultiHeadAttention(nn.Module):
    """Attention of `query` tokens over `context` tokens, with an output projection."""

    features: int
    heads: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        query: Float[Array, 'b m d'],
        context: Float[Array, 'b s d'],
        mask: Bool[Array, 'b s'] | None = None,
    ) -> Float[Array, 'b m d']:
        """What each query token reads from the context.

        Args:
          query: tokens that ask.
          context: tokens that are read; keys and values.
          mask: true for valid context tokens; None: all are.

        Returns:
          One token a query, float32.
        """

        def split(x, name):
            y = Linear(self.features, self.dtype, bias=False, name=name)(x)
            return y.reshape(*y.shape[:-1], self.heads, self.features // self.heads)

        mixed = attend(
            split(query, 'w_q'), split(context, 'w_k'), split(context, 'w_v'), mask, self.dtype
        )
        return Linear(self.features, self.dtype, name='w_o')(
            mixed.reshape(*query.shape[:-1], self.features)
        )


class TransformerBlock(nn.Module):
    """x + SelfAttention(LN(x)), then x + FFN(LN(x))."""

    features: int
    heads: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, 'b m d']) -> Float[Array, 'b m d']:
        """Both sublayers.

        Args:
          x: tokens, float32.

        Returns:
          As many tokens.
        """
        y = Norm(name='attention_norm')(x)
        x = x + MultiHeadAttention(self.features, self.heads, self.dtype, name='attention')(y, y)
        return x + Mlp(self.hidden, self.features, self.dtype, name='ffn')(Norm(name='ffn_norm')(x))
