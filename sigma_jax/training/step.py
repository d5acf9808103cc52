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

from sigma_jax.types import Ablation, Batch, Frozen

PyTree = Any


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
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
        ema=jax.tree.map(jnp.copy, trainable) if ema else None,
    )


class Divisible(Protocol):
    """An objective that can be taken over a batch in parts."""

    def draw(self, key: Array, batch: Batch) -> Batch:
        """`batch` with all that is drawn for the whole of it."""

    def weight(self, batch: Batch) -> Array:
        """How much a part's loss counts in the whole batch's."""

    def __call__(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        key: Array,
        step: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """See `Objective`."""


def accumulated(objective: Divisible, parts: int) -> Callable:
    """`jax.value_and_grad` of `objective` over `parts` micro-batches, one after the other, summed
    in float32.

    Flow matching's loss and gradient are those of the whole batch to rounding, LoRA's dropout
    apart, whose masks differ. Sigma's hard set and InfoNCE look at one micro-batch at a time
    (docs/design.md, "Losses"), so there it is another loss.
    """
    gradient = jax.value_and_grad(objective, has_aux=True)

    def whole(trainable, frozen, batch, ablation, key, step):
        micro = jax.tree.map(lambda x: divide(x, parts), objective.draw(key, batch))
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
    """[b ...] -> [parts b/parts ...]; each part takes every `parts`-th row, so that devices keep
    their own rows.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def make_step(
    objective: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None = None,
    accumulate: int = 1,
):
    """`step(state, frozen, batch, ablation) -> (state, metrics)`, pure: jit it with
    `donate_argnums=0`, or vmap it over rows with `in_axes=(0, None, None, 0)`.

    `objective` is an `Objective`, or a `Divisible` one where a step takes its batch in `accumulate`
    micro-batches.
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
