"""What is minimised: flow matching (pi0.5, all weights or LoRA) and Sigma's TRAF + TSAC.

An objective maps (trainable, frozen, batch, ablation, key, step) to (loss, metrics) and is pure.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sigma_jax.backbones.pi05 import BoundPi05, Pi05Config
from sigma_jax.train_step import Frozen
from sigma_jax.types import Ablation, Batch

PyTree = Any


def overlay(base: PyTree, top: PyTree) -> PyTree:
    """`base` with the leaves of `top` in place of its own; either may be partial."""
    if not isinstance(top, Mapping):
        return top
    return {**base, **{k: overlay(base.get(k, {}), v) for k, v in top.items()}}


def bind(
    config: Pi05Config, trainable: PyTree, frozen: Frozen, ablation: Ablation, dropout_key: Array | None = None
) -> BoundPi05:
    """The base policy with trainable leaves laid over the frozen ones, and the gated LoRA factors."""
    gate = jnp.asarray(ablation.lora)
    factors = trainable.get('lora')
    gated = None if factors is None else jax.tree.map(lambda x: jnp.where(gate > 0, x, jnp.zeros_like(x)), factors)
    return BoundPi05(config, overlay(frozen.params, trainable.get('params', {})), gated, dropout_key)


def normalize_actions(actions: Float[Array, '... a'], stats: Mapping[str, Array], width: int) -> Float[Array, '... d']:
    """Raw actions -> pi0.5's quantile-normalised units, padded with zeros to the policy's action width."""
    low, high = stats['action_q01'], stats['action_q99']
    scaled = (actions - low) / (high - low + 1e-6) * 2 - 1
    return jnp.pad(scaled, [(0, 0)] * (actions.ndim - 1) + [(0, width - actions.shape[-1])])


def unnormalize_actions(actions: Float[Array, '... d'], stats: Mapping[str, Array]) -> Float[Array, '... a']:
    """The inverse of `normalize_actions`, padding dropped."""
    low, high = stats['action_q01'], stats['action_q99']
    return (actions[..., : low.shape[-1]] + 1) / 2 * (high - low + 1e-6) + low


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """pi0.5's own objective: mean squared error of the velocity at a random time (openpi, `compute_loss`).

    Time is Beta(1.5, 1), scaled into [0.001, 1]. Steps beyond an episode's end do not count.
    """

    config: Pi05Config

    def __call__(self, trainable, frozen: Frozen, batch: Batch, ablation: Ablation, key, step):
        """See `train_step.Objective`; windows of a sequence are independent examples."""
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        actions = normalize_actions(batch.actions, frozen.stats, self.config.action_dim)
        time = jax.random.beta(time_key, 1.5, 1.0, actions.shape[:1]) * 0.999 + 0.001
        noise = jax.random.normal(noise_key, actions.shape)
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        backbone = bind(self.config, trainable, frozen, ablation, dropout_key)
        velocity = backbone.velocity(batch.observation, x_t, time)
        error = jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)
        valid = batch.action_mask & batch.mask[:, None]
        loss = jnp.sum(error * valid) / jnp.maximum(jnp.sum(valid), 1)
        return loss, {'velocity_mse': loss}
