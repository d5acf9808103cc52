"""Language intent workspace (paper 3.2): hidden sequence -> semantic memory, intent, telepathy
factor, r_high.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.sigma.layers import Linear, Mlp, MultiHeadAttention, Norm, keep, lecun_normal, linear
from sigma_jax.types import Telepathy

_GELU_RMS = 0.652  # root mean square of gelu(x), x standard normal
_CONSTANT_SHARE = 0.4  # of the initial rms of tau that its constant part holds


class SemanticFactorHead(nn.Module):
    """z_sem: K learned queries that cross-attend the hidden sequence (paper 3.2)."""

    num_factors: int
    heads: int
    dtype: str

    @nn.compact
    def __call__(
        self, hidden: Float[Array, 'b s d'], mask: Bool[Array, 'b s']
    ) -> Float[Array, 'b k d']:
        """The semantic factors of each window.

        Args:
          hidden: normalised hidden sequence, float32.
          mask: true for its valid tokens.

        Returns:
          z_sem.
        """
        b, _, d = hidden.shape
        query = self.param('query', nn.initializers.normal(1.0), (self.num_factors, d))
        attention = MultiHeadAttention(d, self.heads, self.dtype, name='attention')
        return attention(jnp.broadcast_to(query, (b, *query.shape)), hidden, mask)


class SemanticWorkspaceMemory(nn.Module):
    """The gated recursion of the semantic memory (paper 3.2).

    u = gelu(W_u z_pool + b_u); lambda = sigmoid(W_lambda [m_prev ; z_pool] + b_lambda);
    m = lambda m_prev + (1 - lambda) u.
    """

    dtype: str

    @nn.compact
    def __call__(
        self, m_prev: Float[Array, 'b d'], z_pool: Float[Array, 'b d']
    ) -> Float[Array, 'b d']:
        """One step of the memory.

        Args:
          m_prev: memory before the window; zeros where it starts anew.
          z_pool: mean of the window's semantic factors.

        Returns:
          The memory m after the window.
        """
        d = z_pool.shape[-1]
        zeros = nn.initializers.zeros
        w_u, b_u = self.param('w_u', lecun_normal, (d, d)), self.param('b_u', zeros, (d,))
        w_lambda = self.param('w_lambda', lecun_normal, (2 * d, d))
        b_lambda = self.param('b_lambda', zeros, (d,))
        u = nn.gelu(linear(z_pool, w_u, b_u, self.dtype))
        both = jnp.concatenate([m_prev, z_pool], axis=-1)
        memory_gate = jax.nn.sigmoid(linear(both, w_lambda, b_lambda, self.dtype))
        return memory_gate * m_prev + (1.0 - memory_gate) * u


class SummaryHead(nn.Module):
    """Attention pooling: weights softmax(score . h), then one affine map (paper 3.2: c_env, c_beh,
    c_text).
    """

    dtype: str

    @nn.compact
    def __call__(
        self, hidden: Float[Array, 'b s d'], mask: Bool[Array, 'b s']
    ) -> Float[Array, 'b d']:
        """One vector for a hidden sequence.

        Args:
          hidden: normalised hidden sequence, float32.
          mask: true for its valid tokens.

        Returns:
          c_env, c_beh or c_text.
        """
        d = hidden.shape[-1]
        score = self.param('score', nn.initializers.normal(1.0 / math.sqrt(d)), (d,))
        weights = jax.nn.softmax(jnp.where(mask, hidden @ score, -1e30), axis=-1)
        weights = jnp.where(mask, weights, 0.0)
        return Linear(d, self.dtype, name='value')(jnp.einsum('bs,bsd->bd', weights, hidden))


class IntentHead(nn.Module):
    """z_intent = MLP([m ; c_env ; c_beh]) (paper 3.2)."""

    dtype: str

    @nn.compact
    def __call__(
        self, memory: Float[Array, 'b d'], c_env: Float[Array, 'b d'], c_beh: Float[Array, 'b d']
    ) -> Float[Array, 'b d']:
        """The intent of each window.

        Args:
          memory: m, after the window.
          c_env: summary of the surroundings.
          c_beh: summary of the behaviour.

        Returns:
          z_intent.
        """
        d = memory.shape[-1]
        return Mlp(d, d, self.dtype, name='mlp')(jnp.concatenate([memory, c_env, c_beh], axis=-1))


class TelepathyProjector(nn.Module):
    """tau = W_2 gelu(W_1 x + b_1), x the six vectors in one (paper 3.2); the caller adds b_2.

    Each vector is normalised first (no parameters), so that the initial rms of tau is `rms`
    whatever their scales (docs/design.md, "Language workspace").
    """

    d_tau: int
    rms: float
    dtype: str

    @nn.compact
    def __call__(self, parts: tuple[Float[Array, 'b d'], ...]) -> Float[Array, 'b e']:
        """The part of tau that depends on the window.

        Args:
          parts: m, z_intent, c_env, c_beh, z_pool and c_text.

        Returns:
          tau less b_2.
        """
        x = jnp.concatenate([_standardised(part) for part in parts], axis=-1)
        d = parts[0].shape[-1]
        w_1 = self.param('w_1', lecun_normal, (x.shape[-1], d))
        b_1 = self.param('b_1', nn.initializers.zeros, (d,))
        scale = (self.rms / _GELU_RMS) ** 2
        w_2 = self.param(
            'w_2', nn.initializers.variance_scaling(scale, 'fan_in', 'normal'), (d, self.d_tau)
        )
        return linear(nn.gelu(linear(x, w_1, b_1, self.dtype)), w_2, None, self.dtype)


def _standardised(x: Float[Array, 'b d']) -> Float[Array, 'b d']:
    """LayerNorm without parameters, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)


