"""`train.py --check`: will this config fit the card? Reads a config and shapes; no weight, no
picture, no compiler.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.convert.base_policy import Base, pi05_config
from sigma_jax.convert.source import open_source
from sigma_jax.data.shards.meta import META, read_meta
from sigma_jax.errors import UserError
from sigma_jax.nn import lora, quant
from sigma_jax.settings import from_section
from sigma_jax.training import build, memory
from sigma_jax.training.optimizer import OptimizerConfig, make_optimizer
from sigma_jax.types import ActionScaling, Batch, Frozen, Observation

PyTree = Any
GIB = 2**30
USABLE = 0.92  # of a card's memory; the rest is the driver's, the context's and a display's
ASSUMED: dict[str, Any] = {
    'camera_names': ('up', 'side'),
    'state_names': range(6),
    'max_prompt_len': 200,
    'max_text_len': 48,
}


@dataclasses.dataclass(frozen=True)
class Card:
    """Bytes that a run may take, of how many, and the compute capability (0: no GPU)."""

    usable: int
    name: str
    capability: float


def find_card(card_gib: float | None) -> Card:
    """The card the user names, or the GPU here. Raises UserError where there is neither.

    A card that is not here is taken for one of the data centre from 40 GiB on (capability 9, fused
    attention), below for a consumer's (8.9, where cuDNN fuses no heads as wide as Gemma's).
    """
    device = jax.local_devices()[0]
    here = device.platform == 'gpu'
    if card_gib is not None:
        if card_gib <= 0:
            raise UserError(
                f'--card_gib: expected GiB of memory above 0, got {card_gib}; 24 is an RTX 4090'
            )
        capability = float(device.compute_capability) if here else 9.0 if card_gib >= 40 else 8.9
        return Card(int(USABLE * card_gib * GIB), f'a card of {card_gib:g} GiB', capability)
    if not here:
        raise UserError(
            f'expected a GPU to check for, got {device.device_kind}; name its memory: --check '
            '--card_gib=24'
        )
    return Card(
        device.memory_stats()['bytes_limit'], device.device_kind, float(device.compute_capability)
    )


def base_shapes(config: Mapping) -> tuple[pi05.Pi05Config, PyTree, list[str]]:
    """(sizes, shapes of the base's leaves as its folder holds them, what was assumed)."""
    run = {key: config['model'][key] for key in ('dtype', 'remat')}
    run['lora'] = from_section(lora.LoraConfig, config['lora'], 'lora')
    if config['base'] and pathlib.Path(config['base']).exists():
        source = open_source(config['base'])
        leaves = {
            path: jax.ShapeDtypeStruct(shape, source.dtypes[path])
            for path, shape in source.shapes.items()
        }
        return dataclasses.replace(source.config, **run), trees.unflatten(leaves), []
    sizes = pi05_config(config['model'], run)
    notes = (
        [f'no checkpoint at {config["base"]} yet; assumed: sizes of config.model, float32']
        if config['base']
        else []
    )
    return sizes, pi05.abstract_params(sizes), notes


def batch_shapes(
    config: Mapping, sizes: pi05.Pi05Config, sequences: int
) -> tuple[Batch, list[str]]:
    """(a batch [sequences windows ...] as the loader gives it, what was assumed)."""
    there = (pathlib.Path(config['shards']) / META).is_file() if config['shards'] else False
    horizon = (
        sizes.action_horizon
        if config['objective'] == 'flow_matching'
        else config['sigma']['horizon']
    )
    meta = (
        read_meta(config['shards'])
        if there
        else ASSUMED | {'horizon': horizon, 'action_names': range(6)}
    )
    lead, side = (sequences, config['sequence_length']), sizes.vision.image_size
    views = len(meta['camera_names'])
    optional: dict[str, Any] = {}

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), dtype)

    def tokens(length: int) -> tuple[Any, Any]:
        return array(length, dtype=jnp.int32), array(length, dtype=bool)

    if config['sigma']['use_depth']:
        optional['depth'] = array(len(meta.get('depth_names', ())) or views, side, side, 1)
    if config['sigma']['use_audio']:
        optional['audio'] = array(meta.get('audio_samples', 16000))
    (prompt, prompt_mask), (text, text_mask) = (
        tokens(meta['max_prompt_len']),
        tokens(meta['max_text_len']),
    )
    images, seen = array(views, side, side, 3, dtype=jnp.uint8), array(views, dtype=bool)
    state = array(len(meta['state_names']))
    observation = Observation(images, seen, prompt, prompt_mask, text, text_mask, state, **optional)
    actions, flag, number = (
        array(meta['horizon'], len(meta['action_names'])),
        array(dtype=bool),
        array(dtype=jnp.int32),
    )
    mask = array(meta['horizon'], dtype=bool)
    batch = Batch(observation, actions, mask, actions, flag, flag, number, number, number)
    assumed = (
        f'assumed: {views} cameras, 6 joints, {meta["max_prompt_len"]} prompt and '
        f'{meta["max_text_len"]} text tokens'
    )
    return batch, [] if there else [
        f'no shards at {config["shards"] or "config.shards"} yet; {assumed}'
    ]


