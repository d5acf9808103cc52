"""Runs openpi's JAX `Pi0` on a fixture's inputs."""

import argparse
import pathlib

import numpy as np
from fixture_library import Failure, load, openpi_config, say, tiny_gemma


def run_jax(
    flags: argparse.Namespace, settings: dict, inputs: dict, cameras: list[str]
) -> dict[str, np.ndarray]:
    """All quantities from openpi's JAX model."""
    jax, pi0 = load('jax', 'JAX'), load('openpi.models.pi0', 'openpi')
    gemma, siglip, base = (
        load(f'openpi.models.{name}', 'openpi') for name in ('gemma', 'siglip', 'model')
    )
    if 'tiny' in settings:
        shrink_jax(gemma, siglip, base, settings)
    config = openpi_config(flags, settings)
    vision = siglip.decode_variant('So400m/14')
    keys = ('width', 'depth', 'mlp_dim', 'num_heads')
    settings['sizes'] = {'siglip': {key: vision[key] for key in keys}}
    for name, variant in (
        ('vlm', config.paligemma_variant),
        ('action_expert', config.action_expert_variant),
    ):
        expert = gemma.get_config(variant)
        settings['sizes'][name] = {
            key: getattr(expert, key) for key in (*keys, 'num_kv_heads', 'head_dim')
        }
    say(f'reading {flags.checkpoint}')
    model = config.load(read_orbax(pathlib.Path(flags.checkpoint), jax.numpy.dtype(flags.dtype)))
    observation = base.Observation(
        images={name: jax.numpy.asarray(inputs[name]) for name in cameras},
        image_masks={name: jax.numpy.asarray(inputs[f'{name}_mask']) for name in cameras},
        state=jax.numpy.zeros((len(inputs['time']), settings['action_dim'])),
        tokenized_prompt=jax.numpy.asarray(inputs['tokens']),
        tokenized_prompt_mask=jax.numpy.asarray(inputs['token_mask']),
    )
    base.preprocess_observation = lambda rng, observation, **kwargs: observation
    with jax.default_matmul_precision('highest' if flags.dtype == 'float32' else 'default'):
        say('training pass')
        outputs = jax_training(jax.numpy, pi0, model, observation, inputs)
        say('sampling')
        noise = jax.numpy.asarray(inputs['sample_noise'])
        key = jax.random.key(0)
        outputs['sampled_actions'] = model.sample_actions(
            key, observation, num_steps=settings['num_steps'], noise=noise
        )
    outputs = {
        name: x.astype('float32') if x.dtype == jax.numpy.bfloat16 else x
        for name, x in outputs.items()
    }
    return {name: np.asarray(x) for name, x in outputs.items()}


def shrink_jax(gemma, siglip, base, settings: dict) -> None:
    """Puts the sizes of --tiny-config where openpi has constants."""
    vision = {
        key: settings['tiny']['siglip'][key] for key in ('width', 'depth', 'mlp_dim', 'num_heads')
    }
    vision['patch_size'] = (settings['patch_size'],) * 2
    gemma.get_config = tiny_gemma(gemma, settings, 'Config')
    gemma.PALIGEMMA_VOCAB_SIZE = settings['vocab_size']
    siglip.decode_variant = lambda variant: vision
    base.IMAGE_RESOLUTION = (settings['image_size'],) * 2


def read_orbax(path: pathlib.Path, dtype) -> dict:
    """The tree below `params`, as numpy arrays of `dtype`, without the leaves' `value` of openpi's
    training loop.
    """
    jax, ocp = load('jax', 'JAX'), load('orbax.checkpoint', 'Orbax')
    folder = path / 'params' if (path / 'params' / '_METADATA').is_file() else path
    if not (folder / '_METADATA').is_file():
        raise Failure(
            f'expected an orbax folder `params` in {path}, got none; give the folder that holds it'
        )
    with ocp.PyTreeCheckpointer() as reader:
        meta = reader.metadata(folder.resolve())
        meta = getattr(meta, 'item_metadata', meta)
        args = jax.tree.map(
            lambda _: ocp.ArrayRestoreArgs(restore_type=np.ndarray, dtype=dtype),
            getattr(meta, 'tree', meta),
        )
        tree = reader.restore(folder.resolve(), restore_args=args)['params']
    is_value = lambda x: isinstance(x, dict) and x.keys() == {'value'}  # noqa: E731
    return jax.tree.map(lambda x: x['value'] if is_value(x) else x, tree, is_leaf=is_value)


def jax_training(jnp, pi0, model, observation, inputs: dict) -> dict:
    """The training pass and the prefix alone; `compute_loss` itself draws its noise and returns a
    mean.
    """
    time, noise, actions = (jnp.asarray(inputs[name]) for name in ('time', 'noise', 'actions'))
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    prefix, mask, order = model.embed_prefix(observation)
    suffix, suffix_mask, suffix_order, cond = model.embed_suffix(observation, x_t, time)
    joint = jnp.concatenate([mask, suffix_mask], axis=1)
    positions = jnp.cumsum(joint, axis=1) - 1
    attend = pi0.make_attn_mask(joint, jnp.concatenate([order, suffix_order]))
    llm, length = model.PaliGemma.llm, prefix.shape[1]
    (_, hidden), _ = llm(
        [prefix, suffix], mask=attend, positions=positions, adarms_cond=[None, cond]
    )
    alone = {'mask': pi0.make_attn_mask(mask, order), 'positions': positions[:, :length]}
    (prefix_hidden, _), _ = llm([prefix, None], **alone)
    velocity = model.action_out_proj(hidden)
    return {
        'prefix_embeddings': prefix,
        'prefix_mask': mask,
        'prefix_positions': positions[:, :length].astype(jnp.int32),
        'prefix_hidden': prefix_hidden,
        'time_cond': cond,
        'suffix_embeddings': suffix,
        'suffix_positions': positions[:, length:].astype(jnp.int32),
        'suffix_hidden': hidden,
        'velocity': velocity,
        'loss': jnp.square(velocity - (noise - actions)),
    }
