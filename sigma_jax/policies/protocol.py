"""What a policy is to who runs a robot: one raw observation in, a chunk of raw actions out."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from sigma_jax.processing.spec import ProcessorConfig

# keys of an observation, LeRobot's; a camera's frame is IMAGES + its name
STATE, IMAGES, TASK = 'observation.state', 'observation.images.', 'task'
ACTIONS = 'actions'


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """What a policy takes and gives.

    Attributes:
      cameras: names of its views in order, by which frames are named; (): any, in the order in
        which they come.
      state_dim: numbers of the robot's reading, p.
      action_dim: numbers of an action, a.
      horizon: actions of a chunk, t.
      action_steps: of them, how many are carried out before the next chunk is asked for.
      processor: how it sees the world: normalisation, prompt, resize, relative joints.
    """

    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    horizon: int
    action_steps: int
    processor: ProcessorConfig


class Policy(Protocol):
    """Acts in one environment: it may keep what it saw since `reset`.

    Examples:
      >>> def rollout(env, policy, chunks):
      ...     policy.reset()
      ...     for _ in range(chunks):
      ...         actions = policy.infer(env.observe())['actions']
      ...         for action in actions[: policy.spec.action_steps]:
      ...             env.step(action)
    """

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        ...

    def reset(self) -> None:
        """Forgets what it saw: the next observation is the first of an episode."""
        ...

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        """A chunk of actions for one observation.

        Args:
          observation: raw, as the robot gives it.
            `observation.images.NAME`: the frame of a camera, uint8 [height width 3], any size;
              a camera that is absent is masked, but not all may be.
            `observation.state`: joint readings [p], raw units (degrees, say), as in the data that
              the policy was trained on.
            `task`: the instruction, a text.

        Returns:
          `actions`: [t a], float32, raw units like the state's, the first to be carried out now.
          What else a policy gives comes beside it.

        Raises:
          UserError: an observation that lacks one of these, or holds something else.
        """
        ...
