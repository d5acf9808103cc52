"""The golden pi0.5 in openpi's JAX layout with random LoRA factors as its training keeps them;
openpi on both.

`python openpi_factors.py IN OUT`, in an environment with openpi, runs its own modules: see
`compute`.
"""

import json
import pathlib
import sys

import numpy as np

LLM = 'PaliGemma/llm/'
ATTENTION = ('q_einsum', 'kv_einsum', 'attn_vec_einsum')
FEED_FORWARD = ('gating_einsum', 'linear')


def matrices(suffix='', attention=True, feed_forward=True):
    """{leaf: what stands before lora_a} of one Gemma: '' the language model, '_1' the action
    expert.
    """
    layers = f'{LLM}layers/'
    found = {
        f'{layers}attn/{name}{suffix}/w': f'{layers}attn/{name}{suffix}/'
        for name in ATTENTION
        if attention
    }
    return found | {
        f'{layers}mlp{suffix}/{name}': f'{layers}mlp{suffix}/{name}_'
        for name in FEED_FORWARD
        if feed_forward
    }


def factors(weights, ranks, seed=0, **which):
    """Random factors for `weights` {path: array}; `ranks` by suffix."""
    rng, out = np.random.default_rng(seed), {}
    for suffix, rank in ranks.items():
        for leaf, stem in matrices(suffix, **which).items():
            shape = weights[leaf].shape
            out[f'{stem}lora_a'] = np.float32(
                rng.normal(size=(*shape[:-1], rank)) / np.sqrt(shape[-2])
            )
            out[f'{stem}lora_b'] = np.float32(
                rng.normal(size=(*shape[:-2], rank, shape[-1])) / np.sqrt(rank)
            )
    return out


def gemma(module, lora, sizes, ranks=(), alphas=(), rslora=False):
    """openpi's two Gemmas as one flax module, with LoRA of these ranks (None: none)."""
    configs = []
    for n, one in enumerate(sizes):
        config = None
        if ranks and ranks[n]:
            config = lora.LoRAConfig(rank=ranks[n], alpha=alphas[n], rslora=rslora)
        kept = {} if config is None else {'attn': config, 'ffn': config}
        keys = ('width', 'depth', 'mlp_dim', 'num_heads', 'num_kv_heads', 'head_dim')
        configs.append(module.Config(**{key: one[key] for key in keys}, lora_configs=kept))
    return module.Module(configs=configs, embed_dtype='float32')


def compute(given, settings):
    """Hidden states of both Gemmas by openpi: 'factored0', 'factored1' with factors, 'merged…',
    'base…' without.
    """
    import jax
    import openpi.models.gemma as module
    import openpi.models.lora as lora

    module.PALIGEMMA_VOCAB_SIZE = settings['vocab_size']
    sizes = [settings['vlm'], settings['action_expert']]
    inputs = [jax.numpy.asarray(given[f'x{n}']) for n in (0, 1)]
    length = sum(x.shape[1] for x in inputs)
    positions = jax.numpy.tile(jax.numpy.arange(length), (len(inputs[0]), 1))
    mask = jax.numpy.ones((len(inputs[0]), length, length), bool)
    condition = jax.numpy.asarray(given['condition'])
    out = {}
    for name, with_lora in (('factored', True), ('merged', False), ('base', False)):
        tree = {}
        for key, leaf in given.items():
            kind, _, path = key.partition(':')
            if kind == name or (with_lora and kind in ('base', 'lora')):
                *parents, last = path.split('/')
                node = tree
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[last] = leaf
        options = (settings['ranks'], settings['alphas'], settings['rslora']) if with_lora else ()
        model = gemma(module, lora, sizes, *options)
        hidden, _ = model.apply({'params': tree}, inputs, positions, mask, [None, condition])
        out |= {f'{name}{n}': np.asarray(x) for n, x in enumerate(hidden)}
    return out


if __name__ == '__main__':
    source, target = map(pathlib.Path, sys.argv[1:])
    np.savez(
        target,
        **compute(dict(np.load(source)), json.loads(source.with_suffix('.json').read_text())),
    )
