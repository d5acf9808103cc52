"""A raw observation in its parts, checked."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError
from sigma_jax.policies import given
from sigma_jax.policies.protocol import IMAGES, STATE, TASK, PolicySpec


class Reading(NamedTuple):
    """An observation in its parts.

    Attributes:
      frames: by camera.
      state: [p], raw units.
      task: the instruction.
      prompt_length: tokens to which its prompt is padded at least.
    """

    frames: dict[str, np.ndarray]
    state: Float[np.ndarray, ' p']
    task: str
    prompt_length: int = 0


def read_observation(
    observation: Mapping[str, Any], spec: PolicySpec, cameras: Mapping[str, str] | None = None
) -> Reading:
    """A raw observation in its parts, checked.

    Args:
      observation: see `policies.protocol.Policy.infer`.
      spec: what the policy takes.
      cameras: {robot's name: policy's name}, where they differ.

    Returns:
      Frames by camera, state [p], task.

    Raises:
      UserError: a key that is absent, a state of another width or with NaN or infinity in it, or a
        task that is no text, or a frame that is no array. What frames hold is checked where they
        are resized (`Processor.inputs`).
    """
    if not isinstance(observation, Mapping) or not all(isinstance(key, str) for key in observation):
        got = f'keys {list(observation)}' if isinstance(observation, Mapping) else repr(observation)
        raise UserError(
            f'expected an observation by names ({STATE}, {TASK}, ...), got {got[:200]}; name its '
            'parts as LeRobot does'
        )
    names = tuple(key for key in observation if key.startswith(IMAGES))
    if missing := [key for key in (STATE, TASK) if key not in observation]:
        raise UserError(
            f'expected {" and ".join(missing)} in an observation, got {sorted(observation)}; name '
            'its parts as LeRobot does'
        )
    if not names:
        views = ' or '.join(IMAGES + name for name in spec.cameras or ('NAME',))
        raise UserError(
            f'expected a frame of some camera ({views}), got {sorted(observation)}; pass one at '
            'least'
        )
    task, state = observation[TASK], given.floats(observation[STATE])
    if not isinstance(task, str) or task.encode(errors='ignore').decode() != task:
        got = f'{task[:80]!a}' if isinstance(task, str) else type(task).__name__
        raise UserError(
            f'expected {TASK} as a text, got {got}; pass the instruction of this one robot'
        )
    if not state.ndim and np.isnan(state):
        raise UserError(
            f'expected numbers in {STATE}, got {str(observation[STATE])[:80]}; look at the reading '
            'behind it'
        )
    if state.shape != (spec.state_dim,):
        raise UserError(
            f'expected {STATE} of {spec.state_dim} numbers, got shape {list(state.shape)}; pass '
            'the joints that the policy was trained on, in their order'
        )
    if not np.isfinite(state).all():
        raise UserError(
            f'expected numbers in {STATE}, got {state.tolist()}; look at the reading behind it'
        )
    return Reading(_frames({name: observation[name] for name in names}, cameras or {}), state, task)


def _frames(observation: Mapping[str, Any], cameras: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Frames [height width 3] under the policy's names."""
    frames: dict[str, np.ndarray] = {}
    for key, value in observation.items():
        theirs, frame = key.removeprefix(IMAGES), value
        if not isinstance(frame, np.ndarray):
            frame = np.asarray(frame) if hasattr(frame, '__array__') else np.zeros(0)
        if not frame.size:
            raise UserError(
                f'expected {key} as an array of uint8 [height width 3], got '
                f'{type(value).__name__} {list(np.shape(frame))}; convert it'
            )
        name = cameras.get(theirs, theirs)
        if name in frames:
            raise UserError(
                f'expected one frame of {name}, got two ({", ".join(sorted(observation))}); rename '
                'one, or leave it out'
            )
        channels_first = frame.ndim == 3 and frame.shape[0] == 3 and frame.shape[2] != 3
        frames[name] = frame.transpose(1, 2, 0) if channels_first else frame
    return frames