class LanguageModulator(nn.Module):
    """r_high = hidden + exp(theta_lang) sigmoid(G tau) (B tau), the double gating bias modulation
    (paper 3.2).
    """

    theta_lang: float
    dtype: str

    @nn.compact
    def __call__(
        self, hidden: Float[Array, 'b s d'], tau: Float[Array, 'b e']
    ) -> Float[Array, 'b s d']:
        """The hidden sequence with one bias, which tau gives, added to all tokens.

        Args:
          hidden: of pass 2, float32.
          tau: telepathy factor.

        Returns:
          r_high.
        """
        shape = (tau.shape[-1], hidden.shape[-1])
        w_g, w_b = self.param('w_g', lecun_normal, shape), self.param('w_b', lecun_normal, shape)
        theta_lang = self.param('theta_lang', nn.initializers.constant(self.theta_lang), ())
        gate = jax.nn.sigmoid(linear(tau, w_g, None, self.dtype))
        bias = jnp.exp(theta_lang) * gate * linear(tau, w_b, None, self.dtype)
        return hidden + bias[..., None, :]


class Summary(NamedTuple):
    """What the hidden sequence of pass 1 gives for one window, before the memory is read: z_sem [b
    k d], the others [b d].
    """

    z_sem: Array
    z_pool: Array
    c_env: Array
    c_beh: Array
    c_text: Array


class LanguageIntentWorkspace(nn.Module):
    """The parts above in the paper's order (docs/design.md, "Language workspace").

    `summarise` reads the hidden sequence of pass 1, `memory` runs through the windows, `conclude`
    gives tau, `modulate` reads the hidden sequence of pass 2.

    The parameter `tau_const` is the paper's b_2. The ablation `tau_const` uses it alone as a
    constant tau: so that run has no parameter which the full model lacks, and the full model has no
    parameter without a use.
    """

    config: SigmaConfig

    def setup(self):
        c = self.config
        constant = _CONSTANT_SHARE * c.tau_rms
        self.hidden_norm = Norm()
        self.semantic_factors = SemanticFactorHead(c.num_factors, c.heads, c.dtype)
        self.memory = SemanticWorkspaceMemory(c.dtype)
        self.summary_env, self.summary_beh, self.summary_text = (
            SummaryHead(c.dtype) for _ in range(3)
        )
        self.intent = IntentHead(c.dtype)
        self.telepathy_projector = TelepathyProjector(
            c.d_tau, math.sqrt(c.tau_rms**2 - constant**2), c.dtype
        )
        self.tau_const = self.param('tau_const', nn.initializers.normal(constant), (c.d_tau,))
        self.modulator = LanguageModulator(c.theta_lang, c.dtype)

    def summarise(self, hidden: Float[Array, 'b s d'], mask: Bool[Array, 'b s']) -> Summary:
        """All that pass 1 gives for a window without the memory.

        Args:
          hidden: hidden sequence of pass 1, float32.
          mask: true for its valid tokens.

        Returns:
          Semantic factors and summaries.
        """
        hidden = self.hidden_norm(hidden)
        z_sem = self.semantic_factors(hidden, mask)
        c_env, c_beh, c_text = (
            head(hidden, mask) for head in (self.summary_env, self.summary_beh, self.summary_text)
        )
        return Summary(z_sem, jnp.mean(z_sem, axis=-2), c_env, c_beh, c_text)

    def conclude(
        self,
        summary: Summary,
        memory: Float[Array, 'b d'],
        tau_const: float | Float[Array, ''],
    ) -> Telepathy:
        """All that pass 1 infers of a window.

        Args:
          summary: from `summarise`.
          memory: m, after the window.
          tau_const: an ablation gate; at 1 tau is one learned vector.

        Returns:
          What pass 1 infers, tau among it.
        """
        s = summary
        z_intent = self.intent(memory, s.c_env, s.c_beh)
        tau = (
            self.telepathy_projector((memory, z_intent, s.c_env, s.c_beh, s.z_pool, s.c_text))
            + self.tau_const
        )
        tau = self.constant_instead(tau, tau_const)
        return Telepathy(s.z_sem, s.z_pool, memory, s.c_env, s.c_beh, s.c_text, z_intent, tau)

    def constant_instead(
        self, tau: Float[Array, 'b e'], gate: float | Float[Array, '']
    ) -> Float[Array, 'b e']:
        """`tau`, or the learned constant where the gate is 1.

        Args:
          tau: telepathy factor.
          gate: the ablation gate `tau_const`.

        Returns:
          A telepathy factor of the same shape.
        """
        return keep(gate, jnp.broadcast_to(self.tau_const, tau.shape), tau)

    def modulate(
        self, hidden: Float[Array, 'b s d'], tau: Float[Array, 'b e']
    ) -> Float[Array, 'b s d']:
        """The hidden sequence that the action workspace reads.

        Args:
          hidden: hidden sequence of pass 2, float32.
          tau: telepathy factor.

        Returns:
          r_high.
        """
        return self.modulator(hidden, tau)
