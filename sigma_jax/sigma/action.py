"""Action trajectory workspace (paper 3.3): r_high, tau and state tokens -> three residuals, fused
into commands.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.sigma.layers import (
    Linear,
    Mlp,
    MultiHeadAttention,
    Norm,
    TransformerBlock,
    keep,
    masked_mean,
)
from sigma_jax.sigma.trajectory import TrajectoryDiT
from sigma_jax.types import Actions


class ActionConditionProjector(nn.Module):
    """c_act = P_act(pool(r_high), tau): an MLP on [normalised pool ; tau] (paper 3.3)."""

    hidden: int
    d_tau: int
    dtype: str

    @nn.compact
    def __call__(
        self, pooled: Float[Array, 'b d'], tau: Float[Array, 'b e']
    ) -> Float[Array, 'b e']:
        """The action condition of each window.

        Args:
          pooled: mean of r_high over its valid tokens, float32.
          tau: telepathy factor.

        Returns:
          c_act, as wide as tau.
        """
        x = jnp.concatenate([Norm(name='norm')(pooled), tau], axis=-1)
        return Mlp(self.hidden, self.d_tau, self.dtype, name='mlp')(x)


class ActionQueryGenerator(nn.Module):
    """Q_1 = Attn(Q_seed, S W_s, S W_s) + b(c_act); q = LN(Ref(Q_1)), Ref a transformer encoder
    (paper 3.3).
    """

    num_queries: int
    width: int
    heads: int
    num_blocks: int
    dtype: str

    @nn.compact
    def __call__(
        self, state_tokens: Float[Array, 'b n d'], c_act: Float[Array, 'b e']
    ) -> Float[Array, 'b q z']:
        """The action queries of each window.

        Args:
          state_tokens: S, from the vision workspace.
          c_act: action condition.

        Returns:
          q, `num_queries` tokens of `width`.
        """
        seed = self.param('seed', nn.initializers.normal(1.0), (self.num_queries, self.width))
        seed = jnp.broadcast_to(seed, (c_act.shape[0], *seed.shape))
        s = Linear(self.width, self.dtype, bias=False, name='w_s')(state_tokens)
        q = MultiHeadAttention(self.width, self.heads, self.dtype, name='attention')(seed, s)
        q = q + Linear(self.width, self.dtype, name='condition_bias')(c_act)[..., None, :]
        for j in range(self.num_blocks):
            q = TransformerBlock(
                self.width, self.heads, 4 * self.width, self.dtype, name=f'refinement_{j}'
            )(q)
        return Norm(name='norm')(q)


class ActionTokenHead(nn.Module):
    """Path A: queries -> low-dimensional action tokens -> one continuous action (paper 3.3)."""

    token_dim: int
    action_dim: int
    dtype: str

    def setup(self):
        self.tokens = Linear(self.token_dim, self.dtype)
        self.detokenizer = Linear(self.action_dim, self.dtype, zero=True)

    def __call__(self, query: Float[Array, 'b q z']) -> Float[Array, 'b a']:
        """The first action of each window, as a residual in units of action_std.

        Args:
          query: action queries.

        Returns:
          One action of `action_dim` joints.
        """
        return self.detokenise(self.tokens(query))

    def detokenise(self, tokens: Float[Array, 'b q z']) -> Float[Array, 'b a']:
        """All action tokens of a window as one vector, through gelu and one linear map.

        Args:
          tokens: low-dimensional action tokens, [b q token_dim].

        Returns:
          One action of `action_dim` joints.
        """
        return self.detokenizer(nn.gelu(tokens).reshape(*tokens.shape[:-2], -1))


class ActionChunkHead(nn.Module):
    """Path B: pooled queries -> a chunk of actions (paper 3.3)."""

    hidden: int
    chunk: int
    action_dim: int
    dtype: str

    @nn.compact
    def __call__(self, query: Float[Array, 'b q z']) -> Float[Array, 'b c a']:
        """The first `chunk` actions of each window, as residuals in units of action_std.

        Args:
          query: action queries; their mean is read.

        Returns:
          `chunk` actions of `action_dim` joints.
        """
        head = Mlp(self.hidden, self.chunk * self.action_dim, self.dtype, zero_out=True, name='mlp')
        return head(jnp.mean(query, axis=-2)).reshape(
            *query.shape[:-2], self.chunk, self.action_dim
        )


class TelepathyResidualHead(nn.Module):
    """g([pool(r_high) ; tau]) -> explicit residuals for the three branches (paper 3.3)."""

    hidden: int
    horizon: int
    chunk: int
    action_dim: int
    dtype: str

    @nn.compact
    def __call__(self, pooled: Float[Array, 'b d'], tau: Float[Array, 'b e']) -> Actions:
        """The explicit residuals of each window, in units of action_std.

        Args:
          pooled: mean of r_high over its valid tokens, float32.
          tau: telepathy factor.

        Returns:
          A residual for each branch; zeros in an untrained head.
        """
        x = jnp.concatenate([Norm(name='norm')(pooled), tau], axis=-1)
        steps = 1 + self.chunk + self.horizon
        y = Mlp(self.hidden, steps * self.action_dim, self.dtype, zero_out=True, name='mlp')(x)
        y = y.reshape(*pooled.shape[:-1], steps, self.action_dim)
        return Actions(
            vec=y[..., 0, :], chk=y[..., 1 : 1 + self.chunk, :], traj=y[..., 1 + self.chunk :, :]
        )


class ActionTrajectoryWorkspace(nn.Module):
    """The parts above in the paper's order; all residuals are in units of action_std
    (docs/design.md, "Actions as residuals").
    """

    config: SigmaConfig

    def setup(self):
        c = self.config
        sizes = (c.action_width, c.action_heads)
        self.condition_projector = ActionConditionProjector(c.action_width, c.d_tau, c.dtype)
        self.query_generator = ActionQueryGenerator(c.num_queries, *sizes, c.query_blocks, c.dtype)
        self.token_head = ActionTokenHead(c.token_dim, c.action_dim, c.dtype)
        self.chunk_head = ActionChunkHead(c.action_width, c.chunk, c.action_dim, c.dtype)
        self.trajectory = TrajectoryDiT(
            c.horizon, c.action_dim, *sizes, c.trajectory_blocks, c.refinement_steps, c.dtype
        )
        self.residual_head = TelepathyResidualHead(
            c.action_width, c.horizon, c.chunk, c.action_dim, c.dtype
        )

    def condition(
        self, r_high: Float[Array, 'b s d'], mask: Bool[Array, 'b s'], tau: Float[Array, 'b e']
    ) -> Float[Array, 'b e']:
        """c_act = P_act(pool(r_high), tau).

        Args:
          r_high: hidden sequence that the action workspace reads, float32.
          mask: true for its valid tokens.
          tau: telepathy factor.

        Returns:
          The action condition.
        """
        return self.condition_projector(masked_mean(r_high, mask), tau)

    def branches(
        self,
        r_high: Float[Array, 'b s d'],
        mask: Bool[Array, 'b s'],
        c_act: Float[Array, 'b e'],
        state_tokens: Float[Array, 'b n d'],
        start: Float[Array, 'b t a'] | None = None,
    ) -> Actions:
        """vec = detokenise(H_A(q)), chk = H_B(q), traj = D_traj(q, r_high, c_act).

        Args:
          r_high: hidden sequence that the action workspace reads, float32.
          mask: true for its valid tokens.
          c_act: action condition.
          state_tokens: from the vision workspace.
          start: x_0 of the trajectory branch, in units of action_std; None starts from zeros.

        Returns:
          The residuals of the three branches.
        """
        query = self.query_generator(state_tokens, c_act)
        trajectory = self.trajectory(query, r_high, mask, c_act, start)
        return Actions(vec=self.token_head(query), chk=self.chunk_head(query), traj=trajectory)

    def telepathic(
        self, r_high: Float[Array, 'b s d'], mask: Bool[Array, 'b s'], tau: Float[Array, 'b e']
    ) -> Actions:
        """g([pool(r_high) ; tau]).

        Args:
          r_high: hidden sequence that the action workspace reads, float32.
          mask: true for its valid tokens.
          tau: telepathy factor.

        Returns:
          One more residual for each of the three branches.
        """
        return self.residual_head(masked_mean(r_high, mask), tau)


@jax.custom_jvp
def add_residual(base: Array, residual: Array) -> Array:
    """base + residual, and exactly base where the residual is zero.

    Plain addition would turn a base of -0.0 into 0.0, so that an untrained Sigma would not give
    back its base bit for bit. The gradient is that of the sum everywhere.

    Args:
      base: any shape.
      residual: of the same shape and units.

    Returns:
      The sum.
    """
    return jnp.where(residual == 0, base, base + residual)


@add_residual.defjvp
def _add_residual_jvp(primals, tangents):
    return add_residual(*primals), tangents[0] + tangents[1]


def apply_residual(
    residual: Actions,
    base: Actions,
    action_std: Float[Array, 'a'],
    gate: float | Float[Array, ''] = 1.0,
) -> Actions:
    """actions = base + action_std * residual (paper 4.2.1; docs/design.md, "Actions as residuals").

    Args:
      residual: in units of `action_std`.
      base: the frozen policy's actions, raw units.
      action_std: standard deviation of each joint's training actions, raw units.
      gate: an ablation gate; 0 leaves the base out and gives action_std * residual.

    Returns:
      Actions in raw units.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma.action import apply_residual
      >>> from sigma_jax.types import Actions
      >>> base = Actions.from_trajectory(jnp.full((1, 4, 2), 10.0), chunk=2)
      >>> residual = Actions.from_trajectory(jnp.ones((1, 4, 2)), chunk=2)
      >>> apply_residual(residual, base, action_std=jnp.array([0.5, 2.0])).vec.tolist()
      [[10.5, 12.0]]
    """

    def one(residual, base):
        scaled = action_std * residual
        return keep(gate, add_residual(base, scaled), scaled)

    return jax.tree.map(one, residual, base)


def fuse_actions(actions: Actions) -> Float[Array, 'b t a']:
    """u = phi(vec, chk, traj): each step is the mean of the branches that cover it (paper 3.3;
    equal weights are ours).

    It is written as corrections to `traj`, so that branches which agree give back exactly their
    value.

    Args:
      actions: the three branches, raw units.

    Returns:
      One trajectory, raw units.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma.action import fuse_actions
      >>> from sigma_jax.types import Actions
      >>> vec, chk = jnp.full((1, 1), 3.0), jnp.full((1, 2, 1), 6.0)
      >>> fuse_actions(Actions(vec=vec, chk=chk, traj=jnp.zeros((1, 4, 1)))).ravel().tolist()
      [3.0, 3.0, 0.0, 0.0]
    """
    c = actions.chk.shape[-2]
    first, chunk = actions.traj[..., :1, :], actions.traj[..., 1:c, :]
    first = first + ((actions.vec[..., None, :] - first) + (actions.chk[..., :1, :] - first)) / 3.0
    chunk = chunk + (actions.chk[..., 1:, :] - chunk) / 2.0
    return jnp.concatenate([first, chunk, actions.traj[..., c:, :]], axis=-2)


def low_level_controller(
    command: Float[Array, 'b t a'], config: SigmaConfig, previous: Float[Array, 'b a'] | None = None
) -> Float[Array, 'b t a']:
    """motor_commands = C_low(u): joint limits, then a limit on the change between steps (paper
    3.3).

    Args:
      command: commands u, raw units.
      config: `joint_low`, `joint_high` and `joint_rate` (per step) in raw units; None: no limit.
      previous: the command before the first step or the measured joint position, raw units; without
        it, and in joints where it is NaN, the first step has no rate limit.

    Returns:
      Commands within the limits, raw units. From outside the joint limits they come back as fast as
      the rate allows.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma.action import low_level_controller
      >>> from sigma_jax.sigma.config import SigmaConfig
      >>> config = SigmaConfig(action_dim=1, joint_high=(5.0,), joint_rate=(2.0,))
      >>> command = jnp.array([[[1.0], [9.0], [9.0]]])
      >>> low_level_controller(command, config).ravel().tolist()
      [1.0, 3.0, 5.0]
    """
    a = config.action_dim
    low, high, rate = (
        jnp.asarray(limit if limit is not None else (empty,) * a, jnp.float32)
        for limit, empty in (
            (config.joint_low, -math.inf),
            (config.joint_high, math.inf),
            (config.joint_rate, math.inf),
        )
    )
    command = jnp.clip(command, low, high)
    start = first = command[..., 0, :]
    if previous is not None:
        start = jnp.where(jnp.isnan(previous), first, previous)

    def step(last, target):
        now = jnp.clip(target, last - rate, last + rate)
        return now, now

    _, motor_commands = jax.lax.scan(step, start, jnp.moveaxis(command, -2, 0))
    return jnp.moveaxis(motor_commands, 0, -2)
