"""A policy on robots: observations read and checked, the state of each episode kept, chunks given.

How a chunk is computed is an `Actor`: `sampled_policy.BaseActor` samples a base, `sigma.SigmaActor`
samples it and corrects what came.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError
from sigma_jax.policies import chunking as going_on
from sigma_jax.policies import draws
from sigma_jax.policies.chunking import Chunking, ChunkingConfig
from sigma_jax.policies.draws import Draws
from sigma_jax.policies.protocol import IMAGES, STATE, TASK, PolicySpec, PolicyState, Program
from sigma_jax.processing.images import unit_range
from sigma_jax.processing.processor import Processor
from sigma_jax.types import Batch, Observation


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


class Wanted(NamedTuple):
    """What is asked of the chunks of some robots.

    Attributes:
      draws: where they begin; None: where the policy's seed, episode and frame say.
      chunking: what they go on from; None: from nothing.
    """

    draws: Draws | None = None
    chunking: Chunking | None = None


class Actor(Protocol):
    """Computes chunks; keeps nothing."""

    @property
    def processor(self) -> Processor:
        """What lies between the robot and the base."""
        ...

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        ...

    def initial_state(self, episode: int) -> PolicyState:
        """The state before the first observation of an episode.

        Args:
          episode: its number.

        Returns:
          The state.
        """
        ...

    def act(
        self,
        readings: Sequence[Reading],
        states: Sequence[PolicyState],
        wanted: Wanted = Wanted(),
    ) -> tuple[dict[str, Any], list[PolicyState]]:
        """Chunks for several robots.

        Args:
          readings: one of each.
          states: one of each, with the numbers of episode and frame that count.
          wanted: of their chunks.

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
      cameras: the policy's names of those that the robot calls otherwise: {robot's: policy's}.
      chunking: how chunks go on from those before, where a call hands over what is left of one and
        does not say; None: each call says.

    Raises:
      UserError: a name that the policy does not know, or one for two cameras; or it has not learned
        to go on so.
    """

    def __init__(
        self,
        actor: Actor,
        cameras: Mapping[str, str] | None = None,
        chunking: ChunkingConfig | None = None,
    ) -> None:
        if chunking is not None:
            going_on.check_learned(chunking, actor.spec.processor)
        self.actor, self.cameras, self.chunking = actor, dict(cameras or {}), chunking
        known, meant = self.spec.cameras, list(self.cameras.values())
        if len(set(meant)) < len(meant) or (known and set(meant) - set(known)):
            names = ', '.join(known) or 'whatever the policy calls them'
            raise UserError(
                f"cameras: expected {{robot's name: policy's name}}, the latter of {names}, each "
                f'once, got {self.cameras!r}; correct it'
            )
        self.state = self.initial_state()

    @property
    def spec(self) -> PolicySpec:
        """See `policies.protocol.Policy`."""
        return self.actor.spec

    def metadata(self) -> dict[str, Any]:
        """See `policies.protocol.Policy`."""
        how = None if self.chunking is None else dataclasses.asdict(self.chunking)
        return dataclasses.asdict(self.spec) | {'chunking': how}

    def initial_state(self, episode: int = 0) -> PolicyState:
        """See `policies.protocol.Policy`.

        Args:
          episode: its number.

        Returns:
          The state.
        """
        return self.actor.initial_state(episode)

    def reset(self) -> None:
        """See `policies.protocol.Policy`."""
        self.state = self.initial_state(self.state.episode + bool(self.state.frame))

    def warm_up(self, robots: Sequence[int] = (1,)) -> None:
        """Compiles what acting needs, so that the first robot does not wait for it.

        Args:
          robots: numbers of robots that will be asked for at once.
        """
        for _, program in self.programs(robots):
            program()

    def programs(self, robots: Sequence[int] = (1,), cameras: Sequence[str] = ()) -> list[Program]:
        """What compiles all that acting needs, one after the other: for every length of a prompt,
        and for frames that need be resized or not where that counts. Where the policy was loaded
        with a way to go on, that too.

        Args:
          robots: numbers of robots that will be asked for at once.
          cameras: that will come, where the policy takes any; (): one.

        Returns:
          The programs, for the smallest number of robots first.
        """
        processor, state = self.actor.processor, self.initial_state()
        names = self.spec.cameras or tuple(cameras) or ('view',)
        found: list[Program] = []
        reading = processor.statistics['state'].mean
        for count in sorted(robots):
            for length in processor.prompt_lengths or (0,):
                for frame in _frames_of_each_dtype(processor):
                    one = Reading(dict.fromkeys(names, frame), reading, 'move', length)
                    for wanted in self._ways(count):
                        asked = [one] * count, [state] * count, wanted
                        found.append((count, functools.partial(self.actor.act, *asked)))
        return found

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        noise: Float[np.ndarray, 't d'] | None = None,
        seed: int | None = None,
        prefix: Float[np.ndarray, 't2 a'] | None = None,
        delay: int = 0,
        chunking: ChunkingConfig | None = None,
    ) -> Mapping[str, Any]:
        """A chunk of actions for one observation; see `policies.protocol.Policy`.

        Args:
          observation: raw.
          noise: where the flow begins.
          seed: of that, instead.
          prefix: left over of the chunk before.
          delay: steps of it that are committed.
          chunking: how to go on from it.

        Returns:
          `actions` [t a] float32, raw units, and what else the actor gives.

        Raises:
          UserError: an observation that lacks something, or holds something else; or any of the
            others.
        """
        answers, (self.state,) = self.infer_batch(
            [observation],
            [self.state],
            noise=[noise],
            seed=[seed],
            prefix=[prefix],
            delay=[delay],
            chunking=chunking,
        )
        return answers[0]

    def infer_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        states: Sequence[PolicyState],
        *,
        noise: Sequence[Float[np.ndarray, 't d'] | None] | None = None,
        seed: Sequence[int | None] | None = None,
        prefix: Sequence[Float[np.ndarray, 't2 a'] | None] | None = None,
        delay: Sequence[int] | None = None,
        chunking: ChunkingConfig | None = None,
    ) -> tuple[list[Mapping[str, Any]], list[PolicyState]]:
        """Chunks for several robots; see `policies.protocol.Policy`.

        Args:
          observations: one of each robot.
          states: one of each robot.
          noise: of each robot, or None.
          seed: of each robot, or None.
          prefix: of each robot, or None.
          delay: of each robot; None: 0.
          chunking: of all.

        Returns:
          Answers, and states after them.

        Raises:
          UserError: an observation that lacks something, or holds something else; or any of the
            others.
        """
        start, count = time.perf_counter(), len(observations)
        rows: Any = ([None] * count if each is None else each for each in (noise, seed, prefix))
        noises, seeds, left = rows
        begin = draws.of_robots(noises, seeds, self.spec.noise_shape)
        going = self._going_on(left, [0] * count if delay is None else delay, chunking)
        for state in states:
            _check_width(state, self.initial_state())
        readings = [read_observation(each, self.spec, self.cameras) for each in observations]
        asked = [_asked(*each) for each in zip(observations, readings, states, strict=True)]
        answers, after = self.actor.act(readings, asked, Wanted(begin, going))
        timing = {'infer_ms': 1e3 * (time.perf_counter() - start)}
        rows = [
            jax.tree.map(lambda x, n=n: x[n], answers) | {'timing': timing}
            for n in range(len(readings))
        ]
        return rows, [_next(*each) for each in zip(after, readings, states, strict=True)]

    def _ways(self, count: int) -> list[Wanted]:
        """What is asked of chunks, as far as it needs programs of its own."""
        if self.chunking is None:
            return [Wanted()]
        left = np.zeros((self.spec.horizon, self.spec.action_dim), np.float32)
        return [Wanted(), Wanted(None, self._going_on([left] * count, [1] * count, None))]

    def _going_on(
        self,
        left: Sequence[Float[np.ndarray, 't2 a'] | None],
        delays: Sequence[int],
        config: ChunkingConfig | None,
    ) -> Chunking | None:
        """What the chunks go on from; None: from nothing, by which the plain program runs."""
        config, spec = config or self.chunking, self.spec
        if config is None:
            if any(each is not None for each in left):
                raise UserError(
                    'expected prefix=None of a policy that was not told how to go on from it, got '
                    "actions; pass chunking=ChunkingConfig('guided')"
                )
            return None
        if config.mode != 'none' and spec.noise_shape is None:
            raise UserError(
                f"chunking.mode: expected 'none' of a policy that does not act by flow, got "
                f'{config.mode!r}; it cannot go on from a chunk'
            )
        made = going_on.of_robots(config, left, delays, (spec.horizon, spec.action_dim))
        going_on.check_learned(config, spec.processor, int(made.delay.max(initial=0)))
        return made if going_on.counts(made) else None


def _frames_of_each_dtype(processor: Processor) -> list[np.ndarray]:
    """Frames of which some come to the model in whole grey levels and others do not."""
    side = processor.image_size
    shapes = (side, side), (2 * side, 2 * side), (side, 2 * side)
    frames = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    return list({processor.view(frame).dtype: frame for frame in frames}.values())


def _check_width(state: PolicyState, fresh: PolicyState) -> None:
    """Whether a state is one of this policy."""
    for name in ('memory', 'tau'):
        want, got = (np.shape(getattr(one, name)) for one in (fresh, state))
        if want != got:
            raise UserError(
                f'expected a state with {name} of shape {list(want)}, got {list(got)}, that of '
                'another policy; begin with initial_state()'
            )


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
    """One array; images of which some are in whole grey levels and others are not, in float; the
    shorter ones of prompts padded.
    """
    if rows[0].ndim == 1 and len({len(row) for row in rows}) > 1:
        longest = max(len(row) for row in rows)
        rows = [np.pad(row, (0, longest - len(row))) for row in rows]
    if len({row.dtype for row in rows}) > 1:
        rows = [unit_range(row) if row.dtype == np.uint8 else row for row in rows]
    return np.stack(rows)


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
    return Reading(_frames({name: observation[name] for name in names}, cameras or {}), state, task)


def _frames(observation: Mapping[str, Any], cameras: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Frames [height width 3] under the policy's names."""
    frames: dict[str, np.ndarray] = {}
    for key, value in observation.items():
        theirs, frame = key.removeprefix(IMAGES), np.asarray(value)
        name = cameras.get(theirs, theirs)
        if name in frames:
            raise UserError(
                f'expected one frame of {name}, got two ({", ".join(sorted(observation))}); rename '
                'one, or leave it out'
            )
        channels_first = frame.ndim == 3 and frame.shape[0] == 3 and frame.shape[2] != 3
        frames[name] = frame.transpose(1, 2, 0) if channels_first else frame
    return frames
