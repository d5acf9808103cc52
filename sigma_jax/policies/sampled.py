"""A base that acts by itself: its sampler for a robot, and the policy around it."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from sigma_jax import trees, xla
from sigma_jax.convert.base_policy import Base, robot_statistics
from sigma_jax.errors import UserError
from sigma_jax.nn import quant
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.policies import sampling
from sigma_jax.policies.base import ACTIONS, IMAGES, STATE, TASK, PolicySpec, PolicyState
from sigma_jax.processing import fitting
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.normalize import NormStats
from sigma_jax.processing.processor import Processor
from sigma_jax.types import ActionScaling, Batch, Observation, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A base's own actions on one robot, compiled once; what is stored beside shards, what
    robustness draws anew and what a live policy does are all this.

    Attributes:
      statistics: of the robot's state and actions, by which the base is asked.
      run: compiled; see `sampling.Sample`.
      weights: on the device.
      scaling: of the actions.
    """

    statistics: NormStats
    run: sampling.Sample
    weights: PyTree
    scaling: ActionScaling

    def __call__(self, batch: Batch) -> Float[np.ndarray, 'b m t a']:
        """All draws for the windows of a batch.

        Args:
          batch: leaves [b ...].

        Returns:
          Actions in raw units.
        """
        return np.asarray(self.run(self.weights, self.scaling, batch))

    def of_sequences(self, batch: Mapping[str, Any]) -> Float[np.ndarray, 'b g m t a']:
        """The same of a loader's batch, some windows at a time; see `sampling.in_parts`.

        Args:
          batch: leaves [b g ...].

        Returns:
          Actions in raw units.
        """
        return sampling.in_parts(self.run, self.weights, self.scaling, batch)


def make_sampler(
    base: Base,
    robot: fitting.Robot,
    horizon: int,
    *,
    seed: int = 0,
    samples: int = 1,
    weights: PyTree | None = None,
) -> Sampler:
    """The sampler of a base with its weights, on a robot.

    Args:
      base: with its weights and statistics.
      robot: whose joints they are.
      horizon: actions that are kept of a chunk.
      seed: of the noise, which is a window's own: by episode, frame and draw.
      samples: chunks a window.
      weights: the base's on the device, in whatever form; None: put there as they are stored.

    Returns:
      The sampler; its first call compiles it.

    Raises:
      UserError: a base that does not act, has no statistics, or knows another robot.
    """
    check_acts(base)
    relative = fitting.of_shards((), base.policy, robot, base.config.action_dim)
    statistics = cast(NormStats, robot_statistics(base, robot))
    sample = sampling.make_sampler(sampling.bind_frozen(base.config), seed, samples, horizon)
    weights = stored_weights(base) if weights is None else weights
    scaling = action_scaling(statistics, statistics, relative)
    return Sampler(statistics, xla.jit(sample), weights, scaling)


def check_acts(base: Base) -> None:
    """Whether a base can be sampled at all.

    Args:
      base: opened, its weights unread or read.

    Raises:
      UserError: its kind does not act, or no statistics lie beside it.
    """
    if not base.spec.samples:
        raise UserError(
            f'expected a base that acts, got one of kind {base.spec.name!r}, which does not; take '
            'another base'
        )
    if base.norm_stats is None:
        raise UserError(
            f'expected norm_stats.json in {base.folder}, got none; a policy is sampled in the '
            'units it was trained in: copy the statistics of its training data there'
        )


def stored_weights(
    base: Base, storage: QuantConfig = QuantConfig(), held: PyTree | None = None
) -> PyTree:
    """A base's weights on the device, in the form that `storage` names.

    Args:
      base: with its weights.
      storage: how its matrices lie there.
      held: leaves of the same weights that lie there already, in that form, such as the frozen ones
        of a training; they are shared.

    Returns:
      All leaves.

    Raises:
      UserError: as `quant.assign_formats`.
    """
    spec, there = base.spec, _leaves(held or {})
    rest = quant.store(
        base.params, spec.stored, storage, lambda path: path not in there, float32=spec.float32
    )
    return trees.unflatten(_leaves(rest) | there)


def _leaves(weights: PyTree) -> dict[str, Any]:
    return trees.flatten(weights, is_leaf=lambda x: isinstance(x, quant.Quantised))


