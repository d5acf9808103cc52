"""What is minimised, with the real pi0.5: golden flow matching, Sigma's invariances, gates and
dropout.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones import pi05
from sigma_jax.errors import UserError
from sigma_jax.objectives.bind import overlay
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.objectives.sigma import SigmaObjective
from sigma_jax.processing.actions import normalize_actions, unnormalize_actions
from sigma_jax.sigma import curriculum, losses
from sigma_jax.types import Ablation, Actions, ActionScaling
from tests import golden, quick
from tests import small_sigma as small

KEY = jax.random.key(5)
STEP = np.int32(2)


@pytest.fixture(scope='module')
def frozen():
    return small.frozen()


@pytest.fixture(scope='module')
def batch():
    return small.make_batch()


@pytest.fixture(scope='module')
def trainable():
    return small.perturbed()


@pytest.fixture(scope='module')
def forward():
    return lambda *inputs: small.forward()(*inputs)[1]


def test_normalising_actions_is_undone_and_pads_with_zeros(frozen, batch):
    got = normalize_actions(batch.actions, frozen.scaling, 8)
    low, span = frozen.scaling.low, frozen.scaling.span
    np.testing.assert_allclose(
        got[..., :3], 2 * (batch.actions - low) / span - 1, rtol=1e-5, atol=1e-6
    )
    assert got.shape[-1] == 8 and not np.any(got[..., 3:])
    np.testing.assert_allclose(
        unnormalize_actions(got, frozen.scaling), batch.actions, rtol=1e-5, atol=1e-5
    )
    ends = normalize_actions(np.stack([low, low + span]), frozen.scaling, 3)
    np.testing.assert_allclose(ends, [[-1] * 3, [1] * 3], atol=1e-6)


@pytest.fixture(scope='module')
def flow(frozen):
    """Flow matching of the golden inputs: `(relative joints, **changes of the batch) -> (loss,
    metrics)`.
    """
    i, objective = golden.inputs(), FlowMatching(golden.config())
    rows = jax.tree.map(lambda x: x[:1, :1].repeat(3, 0), small.make_batch())
    mask = np.ones((3, 1, 10), bool)
    mask[1, 0, 6:] = False
    rows = rows.replace(
        observation=jax.tree.map(lambda x: x[:, None], golden.observation()),
        actions=i['actions'][:, None],
        action_mask=mask,
        mask=np.array([[True], [True], [False]]),
    )
    ranges = {'action_std': 1.0, 'low': -2.0, 'span': 3.0, 'state_low': -1.0, 'state_span': 4.0}
    scales = {k: np.full(8, x, np.float32) for k, x in ranges.items()}

    @quick.jit
    def compute(params, relative, rows):
        scaling = ActionScaling(**scales, relative=relative)
        fixed = frozen.replace(params={}, scaling=scaling)
        return objective({'params': params}, fixed, rows, Ablation(), KEY, 0)

    def run(relative=0, **changes):
        joints = (np.arange(8) < relative).astype(np.float32)
        return compute(frozen.params, joints, rows.replace(**changes))

    return rows, run


@pytest.mark.parametrize('relative', [0, 5])
def test_flow_matching_equals_the_formula(flow, golden_params, relative):
    """The key is split into time, noise and dropout; 5 relative joints count from the state, 1 in
    raw units.
    """
    rows, run = flow
    got, metrics = run(relative)
    keys = jax.random.split(KEY, 3)
    time = np.asarray(jax.random.beta(keys[0], 1.5, 1.0, (3,))) * 0.999 + 0.001
    noise, raw = np.asarray(jax.random.normal(keys[1], (3, 10, 8))), rows.actions[:, 0]
    actions = (raw - 1.0 * (np.arange(8) < relative) + 2.0) / 3.0 * 2 - 1
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    backbone = pi05.BoundPi05(golden.config(), golden_params)
    velocity = quick.jit(backbone.velocity)(golden.observation(), x_t.astype(np.float32), time)
    error = np.mean((np.asarray(velocity) - (noise - actions)) ** 2, axis=-1)
    want = (error[0].sum() + error[1, :6].sum()) / 16
    np.testing.assert_allclose([got, metrics['velocity_mse']], [want, want], rtol=1e-4)


def test_padding_windows_do_not_count_in_flow_matching(flow):
    rows, run = flow
    actions = rows.actions.copy()
    actions[2] = 99.0
    np.testing.assert_allclose(run(actions=actions)[0], run()[0], rtol=1e-6)
    assert run(mask=rows.mask & False)[0] == 0


def test_overlay_replaces_leaves_and_keeps_the_rest():
    base = {'a': {'w': 1, 'b': 2}, 'c': 3}
    assert overlay(base, {'a': {'w': 9}}) == {'a': {'w': 9, 'b': 2}, 'c': 3}
    assert overlay({}, base) == base and overlay(base, {}) == base


def test_untrained_sigma_returns_the_base_bitwise(forward, frozen, batch):
    output = forward(small.untrained(), frozen, batch, small.gates())
    want = Actions.from_trajectory(batch.base, small.SIGMA.chunk)
    for got, expected in zip(jax.tree.leaves(output.actions), jax.tree.leaves(want), strict=True):
        assert np.array_equal(np.asarray(got).view(np.int32), expected.view(np.int32))


def test_longer_baselines_are_cut_to_the_horizon(forward, trainable, frozen, batch):
    longer = batch.replace(
        base=np.pad(batch.base, [(0, 0), (0, 0), (0, 5), (0, 0)], constant_values=9.0)
    )
    want = forward(trainable, frozen, batch, small.gates())
    chex.assert_trees_all_close(
        forward(trainable, frozen, longer, small.gates()), want, rtol=1e-5, atol=1e-5
    )


def test_lora_gate_equals_factors_of_zero_bitwise(forward, trainable, frozen, batch):
    off = forward(trainable, frozen, batch, small.gates(lora=0.0))
    zero = trainable | {'lora': jax.tree.map(np.zeros_like, trainable['lora'])}
    chex.assert_trees_all_equal(off, forward(zero, frozen, batch, small.gates()))
    on = forward(trainable, frozen, batch, small.gates())
    assert np.abs(on.actions.traj - off.actions.traj).max() > 1e-3
    without = forward({'sigma': trainable['sigma']}, frozen, batch, small.gates())
    chex.assert_trees_all_close(without, off, rtol=1e-4, atol=1e-5)


def test_input_layers_never_see_lora(forward, trainable, frozen, batch):
    output = forward(trainable, frozen, batch, small.gates())
    off = forward(trainable, frozen, batch, small.gates(lora=0.0))
    chex.assert_trees_all_equal(output.text_pool, off.text_pool)
    assert np.abs(output.telepathy.tau - off.telepathy.tau).max() > 1e-4


def test_memory_is_stepped_from_outside(forward, trainable, frozen, batch):
    """Halves of a sequence, the carry of the first handed to the second, equal the whole."""
    whole_carry, whole = small.forward()(trainable, frozen, batch, small.gates())
    carry, halves = None, []
    for half in (slice(0, 2), slice(2, 4)):
        windows = jax.tree.map(lambda x, h=half: x[:, h], batch)
        carry, output = small.forward()(trainable, frozen, windows, small.gates(), None, carry)
        halves.append(output)
    joined = jax.tree.map(lambda *x: np.concatenate(x, 1), *halves)
    chex.assert_trees_all_close((carry, joined), (whole_carry, whole), rtol=1e-4, atol=1e-4)
    anew = forward(trainable, frozen, jax.tree.map(lambda x: x[:, 2:], batch), small.gates())
    assert np.abs(anew.telepathy.memory - whole.telepathy.memory[:, 2:]).max() > 1e-3


def test_refinement_noise_needs_no_key(forward, trainable, frozen, batch):
    noisy = small.sigma_objective(sigma=dataclasses.replace(small.SIGMA, noise_scale=1.0))
    run = quick.jit(noisy.forward)
    first, again = (run(trainable, frozen, batch, small.gates())[1] for _ in range(2))
    chex.assert_trees_all_equal(first, again)
    assert (
        np.abs(
            first.actions.traj - forward(trainable, frozen, batch, small.gates()).actions.traj
        ).max()
        > 1e-4
    )


class Quadratic(SigmaObjective):
    """Terms whose gradients are known: every term k is w_k times half the squared length of its own
    leaf.
    """

    def terms(self, trainable, frozen, batch, ablation, key, step):
        weights = curriculum.evaluate(curriculum.make_schedules(self.curriculum), step)
        return (
            {k: jnp.full(batch.mask.size, jnp.sum(x**2) / 2) for k, x in trainable.items()},
            weights,
            {},
        )


def test_alignment_share_is_a_share_of_gradient_norms(batch):
    objective = small.sigma_objective(loss=losses.LossConfig(alignment_scale=0.5))
    objective = Quadratic(objective.config, objective.sigma, objective.loss, objective.curriculum)
    vectors = {
        'act': np.array([3.0, 4.0]),
        'sem': np.array([2.0]),
        'intent': np.array([1.0]),
        'tau': np.array([10.0]),
    }
    got = objective.gradient_norms(vectors, None, batch, None, KEY, 2)  # half way up the ramps
    want = {'act': 5.0, 'sem': 0.5 * 0.55 * 2, 'intent': 0.5 * 0.45, 'tau': 0.5 * 0.02 * 10}
    share = 1 - 5 / sum(want.values())
    chex.assert_trees_all_close(
        got, {f'grad_{k}': x for k, x in want.items()} | {'grad_share': share}, rtol=1e-5
    )


def test_a_term_without_schedule_raises(batch):
    objective = small.sigma_objective()
    objective = Quadratic(objective.config, objective.sigma, objective.loss, objective.curriculum)
    with pytest.raises(UserError, match="terms that have a schedule, .*, got 'new'"):
        objective({'act': np.ones(2), 'new': np.ones(2)}, None, batch, None, KEY, 2)
