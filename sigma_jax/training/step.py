"""One optimiser step: frozen weights are an argument, trainable ones the state (docs/design.md,
"Training step").
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int, UInt32

from sigma_jax.types import Ablation, Batch, Frozen, PyTree


@struct.dataclass
class TrainState:
    """All that training changes, and the only source of randomness: `rng` folded with `step`."""

    step: Int[Array, '']
    rng: UInt32[Array, '2']
    trainable: PyTree
    opt_state: PyTree
    ema: PyTree | None = None


# (trainable, frozen, batch, ablation, key, step) -> (loss, metrics)
Objective = Callable[
    [PyTree, Frozen, Batch, Ablation, Array, Array], tuple[Array, dict[str, Array]]
]


def init_state(
    seed: int, trainable: PyTree, optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
      seed: of all randomness of the training.
      trainable: {group: tree}.
      optimizer: makes its own state.
      ema: whether a running average of the leaves is kept.

    Returns:
      The state.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
        ema=jax.tree.map(jnp.copy, trainable) if ema else None,
    )


class Divisible(Protocol):
    """An objective that can be taken over a batch in parts."""

    def sample_noise(self, key: Array, batch: Batch) -> Batch:
        """The batch with all that is drawn for the whole of it.

        Args:
          key: seed, that of the step.
          batch: [b g ...].

        Returns:
          The batch.
        """

    def weight(self, batch: Batch) -> Array:
        """How much a part's loss counts in that of the whole batch.

        Args:
          batch: a micro-batch.

        Returns:
          A number of 0 or more.
        """

    def __call__(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        key: Array,
        step: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """Loss and metrics; see `Objective`.

        Args:
          trainable: {group: tree}.
          frozen: base and statistics.
          batch: [b g ...].
          ablation: gates.
          key: seed of this step.
          step: optimiser step.

        Returns:
          loss: a scalar.
          metrics: scalars by name.
        """


def accumulated(objective: Divisible, parts: int) -> Callable:
    """`jax.value_and_grad` of an objective over micro-batches, one after the other, summed in
    float32.

    Flow matching's loss and gradient are those of the whole batch to rounding, LoRA's dropout
    apart, whose masks differ. Sigma's hard set and InfoNCE see one micro-batch at a time
    (docs/design.md, "Losses"), so for Sigma it is another loss.

    Args:
      objective: what is minimised.
      parts: number of micro-batches.

    Returns:
      A function of the objective's arguments that gives ((loss, metrics), gradient).
    """
    gradient = jax.value_and_grad(objective, has_aux=True)

    def whole(trainable, frozen, batch, ablation, key, step):
        micro = jax.tree.map(lambda x: divide(x, parts), objective.sample_noise(key, batch))
        weights = jax.vmap(objective.weight)(micro)
        shares = weights / jnp.maximum(jnp.sum(weights), 1)

        def one(n, part):
            return gradient(trainable, frozen, part, ablation, jax.random.fold_in(key, n), step)

        def add(total, turn):
            n, part, share = turn
            return jax.tree.map(lambda t, x: t + share * x, total, one(n, part)), None

        like = jax.eval_shape(one, 0, jax.tree.map(lambda x: x[0], micro))
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like
        )
        total, _ = jax.lax.scan(add, zero, (jnp.arange(parts), micro, shares))
        return jax.tree.map(lambda t, x: t.astype(x.dtype), total, like)

    return whole


def divide(x: Array, parts: int) -> Array:
    """[b ...] -> [parts b/parts ...].

    Each part takes every `parts`-th row, so that devices keep their own rows.

    Args:
      x: first axis: windows.
      parts: a divisor of b.

    Returns:
      The parts.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def make_step(
    objective: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None = None,
    accumulate: int = 1,
) -> Callable:
    """The training step, a pure function (docs/design.md, "Training step").

    Args:
      objective: an `Objective`, or a `Divisible` one where a batch is taken in micro-batches.
      optimizer: of `make_optimizer`.
      ema_decay: of the running average of the trainable leaves, where the state has one.
      accumulate: micro-batches of a step.

    Returns:
      `step(state, frozen, batch, ablation) -> (state, metrics)`: jit it with `donate_argnums=0`, or
        vmap it over states and gates with `in_axes=(0, None, None, 0)`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from sigma_jax.training.step import init_state, make_step
      >>> def objective(trainable, frozen, batch, ablation, key, step):
      ...     return (trainable['w'] - batch) ** 2, {}
      >>> optimizer = optax.sgd(0.5)
      >>> state = init_state(0, {'w': jnp.array(3.0)}, optimizer)
      >>> state, metrics = make_step(objective, optimizer)(state, None, jnp.array(1.0), None)
      >>> float(state.trainable['w']), float(metrics['loss']), int(state.step)
      (1.0, 4.0, 1)
    """
    gradient = (
        jax.value_and_grad(objective, has_aux=True)
        if accumulate == 1
        else accumulated(objective, accumulate)
    )

    def step(state: TrainState, frozen: Frozen, batch: Batch, ablation: Ablation):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        (loss, metrics), grads = gradient(state.trainable, frozen, batch, ablation, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = metrics | {'loss': loss, 'grad_norm': optax.tree.norm(grads)}
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = optax.incremental_update(trainable, ema, 1 - ema_decay)
        return TrainState(state.step + 1, state.rng, trainable, opt_state, ema), metrics

    return step
