"""Gemma with several experts joined layer by layer in one attention, with openpi's parameter paths.

Expert 0 is the language model (plain RMSNorm), expert 1 pi0.5's action expert (adaptive RMSNorm on
a time embedding); its parameters end in `_1`. Layers are scanned: every leaf has a leading layer
axis.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.nn import quant
from sigma_jax.nn.layers import attention, dropout, project, remat_policy
from sigma_jax.nn.lora import LoraConfig, MatrixLayout

QUERY = MatrixLayout('ndh', 'd', 'nh')
KEY_VALUE = MatrixLayout('ckdh', 'd', 'kh')
OUTPUT = MatrixLayout('nhd', 'nh', 'd')
GATING = MatrixLayout('cdf', 'd', 'f')
LINEAR = MatrixLayout('fd', 'f', 'd')
LAYOUTS = {
    r'.*/attn/q_einsum(_1)?/w': QUERY,
    r'.*/attn/kv_einsum(_1)?/w': KEY_VALUE,
    r'.*/attn/attn_vec_einsum(_1)?/w': OUTPUT,
    r'.*/mlp(_1)?/gating_einsum': GATING,
    r'.*/mlp(_1)?/linear': LINEAR,
}
# as the tied output layer would read it
TABLE = {r'.*/embedder/input_embedding': MatrixLayout('vw', 'w', 'v')}
PerExpert = Sequence[Any]  # one array an expert, None where it is absent
Cache = tuple[Float[Array, 'layers b s k h'], Float[Array, 'layers b s k h']]


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes of one expert. Experts that run together share depth, heads, kv_heads and head_dim."""

    width: int = 2048
    depth: int = 18
    mlp_dim: int = 16384
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 256
    adaptive: bool = False  # adaptive RMSNorm on a conditioning vector


def suffix(expert: int) -> str:
    """What a parameter's name ends in: '' for expert 0, '_1' for expert 1.

    Args:
      expert: its number.

    Returns:
      The ending.
    """
    return f'_{expert}' if expert else ''


def rope(
    x: Float[Array, 'b s n h'], positions: Int[Array, 'b s'], max_wavelength: float = 10_000.0
) -> Float[Array, 'b s n h']:
    """Rotary position embedding on the two halves of the head, in float32.

    Args:
      x: queries or keys.
      positions: of the tokens.
      max_wavelength: of the slowest rotation, in tokens.

    Returns:
      The rotated ones, in x's dtype.
    """
    half = x.shape[-1] // 2
    timescale = max_wavelength ** (2.0 / x.shape[-1] * jnp.arange(half, dtype=jnp.float32))
    angle = (positions[..., None].astype(jnp.float32) / timescale)[:, :, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    x1, x2 = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    """(1 + scale) x / rms(x) in float32; adaptive: scale, shift and gate from one dense layer on
    `cond`.
    """

    adaptive: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b s w'], cond: Float[Array, '... w2'] | None
    ) -> tuple[Any, Any]:
        """The normed sequence, and the gate of the residual branch.

        Args:
          x: sequence.
          cond: conditioning of an adaptive norm, [b w2] or, one a token, [b s w2]; None: not
            adaptive.

        Returns:
          The sequence in x's dtype, and the gate (None where not adaptive).
        """
        w = x.shape[-1]
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-6)
        if not self.adaptive:
            return (y * (1 + self.param('scale', nn.initializers.zeros, (w,)))).astype(
                x.dtype
            ), None
        dense = nn.Dense(3 * w, kernel_init=nn.initializers.zeros, dtype=x.dtype, name='Dense_0')
        each = dense(cond)
        each = each if each.ndim == x.ndim else each[:, None]
        scale, shift, gate = jnp.split(each, 3, axis=-1)
        return (y * (1 + scale) + shift).astype(x.dtype), gate


