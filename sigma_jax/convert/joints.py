"""Do statistics, relative joints and the model agree in how many actions there are?"""

import dataclasses
from collections.abc import Mapping

from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import Statistics
from sigma_jax.processing.spec import POLICY_FILE, ProcessorConfig


def fitted(
    policy: ProcessorConfig, statistics: Mapping[str, Statistics] | None, padded: int
) -> tuple[ProcessorConfig, tuple[str, ...]]:
    """`policy` with one flag of relative joints an action, and a note where some were added.

    Fewer flags than actions mean what openpi's mask means: the rest are absolute. As many as the
    model is wide (`padded`) are cut to the robot's, as they were given before it was known.

    Args:
      policy: settings.
      statistics: of the robot; None: not known.
      padded: actions that the model has.

    Returns:
      policy: settings.
      notes: on what was added.

    Raises:
      UserError: more actions than the model has, or more flags than actions.
    """
    if statistics is None:
        return policy, ()
    width, flags = len(statistics['actions'].mean), policy.relative_joints
    if width > padded:
        raise UserError(
            f'expected statistics of up to {padded} actions, which the model has, got {width}; '
            'take those of its own robot'
        )
    if not any(flags) or len(flags) == width:
        return policy, ()
    if len(flags) > width and len(flags) != padded:
        raise UserError(
            f'expected relative_joints of the {width} actions in the statistics, got {len(flags)}; '
            f'mend {POLICY_FILE}, or name statistics of that robot with --stats'
        )
    whole = (flags + (False,) * width)[:width]
    note = (
        f'relative_joints covers {len(flags)} of the {width} actions: the others are '
        'absolute, as in openpi'
    )
    return dataclasses.replace(policy, relative_joints=whole), (note,) if len(flags) < width else ()
