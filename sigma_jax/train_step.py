"""One optimiser step: frozen weights are an argument, trainable ones the state (DESIGN 3.6, 4)."""

from collections.abc import Callable
from typing import Any

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
Objective = Callable[[PyTree, Frozen, Batch, Ablation, Array, Array], tuple[Array, dict[str, Array]]]


def init_state(seed: int, trainable: PyTree, optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
        ema=jax.tree.map(jnp.copy, trainable) if ema else None,
    )


def make_step(objective: Objective, optimizer: optax.GradientTransformation, ema_decay: float | None = None):
    """`step(state, frozen, batch, ablation) -> (state, metrics)`, pure: jit it with `donate_argnums=0`,
    or vmap it over rows with `in_axes=(0, None, None, 0)`."""

    def step(state: TrainState, frozen: Frozen, batch: Batch, ablation: Ablation):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, metrics), grads = gradient(state.trainable, frozen, batch, ablation, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = metrics | {'loss': loss, 'grad_norm': optax.tree.norm(grads)}
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = optax.incremental_update(trainable, ema, 1 - ema_decay)
        return TrainState(state.step + 1, state.rng, trainable, opt_state, ema), metrics

    return step
