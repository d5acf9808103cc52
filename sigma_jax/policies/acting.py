"""A policy on robots: observations read and checked, the state of each episode kept, chunks given.

How a chunk is computed is an `Actor`: `sampled_policy.BaseActor` samples a base, `sigma.SigmaActor`
samples it and corrects what came.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import IMAGES, STATE, TASK, PolicySpec, PolicyState
from sigma_jax.processing.images import unit_range
from sigma_jax.types import Batch, Observation


class Reading(NamedTuple):
    """An observation in its parts.

    Attributes:
      frames: by camera.
      state: [p], raw units.
      task: the instruction.
    """

    frames: dict[str, np.ndarray]
    state: Float[np.ndarray, ' p']
    task: str


class Actor(Protocol):
    """Computes chunks; keeps nothing."""

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        ...

    def initial_state(self, episode: int) -> PolicyState:
        """The state before the first observation of an episode.

        Args:
          episode: its number.
        """
        ...

    def act(
        self, readings: Sequence[Reading], states: Sequence[PolicyState]
    ) -> tuple[dict[str, Any], list[PolicyState]]:
        """Chunks for several robots.

        Args:
          readings: one of each.
          states: one of each, with the numbers of episode and frame that count.

        Returns:
          answers: {name: [b ...]}, `actions` [b t a] among them.
          states: with what is remembered; episode, frame and cameras are not looked at.
        """
        ...


class ActingPolicy:
    """A `policies.protocol.Policy` of an actor.

    The noise of a chunk belongs to seed, episode and frame: `reset` begins the next episode, and
    each `infer` is a frame of it. An observation may name both itself (`episode`, `frame`), as
    those of a data set do. Cameras stay the same until `reset`: one that drops out would be masked
    in silence otherwise.

    Args:
      actor: computes chunks.
    """

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.state = self.initial_state()

    @property
    def spec(self) -> PolicySpec:
        """See `policies.protocol.Policy`."""
        return self.actor.spec

    def metadata(self) -> dict[str, Any]:
        """See `policies.protocol.Policy`."""
        return dataclasses.asdict(self.spec)

    def initial_state(self, episode: int = 0) -> PolicyState:
        """See `policies.protocol.Policy`.

        Args:
          episode: its number.
        """
        return self.actor.initial_state(episode)

    def reset(self) -> None:
        """See `policies.protocol.Policy`."""
        self.state = self.initial_state(self.state.episode + bool(self.state.frame))

    def infer(
        self, observation: Mapping[str, Any], *, noise: Float[np.ndarray, 't d'] | None = None
    ) -> Mapping[str, Any]:
        """A chunk of actions for one observation; see `policies.protocol.Policy`.

        Args:
          observation: raw.
          noise: where the flow begins.

        Returns:
          `actions` [t a] float32, raw units, and what else the actor gives.

        Raises:
          UserError: an observation that lacks something, or holds something else.
        """
        answers, (self.state,) = self.infer_batch([observation], [self.state], noise=[noise])
        return answers[0]

    def infer_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        states: Sequence[PolicyState],
        *,
        noise: Sequence[Float[np.ndarray, 't d'] | None] | None = None,
    ) -> tuple[list[Mapping[str, Any]], list[PolicyState]]:
        """Chunks for several robots; see `policies.protocol.Policy`.

        Args:
          observations: one of each robot.
          states: one of each robot.
          noise: one of each robot, or None.

        Returns:
          Answers, and states after them.

        Raises:
          UserError: an observation that lacks something, or holds something else.
        """
        if any(each is not None for each in noise or ()):
            raise UserError('expected noise=None, got numbers; a policy draws its own so far')
        start = time.perf_counter()
        readings = [read_observation(each, self.spec) for each in observations]
        asked = [_asked(*each) for each in zip(observations, readings, states, strict=True)]
        answers, after = self.actor.act(readings, asked)
        timing = {'infer_ms': 1e3 * (time.perf_counter() - start)}
        rows = [
            jax.tree.map(lambda x, n=n: x[n], answers) | {'timing': timing}
            for n in range(len(readings))
        ]
        return rows, [_next(*each) for each in zip(after, readings, states, strict=True)]


def _asked(observation: Mapping[str, Any], reading: Reading, state: PolicyState) -> PolicyState:
    """The state with the numbers that the observation names."""
    if set(state.cameras) - set(reading.frames):
        raise UserError(
            f'expected the cameras of this episode ({", ".join(state.cameras)}), got '
            f'{", ".join(sorted(reading.frames))}; call reset where a camera is taken away'
        )
    episode, frame = (
        int(observation.get(name, getattr(state, name))) for name in ('episode', 'frame')
    )
    return dataclasses.replace(state, episode=episode, frame=frame)


def _next(after: PolicyState, reading: Reading, before: PolicyState) -> PolicyState:
    """The state for the next observation of the episode."""
    return dataclasses.replace(
        after,
        episode=before.episode,
        frame=before.frame + 1,
        cameras=tuple(sorted(reading.frames)),
    )


def windows(
    inputs: Sequence[Mapping[str, np.ndarray]], states: Sequence[PolicyState], spec: PolicySpec
) -> Batch:
    """A batch of windows with no actions to learn from.

    Args:
      inputs: fields of each one's observation.
      states: episode and frame of each.
      spec: sizes of the actions that are not there.

    Returns:
      Leaves [b ...].
    """
    fields: dict[str, Any] = {name: _stack([x[name] for x in inputs]) for name in inputs[0]}
    b = len(inputs)
    none = np.zeros((b, spec.horizon, spec.action_dim), np.float32)
    mask, yes = np.ones((b, spec.horizon), bool), np.ones(b, bool)
    arrays: dict[str, Any] = {
        'actions': none,
        'action_mask': mask,
        'base': none,
        'reset': np.array([state.frame == 0 for state in states]),
        'mask': yes,
        'text_id': np.zeros(b, np.int32),
        'episode': np.array([state.episode for state in states], np.int32),
        'frame': np.array([state.frame for state in states], np.int32),
    }
    return Batch(observation=Observation(**fields), **arrays)


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """One array; images of which some are in whole grey levels and others are not, in float."""
    if len({row.dtype for row in rows}) > 1:
        rows = [unit_range(row) if row.dtype == np.uint8 else row for row in rows]
    return np.stack(rows)


def read_observation(observation: Mapping[str, Any], spec: PolicySpec) -> Reading:
    """A raw observation in its parts, checked.

    Args:
      observation: see `policies.protocol.Policy.infer`.
      spec: what the policy takes.

    Returns:
      Frames by camera, state [p], task.

    Raises:
      UserError: a key that is absent, a state of another width or with NaN or infinity in it, or a
        task that is no text. Frames are checked where they are resized (`Processor.inputs`).
    """
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
    task = observation[TASK]
    if not isinstance(task, str):
        raise UserError(
            f'expected {TASK} as a text, got {type(task).__name__}; pass the instruction of this '
            'one robot'
        )
    state = np.asarray(observation[STATE], np.float32)
    if state.shape != (spec.state_dim,):
        raise UserError(
            f'expected {STATE} of {spec.state_dim} numbers, got shape {list(state.shape)}; pass '
            'the joints that the policy was trained on, in their order'
        )
    if not np.isfinite(state).all():
        raise UserError(
            f'expected numbers in {STATE}, got {state.tolist()}; look at the reading behind it'
        )
    frames = {name.removeprefix(IMAGES): np.asarray(observation[name]) for name in names}
    return Reading(frames, state, task)
