"""The base policy whose trained leaves replace the frozen ones."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig, FlowBackbone
from sigma_jax.types import Ablation, PyTree


def overlay(base: PyTree, top: PyTree) -> PyTree:
    """`base` with the leaves of `top` in place of its own.

    Args:
      base: a nested dictionary, may be partial.
      top: leaves that win, may be partial.

    Returns:
      A new dictionary with the same leaves.

    Examples:
      >>> from sigma_jax.objectives.bind import overlay
      >>> overlay({'a': {'x': 1, 'y': 2}, 'b': 3}, {'a': {'y': 9}})
      {'a': {'x': 1, 'y': 9}, 'b': 3}
    """
    if not isinstance(top, Mapping):
        return top
    return {**base, **{k: overlay(base.get(k, {}), v) for k, v in top.items()}}


def bind(
    config: BackboneConfig,
    trainable: PyTree,
    params: PyTree,
    ablation: Ablation,
    dropout_key: Array | None = None,
) -> FlowBackbone:
    """The base policy with its weights and LoRA factors, ready to be called.

    Args:
      config: the policy's sizes.
      trainable: groups of trained leaves; `params` replace leaves of the base, `lora` are factors.
      params: the frozen base.
      ablation: gates; `lora` at 0 sets the factors to zero.
      dropout_key: turns LoRA's dropout on.

    Returns:
      The policy; it has `velocity` only where its kind does (`BackboneSpec.flows`).
    """
    gate = jnp.asarray(ablation.lora)
    factors = trainable.get('lora')
    gated = (
        None
        if factors is None
        else jax.tree.map(lambda x: jnp.where(gate > 0, x, jnp.zeros_like(x)), factors)
    )
    config = dataclasses.replace(config, train_base='params' in trainable)
    weights = overlay(params, trainable.get('params', {}))
    bound: FlowBackbone = kinds.of(config).bind(config, weights, gated, dropout_key)
    return bound
