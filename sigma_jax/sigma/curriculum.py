"""Telepathic semantic alignment curriculum: the weights of the loss terms over steps (paper 4.2.2;
docs/design.md, "Curriculum").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sigma_jax.sigma.losses import COLUMNS

Schedule = Callable[[Float[Array, '']], Float[Array, '']]


@dataclass(frozen=True)
class CurriculumConfig:
    """(start, end) of each ramp and its length in optimiser steps, not micro-batches.

    Attributes:
      ramp_steps: length of every ramp; the only one that gives all 42 printed weights of Table 1.
      sem: w_sem (paper, Table 1).
      intent: w_intent (paper, Table 1).
      tau: w_tau (paper, Table 1).
    """

    ramp_steps: int = 82
    sem: tuple[float, float] = (0.1, 1.0)
    intent: tuple[float, float] = (0.1, 0.8)
    tau: tuple[float, float] = (0.0, 0.03)


def make_schedules(config: CurriculumConfig) -> dict[str, Schedule]:
    """A schedule for each term of `losses.sigma_terms` (paper 4.2.2; docs/design.md, "Curriculum").

    The alignment terms follow linear ramps; the action term has weight 1 throughout.

    Args:
      config: ends and length of the ramps.

    Returns:
      {term: schedule}, a schedule being a function of the optimiser step.
    """
    ramps = {
        key: optax.linear_schedule(*getattr(config, key), transition_steps=config.ramp_steps)
        for key in ('sem', 'intent', 'tau')
    }
    return {'act': optax.constant_schedule(1.0)} | ramps


def evaluate(
    schedules: Mapping[str, Schedule],
    step: int | Int[Array, ''],
    ramp_speed: float | Float[Array, ''] = 1.0,
) -> dict[str, Float[Array, '']]:
    """The weights of the loss terms at an optimiser step.

    Args:
      schedules: from `make_schedules`.
      step: optimiser step, from 0.
      ramp_speed: an ablation, may be traced; the schedules are read at `ramp_speed * step`.
        Infinite: at their ends, from step 0 on.

    Returns:
      {term: weight}, float32.

    Examples:
      >>> from sigma_jax.sigma import curriculum
      >>> schedules = curriculum.make_schedules(curriculum.CurriculumConfig())
      >>> {k: round(float(w), 3) for k, w in curriculum.evaluate(schedules, step=41).items()}
      {'act': 1.0, 'sem': 0.55, 'intent': 0.45, 'tau': 0.015}
    """
    speed = jnp.asarray(ramp_speed, jnp.float32)
    at_once = jnp.isinf(speed)
    count = jnp.asarray(step, jnp.float32) * jnp.where(at_once, 1.0, speed)
    count = jnp.where(at_once, jnp.finfo(jnp.float32).max, count)
    return {key: jnp.asarray(schedule(count)) for key, schedule in schedules.items()}


def columns(weights: Mapping[str, Float[Array, '']]) -> dict[str, Float[Array, '']]:
    """The weights under the names of the paper's Table 1.

    Args:
      weights: {term: weight}.

    Returns:
      {'w_sem', 'w_int', 'w_tau'}.
    """
    return {
        f'w_{COLUMNS[key]}': value
        for key, value in weights.items()
        if key != 'act' and key in COLUMNS
    }
