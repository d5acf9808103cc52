"""pi0.5's inner quantities, as parity fixtures name them: what a public implementation computed is
compared with these.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from sigma_jax.backbones.pi05 import Pi05, Pi05Config, positions
from sigma_jax.types import Observation, PyTree


def quantities(
    config: Pi05Config,
    params: PyTree,
    observation: Observation,
    inputs: Mapping[str, Array],
    cameras: Sequence[str],
) -> dict[str, Array]:
    """All quantities whose inputs are there.

    Args:
      config: the model's sizes.
      params: its weights.
      observation: what it sees.
      inputs: `actions`, `noise` [b t a] and `time` [b] of the training pass, `sample_noise` [b t a]
        of sampling; those of either may be absent.
      cameras: names of the views, in order.

    Returns:
      Arrays under the names that a fixture's outputs.npz has.
    """
    found: Any = Pi05(config).apply(
        {'params': params}, observation, inputs, cameras, method=_quantities
    )
    return found


def _quantities(
    model: Pi05, observation: Observation, inputs: Mapping, cameras: Sequence[str]
) -> dict:
    embeddings, mask = model.embed_prefix(observation)
    found = {
        'prefix_embeddings': embeddings,
        'prefix_mask': mask,
        'prefix_positions': positions(mask),
        'prefix_hidden': model.encode(embeddings, mask),
    }
    tokens = model.config.vision.tokens
    *views, text = jnp.split(embeddings, [tokens * (n + 1) for n in range(len(cameras))], axis=1)
    found |= {f'image_embeddings_{name}': view for name, view in zip(cameras, views, strict=True)}
    found['token_embeddings'] = text
    if 'time' in inputs:
        found |= _training(
            model, observation, mask, inputs['actions'], inputs['noise'], inputs['time']
        )
    if 'sample_noise' in inputs:
        found['sampled_actions'] = model.sample_actions(inputs['sample_noise'], observation)
    return found


def _training(model: Pi05, observation: Observation, mask, actions, noise, time) -> dict:
    """The training pass at x_t = t noise + (1 - t) actions, whose target is noise - actions."""
    t = time[:, None, None]
    x_t = t * noise + (1 - t) * actions
    velocity = model.velocity(observation, x_t, time)
    joint = jnp.concatenate([mask, jnp.ones(x_t.shape[:2], bool)], axis=1)
    return {
        'time_cond': model.time_condition(time),
        'suffix_embeddings': model.embed_actions(x_t),
        'suffix_positions': positions(joint)[:, mask.shape[1] :],
        'suffix_hidden': model.action_hidden(observation, x_t, time),
        'velocity': velocity,
        'loss': (velocity - (noise - actions)) ** 2,
    }


def public_sizes(config: Pi05Config) -> dict[str, int]:
    """A model's sizes under the names of a parity fixture's config.json.

    Args:
      config: the model's.

    Returns:
      Sizes by name; those of a part behind its name and a dot.
    """
    sizes = {
        'image_size': config.vision.image_size,
        'patch_size': config.vision.patch,
        'vocab_size': config.vocab_size,
        'action_dim': config.action_dim,
        'siglip.width': config.vision.width,
        'siglip.depth': config.vision.depth,
        'siglip.mlp_dim': config.vision.mlp_dim,
        'siglip.num_heads': config.vision.heads,
    }
    for name, expert in (('vlm', config.language), ('action_expert', config.expert)):
        for theirs, ours in (('num_heads', 'heads'), ('num_kv_heads', 'kv_heads')):
            sizes[f'{name}.{theirs}'] = getattr(expert, ours)
        sizes |= {
            f'{name}.{key}': getattr(expert, key)
            for key in ('width', 'depth', 'mlp_dim', 'head_dim')
        }
    return sizes
