"""The frozen base in int8 and NF4: against plain numpy, and in pi0.5 and Sigma against the same
weights as arrays.
"""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import defaults
from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.errors import UserError
from sigma_jax.nn import quant
from sigma_jax.nn.lora import MatrixLayout
from sigma_jax.nn.quant import QuantConfig, StorageFormat
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from sigma_jax.training.groups import check_storage
from sigma_jax.training.run import Run
from sigma_jax.types import Ablation, to_batch
from tests import quick
from tests import small_sigma as small

MATRICES = tuple(defaults.get_config().quant.patterns)
OTHERS = (r'.*/input_embedding', r'.*/encoderblock/.*/kernel')
LAYOUTS = {'a/w': MatrixLayout('cio', 'i', 'o'), 'table': MatrixLayout('vw', 'w', 'v')}
KEY = jax.random.key(5)


def nf4_values() -> np.ndarray:
    """QLoRA, appendix E: quantiles of the normal distribution, seven below zero and eight above, in
    [-1, 1].
    """
    quantile = np.vectorize(statistics.NormalDist().inv_cdf)
    offset = 0.9677083
    values = [
        *-quantile(np.linspace(offset, 0.5, 8)[:-1]),
        0.0,
        *quantile(np.linspace(offset, 0.5, 9)[:-1]),
    ]
    return np.sort(np.array(values) / max(values))


def reference(w: np.ndarray, storage: StorageFormat) -> np.ndarray:
    """What is left of w, in plain numpy: tiles along one axis, the largest magnitude of each as its
    unit.
    """
    tiles = np.moveaxis(w, storage.axis, -1)
    tiles = tiles.reshape(*tiles.shape[:-1], -1, storage.tile)
    unit = np.abs(tiles).max(-1, keepdims=True)
    unit[unit == 0] = 1
    if storage.kind == 'int8':
        step = unit / np.float32(127.5)
        whole = np.clip(np.round(tiles / step), -128, 127) * step
    else:
        nearest = np.abs((tiles / unit)[..., None] - nf4_values().astype(np.float32)).argmin(-1)
        whole = nf4_values()[nearest] * unit.astype(jnp.bfloat16).astype(np.float32)
    return np.moveaxis(whole.reshape(np.moveaxis(w, storage.axis, -1).shape), -1, storage.axis)


def weights(*shape: int) -> np.ndarray:
    """Normal weights, each layer of another spread, the first tile of every layer zero."""
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    w *= np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    w[:, 0, :64, 0] = 0
    return w


def made_whole(params):
    """The tree with arrays in place of codes."""
    whole = quick.jit(
        lambda tree: jax.tree.map(lambda w: quant.dense(w, jnp.float32), tree, is_leaf=is_codes)
    )
    return whole(params)


