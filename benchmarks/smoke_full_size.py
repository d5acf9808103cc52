"""One full-size LoRA step and one full-size sampler call with random weights: finite? how long? how much memory?

python benchmarks/smoke_full_size.py            # needs a GPU with about 24 GB
"""

import argparse
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp

from sigma_jax import lora, trees
from sigma_jax.backbones import gemma, pi05, siglip
from sigma_jax.objective import FlowMatching
from sigma_jax.optimizer import OptimizerConfig, make_optimizer
from sigma_jax.train_step import init_state, make_step
from sigma_jax.types import Ablation, Batch, Frozen

QKVO = (r'.*/attn/(q|kv|attn_vec)_einsum(_1)?/w',)
TINY = pi05.Pi05Config(
    vision=siglip.SiglipConfig(32, 2, 64, 2, 14, 28),
    language=gemma.GemmaConfig(64, 2, 128, 4, 1, 16),
    expert=gemma.GemmaConfig(32, 2, 64, 4, 1, 16, True),
    vocab_size=512,
)


def random_params(config: pi05.Pi05Config, dtype: jnp.dtype) -> dict:
    """Weights with the spread of a real initialisation, made leaf by leaf in `dtype`."""

    @functools.partial(jax.jit, static_argnums=(1,))
    def leaf(key, shape):
        fan_in = shape[-2] if len(shape) > 1 else 1
        return (jax.random.normal(key, shape, dtype) * fan_in**-0.5 * 0.5).astype(dtype)

    shapes = trees.flatten(pi05.abstract_params(config))
    return trees.unflatten({p: leaf(jax.random.key(n), x.shape) for n, (p, x) in enumerate(shapes.items())})


def example_batch(config: pi05.Pi05Config, size: int, prompt: int) -> Batch:
    """Random observations and actions of six joints, one window a sequence."""
    key = jax.random.key(1)
    obs = pi05.example_observation(config, size, 2, prompt)
    obs = dataclasses.replace(
        obs,
        images=jax.random.randint(key, obs.images.shape, 0, 255).astype(jnp.uint8),
        prompt=jax.random.randint(key, obs.prompt.shape, 0, config.vocab_size),
    )
    actions = jax.random.normal(key, (size, config.action_horizon, 6))
    ones = jnp.ones((size,), bool)
    flat = Batch(
        observation=obs,
        actions=actions,
        action_mask=jnp.ones(actions.shape[:2], bool),
        base=jnp.zeros_like(actions),
        reset=ones,
        mask=ones,
        text_id=jnp.zeros((size,), jnp.int32),
        episode=jnp.zeros((size,), jnp.int32),
        frame=jnp.zeros((size,), jnp.int32),
    )
    return jax.tree.map(lambda x: x[:, None], flat)


def timed(function, *inputs):
    """(result, seconds), synchronised."""
    start = time.perf_counter()
    return jax.block_until_ready(function(*inputs)), time.perf_counter() - start


def peak_gib() -> float:
    """Peak bytes in use on the first device, in GiB; 0 where the device does not say."""
    return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tiny', action='store_true', help='same code at a width that a CPU takes')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--prompt', type=int, default=200)
    flags = parser.parse_args()
    factors = lora.LoraConfig(QKVO)
    config = dataclasses.replace(TINY if flags.tiny else pi05.Pi05Config(), lora=factors, remat='save_attention')
    params = random_params(config, jnp.bfloat16)
    ones = jnp.ones(6)
    stats = {'sigma_a': ones, 'action_low': -ones, 'action_span': 2 * ones, 'relative': jnp.zeros(6)}
    frozen = Frozen(params, stats)
    print(f'device {jax.devices()[0].device_kind}, {trees.count(params):,} parameters')

    batch = example_batch(config, 1, flags.prompt)
    observation = jax.tree.map(lambda x: x[:, 0], batch.observation)
    sample = jax.jit(lambda p, k, o: pi05.BoundPi05(config, p).sample_actions(k, o))
    keys = jax.random.split(jax.random.key(0), 1)
    _, first = timed(sample, params, keys, observation)
    actions, again = timed(sample, params, keys, observation)
    print(f'sampler, batch 1: first {first:.1f} s, then {again * 1e3:.1f} ms, peak {peak_gib():.2f} GiB,', end=' ')
    print(f'finite {bool(jnp.isfinite(actions).all())}, mean |action| {float(jnp.abs(actions).mean()):.3f}')

    optimizer = make_optimizer(OptimizerConfig())
    trainable = {'lora': lora.init_factors(jax.random.key(2), params, pi05.LAYOUTS, factors)}
    state = init_state(0, trainable, optimizer)
    step = jax.jit(make_step(FlowMatching(config), optimizer), donate_argnums=0)
    batch = example_batch(config, flags.batch, flags.prompt)
    (state, metrics), first = timed(step, state, frozen, batch, Ablation())
    for _ in range(3):
        (state, metrics), again = timed(step, state, frozen, batch, Ablation())
    print(
        f'LoRA step, batch {flags.batch}: first {first:.1f} s, then {again * 1e3:.1f} ms, peak {peak_gib():.2f} GiB,',
        end=' ',
    )
    print(f'loss {float(metrics["loss"]):.4f}, grad norm {float(metrics["grad_norm"]):.4f}')


if __name__ == '__main__':
    main()
