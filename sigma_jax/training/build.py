"""From a config to all that a run needs: base policy, statistics, objective, trainable leaves."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.convert.base_policy import Base
from sigma_jax.errors import UserError
from sigma_jax.nn import lora, quant
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.objectives.sigma import SigmaObjective, init_sigma
from sigma_jax.settings import check_row, from_section
from sigma_jax.sigma import curriculum, losses
from sigma_jax.sigma.model import SigmaConfig
from sigma_jax.types import Ablation, Batch, Frozen

PyTree = Any
GROUPS = {
    'sigma': [{'sigma'}, {'sigma', 'lora'}],
    'flow_matching': [{'lora'}, {'params'}, {'lora', 'params'}],
}


def make_objective(config: Mapping, base: Base, batch: Batch) -> FlowMatching | SigmaObjective:
    """What `config.objective` names: 'flow_matching' or 'sigma'."""
    if config['objective'] == 'flow_matching':
        return FlowMatching(base.config)
    if config['objective'] != 'sigma':
        raise UserError(
            f"config.objective: expected 'sigma' or 'flow_matching', got {config['objective']!r}"
        )
    sizes = {
        'd_model': base.config.language.width,
        'state_dim': batch.observation.state.shape[-1],
        'action_dim': batch.actions.shape[-1],
    }
    return SigmaObjective(
        base.config,
        from_section(SigmaConfig, sizes | dict(config['sigma']), 'sigma'),
        from_section(losses.LossConfig, config['loss'], 'loss'),
        from_section(curriculum.CurriculumConfig, config['curriculum'], 'curriculum'),
    )


def store_base(config: Mapping, base: Base, goal: Any) -> PyTree:
    """The base's weights on the device, as `config.quant` says; only those leaves that the
    objective reads.

    Raises UserError where they are to learn and would be stored in another dtype than their own.
    """
    how = from_section(quant.QuantConfig, config.get('quant', {}), 'quant')
    if how.changes and 'params' in config['trainable']:
        raise UserError(
            "config.quant: expected kind 'stored' and no int8 where the base itself learns "
            f"(trainable 'params'), got {how.kind!r} and {list(how.int8)}; train factors beside a "
            "quantised base: config.trainable=('lora',)"
        )
    return quant.store(base.params, pi05.STORED, how, goal.reads)


def check_groups(config: Mapping) -> set[str]:
    """The groups that `config.trainable` lists. Raises UserError where the objective does not train
    these.
    """
    for name in ('trainable', 'freeze'):
        check_row(f'config.{name}', config[name], tuple[str, ...])
    groups = set(config['trainable'])
    if unknown := groups - {'sigma', 'lora', 'params'}:
        raise UserError(
            f"config.trainable: expected some of 'sigma', 'lora', 'params', got {sorted(unknown)}"
        )
    if groups not in (choices := GROUPS[config['objective']]):
        raise UserError(
            f'config.trainable: objective {config["objective"]!r} expects '
            f'{" or ".join(str(tuple(sorted(c, reverse=True))) for c in choices)}, got '
            f'{tuple(config["trainable"])}; choose one'
        )
    return groups


def make_trainable(
    config: Mapping, base: Base, goal: Any, frozen: Frozen, batch: Batch
) -> tuple[PyTree, Frozen]:
    """(trainable leaves, what stays frozen) before the first step; `config.trainable` lists the
    groups.
    """
    groups, key = check_groups(config), jax.random.key(config['seed'])
    trainable = {}
    if 'lora' in groups:
        trainable['lora'] = lora.init_factors(
            jax.random.fold_in(key, 1), base.params, pi05.LAYOUTS, base.config.lora
        )
        if config['objective'] == 'sigma':
            check_sigma_reads(trainable['lora'])
    if 'sigma' in groups:
        trainable['sigma'] = init_heads(key, goal, frozen, batch)
    if 'params' in groups:
        flat, held = (
            trees.flatten(base.params),
            trees.flatten(trees.select(base.params, config['freeze'])),
        )
        learning = {p: jnp.asarray(x) for p, x in flat.items() if not held[p]}
        trainable['params'] = trees.unflatten(learning)
        frozen = dataclasses.replace(
            frozen, params=trees.unflatten({p: jnp.asarray(x) for p, x in flat.items() if held[p]})
        )
    return trainable, frozen


def init_heads(key: jax.Array, goal: SigmaObjective, frozen: Frozen, batch: Batch) -> PyTree:
    """Random parameters of Sigma's heads, from the shapes of `frozen` and `batch` alone.

    Drawn on the host: a GPU's compiler takes 40 s for that many random numbers at full size, a
    CPU's a fifth of it.
    """
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda *inputs: inputs, frozen, batch))
    with jax.default_device(host()):
        drawn = jax.tree.map(np.asarray, _head_drawer(goal, structure, tuple(leaves))(key))
    return jax.tree.map(jnp.asarray, drawn)


@functools.lru_cache(maxsize=1)
def _head_drawer(
    goal: SigmaObjective, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Callable:
    """Compiled once for the seeds of an ablation."""

    def draw(key):
        inputs = jax.tree.unflatten(structure, [jnp.zeros(x.shape, x.dtype) for x in leaves])
        return init_sigma(key, goal, *inputs)

    return jax.jit(draw)


def host() -> jax.Device | None:
    """The CPU as a device of JAX; None, the default device, where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend='cpu')[0]
    except RuntimeError:
        return None


def check_sigma_reads(factors: PyTree) -> None:
    """Raises UserError for LoRA factors outside the language model, which is all that Sigma trains
    through.
    """
    idle = [
        p for p in trees.flatten(factors) if not p.startswith('PaliGemma/llm/layers/') or '_1/' in p
    ]
    if idle:
        raise UserError(
            f'LoRA factors of {idle[0].rsplit("/", 1)[0]!r} would never learn: Sigma trains '
            'through the language model, not through image encoder and action expert; narrow '
            'config.lora.patterns'
        )


def make_ablation(config: Mapping) -> Ablation:
    """Gates from the section `ablation`."""
    gates = from_section(Ablation, config['ablation'], 'ablation')
    # JSON has 'inf' as text only
    return jax.tree.map(lambda x: jnp.asarray(float(x), jnp.float32), gates)
