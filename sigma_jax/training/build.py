"""From a config to all that a run needs: base policy, statistics, objective, trainable leaves."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.backbones.gemma import GemmaConfig
from sigma_jax.backbones.siglip import SiglipConfig
from sigma_jax.convert import assets, checkpoint
from sigma_jax.convert.openpi import training_config
from sigma_jax.convert.source import open_source
from sigma_jax.errors import UserError
from sigma_jax.nn import lora, quant
from sigma_jax.objectives import objective
from sigma_jax.processing import fitting, normalize
from sigma_jax.processing.spec import OURS, Policy
from sigma_jax.processing.tokenizer import Tokenizer, load_tokenizer
from sigma_jax.settings import check_row, check_rows
from sigma_jax.sigma import curriculum, losses
from sigma_jax.sigma.model import SigmaConfig
from sigma_jax.types import Ablation, Batch, Frozen, Observation

PyTree = Any
NormStats = dict[str, normalize.Statistics]  # 'state', 'actions'
GROUPS = {
    'sigma': [{'sigma'}, {'sigma', 'lora'}],
    'flow_matching': [{'lora'}, {'params'}, {'lora', 'params'}],
}
NO_SPREAD = 1e-3  # raw units: a joint that never moved is scaled as if it had this spread


@dataclasses.dataclass(frozen=True)
class Base:
    """The base policy: its sizes, weights (numpy), digest, statistics it was trained with, and how
    it uses them.

    Before its weights are read `params` is None, and `digest` what is recorded beside them, ''
    without a record.
    """

    config: pi05.Pi05Config
    params: PyTree
    digest: str
    norm_stats: NormStats | None = None
    policy: Policy = OURS
    folder: pathlib.Path | None = None
    notes: tuple[str, ...] = ()  # which weights were taken, and what was assumed as no file says it


def build(kind: type, settings: Mapping, where: str) -> Any:
    """A frozen dataclass from a config section.

    Raises UserError for unknown and missing keys, and for rows of another length or kind.
    """
    fields = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(settings) - fields):
        raise UserError(
            f'config.{where} has unknown keys {unknown}; expected some of {sorted(fields)}'
        )
    check_rows(kind, settings, f'config.{where}.')
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        return kind(**plain)
    except TypeError as error:
        raise UserError(f'config.{where}: {error}; add the missing keys') from error


def describe_base(config: Mapping) -> Base:
    """The converted checkpoint at `config.base`, or the sizes in `config.model`, without any
    weights.

    At full size these take half a minute to read: what can be wrong is to be found before.
    """
    settings = config['model']
    run = {
        'dtype': settings['dtype'],
        'remat': settings['remat'],
        'lora': build(lora.LoraConfig, config['lora'], 'lora'),
    }
    if not config['base']:
        return Base(pi05_config(settings, run), None, '')
    folder = pathlib.Path(config['base'])
    source = open_source(folder)
    around = assets.read(folder, source.format)
    sizes = dataclasses.replace(source.config, **run)
    assumed = {**source.assumed, **around.assumed}
    told = training_config.assumption_notes(assumed, sizes, around.policy.prompt_state_dim)
    notes = (*source.notes, *told)
    return Base(sizes, None, source.digest, around.statistics, around.policy, folder, notes)


def load_base(config: Mapping) -> Base:
    """The base that `describe_base` describes with its weights, random ones where `config.base`
    names none.
    """
    base = describe_base(config)
    if base.folder:
        loaded = checkpoint.load(base.folder)
        return dataclasses.replace(base, params=loaded.params, digest=loaded.digest)
    params = jax.jit(lambda key: pi05.init_params(key, base.config))(jax.random.key(config['seed']))
    params = count_in_order(jax.tree.map(np.asarray, params), load_tokenizer(config['tokenizer']))
    return dataclasses.replace(base, params=params, digest=trees.digest(params))


def count_in_order(params: PyTree, tokenizer: Tokenizer) -> PyTree:
    """Token tables whose rows for 0 ... 255 start as cosines of the number, so that 127 lies beside
    128.

    A pre-trained language model knows the order of numbers, in which pi0.5's prompt writes the
    state; random rows would have to learn it from every (joint, number) pair on its own. Numbers of
    several tokens stay random.
    """
    path = 'PaliGemma/llm/embedder/input_embedding'
    flat = trees.flatten(params)
    table = np.array(flat[path])
    order = np.arange(table.shape[1] // 4)
    mix = np.random.default_rng(0).normal(size=(len(order), table.shape[1])) / (1 + order[:, None])
    for number in range(256):
        ids = tokenizer.encode(f' {number}')[1:]
        if len(ids) == 1:
            row = np.cos(np.pi * order * number / 255) @ mix
            table[ids[0]] = row / np.linalg.norm(row)
    return trees.unflatten(flat | {path: table})


def pi05_config(settings: Mapping, run: Mapping) -> pi05.Pi05Config:
    """Sizes of a policy to be trained from nothing, from the section `model`."""
    parts = {'vision': SiglipConfig, 'language': GemmaConfig, 'expert': GemmaConfig}
    built = {k: build(parts[k], v, f'model.{k}') if k in parts else v for k, v in settings.items()}
    return build(pi05.Pi05Config, {**built, **run}, 'model')


def frozen_stats(
    stats: NormStats, policy: NormStats, relative_joints: Sequence[bool] = ()
) -> dict[str, jax.Array]:
    """Statistics a step reads: spread of the training actions, and how the policy's own actions are
    scaled.

    Of the state, its first entries count, one an action, as in openpi and LeRobot.
    Raises UserError when `relative_joints` does not name every action, or names one beyond the
    states.
    """
    state, actions, width = policy['state'], policy['actions'], len(policy['actions'].low)
    relative = tuple(relative_joints) or (False,) * width
    if len(relative) != width or any(relative[len(state.low) :]):
        raise UserError(
            f'relative_joints: expected one value for each of {width} actions, the relative ones '
            f'among the first {len(state.low)}, got {relative_joints}; write one true or false an '
            'action'
        )
    arrays = {
        'sigma_a': np.maximum(stats['actions'].std, NO_SPREAD),
        'action_low': actions.low,
        'action_span': actions.span,
        'relative': relative,
        'state_low': normalize.first_joints(state.low, width) if any(relative) else np.zeros(width),
        'state_span': normalize.first_joints(state.span, width)
        if any(relative)
        else np.ones(width),
    }
    return {k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()}


def to_batch(arrays: Mapping[str, np.ndarray]) -> Batch:
    """The loader's dictionary, leaves [b g ...], as a Batch. Without baselines `base` is zero."""
    names = [f.name for f in dataclasses.fields(Observation)]
    inputs: dict[str, Any] = {k: arrays[k] for k in names if k in arrays}
    rest: dict[str, Any] = {
        f.name: arrays[f.name] for f in dataclasses.fields(Batch) if f.name in arrays
    }
    return Batch(
        observation=Observation(**inputs), **{'base': np.zeros_like(arrays['actions'])} | rest
    )