class Einsum(nn.Module):
    """One projection; the weight is the leaf `w` of the module's own path."""

    shape: tuple[int, ...]
    layout: MatrixLayout
    lora: LoraConfig

    @nn.compact
    def __call__(self, x: Float[Array, '...'], dropped: Float[Array, '...'] | None = None) -> Any:
        """The product with the weight, and its LoRA side path.

        Args:
          x: [... inputs].
          dropped: x after a dropout that several projections share; None: of its own.

        Returns:
          [... outputs].
        """
        return project(self, 'w', x, self.shape, self.layout, self.lora, dropped=dropped)


class Attention(nn.Module):
    """One attention over the joined sequences of all experts that are present; those not
    `output_experts` give keys only.
    """

    configs: Sequence[GemmaConfig]
    lora: LoraConfig
    output_experts: tuple[bool, ...] | None = None

    @nn.compact
    def __call__(
        self, xs: PerExpert, positions: Int[Array, 'b t'], mask: Bool[Array, 'b t s'], cache: Any
    ) -> tuple[PerExpert, Any]:
        """One attention over the tokens of all experts.

        Args:
          xs: one [b t_i w_i] an expert, or None.
          positions: over the joined sequence.
          mask: over the joined sequence; s counts cached keys first.
          cache: earlier (k, v), [b s k h]; None: none.

        Returns:
          One output an expert, and (k, v) of all.
        """
        spans = token_spans(xs)
        active = [i for i in spans if self.output_experts is None or self.output_experts[i]]
        qs, ks, vs = zip(*(self.project_qkv(i, xs[i], i in active) for i in spans), strict=True)
        k, v = rope(jnp.concatenate(ks, axis=1), positions), jnp.concatenate(vs, axis=1)
        grown = (k, v)
        if cache is not None:
            grown = (jnp.concatenate([cache[0], k], axis=1), jnp.concatenate([cache[1], v], axis=1))
        outputs: list = [None] * len(xs)
        if not active:
            return outputs, grown
        rows = np.concatenate([np.arange(*spans[i]) for i in active])
        if len(rows) < positions.shape[1]:
            positions, mask = positions[:, rows], mask[:, rows]
        q = rope(jnp.concatenate([x for x in qs if x is not None], axis=1), positions)
        y, start = attention(q * self.configs[0].head_dim ** -0.5, *grown, mask), 0
        for i in active:
            length, c = xs[i].shape[1], self.configs[i]
            out = Einsum(
                (c.heads, c.head_dim, c.width),
                OUTPUT,
                self.lora,
                name=f'attn_vec_einsum{suffix(i)}',
            )
            outputs[i] = out(y[:, start : start + length])
            start += length
        return outputs, grown

    def project_qkv(self, i: int, x: Float[Array, 'b t w'], is_active: bool) -> tuple[Any, ...]:
        """Queries, keys and values of one expert, before rotation; the side paths of all three read
        the same dropout of x.

        Args:
          i: number of the expert.
          x: its tokens.
          is_active: whether its queries are needed.

        Returns:
          Queries [b t n h] (None where not needed), keys and values [b t k h].
        """
        c, low = self.configs[i], dropout(self, x, self.lora.dropout)
        query = Einsum(
            (c.heads, c.width, c.head_dim), QUERY, self.lora, name=f'q_einsum{suffix(i)}'
        )
        both = Einsum(
            (2, c.kv_heads, c.width, c.head_dim), KEY_VALUE, self.lora, name=f'kv_einsum{suffix(i)}'
        )
        q = query(x, low) if is_active else None
        return q, *both(x, low)


def token_spans(xs: PerExpert) -> dict[int, tuple[int, int]]:
    """Where the tokens of each expert lie in the joined sequence.

    Args:
      xs: one sequence an expert, or None.

    Returns:
      {expert: (first, last + 1)} of those present.
    """
    spans, start = {}, 0
    for i, x in enumerate(xs):
        if x is not None:
            spans[i] = (start, start + x.shape[1])
            start += x.shape[1]
    return spans