def make_job(config: Mapping, devices: int = 1) -> tuple[memory.Job, list[str]]:
    """(the step that `config` describes, on one of `devices`, by shapes; what was assumed)."""
    sizes, params, notes = base_shapes(config)
    parts = config.get('accumulate', 1)
    batch, more = batch_shapes(config, sizes, max(config['batch_size'] // (parts * devices), 1))
    goal = build.make_objective(config, Base(sizes, None, ''), batch)
    width = batch.actions.shape[-1]
    a_joint: Any = jax.ShapeDtypeStruct((width,), jnp.float32)
    scaling = ActionScaling(*[a_joint] * len(dataclasses.fields(ActionScaling)))
    how = from_section(quant.QuantConfig, config['quant'], 'quant')
    frozen = Frozen(memory.stored(params, how, goal.reads), scaling)
    trainable = memory.trainable_shapes(config['trainable'], goal, params, frozen, batch)
    if 'params' in config['trainable']:
        held, flat = trees.flatten(trees.select(params, config['freeze'])), trees.flatten(params)
        trainable['params'] = trees.unflatten({p: x for p, x in flat.items() if not held[p]})
        frozen = dataclasses.replace(
            frozen, params=trees.unflatten({p: x for p, x in flat.items() if held[p]})
        )
    optimizer = make_optimizer(from_section(OptimizerConfig, config['optimizer'], 'optimizer'))
    return memory.Job(
        goal, optimizer, trainable, frozen, batch, config['ema'] is not None, parts
    ), notes + more


def advice(config: Mapping, job: memory.Job, parts: Mapping[str, int]) -> list[str]:
    """What would make a step smaller, each with what it saves, the largest first."""
    moving = parts['kept activations'] + parts['largest layer']
    found: list[tuple[int, str]] = []
    micro = config['batch_size'] // job.accumulate
    if micro > 1:
        how = (
            f'config.accumulate={2 * job.accumulate}'
            if micro % 2 == 0
            else f'a config.batch_size below {micro}'
        )
        found.append((moving // 2, how))
    if job.goal.config.remat not in ('save_attention', 'nothing_saveable'):
        less = memory.with_remat(job, 'save_attention')
        found.append(
            (parts['kept activations'] - memory.kept(less), 'config.model.remat=save_attention')
        )
    if 'params' not in config['trainable']:
        _, params, _ = base_shapes(config)
        for kind in ('bfloat16', 'nf4'):
            how_stored = from_section(
                quant.QuantConfig, dict(config['quant']) | {'kind': kind}, 'quant'
            )
            smaller = memory.size(memory.stored(params, how_stored, job.goal.reads))
            found.append((parts['frozen base'] - smaller, f'config.quant.kind={kind}'))
    return [
        f'{how} (saves about {saved / GIB:.1f} GiB)'
        for saved, how in sorted(found, reverse=True)
        if saved > 0
    ]


def check(config: Mapping, card_gib: float | None, console: Console, members: int = 1) -> int:
    """Prints the forecast and a verdict. Returns the exit status: 0 where the config fits, 1 where
    it does not.

    Of `members` trainings side by side, the states of all are there, old and new, and at least one
    step.
    """
    card = find_card(card_gib)
    here = jax.local_devices()
    with memory.pretend(card.capability):
        job, notes = make_job(config, len(here) if here[0].platform == 'gpu' else 1)
        parts = memory.forecast(job)
        if members > 1:
            state = parts['trainable leaves'] + parts['moments'] + parts['running average']
            parts[f'states of {members} trainings'] = (2 * members - 1) * state
        total = sum(parts.values())
        fits = total <= card.usable
        suggestions = [] if fits else advice(config, job, parts)
    table = Table('on the device', 'GiB')
    for name, size in parts.items():
        if size:
            table.add_row(name, f'{size / GIB:.2f}')
    table.add_row('all', f'{total / GIB:.2f}')
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(verdict(total, card, suggestions), highlight=False, soft_wrap=True)
    return 0 if fits else 1


def verdict(total: int, card: Card, suggestions: list[str]) -> str:
    """One sentence."""
    room = f'{card.usable / GIB:.1f} GiB that JAX may take of {card.name}'
    if total <= card.usable:
        return f'fits: about {total / GIB:.1f} GiB of the {room}'
    ways = '; '.join(suggestions) or 'a larger card'
    return f'does not fit: about {total / GIB:.1f} GiB, expected at most the {room}; try {ways}'
