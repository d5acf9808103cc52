"""The base policy with what is trained laid over what is frozen."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sigma_jax.backbones.pi05 import BoundPi05, Pi05Config
from sigma_jax.types import Ablation, PyTree


def overlay(base: PyTree, top: PyTree) -> PyTree:
    """`base` with the leaves of `top` in place of its own; either may be partial."""
    if not isinstance(top, Mapping):
        return top
    return {**base, **{k: overlay(base.get(k, {}), v) for k, v in top.items()}}


def bind(
    config: Pi05Config,
    trainable: PyTree,
    params: PyTree,
    ablation: Ablation,
    dropout_key: Array | None = None,
) -> BoundPi05:
    """The base policy with trainable leaves laid over `params`, and the gated LoRA factors."""
    gate = jnp.asarray(ablation.lora)
    factors = trainable.get('lora')
    gated = (
        None
        if factors is None
        else jax.tree.map(lambda x: jnp.where(gate > 0, x, jnp.zeros_like(x)), factors)
    )
    config = dataclasses.replace(config, train_base='params' in trainable)
    return BoundPi05(config, overlay(params, trainable.get('params', {})), gated, dropout_key)