class FeedForward(nn.Module):
    """Gated feed-forward: (gelu(x W_gate) * x W_up) W_down."""

    mlp_dim: int
    lora: LoraConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t w']) -> Float[Array, 'b t w']:
        """W_down (gelu(W_gate x) * W_up x).

        Args:
          x: sequence.

        Returns:
          As many tokens.
        """
        w = x.shape[-1]
        gate, up = project(self, 'gating_einsum', x, (2, w, self.mlp_dim), GATING, self.lora)
        return project(
            self,
            'linear',
            nn.gelu(gate, approximate=True) * up,
            (self.mlp_dim, w),
            LINEAR,
            self.lora,
        )


class Block(nn.Module):
    """One layer of all experts, in the form that `nn.scan` wants: carry is the tuple of sequences.

    Experts not `output_experts` (None: all are) end here: they give keys and values, and their
    sequence is None.
    """

    configs: Sequence[GemmaConfig]
    lora: LoraConfig
    output_experts: tuple[bool, ...] | None = None

    @nn.compact
    def __call__(
        self,
        xs: PerExpert,
        cache: Any,
        positions: Int[Array, 'b t'],
        mask: Bool[Array, 'b t s'],
        conds: PerExpert,
    ) -> tuple[PerExpert, Any]:
        """One layer over the tokens of all experts.

        Args:
          xs: one sequence an expert, or None.
          cache: keys and values of this layer, or None.
          positions: over the joined sequence.
          mask: over the joined sequence.
          conds: conditioning of each expert's norms, or None.

        Returns:
          The sequences, and the cache.
        """
        normed, gates = self.norms('pre_attention_norm', xs, conds)
        ys, new_cache = Attention(self.configs, self.lora, self.output_experts, name='attn')(
            normed, positions, mask, cache
        )
        xs = tuple(
            None if y is None else add_gated(x, y, gate)
            for x, y, gate in zip(xs, ys, gates, strict=True)
        )
        normed, gates = self.norms('pre_ffw_norm', xs, conds)
        ys = [
            None if x is None else FeedForward(c.mlp_dim, self.lora, name=f'mlp{suffix(i)}')(x)
            for i, (c, x) in enumerate(zip(self.configs, normed, strict=True))
        ]
        return tuple(map(add_gated, xs, ys, gates)), None if cache is None else new_cache

    def norms(self, name: str, xs: PerExpert, conds: PerExpert) -> Any:
        """The norm `name` of every expert present: (normed sequences, gates).

        Args:
          name: of the norm.
          xs: one sequence an expert, or None.
          conds: conditioning, or None.

        Returns:
          The sequences, and the gates.
        """
        pairs = [
            (None, None) if x is None else RMSNorm(c.adaptive, name=name + suffix(i))(x, cond)
            for i, (c, x, cond) in enumerate(zip(self.configs, xs, conds, strict=True))
        ]
        return zip(*pairs, strict=True)


def add_gated(x: Any, y: Any, gate: Any) -> Any:
    """x + y, or x + y * gate; None stays None.

    Args:
      x: sequence, or None.
      y: what is added.
      gate: of an adaptive norm, or None.

    Returns:
      The sum.
    """
    if x is None:
        return None
    return x + (y if gate is None else y * gate).astype(x.dtype)


class Embedder(nn.Module):
    """Token table [vocab w]; embeddings are scaled by sqrt(w)."""

    vocab_size: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l w']:
        """Token embeddings, scaled by sqrt(w).

        Args:
          tokens: ids.

        Returns:
          Embeddings.
        """
        init = nn.initializers.normal(self.width**-0.5)
        table = quant.read(self, 'input_embedding', init, (self.vocab_size, self.width))
        return quant.dense(table[tokens], self.dtype) * jnp.asarray(self.width**0.5, self.dtype)