@pytest.mark.parametrize(
    ('path', 'shape', 'axis'),
    [
        ('a/w', (2, 64, 128), 1),  # two stacked matrices, inputs before outputs
        ('a/w', (3, 2, 64, 128), 2),  # of three layers
        ('table', (128, 64), 1),  # a row of the table is one output
    ],
)
@pytest.mark.parametrize('kind', ['nf4', 'int8'])
def test_scales_run_along_the_inputs(path, shape, axis, kind):
    params = trees.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32)})
    storage = quant.assign_formats(params, LAYOUTS, QuantConfig(kind, (path,), tile=32))[path]
    assert storage == StorageFormat(kind, axis, 32 if kind == 'nf4' else 64)
    scales = [n if at != axis else n // storage.tile for at, n in enumerate(shape)]
    assert trees.flatten(quant.abstract(params, LAYOUTS, QuantConfig(kind, (path,), tile=32)))[
        f'{path}/scale'
    ].shape == (*scales,)


@pytest.mark.parametrize(('kind', 'tile', 'error'), [('nf4', 64, 0.092), ('int8', 1024, 0.0080)])
def test_codes_are_those_of_a_plain_numpy_version(kind, tile, error):
    w, storage = weights(3, 2, 1024, 8), StorageFormat(kind, 2, tile)
    largest = np.take_along_axis(w, np.abs(w).argmax(2, keepdims=True), 2)
    # int8 rounds -127.5 up or down by the last bit, and cuts +127.5 in any case
    w *= np.where(largest < 0, -1, 1)
    got = np.asarray(quant.dense(quant.convert(w, storage), jnp.float32))
    np.testing.assert_allclose(got, reference(w, storage), rtol=2e-6, atol=1e-7)
    assert np.linalg.norm(got - w) / np.linalg.norm(w) == pytest.approx(error, rel=0.04)
    assert not got[:, 0, :64, 0].any() and np.isfinite(got).all()


def test_nf4_knows_sixteen_values_and_keeps_two_in_a_byte():
    w = np.linspace(-1, 1, 64, dtype=np.float32)[None, :, None].repeat(2, 2)
    stored = quant.convert(w, StorageFormat('nf4', 1, 64))
    values = np.unique(quant.dense(stored, jnp.float32))
    np.testing.assert_allclose(values, nf4_values(), atol=1e-6)
    assert stored.shape == w.shape and stored.codes.dtype == jnp.uint8
    assert quant.size(stored) == w.size // 2 + 2 * 2 and quant.count(stored) == w.size


@pytest.mark.parametrize('kind', ['nf4', 'int8'])
def test_a_stack_is_its_layers_quantised_alone(kind, monkeypatch):
    params = {'a': {'w': weights(4, 2, 64, 8)}}
    config = QuantConfig(kind, ('a/w',))
    layouts = LAYOUTS
    stacked = quant.store(params, layouts, config)['a']['w']
    storage = quant.assign_formats(params, layouts, config)['a/w']
    for n, layer in enumerate(params['a']['w']):
        alone = quant.convert(layer, storage._replace(axis=storage.axis - 1))
        for got, want in zip(jax.tree.leaves(stacked[n]), jax.tree.leaves(alone), strict=True):
            assert np.array_equal(got, want)
    monkeypatch.setattr(quant, 'CHUNK_BYTES', 1)
    again = quant.store(params, layouts, config)['a']['w']
    assert trees.digest(jax.device_get(again)) == trees.digest(jax.device_get(stacked))


def test_abstract_leaves_are_those_of_the_stored_base():
    params = small.frozen().params
    said = trees.flatten(
        quant.abstract(params, pi05.STORED, QuantConfig('nf4', MATRICES, OTHERS, 16))
    )
    stored = trees.flatten(nf4_base())
    assert {p: (x.shape, x.dtype) for p, x in said.items()} == {
        p: (x.shape, x.dtype) for p, x in stored.items()
    }
    assert quant.count(nf4_base()) == trees.count(params)


def test_bfloat16_storage_changes_no_bit_of_a_bfloat16_pass():
    config, params = dataclasses.replace(small.PI05, dtype='bfloat16'), small.frozen().params
    batch = jax.tree.map(lambda x: x[:, 0], small.make_batch())
    x_t, time = jnp.ones((small.B, 10, 8)), jnp.full((small.B,), 0.3)
    run = quick.jit(lambda p: pi05.BoundPi05(config, p).velocity(batch.observation, x_t, time))
    half = quant.store(params, pi05.STORED, QuantConfig('bfloat16'))
    assert np.array_equal(run(half), run(params))
    kept = {p for p, x in trees.flatten(half).items() if x.dtype == jnp.float32}
    assert 'PaliGemma/llm/layers/pre_ffw_norm/scale' in kept and all(
        trees.flatten(half)[p].size < 1000 for p in kept
    )


@functools.cache
def flow(remat):
    """`(factors, params) -> (loss, gradient)` of flow matching with dropout in the factors' side
    path; and the loss.
    """
    objective = FlowMatching(dataclasses.replace(small.PI05, remat=remat))
    batch, scaling = small.make_batch(), small.frozen().scaling

    def loss(factors, params):
        fixed = small.frozen().replace(params=params, scaling=scaling)
        return objective({'lora': factors}, fixed, batch, Ablation(), KEY, 0)[0]

    return quick.jit(jax.value_and_grad(loss)), loss


@functools.cache
def nf4_base():
    """The golden weights: both Gemmas in NF4, SigLIP and token table in int8."""
    return quant.store(small.frozen().params, pi05.STORED, QuantConfig('nf4', MATRICES, OTHERS, 16))


def test_loss_and_gradient_are_those_of_the_same_weights_as_arrays():
    factors, base = small.perturbed()['lora'], nf4_base()
    loss, gradient = flow('save_attention')[0](factors, base)
    want, expected = flow('save_attention')[0](factors, made_whole(base))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    for got, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, other, atol=1e-4 * np.abs(other).max())
        assert np.isfinite(got).all() and np.abs(got).max() > 0


def test_no_weight_made_from_codes_waits_for_the_backward_pass():
    """Not even where layers keep all that they compute."""

    def kept(params):
        pull = jax.eval_shape(
            lambda f, p: jax.vjp(lambda f: flow(None)[1](f, p), f)[1], factors, params
        )
        return {
            x.shape[-2:] for x in jax.tree.leaves(pull) if x.ndim > 1 and x.dtype == jnp.float32
        }

    factors, params = small.perturbed()['lora'], small.frozen().params
    matrices = {
        w.shape[-2:]
        for path, w in trees.flatten(params).items()
        if path.endswith(('linear', 'einsum'))
    }
    assert kept(params) & matrices and not kept(nf4_base()) & matrices


