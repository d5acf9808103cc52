"""What a method costs beside its error: parameters that learn, arithmetic of a window, windows seen
in training.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.evaluation.cost import flops
from sigma_jax.policies import sampling
from sigma_jax.training.build import build
from sigma_jax.training.config import RunConfig
from sigma_jax.training.optimizer import OptimizerConfig
from sigma_jax.types import Ablation, ActionScaling, Batch


def cost(
    parameters: Mapping[str, int] | None = None,
    config: RunConfig | None = None,
    own: int | None = None,
    base: int | None = None,
) -> dict[str, Any]:
    """A method's row: parameters, and floating-point operations of training and of a window.

    Args:
      parameters: that learn, by group.
      config: of its training; None: none.
      own: operations a window of the method itself; None: none.
      base: operations a window of sampling the base that it starts from; None: none.

    Returns:
      For the report.
    """
    learning = (
        None if parameters is None else sum(n for group, n in parameters.items() if group != 'base')
    )
    parts = [x for x in (own, base) if x is not None]
    return {
        'trainable_parameters': learning,
        'steps': None if config is None else config.steps,
        'training_windows': None if config is None else seen(config),
        'flops_training': None if config is None else of_training(config),
        'flops_own': own,
        'flops_in_all': sum(parts) if parts else None,
    }


def seen(config: RunConfig) -> int:
    """Windows that training has taken, each as often as it came.

    Args:
      config: of the training.

    Returns:
      The count.
    """
    return config.steps * config.windows_per_step


def of_training(config: RunConfig) -> int:
    """Operations of a whole training: losses and gradients of all steps, the frozen policy's passes
    included.

    Sigma's also have one sample of the base for each window of its training split, where actions
    are residuals on it. Counted as if no feature were read from disk (`config.features`).

    Args:
      config: of the training.

    Returns:
      The count.
    """
    same = dataclasses.replace(
        config, seed=0, steps=1, ablation=Ablation(), ablations='', optimizer=OptimizerConfig()
    )
    step, sample = _of_parts(same)
    sampled = config.kind.needs_base_actions and config.ablation.residual != 0 and config.shards
    windows = open_shards(config.shards).split('train').windows if sampled else 0
    return config.steps * step + windows * sample


@functools.cache
def _of_parts(config: RunConfig) -> tuple[int, int]:
    """(operations of a step, of one sample of the base for one window)."""
    plan = build(config, assume=True)

    def gradient(trainable, frozen, batch):
        def loss(t):
            return plan.objective(
                t, frozen, batch, Ablation(), jax.random.key(0), jnp.zeros((), jnp.int32)
            )

        return jax.grad(loss, has_aux=True)(trainable)

    count = flops.count(gradient, plan.trainable, plan.frozen, plan.batch)
    return config.accumulate * count, of_sample(plan.objective.config, plan.batch)


def of_sample(config: BackboneConfig, batch: Batch) -> int:
    """Operations of one sample of a policy for one window; only shapes are read.

    Args:
      config: sizes.
      batch: shapes of the data.

    Returns:
      The count.
    """
    lead = batch.mask.ndim
    two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape[lead:]), x.dtype), batch)
    a_joint: Any = jax.ShapeDtypeStruct(two.actions.shape[-1:], 'float32')
    scaling = ActionScaling(*[a_joint] * len(dataclasses.fields(ActionScaling)))
    params = kinds.of(config).abstract_params(config)
    sample = sampling.make_sampler(sampling.bind_frozen(config), 0, 1, two.actions.shape[-2])
    return flops.count(sample, params, scaling, two) // 2  # one alone may stand in a loop over two
