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
    """Raw actions -> pi0.5's normalised units (`normalize.to_unit`).

    Args:
      actions: raw units, counted from the origin of `action_origin`.
      scaling: `low` and `span` are read.
      width: the policy's number of actions; the rest is padded with zeros.

    Returns:
      Actions of the policy's width, about [-1, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.processing import actions
      >>> from sigma_jax.types import ActionScaling
      >>> zero, one = jnp.zeros(2), jnp.ones(2)
      >>> scaling = ActionScaling(action_std=one, low=jnp.array([0.0, -90.0]),
      ...     span=jnp.array([10.0, 180.0]), relative=zero, state_low=zero, state_span=one)
      >>> normalised = actions.normalize_actions(jnp.array([[5.0, 90.0]]), scaling, width=4)
      >>> normalised.tolist()
      [[0.0, 1.0, 0.0, 0.0]]
      >>> actions.unnormalize_actions(normalised, scaling).tolist()
      [[5.0, 90.0]]
    """
    scaled = normalize.to_unit(actions, scaling.low, scaling.span)
    return jnp.pad(scaled, [(0, 0)] * (actions.ndim - 1) + [(0, width - actions.shape[-1])])


def unnormalize_actions(
    actions: Float[Array, '... d'], scaling: ActionScaling
) -> Float[Array, '... a']:
    """The inverse of `normalize_actions`, padding dropped.

    Args:
      actions: of the policy's width, normalised.
      scaling: `low` and `span` are read.

    Returns:
      Raw units, counted from the origin of `action_origin`.
    """
    width = scaling.low.shape[-1]
    return normalize.from_unit(actions[..., :width], scaling.low, scaling.span)


def action_origin(state: Float[Array, '... p'], scaling: ActionScaling) -> Float[Array, '... 1 a']:
    """What the policy's actions count from: the raw state in relative joints, zero in the others
    (openpi calls the transform DeltaActions).

    Args:
      state: normalised by the policy's own statistics. It may be wider than the actions: the first
        entries count. Where it is narrower, no action beyond it is relative.
      scaling: `relative`, `state_low` and `state_span` are read.

    Returns:
      Raw units, with an axis of one step: it is added to each step of a trajectory.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.processing.actions import action_origin
      >>> from sigma_jax.types import ActionScaling
      >>> zero, one = jnp.zeros(2), jnp.ones(2)
      >>> scaling = ActionScaling(action_std=one, low=zero, span=one,
      ...     relative=jnp.array([1.0, 0.0]), state_low=zero, state_span=10 * one)
      >>> action_origin(jnp.array([0.0, 0.0]), scaling).tolist()
      [[5.0, 0.0]]
    """
    width = scaling.relative.shape[-1]
    first = state[..., :width]
    first = jnp.pad(first, [(0, 0)] * (first.ndim - 1) + [(0, width - first.shape[-1])])
    raw = normalize.from_unit(first, scaling.state_low, scaling.state_span)
    return jnp.where(scaling.relative > 0, raw, 0.0)[..., None, :]


MIN_STD = 1e-3  # raw units: a joint that never moved is scaled as if it had this spread


def action_scaling(
    stats: NormStats, policy: NormStats, relative_joints: Sequence[bool] = ()
) -> ActionScaling:
    """How actions are counted: Sigma's unit, and the policy's own.

    Of the state the first entries count, one an action, as in openpi and LeRobot.

    Args:
      stats: of the training data; the standard deviations of its actions are Sigma's unit.
      policy: the statistics that the policy normalises by.
      relative_joints: one flag an action, true where the policy's actions count from the state;
        empty: none does.

    Returns:
      One number a joint, float32, raw units; a standard deviation of at least 1e-3.

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
