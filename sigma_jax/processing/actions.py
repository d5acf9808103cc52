"""Actions in raw units and as a policy counts them: scaled, padded, from an origin."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sigma_jax.errors import UserError
from sigma_jax.processing import normalize
from sigma_jax.processing.normalize import NormStats
from sigma_jax.types import ActionScaling


def normalize_actions(
    actions: Float[Array, '... a'], scaling: ActionScaling, width: int
) -> Float[Array, '... d']:
    """Raw actions -> pi0.5's quantile-normalised units, padded with zeros to the policy's action
    width.
    """
    scaled = (actions - scaling.low) / scaling.span * 2 - 1
    return jnp.pad(scaled, [(0, 0)] * (actions.ndim - 1) + [(0, width - actions.shape[-1])])


def unnormalize_actions(
    actions: Float[Array, '... d'], scaling: ActionScaling
) -> Float[Array, '... a']:
    """The inverse of `normalize_actions`, padding dropped."""
    low, span = scaling.low, scaling.span
    return (actions[..., : low.shape[-1]] + 1) / 2 * span + low


def action_origin(state: Float[Array, '... p'], scaling: ActionScaling) -> Float[Array, '... 1 a']:
    """What the policy's actions count from: the robot's raw state in its relative joints, zero in
    the others.

    `state` is normalised by the policy's own statistics (openpi calls the transform DeltaActions).
    A state may be wider than the actions: the first entries count. Where it is narrower, no action
    beyond it is relative.
    """
    width = scaling.relative.shape[-1]
    first = state[..., :width]
    first = jnp.pad(first, [(0, 0)] * (first.ndim - 1) + [(0, width - first.shape[-1])])
    raw = (first + 1) / 2 * scaling.state_span + scaling.state_low
    return jnp.where(scaling.relative > 0, raw, 0.0)[..., None, :]


MIN_STD = 1e-3  # raw units: a joint that never moved is scaled as if it had this spread


def action_scaling(
    stats: NormStats, policy: NormStats, relative_joints: Sequence[bool] = ()
) -> ActionScaling:
    """The spread of the training actions (`stats`), and how the policy counts its own (`policy`).

    Of the state, its first entries count, one an action, as in openpi and LeRobot.

    Raises:
      UserError: `relative_joints` does not name every action, or names one beyond the states.
    """
    state, actions, width = policy['state'], policy['actions'], len(policy['actions'].low)
    relative = tuple(relative_joints) or (False,) * width
    if len(relative) != width or any(relative[len(state.low) :]):
        raise UserError(
            f'relative_joints: expected one value for each of {width} actions, the relative ones '
            f'among the first {len(state.low)}, got {relative_joints}; write one true or false an '
            'action'
        )
    low, span = np.zeros(width), np.ones(width)
    if any(relative):
        low, span = (normalize.first_joints(x, width) for x in (state.low, state.span))
    arrays = {
        'action_std': np.maximum(stats['actions'].std, MIN_STD),
        'low': actions.low,
        'span': actions.span,
        'relative': relative,
        'state_low': low,
        'state_span': span,
    }
    return ActionScaling(**{name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()})