class Gemma(nn.Module):
    """The experts' shared stack of layers, and the language model's token table."""

    configs: Sequence[GemmaConfig]
    vocab_size: int
    lora: LoraConfig
    dtype: str = 'float32'
    remat: str | None = None  # name of a jax.checkpoint policy; None: keep all activations

    def setup(self):
        self.embedder = Embedder(self.vocab_size, self.configs[0].width, self.dtype)
        block = (
            nn.remat(Block, prevent_cse=False, policy=remat_policy(self.remat))
            if self.remat
            else Block
        )
        self.layers = nn.scan(
            block,
            variable_axes={'params': 0, 'lora': 0},
            split_rngs={'params': True, 'dropout': True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.configs[0].depth,
        )(self.configs, self.lora)
        for i, c in enumerate(self.configs):
            setattr(self, f'final_norm{suffix(i)}', RMSNorm(c.adaptive))

    def embed(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l w']:
        """Token embeddings, scaled by sqrt(w).

        Args:
          tokens: ids.

        Returns:
          Embeddings.
        """
        return self.embedder(tokens)

    def empty_cache(self, batch: int) -> Cache:
        """Keys and values of no positions; given to a call, it asks for the cache of what is
        computed.

        Args:
          batch: b.

        Returns:
          The cache.
        """
        c = self.configs[0]
        empty = jnp.zeros((c.depth, batch, 0, c.kv_heads, c.head_dim), self.dtype)
        return empty, empty

    def __call__(
        self,
        xs: PerExpert,
        positions: Int[Array, 'b t'],
        mask: Bool[Array, 'b t s'],
        conds: PerExpert,
        cache: Cache | None = None,
        output_experts: tuple[bool, ...] | None = None,
    ) -> tuple[PerExpert, Cache | None]:
        """All layers and the final norm.

        Args:
          xs: one sequence an expert; None where absent.
          positions: [b t], over the joined sequence.
          mask: [b t s], over the joined sequence; s counts cached keys first.
          conds: conditioning of each expert's norms; None where absent.
          cache: of earlier tokens; None: none is kept.
          output_experts: experts whose final sequences are read; None: all. In the last layer the
            others compute keys and values only.

        Returns:
          The final-normed sequences, and the cache grown by t (None where none was given).
        """
        xs, conds = tuple(xs), tuple(conds)
        if output_experts is None or self.is_initializing():
            xs, cache = self.layers(xs, cache, positions, mask, conds)
        else:
            xs, cache = self._last_apart(xs, cache, positions, mask, conds, output_experts)
        normed = [
            None if x is None else getattr(self, f'final_norm{suffix(i)}')(x, cond)[0]
            for i, (x, cond) in enumerate(zip(xs, conds, strict=True))
        ]
        return normed, cache

    def _last_apart(self, xs, cache, positions, mask, conds, output_experts):
        """A scan over all layers but the last, whose weights are read in place, and the last by
        itself.
        """
        params, factors = (
            self.variables.get(name, {}).get('layers', {}) for name in ('params', 'lora')
        )
        keys = (
            jax.random.split(self.make_rng('dropout'), self.configs[0].depth)
            if self.has_rng('dropout')
            else None
        )

        def layer(xs, inputs, output_experts=None):
            n, factors, cache, key = inputs
            weights = jax.tree.map(
                lambda w: jax.lax.dynamic_index_in_dim(w, n, keepdims=False), params
            )
            rngs = {} if key is None else {'dropout': key}
            block = Block(self.configs, self.lora, output_experts, parent=None)
            variables = {'params': weights, 'lora': factors}
            return block.apply(variables, xs, cache, positions, mask, conds, rngs=rngs)

        step = layer
        if self.remat:
            step = jax.checkpoint(layer, prevent_cse=False, policy=remat_policy(self.remat))
        inputs = (jnp.arange(self.configs[0].depth), factors, cache, keys)
        xs, grown = jax.lax.scan(step, xs, jax.tree.map(lambda x: x[:-1], inputs))
        xs, last = layer(xs, jax.tree.map(lambda x: x[-1], inputs), output_experts)
        return xs, jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), grown, last)
