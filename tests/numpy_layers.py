"""Plain numpy versions of the layers that the paper's formulas use, and random parameters to try
them on.
"""

import jax
import numpy as np

from tests import quick


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, p=None):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return y if p is None else y * p['scale'] + p['bias']


def dense(x, p):
    return x @ p['kernel'] + p.get('bias', 0.0)


def mlp(x, p):
    return gelu(x @ p['w_1'] + p['b_1']) @ p['w_2'] + p.get('b_2', 0.0)


def attention(query, context, p, heads, mask=None):
    """Multi-head cross-attention, one example and one head at a time."""
    out = np.zeros((*query.shape[:-1], p['w_v']['kernel'].shape[1]))
    for b in range(len(context)):
        q, k, v = (
            query[b] @ p['w_q']['kernel'],
            context[b] @ p['w_k']['kernel'],
            context[b] @ p['w_v']['kernel'],
        )
        if mask is not None:
            k, v = k[mask[b]], v[mask[b]]
        for columns in np.split(np.arange(q.shape[-1]), heads):
            scores = q[:, columns] @ k[:, columns].T / np.sqrt(len(columns))
            out[b][:, columns] = softmax(scores) @ v[:, columns]
    return dense(out, p['w_o'])


def transformer_block(x, p, heads):
    y = layer_norm(x, p['attention_norm'])
    x = x + attention(y, y, p['attention'], heads)
    return x + mlp(layer_norm(x, p['ffn_norm']), p['ffn'])


def random_params(module, *inputs, method=None, seed=0):
    """Normal numbers in the shapes of `module`'s parameters, so that no zero hides a path."""
    shapes = jax.eval_shape(lambda k: module.init(k, *inputs, method=method), jax.random.key(0))[
        'params'
    ]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)


def call(module, params, *inputs, method=None):
    """The module under jit."""
    return quick.jit(lambda p, x: module.apply({'params': p}, *x, method=method))(params, inputs)


def close(actual, expected, tolerance=2e-5):
    """Whether two arrays agree to `tolerance`, absolutely and relatively."""
    return np.shape(actual) == np.shape(expected) and np.allclose(
        actual, expected, rtol=tolerance, atol=tolerance
    )
