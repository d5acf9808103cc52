"""Sigma as it acts: the base's chunk, Sigma's residual on it, how far that is trusted, limits."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sigma_jax import xla
from sigma_jax.objectives.sigma import SigmaObjective
from sigma_jax.policies.acting import Wanted, windows
from sigma_jax.policies.chunking import Chunking, keep_committed
from sigma_jax.policies.observation import Reading
from sigma_jax.policies.protocol import ACTIONS, COMMANDS, PolicySpec, PolicyState
from sigma_jax.policies.robot import RobotSpec
from sigma_jax.policies.sampled_policy import BaseActor
from sigma_jax.processing.normalize import NormStats, normalize
from sigma_jax.processing.processor import Processor
from sigma_jax.sigma import adapter
from sigma_jax.sigma.action import apply_residual, fuse_actions, low_level_controller
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.types import Ablation, Actions, Batch, Carry, Frozen, PyTree

# (trainable, frozen, batch [b ...], gates, carry, adapter) -> (carry, answers [b ...])
Correct = Callable[..., tuple[Carry, dict[str, Any]]]


class Seen(NamedTuple):
    """What Sigma makes of an observation.

    Attributes:
      actions: three branches around the base's, raw units.
      tau: telepathy factor [b e].
      c_act0: action condition of pass 1 [b e].
    """

    actions: Actions
    tau: Array
    c_act0: Array


# as `Correct`, of a base of zeros -> (carry, what was seen, what is added to a chunk [b t a])
Look = Callable[..., tuple[Carry, Seen, Array]]
# (base's chunk [b t a], what was seen, gates, adapter, chunking) -> answers [b ...]
Join = Callable[..., dict[str, Any]]
Rest = tuple[Ablation, Carry, AdapterState | None]
# (chunk [b t a], joints of its robots [b a], chunking) -> the chunk within the limits
Control = Callable[..., Array]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedParts:
    """A trained Sigma, wherever it comes from: a run, or an export.

    Attributes:
      objective: its sizes and the base's.
      trainable: its leaves, and LoRA factors of the base.
      frozen: the base's weights, as a run stores them, and the scaling of actions.
      statistics: by which its states are normalised.
      gates: those it was trained with.
      robot: whose data it learned from.
      adapter: fitted on calibration episodes; None: the residual counts whole.
    """

    objective: SigmaObjective
    trainable: PyTree
    frozen: Frozen
    statistics: NormStats
    gates: Ablation
    robot: RobotSpec
    adapter: AdapterState | None = None


class SigmaActor:
    """A Sigma around its base as a `policies.acting.Actor`.

    Args:
      base: samples the base for the same robot.
      parts: the Sigma.
      limited: whether `motor_commands` keep to the limits of its config.
    """

    def __init__(self, base: BaseActor, parts: TrainedParts, limited: bool = True):
        self.base, self.parts = base, parts
        sigma = parts.objective.sigma
        steps = min(base.spec.action_steps, sigma.horizon)
        self._spec = dataclasses.replace(base.spec, horizon=sigma.horizon, action_steps=steps)
        self._correct: Correct = xla.jit(make_correct(parts.objective))
        self._look: Look = xla.jit(make_look(parts.objective))
        self._join: Join = xla.jit(make_join(parts.objective))
        some = limited and any((sigma.joint_low, sigma.joint_high, sigma.joint_rate))
        self._control: Control | None = xla.jit(make_control(sigma)) if some else None
        self._gates = jax.tree.map(lambda x: np.asarray(x, np.float32), parts.gates)

    @property
    def processor(self) -> Processor:
        """See `policies.acting.Actor`."""
        return self.base.processor

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
        sigma = self.parts.objective.sigma
        memory, tau = (np.zeros(n, np.float32) for n in (sigma.d_model, sigma.d_tau))
        return PolicyState(episode, memory=memory, tau=tau)

    def act(
        self,
        readings: Sequence[Reading],
        states: Sequence[PolicyState],
        wanted: Wanted = Wanted(),
    ) -> tuple[dict[str, Any], list[PolicyState]]:
        """See `policies.acting.Actor`.

        Args:
          readings: one of each robot.
          states: one of each robot.
          wanted: of their chunks.

        Returns:
          `actions` [b t a], fused from the three branches, raw units; `motor_commands`, the same
          within the limits, of which that on the change a step counts from the joints that were
          read; `scale`, `risk` and `reasons` of the adapter; `tau_l2`; `branches`, before they were
          fused. And the states with memory and tau.
        """
        inputs = [self.base.processor.inputs(*reading) for reading in readings]
        asked, parts = windows(inputs, states, self.base.spec), self.parts
        own = parts.statistics['state']
        rows = [
            x | {'state': normalize(reading.state, own).astype(np.float32)}
            for x, reading in zip(inputs, readings, strict=True)
        ]
        seen = windows(rows, states, self._spec)
        before: Any = [np.stack([getattr(s, name) for s in states]) for name in ('memory', 'tau')]
        rest = self._gates, Carry(*before), parts.adapter
        work = self._chunks if wanted.chunking is None else self._continued
        carry, answers = work(asked, seen, rest, wanted)
        commands = answers[ACTIONS]
        if self._control is not None:
            present = np.stack([parts.robot.positions(reading.state) for reading in readings])
            commands = self._control(commands, present, wanted.chunking)
        carry, answers = jax.device_get((carry, answers | {COMMANDS: commands}))
        after = [
            dataclasses.replace(state, memory=carry.memory[n], tau=carry.tau[n])
            for n, state in enumerate(states)
        ]
        return answers, after

    def _chunks(self, asked: Batch, seen: Batch, rest: Rest, wanted: Wanted) -> Any:
        """The base's chunks, and Sigma's correction of them."""
        base: Any = self.base.sampler(asked, None, wanted.draws)[:, 0]
        batch, parts = dataclasses.replace(seen, base=base), self.parts
        return self._correct(parts.trainable, parts.frozen, batch, *rest)

    def _continued(self, asked: Batch, seen: Batch, rest: Rest, wanted: Wanted) -> Any:
        """The other way round: the base goes on from what is left over less what Sigma adds, so
        that its chunk and that together do so from what is left over.
        """
        parts, chunking = self.parts, cast(Chunking, wanted.chunking)
        carry, found, added = self._look(parts.trainable, parts.frozen, seen, *rest)
        own = dataclasses.replace(chunking, prefix=chunking.prefix - np.asarray(added))
        base = self.base.sampler(asked, own, wanted.draws)[:, 0]
        return carry, self._join(base, found, rest[0], rest[2], chunking)


def make_correct(objective: SigmaObjective) -> Correct:
    """A function to compile: what Sigma makes of the base's chunk.

    Args:
      objective: of the Sigma.

    Returns:
      See `Correct`.
    """

    def correct(trainable, frozen, batch: Batch, gates, carry, state):
        def robots(rows):
            carry, seen = _look(objective, trainable, frozen, rows, gates)
            return carry, _finish(objective.sigma, rows[0].base, seen, state)

        return xla.row_by_row(robots)((batch, carry))

    return correct


def make_look(objective: SigmaObjective) -> Look:
    """A function to compile: what Sigma adds to a base's chunk, before there is one.

    Its residual does not depend on the chunk, so a base can be bound to what is left over less what
    will be added.

    Args:
      objective: of the Sigma.

    Returns:
      See `Look`.
    """

    def look(trainable, frozen, batch: Batch, gates, carry, state):
        def robots(rows):
            carry, seen = _look(objective, trainable, frozen, rows, gates)
            added = _finish(objective.sigma, rows[0].base, seen, state)[ACTIONS]
            return carry, seen, added

        return xla.row_by_row(robots)((batch, carry))

    return look


def make_join(objective: SigmaObjective) -> Join:
    """A function to compile: a base's chunk with what Sigma adds to it, committed steps in place.

    Args:
      objective: of the Sigma.

    Returns:
      See `Join`.
    """
    sigma = objective.sigma

    def join(base, seen: Seen, gates: Ablation, state, chunking: Chunking):
        def robots(rows):
            base, seen, chunking = rows
            around = Actions.from_trajectory(base[:, : sigma.horizon], sigma.chunk)
            gate = gates.residual if sigma.fusion == 'pi05' else 0.0
            actions = apply_residual(seen.actions, around, jnp.ones(sigma.action_dim), gate)
            seen = seen._replace(actions=actions)
            return _finish(sigma, base, seen, state, chunking)

        return xla.row_by_row(robots)((base, seen, chunking))

    return join


def make_control(sigma: SigmaConfig) -> Control:
    """A function to compile: the limits of a config on chunks, committed steps in place.

    A chunk whose first steps are committed goes on from these. Any other goes on from where the
    joints are, which the observation says: no state, and the same again for the same observation.

    Args:
      sigma: with the limits.

    Returns:
      See `Control`.
    """

    def control(actions, present, chunking: Chunking | None):
        if chunking is not None:
            present = jnp.where(chunking.delay[:, None] > 0, jnp.nan, present)
        return _committed(low_level_controller(actions, sigma, present), chunking)

    return control


def _look(
    objective: SigmaObjective,
    trainable: PyTree,
    frozen: Frozen,
    rows: tuple[Batch, Carry],
    gates: Ablation,
) -> tuple[Carry, Seen]:
    """One window of each robot: memory and tau after it, and what is seen in it."""
    carry, output = objective.window(trainable, frozen, rows[0], gates, rows[1])
    return carry, Seen(output.actions, output.telepathy.tau, output.c_act0)


def _finish(
    sigma: SigmaConfig,
    base: Array,
    seen: Seen,
    state: AdapterState | None,
    chunking: Chunking | None = None,
) -> dict[str, Any]:
    """The residual as far as it is trusted, the branches fused, committed steps."""
    actions = seen.actions
    answers: dict[str, Any] = {'tau_l2': jnp.linalg.norm(seen.tau, axis=-1)}
    if state is not None:
        around = Actions.from_trajectory(base[:, : sigma.horizon], sigma.chunk)
        actions, scale, risk, reasons = adapter.adapt(around, actions, seen.tau, seen.c_act0, state)
        answers |= {'scale': scale, 'risk': risk, 'reasons': dataclasses.asdict(reasons)}
    branches = {name: getattr(actions, name) for name in ('vec', 'chk', 'traj')}
    fused = _committed(fuse_actions(actions), chunking)
    return answers | {ACTIONS: fused, 'branches': branches}


def _committed(actions: Array, chunking: Chunking | None) -> Array:
    if chunking is None:
        return actions
    return jnp.asarray(keep_committed(actions, chunking.prefix, chunking.delay))