class SampledPolicy:
    """A base as a `policies.base.Policy`: no Sigma, no memory but the count of what it was asked.

    Args:
      base: opened; of its settings the steps to carry out count.
      processor: how it sees the world.
      sampler: how it acts on the robot.
      horizon: actions of a chunk, as the sampler gives them.

    The noise of a chunk belongs to seed, episode and frame: `reset` begins the next episode, and
    each `infer` is a frame of it. An observation may tell both itself (`episode`, `frame`), as
    those of a data set do. Cameras stay the same until `reset`: one that drops out would be masked
    in silence otherwise.
    """

    def __init__(self, base: Base, processor: Processor, sampler: Sampler, horizon: int):
        self._processor, self._sampler = processor, sampler
        steps = base.policy.action_steps or horizon
        self._spec = PolicySpec(
            cameras=processor.cameras,
            state_dim=len(sampler.statistics['state'].mean),
            action_dim=len(sampler.statistics['actions'].mean),
            horizon=horizon,
            action_steps=min(steps, horizon),
            processor=processor.config,
        )
        self.state = self.initial_state()

    @property
    def spec(self) -> PolicySpec:
        """See `policies.base.Policy`."""
        return self._spec

    def metadata(self) -> dict[str, Any]:
        """See `policies.base.Policy`."""
        return dataclasses.asdict(self._spec)

    def initial_state(self, episode: int = 0) -> PolicyState:
        """See `policies.base.Policy`.

        Args:
          episode: its number.
        """
        return PolicyState(episode)

    def reset(self) -> None:
        """See `policies.base.Policy`."""
        self.state = self.initial_state(self.state.episode + bool(self.state.frame))

    def infer(
        self, observation: Mapping[str, Any], *, noise: Float[np.ndarray, 't d'] | None = None
    ) -> Mapping[str, Any]:
        """A chunk of actions for one observation; see `policies.base.Policy`.

        Args:
          observation: raw.
          noise: where the flow begins.

        Returns:
          `actions` [t a] float32, raw units.

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
        """Chunks for several robots; see `policies.base.Policy`.

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
            raise UserError('expected noise=None, got numbers; a base draws its own so far')
        start = time.perf_counter()
        read = [read_observation(each, self._spec) for each in observations]
        for (frames, _, _), state in zip(read, states, strict=True):
            check_cameras(frames, state)
        inputs = [self._processor.inputs(*parts) for parts in read]
        episode = [
            each.get('episode', s.episode) for each, s in zip(observations, states, strict=True)
        ]
        frame = [each.get('frame', s.frame) for each, s in zip(observations, states, strict=True)]
        drawn = self._sampler(windows(inputs, episode, frame, self._spec))[:, 0]
        timing = {'infer_ms': 1e3 * (time.perf_counter() - start)}
        after = [
            dataclasses.replace(state, frame=state.frame + 1, cameras=tuple(sorted(frames)))
            for (frames, _, _), state in zip(read, states, strict=True)
        ]
        return [{ACTIONS: actions, 'timing': timing} for actions in drawn], after


def check_cameras(frames: Mapping[str, np.ndarray], state: PolicyState) -> None:
    """Whether every camera that an episode has shown is still there.

    Args:
      frames: of the observation.
      state: of the episode.

    Raises:
      UserError: one is not.
    """
    if set(state.cameras) - set(frames):
        raise UserError(
            f'expected the cameras of this episode ({", ".join(state.cameras)}), got '
            f'{", ".join(sorted(frames))}; call reset where a camera is taken away'
        )


def windows(
    inputs: Sequence[Mapping[str, np.ndarray]],
    episode: Sequence[int],
    frame: Sequence[int],
    spec: PolicySpec,
) -> Batch:
    """A batch of windows with no actions to learn from.

    Args:
      inputs: fields of each one's observation.
      episode: number of each.
      frame: of each within its episode.
      spec: sizes of the actions that are not there.

    Returns:
      Leaves [b ...].
    """
    b = len(inputs)
    fields: dict[str, Any] = {name: np.stack([x[name] for x in inputs]) for name in inputs[0]}
    none = np.zeros((b, spec.horizon, spec.action_dim), np.float32)
    yes, mask = np.ones(b, bool), np.ones((b, spec.horizon), bool)
    numbers = np.zeros(b, np.int32), np.asarray(episode, np.int32), np.asarray(frame, np.int32)
    arrays: Any = none, mask, none, yes, yes, *numbers
    return Batch(Observation(**fields), *arrays)


def read_observation(
    observation: Mapping[str, Any], spec: PolicySpec
) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
    """A raw observation in its parts, checked.

    Args:
      observation: see `policies.base.Policy.infer`.
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
    return {name.removeprefix(IMAGES): np.asarray(observation[name]) for name in names}, state, task
