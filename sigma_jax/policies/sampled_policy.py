"""A base that acts by itself: its sampler for a robot, and the policy around it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from sigma_jax import trees, xla
from sigma_jax.convert.load_base import Base, robot_statistics
from sigma_jax.errors import UserError
from sigma_jax.nn import quant
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.policies import sampling
from sigma_jax.policies.acting import Wanted, windows
from sigma_jax.policies.chunking import Chunking, binds, keep_committed
from sigma_jax.policies.draws import Draws
from sigma_jax.policies.observation import Reading
from sigma_jax.policies.protocol import ACTIONS, PolicySpec, PolicyState
from sigma_jax.processing import fitting
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.normalize import NormStats
from sigma_jax.processing.processor import Processor
from sigma_jax.types import ActionScaling, Batch, PyTree


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

    def __call__(
        self, batch: Batch, chunking: Chunking | None = None, draws: Draws | None = None
    ) -> Float[np.ndarray, 'b m t a']:
        """All draws for the windows of a batch.

        Args:
          batch: leaves [b ...].
          chunking: what the chunks go on from, where they do; the base's kind acts by flow then
            (`BackboneSpec.flows`). Where it binds no robot, the chunks are those of the plain
            sampler, to the bit: its program is run.
          draws: where they begin, if not where the policy's seed says; by flow too.

        Returns:
          Actions in raw units.
        """
        if chunking is not None and not binds(chunking):
            chunking = None
        return np.asarray(self.run(self.weights, self.scaling, batch, chunking, draws))

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


class BaseActor:
    """A base as a `policies.acting.Actor`: no Sigma, no memory.

    Args:
      base: opened; of its settings the steps to carry out count.
      processor: how it sees the world.
      sampler: how it acts on the robot.
      horizon: actions of a chunk, as the sampler gives them.
    """

    def __init__(self, base: Base, processor: Processor, sampler: Sampler, horizon: int):
        self._processor, self.sampler = processor, sampler
        steps, model = base.policy.action_steps or horizon, base.config
        self._spec = PolicySpec(
            cameras=processor.cameras,
            state_dim=len(sampler.statistics['state'].mean),
            action_dim=len(sampler.statistics['actions'].mean),
            horizon=horizon,
            action_steps=min(steps, horizon),
            processor=processor.config,
            noise_shape=(model.action_horizon, model.action_dim) if base.spec.flows else None,
        )

    @property
    def processor(self) -> Processor:
        """See `policies.acting.Actor`."""
        return self._processor

    @property
    def spec(self) -> PolicySpec:
        """See `policies.acting.Actor`."""
        return self._spec

    def initial_state(self, episode: int) -> PolicyState:
        """See `policies.acting.Actor`.

        Args:
          episode: its number.

        Returns:
          The state.
        """
        return PolicyState(episode)

    def act(
        self,
        readings: Sequence[Reading],
        states: Sequence[PolicyState],
        wanted: Wanted = Wanted(),
    ) -> tuple[dict[str, np.ndarray], list[PolicyState]]:
        """See `policies.acting.Actor`.

        Args:
          readings: one of each robot.
          states: one of each robot.
          wanted: of their chunks.

        Returns:
          `actions` [b t a], float32, raw units, and the states as they were.
        """
        inputs = [self.processor.inputs(*reading) for reading in readings]
        batch, chunking = windows(inputs, states, self._spec), wanted.chunking
        actions: Any = self.sampler(batch, chunking, wanted.draws)[:, 0]
        if chunking is not None:
            actions = np.asarray(keep_committed(actions, chunking.prefix, chunking.delay))
        return {ACTIONS: actions}, list(states)
