"""A policy on robots: observations read and checked, the state of each episode kept, chunks given.

How a chunk is computed is an `Actor`: `sampled_policy.BaseActor` samples a base, `sigma.SigmaActor`
samples it and corrects what came.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError
from sigma_jax.policies import chunking as going_on
from sigma_jax.policies import draws, given
from sigma_jax.policies.chunking import Chunking, ChunkingConfig
from sigma_jax.policies.draws import Draws
from sigma_jax.policies.observation import Reading, read_observation
from sigma_jax.policies.protocol import ACTIONS, COMMANDS, PolicySpec, PolicyState, Program
from sigma_jax.processing.images import unit_range
from sigma_jax.processing.processor import Processor
from sigma_jax.types import Batch, Observation


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
    in silence otherwise. Where the policy names none, the first observation of an episode says
    their order.

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

        Raises:
          UserError: no number from 0 to 2^31 - 1.
        """
        return self.actor.initial_state(given.number('episode', episode))

    def reset(self) -> None:
        """See `policies.protocol.Policy`."""
        self.state = self.initial_state(self.state.episode + bool(self.state.frame))

    def warm_up(self, robots: Sequence[int] = (1,), cameras: Sequence[str] = ()) -> None:
        """Compiles what acting needs, so that the first robot does not wait for it; chunks of a
        `seed` or of `noise` too. A way to go on that a call names with `chunking=` is compiled when
        it is first asked for: load the policy with it.

        Args:
          robots: numbers of robots that will be asked for at once.
          cameras: that will come, where the policy takes any; (): one.
        """
        for _, program in self.programs(robots, cameras, drawn=True):
            program()

    def programs(
        self, robots: Sequence[int] = (1,), cameras: Sequence[str] = (), *, drawn: bool = False
    ) -> list[Program]:
        """What compiles all that acting needs, one after the other: for every length of a prompt,
        and for frames that need be resized or not where that counts. Where the policy was loaded
        with a way to go on, that too.

        Args:
          robots: numbers of robots that will be asked for at once.
          cameras: that will come, where the policy takes any; (): one.
          drawn: whether chunks of a seed or of given noise, too.

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
                    for wanted in self._ways(count, drawn):
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
        start, observations = time.perf_counter(), given.of_each('an observation', observations)
        count = len(observations)
        states = given.of_each('a state', states, count)
        wishes = {'noise': noise, 'seed': seed, 'prefix': prefix}
        noises, seeds, left = (
            [None] * count if each is None else given.of_each(name, each, count)
            for name, each in wishes.items()
        )
        begin = draws.of_robots(noises, seeds, self.spec.noise_shape)
        delays = [0] * count if delay is None else given.of_each('delay', delay, count)
        going = self._going_on(left, delays, chunking)
        for state in states:
            _check_state(state, self.initial_state())
        readings = [
            _in_order(read_observation(seen, self.spec, self.cameras), state)
            for seen, state in zip(observations, states, strict=True)
        ]
        _check_cameras(readings, self.spec)
        asked = [_asked(*each) for each in zip(observations, readings, states, strict=True)]
        answers, after = self.actor.act(readings, asked, Wanted(begin, going))
        _check_finite(answers)
        timing = {'infer_ms': 1e3 * (time.perf_counter() - start)}
        rows = [
            jax.tree.map(lambda x, n=n: x[n], answers) | {'timing': timing}
            for n in range(len(readings))
        ]
        return rows, [_next(*each) for each in zip(after, readings, states, strict=True)]

    def _ways(self, count: int, drawn: bool) -> list[Wanted]:
        """What is asked of chunks, as far as it needs programs of its own."""
        begin: list[Draws | None] = [None]
        going: list[Chunking | None] = [None]
        if self.chunking is not None:
            left = np.zeros((self.spec.horizon, self.spec.action_dim), np.float32)
            going.append(self._going_on([left] * count, [1] * count, None))
        if drawn and self.spec.noise_shape is not None:
            nothing = [None] * count
            begin.append(draws.of_robots(nothing, [0] * count, self.spec.noise_shape))
        return [Wanted(*one) for one in itertools.product(begin, going)]

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
        going_on.check_learned(config, spec.processor)
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


def _check_state(state: PolicyState, fresh: PolicyState) -> None:
    """Whether a state is one of this policy."""
    if not isinstance(state, PolicyState):
        raise UserError(f'expected a PolicyState, got {state!r}; begin with initial_state()')
    for name in ('memory', 'tau'):
        want, got = (np.shape(getattr(one, name)) for one in (fresh, state))
        if want != got:
            raise UserError(
                f'expected a state with {name} of shape {list(want)}, got {list(got)}, that of '
                'another policy; begin with initial_state()'
            )


def _in_order(reading: Reading, state: PolicyState) -> Reading:
    """The frames in the order of the episode's first observation, those of new cameras last."""
    names = dict.fromkeys((*state.cameras, *reading.frames))
    return reading._replace(
        frames={name: reading.frames[name] for name in names if name in reading.frames}
    )


def _check_cameras(readings: Sequence[Reading], spec: PolicySpec) -> None:
    """Whether robots can be computed together, where the policy has no views of its own."""
    if not spec.cameras and len({len(reading.frames) for reading in readings}) > 1:
        sets = '; '.join(f'{n}: {", ".join(one.frames)}' for n, one in enumerate(readings))
        raise UserError(
            f'expected as many cameras of each robot, got other ones ({sets}); ask for the robots '
            'one by one'
        )


def _check_finite(answers: Mapping[str, Any]) -> None:
    """Whether every robot has actions that can be carried out."""
    known = [name for name in (ACTIONS, COMMANDS) if name in answers]
    rows = [np.isfinite(answers[name]).all((1, 2)) for name in known]
    if bad := np.flatnonzero(~np.all(rows, axis=0)).tolist():
        raise UserError(
            f'expected finite actions, got NaN or infinity for robot {", ".join(map(str, bad))}; '
            'its state, noise or prefix lies far outside what the policy knows'
        )


def _asked(observation: Mapping[str, Any], reading: Reading, state: PolicyState) -> PolicyState:
    """The state with the numbers that the observation names."""
    if set(state.cameras) - set(reading.frames):
        raise UserError(
            f'expected the cameras of this episode ({", ".join(state.cameras)}), got '
            f'{", ".join(reading.frames)}; call reset where a camera is taken away'
        )
    episode, frame = (
        given.number(name, observation.get(name, getattr(state, name)))
        for name in ('episode', 'frame')
    )
    return dataclasses.replace(state, episode=episode, frame=frame)


def _next(after: PolicyState, reading: Reading, before: PolicyState) -> PolicyState:
    """The state for the next observation of the episode."""
    return dataclasses.replace(
        after,
        episode=before.episode,
        frame=before.frame + 1,
        cameras=tuple(reading.frames),
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
