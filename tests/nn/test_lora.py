"""LoRA: masks choose leaves, factors have PEFT's shapes, the side path is the merged matrix, B = 0
changes nothing.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax import trees
from sigma_jax.backbones.pi05 import LAYOUTS
from sigma_jax.errors import UserError
from sigma_jax.nn import lora
from sigma_jax.nn.layers import project
from tests.merged import merge

L, D, F, N, H, K, R = 3, 12, 20, 2, 5, 1, 4
# path -> (shape with a scanned layer axis, leading axes of the factors, d_in, d_out)
KINDS = {
    'llm/layers/attn/q_einsum/w': ((L, N, D, H), (L,), D, N * H),
    'llm/layers/attn/kv_einsum/w': ((L, 2, K, D, H), (L, 2), D, K * H),
    'llm/layers/attn/attn_vec_einsum_1/w': ((L, N, H, D), (L,), N * H, D),
    'llm/layers/mlp/gating_einsum': ((L, 2, D, F), (L, 2), D, F),
    'llm/layers/mlp_1/linear': ((L, F, D), (L,), F, D),
    'img/block/MultiHeadDotProductAttention_0/query/kernel': ((L, D, N, H), (L,), D, N * H),
    'img/block/MultiHeadDotProductAttention_0/out/kernel': ((L, N, H, D), (L,), N * H, D),
    'PaliGemma/img/block/MlpBlock_0/Dense_0/kernel': ((L, D, F), (L,), D, F),
    'PaliGemma/img/head/kernel': ((D, F), (), D, F),
}
BASE = trees.unflatten(
    {path: np.zeros(kind[0], np.float32) for path, kind in KINDS.items()}
    | {'norm/scale': np.ones(3)}
)
CONFIG = lora.LoraConfig(tuple(KINDS), rank=R, alpha=8.0, dropout=0.25)


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope='module')
def factors():
    """No zero hides a path."""
    start = lora.init_factors(jax.random.key(0), BASE, LAYOUTS, CONFIG)
    return jax.tree.map(lambda x: random(x.shape, x.size), start)


def as_matrix(layout, w):
    """One weight (no layer axis) -> [stack..., d_out, d_in], by plain transposition."""
    order = [layout.weight.index(x) for x in layout.stack + layout.outputs + layout.inputs]
    size = dict(zip(layout.weight, w.shape, strict=True))
    d_out, d_in = (
        int(np.prod([size[x] for x in side])) for side in (layout.outputs, layout.inputs)
    )
    return w.transpose(order).reshape(*(size[x] for x in layout.stack), d_out, d_in)


@pytest.mark.parametrize('path', KINDS)
def test_factors_have_pefts_shapes(path):
    pair = trees.flatten(lora.init_factors(jax.random.key(0), BASE, LAYOUTS, CONFIG))
    _, leading, d_in, d_out = KINDS[path]
    a, b = pair[f'{path}/a'], pair[f'{path}/b']
    assert a.shape == (*leading, R, d_in) and b.shape == (*leading, d_out, R)
    assert not np.any(b) and len(np.unique(a)) == a.size
    assert 0.9 * d_in**-0.5 < np.abs(a).max() <= d_in**-0.5


def test_leaves_start_from_factors_of_their_own():
    pair = trees.flatten(lora.init_factors(jax.random.key(0), BASE, LAYOUTS, CONFIG))
    starts = [np.asarray(a) for path, a in pair.items() if path.endswith('/a')]
    same_shape = [(x, y) for n, x in enumerate(starts) for y in starts[:n] if x.shape == y.shape]
    assert same_shape and not any(np.array_equal(x, y) for x, y in same_shape)


def test_selection_is_by_whole_path_and_abstract_trees_will_do():
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, BASE))
    config = lora.LoraConfig(('.*/(q|kv)_einsum/w',), rank=R)
    chosen = trees.flatten(lora.init_factors(jax.random.key(0), abstract, LAYOUTS, config))
    assert {p.rsplit('/', 1)[0] for p in chosen} == {
        p for p in KINDS if 'q_einsum/' in p or 'kv_einsum/' in p
    }
    assert lora.init_factors(jax.random.key(0), abstract, LAYOUTS, lora.LoraConfig()) == {}


@pytest.mark.parametrize(
    ('pattern', 'message'),
    [
        (
            '.*/v_einsum/w',
            "'.*/v_einsum/w', which matches none of 10; closest: 'llm/layers/attn/(q|kv)_einsum/w'",
        ),
        ('norm/scale', "LoRA: expected the path of a matrix, got 'norm/scale'"),
    ],
)
def test_patterns_that_cannot_be_meant_raise(pattern, message):
    with pytest.raises(UserError, match=message):
        lora.init_factors(jax.random.key(0), BASE, LAYOUTS, lora.LoraConfig((pattern,)))


@pytest.mark.parametrize(('field', 'value'), [('rank', 0), ('dropout', 1.0), ('dropout', -0.1)])
def test_settings_out_of_range_raise(field, value):
    with pytest.raises(UserError, match=rf'lora\.{field}: expected'):
        lora.LoraConfig(**{field: value})


@pytest.mark.parametrize('path', KINDS)
def test_side_path_equals_the_merged_matrix(path, factors):
    layout, pair = lora.find_layout(path, LAYOUTS), trees.flatten(factors)
    scanned = len(KINDS[path][0]) > len(layout.weight)
    a, b = (pair[f'{path}/{n}'][1] if scanned else pair[f'{path}/{n}'] for n in 'ab')
    w = random(KINDS[path][0][int(scanned) :], 1)
    size = dict(zip(layout.weight, w.shape, strict=True))
    x = random((2, 3, *(size[i] for i in layout.inputs)), 2)
    outputs = tuple(size[o] for o in layout.outputs)
    got = jnp.einsum(layout.equation(), x, w) + lora.side_path(
        x, {'a': a, 'b': b}, layout, outputs, CONFIG.alpha
    )
    matrix = as_matrix(layout, w) + CONFIG.alpha / R * b @ a
    y = x.reshape(2, 3, -1)
    want = np.stack([y @ m.T for m in matrix]) if layout.stack else y @ matrix.T
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_merge_adds_the_product_in_float32_and_leaves_the_rest(factors, dtype):
    base = jax.tree.map(lambda x: random(x.shape, 3).astype(dtype), BASE)
    merged, pair = (
        trees.flatten(merge(base, factors, LAYOUTS, CONFIG.alpha)),
        trees.flatten(factors),
    )
    assert merged.pop('norm/scale') is base['norm']['scale']
    for path, w in merged.items():
        layout, old = lora.find_layout(path, LAYOUTS), trees.flatten(base)[path].astype(np.float32)
        assert w.dtype == np.float32
        layers = range(L) if len(KINDS[path][0]) > len(layout.weight) else [...]
        for n in layers:
            want = (
                as_matrix(layout, old[n])
                + CONFIG.alpha / R * pair[f'{path}/b'][n] @ pair[f'{path}/a'][n]
            )
            np.testing.assert_allclose(
                as_matrix(layout, np.asarray(w[n])), want, rtol=1e-5, atol=1e-4
            )


class Layer(nn.Module):
    """One projection D -> D, to try `nn.project` on."""

    config: lora.LoraConfig

    @nn.compact
    def __call__(self, x):
        return project(self, 'w', x, (D, D), lora.MatrixLayout('io', 'i', 'o'), self.config)


def test_without_b_the_projection_is_unchanged_bit_for_bit():
    x, w = random((7, D)), random((D, D), 1)
    factors = {'w': {'a': random((R, D), 2), 'b': np.zeros((D, R), np.float32)}}
    plain = Layer(CONFIG).apply({'params': {'w': w}}, x)
    for rngs in ({}, {'dropout': jax.random.key(0)}):
        got = Layer(CONFIG).apply({'params': {'w': w}, 'lora': factors}, x, rngs=rngs)
        assert np.array_equal(got, plain)
    np.testing.assert_allclose(plain, x @ w, rtol=1e-5, atol=1e-5)


def test_first_gradient_reaches_b_and_then_a():
    x, w = random((7, D)), random((D, D), 1)

    def loss(factors):
        return jnp.sum(Layer(CONFIG).apply({'params': {'w': w}, 'lora': factors}, x) ** 2)

    start = {'w': {'a': random((R, D), 2), 'b': np.zeros((D, R), np.float32)}}
    first = jax.grad(loss)(start)['w']
    assert np.any(first['b']) and not np.any(first['a'])
    assert np.all(jax.grad(loss)({'w': {'a': start['w']['a'], 'b': first['b']}})['w']['a'])


def test_dropout_drops_a_share_of_inputs_and_keeps_the_mean():
    # with A = B = 1 the side path is the dropped input
    config = lora.LoraConfig(rank=D, alpha=D, dropout=0.25)
    variables = {
        'params': {'w': np.zeros((D, D), np.float32)},
        'lora': {'w': {'a': np.eye(D), 'b': np.eye(D)}},
    }
    x = np.ones((500, D), np.float32)
    assert np.array_equal(Layer(config).apply(variables, x), x)
    dropped = np.asarray(Layer(config).apply(variables, x, rngs={'dropout': jax.random.key(0)}))
    assert set(np.unique(dropped.round(5))) == {np.float32(0), np.float32(4 / 3).round(5)}
    share = np.mean(dropped == 0)
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / x.size)
    other = Layer(config).apply(variables, x, rngs={'dropout': jax.random.key(1)})
    assert not np.array_equal(other, dropped)