def robot_statistics(base: Base, meta: Mapping[str, Any]) -> NormStats | None:
    """The base's own statistics, cut to the robot's joints: openpi's have 32 entries whatever the
    robot.

    Raises UserError where they have fewer entries than the robot has joints.
    """
    if base.norm_stats is None:
        return None
    widths = {'state': len(meta['state_names']), 'actions': len(meta['action_names'])}
    return normalize.cut_to(base.norm_stats, widths, f'the statistics of {base.folder}')


def check_images(base: Base, meta: Mapping[str, Any]) -> None:
    """Raises UserError when the shards' images are not as the base takes them: size, resize, order
    of cameras.
    """
    check_image_size(base, meta['image_size'])
    check_resize(base.policy, meta)


def check_image_size(base: Base, side: int) -> None:
    """Raises UserError when the base takes no images of `side` pixels."""
    if side != (expected := base.config.vision.image_size):
        raise UserError(
            f'expected images of {expected} px, which the base takes, got {side} px; '
            f'prepare the shards with --config.data.image_size={expected}'
        )


def check_resize(policy: Policy, meta: Mapping[str, Any]) -> None:
    """Raises UserError when the shards' images were shrunk or their cameras ordered unlike the
    base's.
    """
    side, sizes = meta['image_size'], meta.get('camera_sizes', {'of unknown size': None})
    style = meta.get('resize', 'openpi')
    if style != policy.resize and any(size != [side, side] for size in sizes.values()):
        raise UserError(
            f'expected images resized as {policy.resize!r} does, like those the base was trained '
            f'on, got {style!r} in the shards; prepare them again with '
            f'--config.data.resize={policy.resize}'
        )
    fitting.check_cameras(policy, meta)


def make_objective(
    config: Mapping, base: Base, batch: Batch
) -> objective.FlowMatching | objective.SigmaObjective:
    """What `config.objective` names: 'flow_matching' or 'sigma'."""
    if config['objective'] == 'flow_matching':
        return objective.FlowMatching(base.config)
    if config['objective'] != 'sigma':
        raise UserError(
            f"config.objective: expected 'sigma' or 'flow_matching', got {config['objective']!r}"
        )
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


def store_base(config: Mapping, base: Base, goal: Any) -> PyTree:
    """The base's weights on the device, as `config.quant` says; only those leaves that the
    objective reads.

    Raises UserError where they are to learn and would be stored in another dtype than their own.
    """
    how = build(quant.QuantConfig, config.get('quant', {}), 'quant')
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


def init_heads(
    key: jax.Array, goal: objective.SigmaObjective, frozen: Frozen, batch: Batch
) -> PyTree:
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
    goal: objective.SigmaObjective, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Callable:
    """Compiled once for the seeds of an ablation."""

    def draw(key):
        inputs = jax.tree.unflatten(structure, [jnp.zeros(x.shape, x.dtype) for x in leaves])
        return objective.init_sigma(key, goal, *inputs)

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
    gates = build(Ablation, config['ablation'], 'ablation')
    # JSON has 'inf' as text only
    return jax.tree.map(lambda x: jnp.asarray(float(x), jnp.float32), gates)
