"""Trajectory branch D_traj (paper 3.3, path C): a small DiT that refines a trajectory in a few
steps.

Times run from 1 (start) to 0 (clean) as s_j = 1 - j / K. With x_0 = noise_scale * noise (0 by
default):

    clean_j = DiT(x_j, j; q, r_high, c_act)
    x_{j+1} = clean_j + (s_{j+1} / s_j) (x_j - clean_j)

which moves along the straight line from start to prediction. Since s_K = 0, x_K = clean_{K-1}: the
output is the last clean prediction. Its last layer starts at zero without a bias, so an untrained
branch returns zeros, and it is trained through the unrolled steps (docs/design.md, "Trajectory
branch").
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.sigma.layers import Linear, Mlp, MultiHeadAttention, Norm, lecun_normal, linear


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the context and FFN, each behind a norm that the condition
    modulates.
    """

    features: int
    heads: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'b t z'],
        condition: Float[Array, 'b z'],
        context: Float[Array, 'b s z'],
        mask: Bool[Array, 'b s'],
    ) -> Float[Array, 'b t z']:
        """One block over the steps of a trajectory.

        Args:
          x: one token a step.
          condition: modulates the three norms.
          context: tokens that are read.
          mask: true for valid context tokens.

        Returns:
          As many tokens, float32.
        """
        modulation = Linear(6 * self.features, self.dtype, name='modulation')(nn.silu(condition))
        scales_shifts = jnp.split(modulation[..., None, :], 6, axis=-1)

        def normed(x, j, name):
            norm = Norm(use_scale=False, use_bias=False, name=name)
            return norm(x) * (1.0 + scales_shifts[2 * j]) + scales_shifts[2 * j + 1]

        y = normed(x, 0, 'self_norm')
        x = x + MultiHeadAttention(self.features, self.heads, self.dtype, name='self_attention')(
            y, y
        )
        y = normed(x, 1, 'cross_norm')
        x = x + MultiHeadAttention(self.features, self.heads, self.dtype, name='cross_attention')(
            y, context, mask
        )
        return x + Mlp(4 * self.features, self.features, self.dtype, name='ffn')(
            normed(x, 2, 'ffn_norm')
        )


class TrajectoryDiT(nn.Module):
    """D_traj(q, r_high, c_act) -> [b t a], residuals in units of action_std."""

    horizon: int
    action_dim: int
    width: int
    heads: int
    num_blocks: int
    steps: int
    dtype: str

    def setup(self):
        z = self.width
        normal = nn.initializers.normal
        self.x_in = self.param('x_in', lecun_normal, (self.action_dim, z))
        self.position = self.param('position', normal(1.0), (self.horizon, z))
        self.step_embedding = self.param('step_embedding', normal(1.0), (self.steps, z))
        self.condition_in = Linear(z, self.dtype)
        self.context_norm = Norm()
        self.context_in = Linear(z, self.dtype)
        self.blocks = [DiTBlock(z, self.heads, self.dtype) for _ in range(self.num_blocks)]
        self.out_norm = Norm()
        self.out = Linear(self.action_dim, self.dtype, zero=True)

    def __call__(
        self,
        query: Float[Array, 'b q z'],
        r_high: Float[Array, 'b s d'],
        mask: Bool[Array, 'b s'],
        c_act: Float[Array, 'b e'],
        start: Float[Array, 'b t a'] | None = None,
    ) -> Float[Array, 'b t a']:
        """A clean residual, refined in `steps` steps from the start.

        Args:
          query: action queries.
          r_high: hidden sequence that the action workspace reads, float32.
          mask: true for its valid tokens.
          c_act: action condition.
          start: x_0, in units of action_std; None: zeros.

        Returns:
          The residual of every step, in units of action_std.
        """
        context = jnp.concatenate([query, self.context_in(self.context_norm(r_high))], axis=1)
        mask = jnp.concatenate([jnp.ones(query.shape[:2], bool), mask], axis=1)
        condition = self.condition_in(c_act)
        x = jnp.zeros((query.shape[0], self.horizon, self.action_dim)) if start is None else start
        layers = None if self.is_initializing() or not self.blocks else self._stacked()

        def one(module, x, step):
            return refine(
                x, module.denoise(x, step, condition, context, mask, layers), step, self.steps
            ), None

        # a scan, not a Python loop: compiled once instead of `steps` times
        loop = nn.scan(one, variable_broadcast='params', split_rngs={'params': False})
        return loop(self, x, jnp.arange(self.steps))[0]

    def denoise(
        self,
        x: Float[Array, 'b t a'],
        step: Int[Array, ''],
        condition: Float[Array, 'b z'],
        context: Float[Array, 'b s z'],
        mask: Bool[Array, 'b s'],
        layers: Any,
    ) -> Float[Array, 'b t a']:
        """One prediction of the clean residual.

        Args:
          x: the residual at this step of the refinement.
          step: j, from 0.
          condition: from c_act.
          context: queries and projected r_high.
          mask: true for valid context tokens.
          layers: the blocks' parameters, stacked; None while parameters are made.

        Returns:
          clean_j, in units of action_std.
        """
        y = linear(x, self.x_in, None, self.dtype) + self.position
        condition = condition + self.step_embedding[step]
        if layers is None:
            for block in self.blocks:
                y = block(y, condition, context, mask)
            return self.out(self.out_norm(y))
        apart = DiTBlock(self.width, self.heads, self.dtype, parent=None)

        def through(y, params):
            return jnp.asarray(apart.apply({'params': params}, y, condition, context, mask)), None

        # a scan here too: blocks one by one were half of what a step of Sigma had to trace
        y = jax.lax.scan(through, y, layers)[0]
        return self.out(self.out_norm(y))

    def _stacked(self) -> Any:
        """The parameters of all blocks, every leaf with a leading axis."""
        return jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(block.variables['params'] for block in self.blocks)
        )


def refine(x: Array, clean: Array, step: int | Int[Array, ''], steps: int) -> Array:
    """x_{j+1} = clean_j + (s_{j+1} / s_j) (x_j - clean_j), s_j = 1 - j / K.

    Args:
      x: x_j.
      clean: clean_j, the prediction from x_j.
      step: j, from 0.
      steps: K.

    Returns:
      x_{j+1}; at the last step exactly `clean`.
    """
    ratio = (steps - step - 1) / (steps - step)
    return clean + ratio * (x - clean)
