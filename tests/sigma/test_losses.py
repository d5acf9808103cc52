"""TRAF and TSAC against independent numpy formulas, golden values of Table 1, invariances and
gradients.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.sigma import losses
from sigma_jax.types import Ablation, Actions, Batch, Observation, SigmaOutput, Telepathy

SIGMA_A = np.asarray([0.5, 2.0, 4.0], np.float32)
HORIZON, CHUNK = 6, 3

sigma_terms = jax.jit(losses.sigma_terms, static_argnames='config')


def make_example(windows=5, seed=0, dim=7, tau_dim=4):
    """A random (SigmaOutput, Batch) of `windows` windows; the last one is padding."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=(windows, *shape)).astype(np.float32)

    telepathy = Telepathy(
        **{
            name: normal(dim)
            for name in ('z_pool', 'memory', 'c_env', 'c_beh', 'c_text', 'z_intent')
        },
        z_sem=normal(2, dim),
        tau=normal(tau_dim),
    )
    output = SigmaOutput(
        actions=Actions(vec=normal(3), chk=normal(CHUNK, 3), traj=normal(HORIZON, 3)),
        residual=Actions(vec=normal(3), chk=normal(CHUNK, 3), traj=normal(HORIZON, 3)),
        telepathy=telepathy,
        m_prev=normal(dim),
        fresh=np.arange(windows) % 2 == 0,
        c_act=normal(tau_dim),
        c_act0=normal(tau_dim),
        text_pool=normal(dim),
        vision_pool=normal(dim),
    )
    action_mask = np.ones((windows, HORIZON), bool)
    action_mask[1, 4:] = False
    zeros = np.zeros(windows, np.int32)
    observation = Observation(*(np.zeros((windows, 1)) for _ in range(7)))
    batch = Batch(
        observation=observation,
        actions=normal(HORIZON, 3),
        action_mask=action_mask,
        base=normal(HORIZON, 3),
        reset=output.fresh,
        mask=np.arange(windows) < windows - 1,
        text_id=np.arange(windows) % 2,
        episode=zeros,
        frame=zeros,
    )
    return output, batch


def cosine(x, y):
    return np.sum(x * y, -1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def reference_mse(prediction, batch, scale):
    """MSE_i of one branch, window by window and step by step."""
    result = []
    for i in range(len(prediction)):
        steps = [t for t in range(prediction.shape[1]) if batch.action_mask[i, t]]
        result.append(
            np.mean([((prediction[i, t] - batch.actions[i, t]) / scale) ** 2 for t in steps])
        )
    return np.asarray(result)


def reference_terms(output, batch, config, scale):
    """Per-window L_act, L_time, L_mi, L_intent, L_tau in plain numpy."""
    traj, tel = output.actions, output.telepathy
    act = sum(reference_mse(x, batch, scale) for x in (traj.vec[:, None], traj.chk, traj.traj))
    time = np.where(output.fresh, 0, 1 - cosine(tel.z_pool, output.m_prev))
    context = output.text_pool + output.vision_pool
    mi = np.zeros(len(act))
    for i in np.flatnonzero(batch.mask):
        others = [j for j in np.flatnonzero(batch.mask) if batch.text_id[j] != batch.text_id[i]]
        logits = (
            np.asarray([cosine(tel.z_pool[i], context[j]) for j in [i, *others]])
            / config.temperature
        )
        mi[i] = np.log(np.sum(np.exp(logits))) - logits[0]
    size = np.sqrt(np.mean(tel.tau**2, -1))
    tau = (
        0.01 * size**2
        + 0.1 * np.maximum(0, 1 - size) ** 2
        + 0.1 * (1 - cosine(tel.tau, output.c_act))
    )
    return act, time, mi, -cosine(tel.z_intent, tel.memory), tau


@pytest.mark.parametrize('units', ['raw', 'normalised'])
def test_every_term_equals_numpy(units):
    output, batch = make_example()
    config = losses.LossConfig(units=units)
    terms, metrics = sigma_terms(output, batch, config, SIGMA_A)
    act, time, mi, intent, tau = reference_terms(
        output, batch, config, SIGMA_A if units == 'normalised' else 1.0
    )
    valid = batch.mask
    hardest = np.argsort(-act[valid])[: math.ceil(0.3 * valid.sum())]
    np.testing.assert_allclose(
        losses.masked_mean(terms['act'], valid), act[valid].mean() + act[hardest].mean(), 1e-5
    )
    np.testing.assert_allclose(metrics['L_act_hard'], act[hardest].mean(), 1e-5)
    np.testing.assert_allclose(terms['sem'][valid], (time + 0.1 * mi)[valid], 1e-4)
    np.testing.assert_allclose(terms['intent'], intent, 1e-5)
    np.testing.assert_allclose(terms['tau'], tau, 1e-5)


def test_raw_errors_are_logged_whatever_the_units():
    output, batch = make_example()
    _, metrics = sigma_terms(output, batch, losses.LossConfig(), SIGMA_A)
    expected = reference_mse(output.actions.chk, batch, 1.0)[batch.mask].mean()
    np.testing.assert_allclose(metrics['mse_chk'], expected, 1e-5)


def test_sequences_are_flattened():
    output, batch = make_example(windows=6)
    folded = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), (output, batch))
    flat_terms, flat_metrics = sigma_terms(output, batch, losses.LossConfig(), SIGMA_A)
    terms, metrics = sigma_terms(*folded, losses.LossConfig(), SIGMA_A)
    assert terms['act'].shape == (6,)
    jax.tree.map(np.testing.assert_array_equal, (terms, metrics), (flat_terms, flat_metrics))


