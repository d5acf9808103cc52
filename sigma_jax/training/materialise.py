"""The numbers of a run: the base's weights as they lie on the device, and leaves before step 0."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax import trees
from sigma_jax.backbones.base import BackboneSpec
from sigma_jax.convert.load_base import Base
from sigma_jax.errors import UserError
from sigma_jax.nn import lora, quant
from sigma_jax.objectives.sigma import SigmaObjective, init_sigma
from sigma_jax.training.config import RunConfig
from sigma_jax.training.groups import check_groups, check_storage, split_learning
from sigma_jax.types import Batch, Frozen, PyTree


def store_base(config: RunConfig, base: Base, objective: Any) -> PyTree:
    """The base's weights on the device; only those leaves that the objective reads.

    Args:
      config: how they are stored.
      base: with its weights.
      objective: says what is read.

    Returns:
      The tree.

    Raises:
      UserError: as `check_storage`.
    """
    check_storage(config)
    spec = base.spec
    return quant.store(
        base.params, spec.stored, config.quant, objective.uses_param, float32=spec.float32
    )


def make_trainable(
    config: RunConfig, base: Base, objective: Any, frozen: Frozen, batch: Batch
) -> tuple[PyTree, Frozen]:
    """What is trained and what stays frozen, before the first step.

    Args:
      config: whose `trainable` lists the groups.
      base: with its weights.
      objective: of the run.
      frozen: base and statistics.
      batch: shapes of the data.

    Returns:
      trainable: {group: tree}.
      frozen: without the leaves that are trained.
    """
    groups, key = check_groups(config), jax.random.key(config.seed)
    trainable = {}
    if 'lora' in groups:
        trainable['lora'] = lora.init_factors(
            jax.random.fold_in(key, 1), base.params, base.spec.layouts, base.config.lora
        )
        if not config.kind.trains_policy:
            check_sigma_reads(base.spec, trainable['lora'])
    if 'sigma' in groups:
        trainable['sigma'] = init_heads(key, objective, frozen, batch)
    if 'params' in groups:
        parts = split_learning(base.params, config.freeze)
        learning, held = ({p: jnp.asarray(x) for p, x in part.items()} for part in parts)
        trainable['params'] = trees.unflatten(learning)
        frozen = dataclasses.replace(frozen, params=trees.unflatten(held))
    return trainable, frozen


def init_heads(key: jax.Array, objective: SigmaObjective, frozen: Frozen, batch: Batch) -> PyTree:
    """Random parameters of Sigma's heads, from the shapes of `frozen` and `batch` alone.

    Drawn on the host: a GPU's compiler takes 40 s for that many random numbers at full size, a
    CPU's a fifth of it.

    Args:
      key: seed.
      objective: sizes.
      frozen: may be abstract.
      batch: may be abstract.

    Returns:
      {'vision', 'language', 'action'}.
    """
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda *inputs: inputs, frozen, batch))
    with jax.default_device(host()):
        drawn = jax.tree.map(np.asarray, _head_drawer(objective, structure, tuple(leaves))(key))
    return jax.tree.map(jnp.asarray, drawn)


@functools.lru_cache(maxsize=1)
def _head_drawer(
    objective: SigmaObjective, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Callable:
    """Compiled once for the seeds of an ablation."""

    def draw(key):
        inputs = jax.tree.unflatten(structure, [jnp.zeros(x.shape, x.dtype) for x in leaves])
        return init_sigma(key, objective, *inputs)

    return jax.jit(draw)


def host() -> jax.Device | None:
    """The CPU as a device of JAX; None, the default device, where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend='cpu')[0]
    except RuntimeError:
        return None


def check_sigma_reads(spec: BackboneSpec, factors: PyTree) -> None:
    """Checks that LoRA factors lie in the language model, which is all that Sigma trains through.

    Args:
      spec: of the backbone.
      factors: {path: factors}.

    Raises:
      UserError: some lie elsewhere.
    """
    idle = [path for path in trees.flatten(factors) if not spec.encoding.fullmatch(path)]
    if idle:
        raise UserError(
            'expected LoRA factors in the language model, through which Sigma trains, got LoRA '
            f'factors of {idle[0].rsplit("/", 1)[0]!r}, which would never learn; narrow '
            'config.lora.patterns'
        )
