"""Chunks without a seam: how a chunk goes on from the one that is still carried out
(docs/design.md, "Chunks without a seam").

While a policy computes, the robot goes on with the chunk it has. Of that chunk `left_over` are the
actions from the one that is due at the observation on; the first `delay` of them will be carried
out before the new chunk comes, whatever it says.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from sigma_jax.errors import UserError
from sigma_jax.policies.given import floats
from sigma_jax.processing.actions import action_origin, normalize_actions
from sigma_jax.processing.spec import ProcessorConfig
from sigma_jax.settings import is_a
from sigma_jax.types import ActionScaling, Continuation

# 'guided': arXiv 2506.07339; 'lerobot': what LeRobot 0.6.1 computes, without the Jacobian;
# 'trained': arXiv 2512.05964, of a policy trained with `rtc.max_delay`
MODES = ('none', 'guided', 'lerobot', 'trained')
SCHEDULES = ('linear', 'exp', 'ones', 'zeros')


@dataclasses.dataclass(frozen=True)
class ChunkingConfig:
    """How chunks go on from each other: settings of a policy that acts.

    Attributes:
      mode: of `MODES`.
      schedule: how the weights fall from the committed actions on, of `SCHEDULES`; the mode
        'trained' knows none. (2506.07339; LeRobot: 'linear')
      max_guidance: beta. (2506.07339; LeRobot: 10)
      horizon: steps of a chunk that can be bound; None: as many as are left over (2506.07339;
        LeRobot's `execution_horizon`: 10).

    Raises:
      UserError: a value that makes no sense.
    """

    mode: str = 'none'
    schedule: str = 'exp'
    max_guidance: float = 5.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        for name, known in (('mode', MODES), ('schedule', SCHEDULES)):
            if (got := getattr(self, name)) not in known:
                raise UserError(
                    f'chunking.{name}: expected one of {", ".join(known)}, got {got!r}; choose one'
                )
        if not is_a(float, self.max_guidance) or not 0 < self.max_guidance < np.inf:
            raise UserError(
                'chunking.max_guidance: expected a number above 0, got '
                f'{self.max_guidance!r}; correct it'
            )
        if self.horizon is not None and not (is_a(int, self.horizon) and self.horizon > 0):
            raise UserError(
                'chunking.horizon: expected a number of steps from 1 on, or None, got '
                f'{self.horizon!r}; correct it'
            )


def check_learned(config: ChunkingConfig, policy: ProcessorConfig, delay: int = 0) -> None:
    """Whether a policy has learned what a mode asks of it.

    Args:
      config: settings.
      policy: settings of the policy, which say how it was trained.
      delay: most steps that are committed.

    Raises:
      UserError: no settings; or it was trained without given actions, or with fewer, and is to go
        on from them.
    """
    if not isinstance(config, ChunkingConfig):
        raise UserError(
            f"chunking: expected ChunkingConfig('guided'), say, got {config!r}; pass one"
        )
    if config.mode != 'trained':
        return
    if not policy.max_delay:
        raise UserError(
            "chunking.mode: expected a policy trained with config.rtc.max_delay for 'trained', got "
            "one trained without; choose 'guided', or train one"
        )
    if delay > policy.max_delay:
        raise UserError(
            f'expected a delay of at most {policy.max_delay} steps, with which the policy was '
            f"trained (rtc.max_delay), got {delay}; choose 'guided' for this chunk, or wait for it"
        )


@struct.dataclass
class Chunking:
    """What the new chunks of some robots go on from: an argument of a compiled sampler, which
    serves any numbers in it.

    Attributes:
      prefix: left over of the chunk before, raw units as the robot carries them out; zeros where
        nothing is.
      delay: steps that are committed, from the first on.
      horizon: steps from which on a chunk is free.
      max_guidance: beta.
      mode: of `MODES`.
      schedule: of `SCHEDULES`.
    """

    prefix: Float[Array, 'b t a']
    delay: Int[Array, 'b']
    horizon: Int[Array, 'b']
    max_guidance: Float[Array, 'b']
    mode: str = struct.field(pytree_node=False, default='guided')
    schedule: str = struct.field(pytree_node=False, default='exp')


def left_over(chunk: Float[np.ndarray, 't a'], executed: int) -> Float[np.ndarray, 't2 a']:
    """What is left of a chunk.

    Args:
      chunk: as it was given.
      executed: steps carried out since, of which there may be more than it has.

    Returns:
      The others, the next one first.
    """
    return chunk[max(executed, 0) :]


def of_robots(
    config: ChunkingConfig,
    left: Sequence[Float[np.ndarray, 't2 a'] | None],
    delays: Sequence[int],
    shape: tuple[int, int],
) -> Chunking:
    """What the next chunks of some robots go on from.

    No more than is left over can be committed or binding, so a robot without a chunk (None, or
    delay 0 with the schedule 'zeros') is sampled freely beside the others.

    Args:
      config: settings.
      left: of each robot, raw units; None: nothing.
      delays: steps that each will have carried out when its new chunk comes.
      shape: (t, a), steps and numbers of a chunk.

    Returns:
      The argument of a sampler.

    Raises:
      UserError: actions of another shape or that are no numbers, or a negative delay.
    """
    prefix = np.zeros((len(left), *shape), np.float32)
    counts = np.zeros(len(left), np.int32)
    for row, (actions, delay) in enumerate(zip(left, delays, strict=True)):
        if isinstance(delay, bool) or not isinstance(delay, int | np.integer) or delay < 0:
            raise UserError(f'expected a delay of 0 or more steps, got {delay!r}; correct it')
        if actions is not None:
            given = _checked(actions, shape[1])[: shape[0]]
            prefix[row, : len(given)], counts[row] = given, len(given)
    reach = counts if config.horizon is None else np.minimum(counts, config.horizon)
    arrays: Any = {
        'prefix': prefix,
        'delay': np.minimum(np.asarray(delays, np.int32), counts),
        'horizon': np.asarray(reach, np.int32),
        'max_guidance': np.full(len(left), config.max_guidance, np.float32),
    }
    return Chunking(**arrays, mode=config.mode, schedule=config.schedule)


def binds(chunking: Chunking) -> bool:
    """Whether any robot's chunk is bound to anything: some weight is above zero.

    Args:
      chunking: with numbers, not while it is traced.

    Returns:
      Whether one is.
    """
    delay, horizon = np.asarray(chunking.delay), np.asarray(chunking.horizon)
    if chunking.mode == 'trained':
        return bool((delay > 0).any())
    held = np.minimum(delay, horizon) if chunking.schedule == 'zeros' else horizon
    return chunking.mode != 'none' and bool((held > 0).any())


def counts(chunking: Chunking) -> bool:
    """Whether the new chunk of any robot is another than it would be alone: it is bound, or some of
    its steps are committed.

    Args:
      chunking: with numbers, not while it is traced.

    Returns:
      Whether one is.
    """
    return bool((np.asarray(chunking.delay) > 0).any()) or binds(chunking)


def _checked(actions: Float[np.ndarray, 't2 a'], width: int) -> Float[np.ndarray, 't2 a']:
    given = floats(actions)
    if given.ndim != 2 or given.shape[1] != width:
        raise UserError(
            f'expected actions [steps {width}] left over of a chunk, got shape '
            f'{list(given.shape)}; pass them as the policy gave them'
        )
    if not np.isfinite(given).all():
        raise UserError(
            'expected finite actions left over of a chunk, got NaN or infinity among them; pass '
            'them as the policy gave them'
        )
    return given


def prefix_weights(
    delay: Int[Array, '...'], horizon: Int[Array, '...'], steps: int, schedule: str
) -> Float[Array, '... t']:
    """W of arXiv 2506.07339: 1 for the committed steps i < d; then c = (h - i) / (h - d + 1), as it
    is ('linear'), as c (e^c - 1) / (e - 1) ('exp'), as 1 ('ones') or as 0 ('zeros'); 0 from h on.

    Args:
      delay: d, steps that are committed; no more than `horizon` count.
      horizon: h, the step from which on a chunk is free.
      steps: t.
      schedule: of `SCHEDULES`.

    Returns:
      One weight a step, 0 to 1.

    Examples:
      >>> from sigma_jax.policies.chunking import prefix_weights
      >>> prefix_weights(1, 4, 6, 'linear').tolist()
      [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    d, h, i = jnp.asarray(delay)[..., None], jnp.asarray(horizon)[..., None], jnp.arange(steps)
    d = jnp.minimum(d, h)
    c = jnp.clip((h - i) / (h - d + 1), 0.0, 1.0)
    shape = {
        'linear': c,
        'exp': c * jnp.expm1(c) / jnp.expm1(1.0),
        'ones': jnp.ones_like(c),
        'zeros': jnp.zeros_like(c),
    }
    return jnp.where(i < d, 1.0, jnp.where(i < h, shape[schedule], 0.0))


def continuation(
    chunking: Chunking, state: Float[Array, 'b p'], scaling: ActionScaling
) -> Continuation:
    """What a backbone's sampler is bound to: the actions left over, counted anew from the robot's
    state where they are relative, and normalised.

    Args:
      chunking: raw units.
      state: of the new observation, normalised.
      scaling: of the actions.

    Returns:
      Normalised actions, and how far they bind.
    """
    relative = chunking.prefix - action_origin(state, scaling)
    steps, width = chunking.prefix.shape[-2:]
    horizon, schedule = chunking.horizon, chunking.schedule
    if chunking.mode == 'trained':  # committed, or free
        horizon, schedule = jnp.full_like(horizon, steps), 'zeros'
    return Continuation(
        actions=normalize_actions(relative, scaling, width),
        weights=prefix_weights(chunking.delay, horizon, steps, schedule),
        max_guidance=chunking.max_guidance,
        mode=chunking.mode,
    )


def keep_committed(
    actions: Float[Array, '*b t a'], prefix: Float[Array, '*b t2 a'], delay: Int[Array, '*b']
) -> Float[Array, '*b t a']:
    """A new chunk with what will have been carried out by then in its place: whatever was computed
    for these steps, or added to them, comes too late.

    Args:
      actions: the new chunk, raw units.
      prefix: left over of the one before, as long at least.
      delay: steps that are committed.

    Returns:
      Raw units, the committed steps as they were, to the bit.
    """
    steps = actions.shape[-2]
    committed = jnp.arange(steps) < jnp.asarray(delay)[..., None]
    return jnp.where(committed[..., None], prefix[..., :steps, :], actions)
