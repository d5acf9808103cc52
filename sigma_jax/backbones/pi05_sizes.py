"""The sizes of a pi0.5: from its arrays where they give them, from a config file beside them where
they do not.
"""

import collections
import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sigma_jax.backbones import pi05_names
from sigma_jax.backbones.base import CONFIG_FILE, build_config
from sigma_jax.backbones.gemma import GemmaConfig
from sigma_jax.backbones.names import Rule
from sigma_jax.backbones.pi05 import PARTS, Pi05Config
from sigma_jax.backbones.siglip import SiglipConfig
from sigma_jax.errors import UserError, few

IMAGE, TEXT = (
    ('i.w', 'i.m', 'i.depth', 'patch', 'tokens'),
    ('l.w', 'l.m', 'l.q', 'l.k', 'depth', 'vocab'),
)
AXES = (*IMAGE, *TEXT, 'e.w', 'e.m', 'e.q', 'e.k', 'action')  # see pi05_names.py
Shapes = Mapping[str, tuple[int, ...]]


def hints(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file beside a checkpoint says of sizes that no array gives: `vision_heads`,
    `kv_heads`, `action_horizon`, `sample_steps`.

    Args:
      data: contents of our `sigma_config.json`, LeRobot's `config.json`, or a parity fixture's.

    Returns:
      Those that it says.
    """
    if 'language' in data:  # ours
        c = build_config(Pi05Config, PARTS, data)
        return {
            'vision_heads': c.vision.heads,
            'kv_heads': c.language.kv_heads,
            'action_horizon': c.action_horizon,
            'sample_steps': c.sample_steps,
        }
    if 'vlm' in data:  # a parity fixture
        return {
            'vision_heads': data['siglip']['num_heads'],
            'kv_heads': data['vlm']['num_kv_heads'],
            'action_horizon': data['action_horizon'],
            'sample_steps': data['num_steps'],
        }
    names = {
        'chunk_size': 'action_horizon',
        'num_inference_steps': 'sample_steps',
        'action_horizon': 'action_horizon',
    }
    return {ours: data[theirs] for theirs, ours in names.items() if theirs in data}


def infer(
    shapes: Shapes, hints: Mapping, spell: Callable[[Rule], str] = lambda r: r.name
) -> Pi05Config:
    """Sizes of the model from PyTorch tensors under canonical names; those that most of them agree
    on.

    A few damaged tensors do not mislead: they are found later, by comparison.

    Args:
      shapes: of the tensors, by name.
      hints: what no array gives.
      spell: how a message names a rule's tensor.

    Returns:
      The sizes.

    Raises:
      UserError: too little is there to say.
    """
    votes = _votes(shapes)
    if unknown := [axis for axis in AXES if axis not in votes]:
        absent = [
            spell(rule).replace('{n}', '*')
            for rule in pi05_names.RULES
            if not _matches(rule, shapes)
        ]
        raise UserError(
            'expected the tensors of a pi0.5, got none that give '
            f'{few(unknown, ", ", len(TEXT))}; missing or of another rank ({len(absent)}): '
            f'{few(absent, ", ")}; choose a pi0.5 checkpoint'
        )
    size = {axis: counter.most_common(1)[0][0] for axis, counter in votes.items()}
    kv_heads = _positive(hints, 'kv_heads', 1)
    side = math.isqrt(size['tokens'])
    if side**2 != size['tokens']:
        (rule,) = (rule for rule in pi05_names.RULES if 'tokens' in rule.axes)
        raise UserError(
            f'{spell(rule)}: expected a square number of rows, got {size["tokens"]}; copy it again'
        )
    if any(size[x] % kv_heads for x in ('l.k', 'e.k')):
        raise UserError(
            f'expected key projections of {kv_heads} KV heads, got {size["l.k"]} and '
            f'{size["e.k"]} rows; correct the config beside the weights'
        )
    heads = _vision_heads(size['i.w'], hints)
    vision = SiglipConfig(
        size['i.w'], size['i.depth'], size['i.m'], heads, size['patch'], size['patch'] * side
    )

    def expert(x: str, adaptive: bool) -> GemmaConfig:
        head_dim = size[f'{x}.k'] // kv_heads
        return GemmaConfig(
            size[f'{x}.w'],
            size['depth'],
            size[f'{x}.m'],
            size[f'{x}.q'] // head_dim,
            kv_heads,
            head_dim,
            adaptive,
        )

    return Pi05Config(
        vision=vision,
        language=expert('l', False),
        expert=expert('e', True),
        vocab_size=size['vocab'],
        action_dim=size['action'],
        action_horizon=_positive(hints, 'action_horizon', Pi05Config.action_horizon),
        sample_steps=_positive(hints, 'sample_steps', Pi05Config.sample_steps),
    )


def _votes(shapes: Shapes) -> dict[str, collections.Counter]:
    """What each tensor says of each axis it has."""
    votes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for rule in pi05_names.RULES:
        found = _matches(rule, shapes)
        if found and '{n}' in rule.name:
            depth = 'i.depth' if 'vision_tower' in rule.name else 'depth'
            votes[depth][1 + max(found.values())] += 1
        for name in found:
            for axis, factor, size in _sizes(rule.axes, shapes[name]):
                if size and size % factor == 0:
                    votes[axis][size // factor] += 1
    return votes


def _matches(rule: Rule, shapes: Shapes) -> dict[str, int]:
    """{tensor: layer} of the tensors that a rule names and whose rank fits; layer 0 where nothing
    is stacked.
    """
    before, stacked, after = rule.name.partition('{n}')
    rank = len(rule.axes.split())
    if not stacked:
        return {before: 0} if len(shapes.get(before, ())) == rank else {}
    ends = (
        name
        for name in shapes
        if name.startswith(before) and name.endswith(after) and len(shapes[name]) == rank
    )
    layers = {name: name[len(before) : len(name) - len(after)] for name in ends}
    return {name: int(layer) for name, layer in layers.items() if layer.isdecimal()}


def _sizes(axes: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(axis, factor, size) of each named axis."""
    names = axes.split()
    for name, size in zip(names, shape, strict=True):
        factor, _, axis = name.rpartition('*')
        if axis in AXES:
            yield axis, int(factor or 1), size


def _vision_heads(width: int, hints: Mapping) -> int:
    if (heads := _positive(hints, 'vision_heads', 0)) and width % heads == 0:
        return heads
    if width % 72 or heads:
        raise UserError(
            f'the number of SigLIP heads cannot be read from a width of {width}; expected a '
            f"divisor of it in {CONFIG_FILE} beside the weights ({{'vision': {{'heads': ...}}}}), "
            f'got {heads or "none"}; correct it'
        )
    return width // 72


def _positive(hints: Mapping, key: str, default: int) -> int:
    value = hints.get(key, default)
    if not isinstance(value, int) or (value < 1 and key in hints):
        raise UserError(
            f'expected {key} to be a positive whole number, got {value!r} in the config; correct it'
        )
    return value


def from_jax_shapes(shapes: Shapes, hints: Mapping) -> Pi05Config:
    """Sizes from the leaves of openpi's JAX tree.

    Args:
      shapes: of the leaves, by path.
      hints: of which only horizon and steps are read.

    Returns:
      The sizes.

    Raises:
      UserError: too little is there to say.
    """
    tensors, found = {}, dict(hints)
    for rule in pi05_names.RULES:
        # missing, or of another rank
        with contextlib.suppress(KeyError, ValueError, TypeError, IndexError):
            *_, (index, name) = rule.names(shapes[rule.path][0])
            stub = np.broadcast_to(np.int8(0), shapes[rule.path][len(index) :])
            tensors[name] = rule.tensor_map.to_torch(stub).shape
    for key, pattern, rank in (
        ('vision_heads', r'.*/(query|key|value)/kernel', 4),
        ('kv_heads', '.*/kv_einsum.*', 5),
    ):
        heads = [
            s[-2] if rank == 4 else s[2]
            for p, s in shapes.items()
            if re.fullmatch(pattern, p) and len(s) == rank
        ]
        found |= {key: collections.Counter(heads).most_common(1)[0][0]} if heads else {}
    return infer(tensors, found, lambda rule: rule.path)
