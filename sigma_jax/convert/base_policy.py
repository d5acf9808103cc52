"""The base policy: its sizes, weights, statistics, and whether a robot and its shards fit it."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.backbones.gemma import GemmaConfig
from sigma_jax.backbones.siglip import SiglipConfig
from sigma_jax.convert import assets, checkpoint
from sigma_jax.convert.openpi import training_config
from sigma_jax.convert.source import open_source
from sigma_jax.errors import UserError
from sigma_jax.nn import lora
from sigma_jax.processing import fitting, normalize
from sigma_jax.processing.normalize import NormStats
from sigma_jax.processing.spec import OURS, ProcessorConfig
from sigma_jax.processing.tokenizer import Tokenizer, load_tokenizer
from sigma_jax.settings import from_section
from sigma_jax.types import PyTree


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
    policy: ProcessorConfig = OURS
    folder: pathlib.Path | None = None
    notes: tuple[str, ...] = ()  # which weights were taken, and what was assumed as no file says it


def describe_base(config: Mapping) -> Base:
    """The converted checkpoint at `config.base`, or the sizes in `config.model`, without any
    weights.

    At full size these take half a minute to read: what can be wrong is to be found before.
    """
    settings = config['model']
    run = {
        'dtype': settings['dtype'],
        'remat': settings['remat'],
        'lora': from_section(lora.LoraConfig, config['lora'], 'lora'),
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
    built = {
        k: from_section(parts[k], v, f'model.{k}') if k in parts else v for k, v in settings.items()
    }
    return from_section(pi05.Pi05Config, {**built, **run}, 'model')


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


def check_resize(policy: ProcessorConfig, meta: Mapping[str, Any]) -> None:
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
