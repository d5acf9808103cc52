"""Sigma as it acts: the base's chunk, Sigma's residual on it, how far that is trusted, limits."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax import xla
from sigma_jax.objectives.sigma import SigmaObjective
from sigma_jax.policies.acting import Reading, windows
from sigma_jax.policies.protocol import ACTIONS, PolicySpec, PolicyState
from sigma_jax.policies.sampled_policy import BaseActor
from sigma_jax.processing.normalize import NormStats, normalize
from sigma_jax.processing.processor import Processor
from sigma_jax.sigma import adapter
from sigma_jax.sigma.action import fuse_actions, low_level_controller
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.types import Ablation, Actions, Batch, Carry, Frozen, PyTree

# (trainable, frozen, batch [b ...], gates, carry, adapter) -> (carry, answers [b ...])
Correct = Callable[..., tuple[Carry, dict[str, Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedParts:
    """A trained Sigma, wherever it comes from: a run, or an export.

    Attributes:
      objective: its sizes and the base's.
      trainable: its leaves, and LoRA factors of the base.
      frozen: the base's weights, as a run stores them, and the scaling of actions.
      statistics: by which its states are normalised.
      gates: those it was trained with.
      adapter: fitted on calibration episodes; None: the residual counts whole.
    """

    objective: SigmaObjective
    trainable: PyTree
    frozen: Frozen
    statistics: NormStats
    gates: Ablation
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
        self._correct: Correct = xla.jit(make_correct(parts.objective, limited))
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
        self, readings: Sequence[Reading], states: Sequence[PolicyState]
    ) -> tuple[dict[str, Any], list[PolicyState]]:
        """See `policies.acting.Actor`.

        Args:
          readings: one of each robot.
          states: one of each robot.

        Returns:
          `actions` [b t a], fused from the three branches, raw units; `motor_commands`, the same
          within the limits; `scale`, `risk` and `reasons` of the adapter; `tau_l2`; `branches`.
          And the states with memory and tau.
        """
        inputs = [self.base.processor.inputs(*reading) for reading in readings]
        chunk = self.base.sampler(windows(inputs, states, self.base.spec))[:, 0]
        own = self.parts.statistics['state']
        rows = [
            x | {'state': normalize(reading.state, own).astype(np.float32)}
            for x, reading in zip(inputs, readings, strict=True)
        ]
        base: Any = chunk
        batch = dataclasses.replace(windows(rows, states, self._spec), base=base)
        before: Any = [np.stack([getattr(s, name) for s in states]) for name in ('memory', 'tau')]
        carry = Carry(*before)
        parts = self.parts
        carry, answers = jax.device_get(
            self._correct(parts.trainable, parts.frozen, batch, self._gates, carry, parts.adapter)
        )
        after = [
            dataclasses.replace(state, memory=carry.memory[n], tau=carry.tau[n])
            for n, state in enumerate(states)
        ]
        return answers, after


def make_correct(objective: SigmaObjective, limited: bool) -> Correct:
    """A function to compile: what Sigma makes of the base's chunk.

    Args:
      objective: of the Sigma.
      limited: whether `motor_commands` keep to the limits of its config.

    Returns:
      See `Correct`.
    """
    sigma = objective.sigma

    def correct(trainable, frozen, batch: Batch, gates, carry, state):
        def robots(rows):
            batch, carry = rows
            return one_window(trainable, frozen, batch, carry, gates, state)

        return xla.row_by_row(robots)((batch, carry))

    def one_window(trainable, frozen, batch: Batch, carry, gates, state):
        carry, output = objective.window(trainable, frozen, batch, gates, carry)
        actions, tau = output.actions, output.telepathy.tau
        answers: dict[str, Any] = {'tau_l2': jnp.linalg.norm(tau, axis=-1)}
        if state is not None:
            base = Actions.from_trajectory(batch.base[:, : sigma.horizon], sigma.chunk)
            actions, scale, risk, reasons = adapter.adapt(base, actions, tau, output.c_act0, state)
            answers |= {'scale': scale, 'risk': risk, 'reasons': dataclasses.asdict(reasons)}
        fused = fuse_actions(actions)
        commands = low_level_controller(fused, sigma) if limited else fused
        branches = {name: getattr(actions, name) for name in ('vec', 'chk', 'traj')}
        return carry, answers | {
            ACTIONS: fused,
            'motor_commands': commands,
            'branches': branches,
        }

    return correct
