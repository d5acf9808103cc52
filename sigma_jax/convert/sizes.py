"""The sizes of a pi0.5, from its arrays where they tell, from a config file beside them where they do not."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping

from sigma_jax.backbones.gemma import GemmaConfig
from sigma_jax.backbones.pi05 import Pi05Config
from sigma_jax.backbones.siglip import SiglipConfig
from sigma_jax.convert.pytorch import EMBED, EXPERT, PALIGEMMA
from sigma_jax.errors import UserError

CONFIG_FILE = 'sigma_config.json'
Shapes = Mapping[str, tuple[int, ...]]


def to_json(config: Pi05Config) -> dict:
    """A config as plain JSON; LoRA and run-time settings are not properties of the weights and stay out."""
    out = dataclasses.asdict(config)
    return {k: v for k, v in out.items() if k not in ('lora', 'dtype', 'remat')}


def from_json(data: Mapping) -> Pi05Config:
    """The inverse of `to_json`."""
    parts = {'vision': SiglipConfig, 'language': GemmaConfig, 'expert': GemmaConfig}
    return Pi05Config(**{k: parts[k](**v) if k in parts else v for k, v in data.items()})


def read_hints(folder: pathlib.Path) -> dict:
    """What the config files beside a checkpoint say of sizes that no array tells.

    Keys: `vision_heads`, `kv_heads`, `action_horizon`, `sample_steps`. Reads our `sigma_config.json`, LeRobot's
    `config.json`, and the `config.json` of a parity fixture.
    """
    for name in (CONFIG_FILE, 'config.json'):
        file = folder / name
        if not file.is_file():
            continue
        try:
            return _hints(dict(json.loads(file.read_text())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'expected the sizes of a model in {file}, got {error}; restore the file or remove it'
            ) from error
    return {}


def _hints(data: Mapping) -> dict:
    if 'language' in data:  # ours
        c = from_json(data)
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
    names = {'chunk_size': 'action_horizon', 'num_inference_steps': 'sample_steps', 'action_horizon': 'action_horizon'}
    return {ours: data[theirs] for theirs, ours in names.items() if theirs in data}


def from_jax_shapes(shapes: Shapes, hints: Mapping) -> Pi05Config:
    """Sizes from the leaves of openpi's JAX tree; only horizon and steps come from `hints`."""
    image, llm = 'PaliGemma/img', 'PaliGemma/llm'
    block = f'{image}/Transformer/encoderblock'
    patch, tokens = shapes[f'{image}/embedding/kernel'][0], shapes[f'{image}/pos_embedding'][1]
    depth, width, heads, _ = shapes[f'{block}/MultiHeadDotProductAttention_0/query/kernel']
    mlp = shapes[f'{block}/MlpBlock_0/Dense_0/kernel'][-1]
    vision = SiglipConfig(width, depth, mlp, heads, patch, patch * math.isqrt(tokens))

    def expert(suffix):
        layers, n, w, h = shapes[f'{llm}/layers/attn/q_einsum{suffix}/w']
        kv_heads = shapes[f'{llm}/layers/attn/kv_einsum{suffix}/w'][2]
        return GemmaConfig(w, layers, shapes[f'{llm}/layers/mlp{suffix}/linear'][1], n, kv_heads, h, bool(suffix))

    return Pi05Config(
        vision=vision,
        language=expert(''),
        expert=expert('_1'),
        vocab_size=shapes[f'{llm}/embedder/input_embedding'][0],
        action_dim=shapes['action_in_proj/kernel'][0],
        **_run_sizes(hints),
    )


def from_torch_shapes(shapes: Shapes, hints: Mapping) -> Pi05Config:
    """Sizes from tensors under canonical names; heads of SigLIP come from `hints` or are those of 72 channels."""
    tower = PALIGEMMA + 'vision_tower.vision_model.'
    width, _, patch, _ = shapes[tower + 'embeddings.patch_embedding.weight']
    heads = hints.get('vision_heads', width // 72 if width % 72 == 0 else None)
    if heads is None:
        raise UserError(
            f'the number of SigLIP heads cannot be read from a width of {width}; expected it in {CONFIG_FILE} '
            "beside the weights ({'vision': {'heads': ...}}); add that file"
        )
    vision = SiglipConfig(
        width=width,
        depth=_layers(shapes, tower + 'encoder.layers.'),
        mlp_dim=shapes[tower + 'encoder.layers.0.mlp.fc1.weight'][0],
        heads=heads,
        patch=patch,
        image_size=patch * math.isqrt(shapes[tower + 'embeddings.position_embedding.weight'][0]),
    )

    def expert(prefix, adaptive):
        q, k = (shapes[f'{prefix}layers.0.self_attn.{x}_proj.weight'] for x in 'qk')
        head_dim = k[0] // hints.get('kv_heads', 1)
        mlp = shapes[f'{prefix}layers.0.mlp.gate_proj.weight'][0]
        layers, kv_heads = _layers(shapes, prefix + 'layers.'), hints.get('kv_heads', 1)
        return GemmaConfig(q[1], layers, mlp, q[0] // head_dim, kv_heads, head_dim, adaptive)

    return Pi05Config(
        vision=vision,
        language=expert(PALIGEMMA + 'language_model.', False),
        expert=expert(EXPERT, True),
        vocab_size=shapes[EMBED][0],
        action_dim=shapes['action_in_proj.weight'][1],
        **_run_sizes(hints),
    )


def _run_sizes(hints: Mapping) -> dict:
    return {k: int(hints[k]) for k in ('action_horizon', 'sample_steps') if k in hints}


def _layers(shapes: Shapes, prefix: str) -> int:
    return 1 + max((int(k[len(prefix) :].split('.')[0]) for k in shapes if k.startswith(prefix)), default=-1)