def test_a_scan_over_layers_needs_one_whole_matrix_whatever_their_number():
    def temporary(layers):
        w = jax.eval_shape(
            lambda: quant.convert(jnp.zeros((layers, 256, 256)), StorageFormat('nf4', 1, 64))
        )
        step = jax.jit(
            lambda x, w: jax.lax.scan(lambda x, w: (quant.einsum('bd,df->bf', x, w), None), x, w)[0]
        )
        x = jax.ShapeDtypeStruct((1, 256), jnp.float32)
        return step.lower(x, w).compile().memory_analysis().temp_size_in_bytes

    assert temporary(24) - temporary(12) < 12 * 256 * 256 / 4, (
        'the codes of a layer are half a byte a weight'
    )


def test_an_untrained_sigma_returns_the_base_policys_actions_bitwise_without_its_action_expert():
    objective, batch = small.sigma_objective(), small.make_batch()
    config = QuantConfig('nf4', MATRICES, OTHERS, 16)
    base = quant.store(small.frozen().params, pi05.STORED, config, objective.uses_param)
    left_out = set(trees.flatten(nf4_base())) - set(trees.flatten(base))
    assert any('mlp_1' in p for p in left_out) and all(
        '_1/' in p or p.startswith(('action', 'time')) for p in left_out
    )
    assert 'PaliGemma/img/Transformer/encoderblock/LayerNorm_1/scale' in trees.flatten(base)
    _, output = small.forward()(
        small.untrained(), small.frozen().replace(params=base), batch, small.gates()
    )
    assert np.array_equal(np.asarray(output.actions.traj).view(np.int32), batch.base.view(np.int32))
    assert np.isfinite(output.telepathy.tau).all()


def test_training_beside_an_nf4_base_learns_and_continues_bitwise(small_run, tmp_path):
    settings = {
        'objective': 'flow_matching',
        'trainable': ('lora',),
        'stats_from': 'shards',
        'sequence_length': 1,
    }
    config = small_run.config(**settings, steps=16, ema=None)
    config['quant'] = {'kind': 'nf4', 'patterns': MATRICES, 'tile': 8}
    config['optimizer'] |= {'lora_rate': 0.05, 'warmup_steps': 1}
    config['checkpoint'] = {'every': 4, 'keep': 5}
    whole = trainer.train(RunConfig.from_dict(config), tmp_path / 'whole').state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.TrainLog, 'write', stops_at(6, trainer.TrainLog.write))
        with pytest.raises(KeyboardInterrupt):
            trainer.train(RunConfig.from_dict(config), tmp_path / 'halves')
    continued = trainer.train(RunConfig.from_dict(config), tmp_path / 'halves').state
    assert trees.digest(jax.device_get(continued)) == trees.digest(jax.device_get(whole))
    run = Run(RunConfig.from_dict(config))
    kinds = {w.kind for w in jax.tree.leaves(run.frozen.params, is_leaf=is_codes) if is_codes(w)}
    batch = to_batch(next(iter(run.loader)))
    loss = quick.jit(lambda t, f: run.objective(t, f, batch, Ablation(), KEY, 0)[0])
    assert kinds == {'nf4'} and loss(whole.trainable, run.frozen) < 0.995 * loss(
        run.state.trainable, run.frozen
    )


def is_codes(w) -> bool:
    return isinstance(w, quant.Quantised)


def stops_at(last, write):
    """`TrainLog.write` that a user interrupts at step `last`."""

    def stop(log, step, values):
        if step == last:
            raise KeyboardInterrupt
        write(log, step, values)

    return stop


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'kind': 'fp4'}, "expected one of stored, bfloat16, int8, nf4, got 'fp4'"),
        ({'kind': 'nf4'}, 'expected patterns of leaves for nf4, got none'),
        ({'kind': 'nf4', 'patterns': ('a/w',), 'tile': 0}, 'expected at least 1, got 0'),
        (
            {'kind': 'nf4', 'patterns': ('a/w',), 'tile': 48},
            'expected a divisor of the 64 inputs of a/w, got 48',
        ),
        (
            {'kind': 'nf4', 'patterns': ('table',)},
            r'NF4 expects an even last axis, got \(4, 3\) '
            r'for table',
        ),
        (
            {'kind': 'int8', 'patterns': ('a/v',)},
            "'a/v', which matches none of 3; closest: 'a/w'",
        ),
        ({'int8': ('a/bias',)}, "quantisation: expected the path of a matrix, got 'a/bias'"),
    ],
)
def test_what_cannot_be_quantised_is_said_before_anything_is_done(settings, message):
    params = {'a': {'w': weights(4, 2, 64, 8), 'bias': np.zeros(8)}, 'table': np.zeros((4, 3))}
    with pytest.raises(UserError, match=message):
        quant.assign_formats(params, LAYOUTS, QuantConfig(**settings))


def test_a_base_that_learns_is_not_quantised(small_run):
    config = small_run.config(objective='flow_matching', trainable=('params',))
    config['quant'] |= {'kind': 'nf4'}
    with pytest.raises(UserError, match="expected kind 'stored'.*where the base itself learns"):
        check_storage(RunConfig.from_dict(config))
