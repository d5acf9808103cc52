"""From a config to all that a run needs: base policy, statistics, objective, trainable leaves."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax import curriculum, lora, losses, objective, trees
from sigma_jax.backbones import pi05
from sigma_jax.backbones.gemma import GemmaConfig
from sigma_jax.backbones.siglip import SiglipConfig
from sigma_jax.convert import checkpoint
from sigma_jax.data import normalize
from sigma_jax.errors import UserError
from sigma_jax.sigma import SigmaConfig
from sigma_jax.types import Ablation, Batch, Frozen, Observation

PyTree = Any
NormStats = dict[str, normalize.Statistics]  # 'state', 'actions'
NO_SPREAD = 1e-3  # raw units: a joint that never moved is scaled as if it had this spread


@dataclasses.dataclass(frozen=True)
class Base:
    """The base policy: its sizes, weights (numpy), digest, and the statistics it was trained with."""

    config: pi05.Pi05Config
    params: PyTree
    digest: str
    norm_stats: NormStats | None = None
    folder: pathlib.Path | None = None


def build(kind: type, settings: Mapping, where: str) -> Any:
    """A frozen dataclass from a config section. Raises UserError for unknown and missing keys."""
    fields = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(settings) - fields):
        raise UserError(f'config.{where} has unknown keys {unknown}; expected some of {sorted(fields)}')
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        return kind(**plain)
    except TypeError as error:
        raise UserError(f'config.{where}: {error}; add the missing keys') from error


def load_base(config: Mapping) -> Base:
    """The converted checkpoint at `config.base`, or random weights of the sizes in `config.model`."""
    settings = config['model']
    run = {'dtype': settings['dtype'], 'remat': settings['remat'], 'lora': build(lora.LoraConfig, config['lora'], 'lora')}
    if config['base']:
        folder = pathlib.Path(config['base'])
        loaded = checkpoint.load(folder)
        stats = folder / 'norm_stats.json'
        norm_stats = normalize.read_norm_stats(stats) if stats.is_file() else None
        digest = trees.digest(loaded.params)
        return Base(dataclasses.replace(loaded.config, **run), loaded.params, digest, norm_stats, folder)
    sizes = pi05_config(settings, run)
    params = jax.jit(lambda key: pi05.init_params(key, sizes))(jax.random.key(config['seed']))
    params = jax.tree.map(np.asarray, params)
    return Base(sizes, params, trees.digest(params))


def pi05_config(settings: Mapping, run: Mapping) -> pi05.Pi05Config:
    """Sizes of a policy to be trained from nothing, from the section `model`."""
    parts = {'vision': SiglipConfig, 'language': GemmaConfig, 'expert': GemmaConfig}
    built = {k: build(parts[k], v, f'model.{k}') if k in parts else v for k, v in settings.items()}
    return build(pi05.Pi05Config, built | run, 'model')


def frozen_stats(stats: NormStats, policy: NormStats) -> dict[str, jax.Array]:
    """Statistics a step reads: spread of the training actions, and the policy's own action quantiles."""
    actions = policy['actions']
    sigma_a = np.maximum(stats['actions'].std, NO_SPREAD)
    arrays = {'sigma_a': sigma_a, 'action_low': actions.low, 'action_span': actions.span}
    return {k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()}


def to_batch(arrays: Mapping[str, np.ndarray]) -> Batch:
    """The loader's dictionary, leaves [b g ...], as a Batch. Without baselines `base` is zero."""
    names = ('images', 'image_mask', 'prompt', 'prompt_mask', 'text', 'text_mask', 'state', 'depth', 'audio')
    observation = Observation(**{k: arrays[k] for k in names if k in arrays})
    rest = {f.name: arrays[f.name] for f in dataclasses.fields(Batch) if f.name in arrays}
    return Batch(observation=observation, **{'base': np.zeros_like(arrays['actions'])} | rest)


def make_objective(config: Mapping, base: Base, batch: Batch) -> objective.FlowMatching | objective.SigmaObjective:
    """What `config.objective` names: 'flow_matching' or 'sigma'."""
    if config['objective'] == 'flow_matching':
        return objective.FlowMatching(base.config)
    if config['objective'] != 'sigma':
        raise UserError(f"config.objective: expected 'sigma' or 'flow_matching', got {config['objective']!r}")
    sizes = {
        'd_model': base.config.language.width,
        'state_dim': batch.observation.state.shape[-1],
        'action_dim': batch.actions.shape[-1],
    }
    return objective.SigmaObjective(
        base.config,
        build(SigmaConfig, sizes | dict(config['sigma']), 'sigma'),
        build(losses.LossConfig, config['loss'], 'loss'),
        build(curriculum.CurriculumConfig, config['curriculum'], 'curriculum'),
    )


def make_trainable(config: Mapping, base: Base, goal: Any, frozen: Frozen, batch: Batch) -> tuple[PyTree, Frozen]:
    """(trainable leaves, what stays frozen) before the first step; `config.trainable` lists the groups."""
    groups, key = list(config['trainable']), jax.random.key(config['seed'])
    if unknown := set(groups) - {'sigma', 'lora', 'params'}:
        raise UserError(f"config.trainable: expected some of 'sigma', 'lora', 'params', got {sorted(unknown)}")
    trainable = {}
    if 'sigma' in groups:
        init = jax.jit(lambda f, b: objective.init_sigma(key, goal, f, b))
        trainable['sigma'] = init(frozen, batch)
    if 'lora' in groups:
        trainable['lora'] = lora.init_factors(jax.random.fold_in(key, 1), base.params, pi05.LAYOUTS, base.config.lora)
    if 'params' in groups:
        trainable['params'], frozen = jax.tree.map(jnp.asarray, base.params), frozen.replace(params={})
    return trainable, frozen


def make_ablation(config: Mapping) -> Ablation:
    """Gates from the section `ablation`."""
    gates = build(Ablation, config['ablation'], 'ablation')
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gates)

