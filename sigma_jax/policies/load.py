"""A folder of weights as a policy that acts."""

import dataclasses
import pathlib
from typing import Any

from sigma_jax.convert.load_base import Base, ModelConfig, open_base, read_weights
from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.policies.base_actions import check_robot
from sigma_jax.policies.sampled_policy import BaseActor, check_acts, make_sampler, stored_weights
from sigma_jax.processing.fitting import Robot
from sigma_jax.processing.processor import of_policy, of_shards
from sigma_jax.processing.tokenizer import check_vocab, load_tokenizer
from sigma_jax.settings import is_a

# tokens; a program each. Six joints and a sentence are about 60, 32 numbers about 130
PROMPT_LENGTHS = (64, 144)


@dataclasses.dataclass(frozen=True)
class Joints:
    """A robot by the names of its joints, as `sj.load_policy` takes one.

    Attributes:
      state_names: of the robot's reading, in its order.
      action_names: of an action, in its order.

    Examples:
      >>> import sigma_jax as sj
      >>> names = 'pan', 'lift', 'elbow', 'flex', 'roll', 'gripper'
      >>> robot = sj.Joints(names, names)
    """

    state_names: tuple[str, ...]
    action_names: tuple[str, ...]


def actor_of_weights(
    folder: str | pathlib.Path,
    *,
    tokenizer: str = '',
    robot: Robot | int | None = None,
    seed: int = 0,
    dtype: str = 'float32',
    storage: QuantConfig = QuantConfig(),
) -> BaseActor:
    """The actor of a base, or of a fine-tuned policy exported whole, on one robot.

    Args:
      folder: of a checkpoint in any layout, or a hub id.
      tokenizer: file, folder or hub id; '' takes the one beside the weights.
      robot: what names its joints (a data set, the meta of shards, `sj.Joints`), or how many it
        has; None takes as many as the statistics beside the weights have, which openpi pads to the
        model's width.
      seed: of its noise.
      dtype: of its matrix products.
      storage: in what form its weights lie on the device; `sj.QuantConfig('bfloat16')`, say.

    Returns:
      The actor, with its weights on the device.

    Raises:
      UserError: no checkpoint there, no statistics or tokenizer beside it, or a robot that it does
        not know.
    """
    check_named(robot)
    base = open_base(str(folder), ModelConfig(dtype))
    check_acts(base)
    known = joints_of(base, robot)
    check_robot(base, known)
    words = load_tokenizer(tokenizer or base.folder or '')
    check_vocab(words, base.config.vocab_size)
    base, spec, horizon = read_weights(base), base.spec, base.config.action_horizon
    weights = stored_weights(base, storage)
    sampler = make_sampler(base, known, horizon, seed=seed, weights=weights)
    if isinstance(robot, Meta):  # asked as its windows were
        processor = of_shards(
            base.policy, sampler.statistics, words, robot, spec.prompt, reads_text=False
        )
    else:
        side = base.config.image_size
        processor = of_policy(
            base.policy,
            sampler.statistics,
            words,
            side,
            spec.prompt,
            prompt_lengths=PROMPT_LENGTHS,
        )
    return BaseActor(base, processor, sampler, horizon)


def check_named(robot: Any) -> None:
    """Checks that a robot names its joints, or counts them.

    Args:
      robot: as `sj.load_policy` takes one.

    Raises:
      UserError: it does neither.
    """
    if robot is None or (is_a(int, robot) and robot > 0):
        return
    if not hasattr(robot, 'state_names') or not hasattr(robot, 'action_names'):
        raise UserError(
            f'robot: expected at least 1 joint, or what names its joints, got {robot!r}; give a '
            'data set, the meta of shards or Joints'
        )


def joints_of(base: Base, robot: Robot | int | None) -> Robot:
    """A robot as `sj.load_policy` is given it.

    Args:
      base: with its statistics.
      robot: what names its joints, or how many it has; None: as many as the statistics.

    Returns:
      What names them.
    """
    if robot is not None and not isinstance(robot, int):
        return robot
    statistics = base.norm_stats or {}
    widths = [robot or len(statistics[name].mean) for name in ('state', 'actions')]
    names = [tuple(f'joint_{n}' for n in range(width)) for width in widths]
    return Joints(*names)