def test_padding_and_order_change_nothing():
    output, batch = make_example(windows=6)
    weights = {'act': 1.0, 'sem': 1.0, 'intent': 0.8, 'tau': 0.03}

    def total(output, batch):
        return losses.combine(
            sigma_terms(output, batch, losses.LossConfig(), SIGMA_A)[0], weights, batch.mask
        )

    expected = total(output, batch)
    cut = jax.tree.map(lambda x: x[:-1], (output, batch))
    np.testing.assert_allclose(total(*cut), expected, rtol=1e-6)
    order = np.random.default_rng(1).permutation(6)
    np.testing.assert_allclose(
        total(*jax.tree.map(lambda x: x[order], (output, batch))), expected, rtol=1e-6
    )
    far = output.replace(
        actions=jax.tree.map(lambda x: np.concatenate([x[:-1], x[-1:] + 1e6]), output.actions)
    )
    np.testing.assert_allclose(total(far, batch), expected, rtol=1e-6)


@pytest.mark.parametrize('n_valid', [1, 2, 3, 7, 10, 20, 40])
def test_hard_count_is_the_exact_ceiling(n_valid):
    mask = jnp.arange(40) < n_valid
    hard = losses.hard_mask(jnp.arange(40.0), mask, 0.3)
    expected = -(-3 * n_valid // 10)
    assert hard.sum() == expected
    assert hard[n_valid - expected : n_valid].all()


def test_hard_ties_go_to_the_lower_index_and_padding_never_counts():
    difficulty = jnp.asarray([9.0, 1.0, 1.0, 1.0, 1.0])
    mask = jnp.asarray([False, True, True, True, True])
    assert losses.hard_mask(difficulty, mask, 0.5).tolist() == [False, True, True, False, False]
    assert not losses.hard_mask(difficulty, jnp.zeros(5, bool), 0.5).any()


def test_info_nce_in_the_papers_cases():
    same = jnp.ones((2, 3))
    both = jnp.asarray([True, True])
    assert losses.info_nce(same, same, jnp.asarray([0, 0]), both).tolist() == [0.0, 0.0]
    confused = losses.info_nce(same, same, jnp.asarray([0, 1]), both)
    np.testing.assert_allclose(confused, math.log(2), rtol=1e-6)
    assert round(float(0.1 * confused[0]), 3) == 0.069  # Table 1, eleven of fourteen rows
    apart = losses.info_nce(jnp.eye(2), jnp.eye(2), jnp.asarray([0, 1]), both)
    assert (apart < 1e-5).all()


def test_padding_is_no_negative_however_near():
    same, masked = jnp.ones((3, 4)), jnp.asarray([True, True, False])
    assert losses.info_nce(same, same, jnp.asarray([0, 0, 1]), masked).tolist() == [0.0, 0.0, 0.0]
    one = losses.info_nce(same, same, jnp.asarray([0, 1, 2]), masked)
    np.testing.assert_allclose(one, [math.log(2), math.log(2), 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ('ratio', 'n', 'count'), [(0.07, 100, 7), (0.28, 25, 7), (0.29, 100, 29), (0.3, 11, 4)]
)
def test_hard_count_is_no_victim_of_rounding(ratio, n, count):
    assert losses.hard_mask(jnp.arange(float(n)), jnp.ones(n, bool), ratio).sum() == count


def test_tau_loss_fits_table_1():
    """The last row (rms 5.653, L_tau 0.337) holds 0.01 rms^2; the first (0.049, 0.172) the collapse
    term.
    """
    config = losses.LossConfig()
    tau = jnp.full((1, 64), 5.653)
    np.testing.assert_allclose(losses.tau_loss(tau, tau, config), 0.01 * 5.653**2, rtol=1e-5)
    direction = (0.337 - 0.01 * 5.653**2) / 0.1
    assert 0 <= direction <= 2
    small = losses.tau_loss(jnp.full((1, 64), 0.049), jnp.ones((1, 64)), config)
    assert 0 <= (0.172 - float(small[0])) / 0.1 <= 2


def test_gradients_are_finite_at_zero():
    output, batch = make_example()
    zero = jax.tree.map(lambda x: np.zeros_like(x), output).replace(fresh=np.zeros(5, bool))

    def total(floats):
        output = zero.replace(
            telepathy=floats[0], m_prev=floats[1], c_act=floats[2], text_pool=floats[3]
        )
        terms, _ = sigma_terms(output, batch, losses.LossConfig(), SIGMA_A)
        return losses.combine(terms, dict.fromkeys(terms, 1.0), batch.mask)

    gradient = jax.jit(jax.grad(total))((zero.telepathy, zero.m_prev, zero.c_act, zero.text_pool))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_memory_gets_no_gradient_from_the_time_loss():
    output, _ = make_example()
    z, m = output.telepathy.z_pool, output.m_prev
    fresh = jnp.zeros(5, bool)
    by_z, by_m = jax.grad(lambda *x: losses.time_loss(*x, fresh).sum(), argnums=(0, 1))(z, m)
    assert np.abs(by_z).max() > 0
    assert np.abs(by_m).max() == 0


def test_gates_remove_their_terms():
    output, batch = make_example()
    config = losses.LossConfig()
    full, metrics = sigma_terms(output, batch, config, SIGMA_A)
    no_hard, _ = sigma_terms(output, batch, config, SIGMA_A, Ablation(hard=0.0))
    difference = losses.masked_mean(full['act'] - no_hard['act'], batch.mask)
    np.testing.assert_allclose(difference, metrics['L_act_hard'], rtol=1e-5)
    no_tau, _ = sigma_terms(output, batch, config, SIGMA_A, Ablation(tau=0.0))
    assert not np.any(no_tau['tau'])
    _, no_memory = sigma_terms(output, batch, config, SIGMA_A, Ablation(memory=0.0))
    assert no_memory['L_time'] == 0


def test_a_term_without_schedule_is_named():
    terms = {'act': jnp.ones(2), 'novel': jnp.ones(2)}
    with pytest.raises(UserError, match="terms that have a schedule, .*, got 'novel'"):
        losses.combine(terms, {'act': 1.0}, jnp.ones(2, bool))


def test_alignment_scale_leaves_the_action_term_alone():
    terms = {'act': jnp.ones(2), 'sem': jnp.full(2, 3.0)}
    total = losses.combine(terms, {'act': 1.0, 'sem': 2.0}, jnp.ones(2, bool), alignment_scale=0.5)
    assert total == 1.0 + 0.5 * 2.0 * 3.0


@pytest.mark.parametrize('setting', [{'units': 'degrees'}, {'hard_ratio': 0.0}])
def test_bad_settings_are_refused(setting):
    with pytest.raises(UserError, match='expected'):
        losses.LossConfig(**setting)
