"""Arms that need no Sigma: what any model must beat (docs/design.md, "Evaluation protocol"). Pure
numpy, raw action units.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sigma_jax.errors import UserError


class BiasFit(NamedTuple):
    """Affine correction of the base, one pair per horizon step and joint: a = weight * base +
    bias.
    """

    weight: Float[np.ndarray, 't a']
    bias: Float[np.ndarray, 't a']


def hold(state: Float[np.ndarray, 'n p'], horizon: int, joints: int) -> Float[np.ndarray, 'n t a']:
    """Repeats the state for the whole window; states and actions are positions of the same joints.

    Args:
      state: raw units.
      horizon: steps of a window.
      joints: of an action.

    Returns:
      Raw units.

    Raises:
      UserError: states and actions have different widths.
    """
    if state.shape[-1] != joints:
        raise UserError(
            f'hold: expected a state of {joints} values, one for each action, got '
            f'{state.shape[-1]}; leave the method out for this data set'
        )
    return np.repeat(np.asarray(state, np.float64)[:, None], horizon, axis=1)


def mean_action(
    actions: Float[np.ndarray, 'n t a'], action_mask: Bool[np.ndarray, 'n t']
) -> Float[np.ndarray, 't a']:
    """Mean training action at each horizon step, over windows where the step is valid.

    Args:
      actions: of training windows, raw units.
      action_mask: true for valid steps.

    Returns:
      Raw units.
    """
    return masked_average(actions, action_mask)


def fit_bias(
    base: Float[np.ndarray, 'n t a'],
    actions: Float[np.ndarray, 'n t a'],
    action_mask: Bool[np.ndarray, 'n t'],
) -> BiasFit:
    """Least squares a ~ weight * base + bias on training windows.

    Where the base does not vary (or one window is all there is) the weight is 1 and only the bias
    is fitted.

    Args:
      base: the base's actions in training windows, raw units.
      actions: recorded.
      action_mask: true for valid steps.

    Returns:
      Weight and bias of each joint and step.
    """
    base, actions = np.asarray(base, np.float64), np.asarray(actions, np.float64)
    mean_base, mean_true = masked_average(base, action_mask), masked_average(actions, action_mask)
    variance = masked_average(np.square(base - mean_base), action_mask)
    covariance = masked_average((base - mean_base) * (actions - mean_true), action_mask)
    varies = variance > 1e-12 * (1 + np.square(mean_base))
    weight = np.where(varies, covariance / np.where(varies, variance, 1.0), 1.0)
    return BiasFit(weight, mean_true - weight * mean_base)


def apply_bias(base: Float[np.ndarray, 'n t a'], fit: BiasFit) -> Float[np.ndarray, 'n t a']:
    """The corrected base.

    Args:
      base: its actions, raw units.
      fit: of `fit_bias`.

    Returns:
      Raw units.
    """
    return fit.weight * np.asarray(base, np.float64) + fit.bias


def masked_average(
    x: Float[np.ndarray, 'n t a'], mask: Bool[np.ndarray, 'n t']
) -> Float[np.ndarray, 't a']:
    """Mean over windows of valid steps; 0 where a step is never valid.

    Args:
      x: any numbers.
      mask: true for valid steps.

    Returns:
      One number a step and joint.
    """
    mask = np.asarray(mask, bool)[..., None]
    return np.where(mask, x, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(mask.sum(axis=0), 1)
