"""Does a robot fit a policy? Which of its actions are relative, and whether its cameras are the
policy's, in order.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.processing.spec import ProcessorConfig
from sigma_jax.settings import check_row

OTHER_ROBOT = (
    'for another robot set config.relative_joints to one true or false an action and '
    "config.stats_from='shards'"
)


class Robot(Protocol):
    """Whatever names a robot's joints: a data set, or what its shards say."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Of the entries of a state."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """Of the entries of an action."""


def relative_joints(
    configured: Sequence[bool],
    policy: ProcessorConfig,
    state_names: Sequence[str],
    action_names: Sequence[str],
    padded: int,
) -> tuple[bool, ...]:
    """Which of the robot's actions count from the state.

    Args:
      configured: the run's own setting; empty leaves it to the base.
      policy: the base's; as many flags as the model is wide (`padded`) are cut, as statistics of
        that width are.
      state_names: names of the entries of a state.
      action_names: names of the entries of an action.
      padded: actions that the model has.

    Returns:
      One flag an action, or () where none is relative.

    Raises:
      UserError: flags that are not True or False, more actions than the model has, another number
        of flags than of actions, or a relative action without a state to count from.
    """
    check_row('config.relative_joints', configured, tuple[bool, ...])
    flags, width = tuple(configured) or policy.relative_joints, len(action_names)
    whose = 'config.relative_joints' if tuple(configured) else 'the base'
    if not tuple(configured) and len(flags) == padded > width:
        flags = flags[:width]
    if width > padded:
        raise UserError(
            f'expected a robot of up to {padded} actions, which the base has, got {width} in '
            'these data; take a base that is as wide'
        )
    if not any(flags):
        return flags if len(flags) == width else ()
    if len(flags) != width:
        raise UserError(
            f'expected relative joints for the {width} actions of these data, got {len(flags)} '
            f'flags from {whose}; {OTHER_ROBOT}'
        )
    if (last := int(np.flatnonzero(flags)[-1])) >= len(state_names):
        raise UserError(
            f'expected a state for each relative action, got {len(state_names)} states and action '
            f'{last} relative in {whose}; {OTHER_ROBOT}'
        )
    return flags


def of_shards(
    configured: Sequence[bool], policy: ProcessorConfig, robot: Robot, padded: int
) -> tuple[bool, ...]:
    """`relative_joints` for the robot of some shards or of a data set.

    Args:
      configured: the run's own setting; empty leaves it to the base.
      policy: the base's.
      robot: names the entries of states and actions.
      padded: actions that the model has.

    Returns:
      One flag an action, or () where none is relative.

    Raises:
      UserError: as `relative_joints`.
    """
    return relative_joints(configured, policy, robot.state_names, robot.action_names, padded)


def check_cameras(policy: ProcessorConfig, names: Sequence[str], keys: Sequence[str]) -> None:
    """Checks that the shards' cameras stand in the order of the policy's views that they feed.

    Args:
      policy: its views, and its rename map.
      names: the cameras' short names, in the order of the shards.
      keys: what the data set itself calls them.

    Raises:
      UserError: another order.
    """
    fed = [policy.view(name, key) for name, key in zip(names, keys, strict=True)]
    known = [view for view in fed if view in policy.cameras]
    if known == [view for view in policy.cameras if view in known]:
        return
    pairs = list(zip(names, fed, strict=True))
    views = (*policy.cameras, *fed)
    order = ', '.join(name for name, _ in sorted(pairs, key=lambda pair: views.index(pair[1])))
    renamed = ', '.join(f'{name} as {view}' for name, view in pairs if name != view)
    raise UserError(
        f'expected cameras in the order of the base, {policy.cameras}, got {list(names)} '
        f'in the shards{f" ({renamed}, by its rename map)" if renamed else ""}; prepare them '
        f'again with config.data.cameras in the order {order}'
    )
