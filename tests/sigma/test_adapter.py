"""The inference adapter against a numpy version, at its limits, and under the stresses it is
for.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.sigma import adapter
from sigma_jax.types import Actions

JOINTS, CHUNK, HORIZON, TAU = 3, 4, 8, 6

adapt = jax.jit(adapter.adapt)


def make_windows(windows=200, gain=0.8, seed=0):
    """Base, actions that repair `gain` of the base's error, truth, and a tau that points like
    c_act0.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(windows, HORIZON, JOINTS)).astype(np.float32)
    base = truth + rng.normal(size=(windows, 1, JOINTS)).astype(np.float32)
    actions = base + gain * (truth - base)
    direction = rng.normal(size=(1, TAU))
    tau = (2 * direction + 0.1 * rng.normal(size=(windows, TAU))).astype(np.float32)
    c_act0 = (direction + 0.05 * rng.normal(size=(windows, TAU))).astype(np.float32)
    base, actions, truth = (Actions.from_trajectory(x, CHUNK) for x in (base, actions, truth))
    return base, actions, truth, tau, c_act0


def reference(base, actions, tau, c_act0, state):
    """docs/design.md, "Inference adapter" for one window, in numpy."""
    residual = [a - b for a, b in zip(jax.tree.leaves(actions), jax.tree.leaves(base), strict=True)]
    x, along = (
        np.concatenate([r.ravel() for r in residual]) / state.spread,
        np.asarray(state.directions),
    )
    metric = along.T * state.weights[:-1] @ along + state.weights[-1] * (
        np.eye(len(x)) - along.T @ along
    )
    ratio = np.sqrt(x @ metric @ x)
    drift = abs(np.sqrt(np.mean(tau**2)) - state.tau_target) / state.tau_target
    mis = 1 - tau @ c_act0 / np.linalg.norm(tau) / np.linalg.norm(c_act0)
    risk = (
        state.k_ratio * max(0, ratio - state.ratio_ok)
        + state.k_tau * max(0, drift - state.drift_ok)
        + state.k_mis * max(0, mis - state.mis_ok)
    )
    scale = state.min_scale + (state.max_scale - state.min_scale) * np.exp(-risk)
    scale = scale if scale >= 1e-3 else 0.0
    return (
        [b + scale * r for b, r in zip(jax.tree.leaves(base), residual, strict=True)],
        scale,
        risk,
    )


def test_adapt_equals_numpy_window_by_window():
    base, actions, truth, tau, c_act0 = make_windows()
    config = adapter.AdapterConfig(ok_quantile=0.5, k_ratio=1.0, k_tau=2.0, k_mis=3.0)
    state = adapter.fit(base, actions, truth, tau, c_act0, config)
    adapted, scale, risk, _ = adapt(base, actions, tau, c_act0, state)
    assert np.unique(np.round(scale, 4)).size > 10
    for i in range(40):
        window = [jax.tree.map(lambda x, i=i: x[i], tree) for tree in (base, actions, tau, c_act0)]
        expected, expected_scale, expected_risk = reference(*window, state)
        np.testing.assert_allclose(scale[i], expected_scale, rtol=2e-4)
        np.testing.assert_allclose(risk[i], expected_risk, rtol=2e-4, atol=1e-5)
        for got, want in zip(jax.tree.leaves(adapted), expected, strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-4)


def test_fit_finds_the_calibration_statistics():
    base, actions, truth, tau, c_act0 = make_windows()
    state = adapter.fit(base, actions, truth, tau, c_act0, adapter.AdapterConfig())
    residual = actions.traj - base.traj
    np.testing.assert_allclose(
        state.sigma_res, np.sqrt(np.mean(residual**2, axis=(0, 1))), rtol=1e-5
    )
    np.testing.assert_allclose(state.tau_target, np.median(np.sqrt(np.mean(tau**2, -1))), rtol=1e-5)
    # repairs 0.8 of the error: 1 / 0.8
    np.testing.assert_allclose(state.max_scale, 1.25, rtol=1e-5)


@pytest.mark.parametrize(('quantile', 'margin'), [(0.99, 1.25), (0.5, 1.0), (0.9, 2.0)])
def test_thresholds_are_quantiles_of_calibration_with_a_margin(quantile, margin):
    base, actions, truth, tau, c_act0 = make_windows()
    config = adapter.AdapterConfig(ok_quantile=quantile, ok_margin=margin)
    state = adapter.fit(base, actions, truth, tau, c_act0, config)
    size = np.sqrt(np.mean(tau**2, axis=-1))
    drift = np.abs(size - np.median(size)) / np.median(size)
    mis = 1 - np.sum(tau * c_act0, -1) / np.linalg.norm(tau, axis=-1) / np.linalg.norm(
        c_act0, axis=-1
    )
    parts = zip(jax.tree.leaves(actions), jax.tree.leaves(base), strict=True)
    x = np.concatenate([(a - b).reshape(len(tau), -1) for a, b in parts], axis=1) / state.spread
    along = x @ state.directions.T
    across = np.sum((x - along @ state.directions) ** 2, axis=1)
    ratio = np.sqrt(along**2 @ state.weights[:-1] + across * state.weights[-1])
    for got, signal in ((state.ratio_ok, ratio), (state.drift_ok, drift), (state.mis_ok, mis)):
        np.testing.assert_allclose(got, margin * np.quantile(signal, quantile), rtol=2e-3)
    usual = adapter.AdapterConfig()
    assert (usual.ok_quantile, usual.ok_margin) == (0.99, 1.25)


@pytest.mark.parametrize(('gain', 'expected'), [(-0.5, 0.0), (2.0, 0.5), (1.0, 1.0)])
def test_max_scale_follows_the_calibration_error(gain, expected):
    base, actions, truth, tau, c_act0 = make_windows(gain=gain)
    state = adapter.fit(base, actions, truth, tau, c_act0, adapter.AdapterConfig())
    np.testing.assert_allclose(state.max_scale, expected, atol=1e-5)


def test_paper_preset_keeps_its_range():
    state = adapter.fit(*make_windows(gain=-0.5), adapter.preset('paper'))
    assert (float(state.min_scale), float(state.max_scale)) == (0.0, 1.25)
    with pytest.raises(UserError, match='expected one of'):
        adapter.preset('bold')


@pytest.mark.parametrize(('risk', 'kept'), [(6.0, True), (7.5, False), (12.0, False)])
def test_a_scale_of_next_to_nothing_gives_the_base_bitwise(risk, kept):
    base, actions, truth, tau, c_act0 = make_windows()
    state = adapter.fit(base, actions, truth, tau, c_act0, adapter.AdapterConfig())
    state = state.replace(k_ratio=jnp.zeros(()), k_tau=jnp.zeros(()), k_mis=jnp.ones(()))
    mis = 1 - np.sum(tau * c_act0, -1) / np.linalg.norm(tau, axis=-1) / np.linalg.norm(
        c_act0, axis=-1
    )
    adapted, scale, got, _ = adapt(
        base, actions, tau, c_act0, state.replace(mis_ok=jnp.float32(mis[0] - risk))
    )
    np.testing.assert_allclose(got[0], risk, rtol=1e-4)
    assert (scale[0] > 0) == kept
    assert np.array_equal(
        np.asarray(adapted.traj[0]).view(np.int32), base.traj[0].view(np.int32)
    ) == (not kept)


@pytest.mark.parametrize('where', ['residual', 'tau', 'c_act0'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_non_finite_input_gives_the_base_bitwise(where, value):
    base, actions, truth, tau, c_act0 = make_windows()
    state = adapter.fit(base, actions, truth, tau, c_act0, adapter.AdapterConfig())
    tau, c_act0 = tau.copy(), c_act0.copy()
    if where == 'residual':
        actions = actions.replace(
            chk=np.where(np.arange(200)[:, None, None] == 3, value, actions.chk)
        )
    else:
        {'tau': tau, 'c_act0': c_act0}[where][3, 0] = value
    adapted, scale, _, reasons = adapt(base, actions, tau, c_act0, state)
    assert reasons.non_finite.tolist() == [i == 3 for i in range(200)]
    assert scale[3] == 0
    for got, want in zip(jax.tree.leaves(adapted), jax.tree.leaves(base), strict=True):
        assert np.isfinite(got).all()
        assert np.array_equal(
            np.asarray(got[3]).view(np.uint32), np.ascontiguousarray(want[3]).view(np.uint32)
        )


def test_stresses_fall_back_to_the_base():
    base, actions, truth, tau, c_act0 = make_windows()
    state = adapter.fit(base, actions, truth, tau, c_act0, adapter.AdapterConfig())
    blown = jax.tree.map(lambda a, b: b + 10 * (a - b), actions, base)
    noise = np.random.default_rng(9).normal(size=tau.shape).astype(np.float32) * np.sqrt(
        np.mean(tau**2)
    )
    for stressed, factor in (((blown, tau), 0.1), ((actions, noise), 0.2)):
        _, scale, _, _ = adapt(base, *stressed, c_act0, state)
        assert np.mean(scale) < factor
    _, scale, _, _ = adapt(base, actions, tau, c_act0, state)
    assert np.mean(np.isclose(scale, state.max_scale)) > 0.95


def test_a_small_residual_blown_up_is_caught():
    """Residuals twenty times as large in some windows as in others; blown up, the small ones stay
    below those.
    """
    rng = np.random.default_rng(3)
    base, _, _, tau, c_act0 = make_windows()
    amplitude = np.exp(rng.uniform(np.log(0.05), 0, size=(200, 1, 1)))
    residual = amplitude * np.linspace(0.2, 1, HORIZON)[:, None] + 0.02 * rng.normal(
        size=base.traj.shape
    )
    actions = Actions.from_trajectory((base.traj + residual).astype(np.float32), CHUNK)
    state = adapter.fit(base, actions, actions, tau, c_act0, adapter.AdapterConfig())
    assert np.mean(np.isclose(adapt(base, actions, tau, c_act0, state)[1], state.max_scale)) > 0.95
    blown = jax.tree.map(lambda a, b: b + 10 * (a - b), actions, base)
    smallest = np.argsort(np.square(residual).mean(axis=(1, 2)))[:40]
    per_joint = np.sqrt(
        np.mean(np.square((blown.traj - base.traj)[smallest] / state.sigma_res), axis=(1, 2))
    )
    usual = np.sqrt(np.mean(np.square(residual / state.sigma_res), axis=(1, 2)))
    assert np.median(per_joint) < usual.max()
    assert np.mean(adapt(base, blown, tau, c_act0, state)[1][smallest]) < 0.01


def test_the_ratio_has_mean_square_one_on_calibration():
    base, actions, truth, tau, c_act0 = make_windows()
    state = adapter.fit(base, actions, truth, tau, c_act0, adapter.AdapterConfig(rank=2))
    residual = jax.tree.map(np.subtract, actions, base)
    ratio, _, _ = adapter.signals(residual, tau, c_act0, state)
    np.testing.assert_allclose(np.mean(np.square(ratio)), 1, rtol=1e-4)
    np.testing.assert_allclose(state.directions @ state.directions.T, np.eye(2), atol=1e-5)


def test_each_window_is_judged_alone():
    base, actions, truth, tau, c_act0 = make_windows()
    state = adapter.fit(base, actions, truth, tau, c_act0, adapter.AdapterConfig())
    whole = adapt(base, actions, tau, c_act0, state)[1]
    part = adapt(*jax.tree.map(lambda x: x[7:9], (base, actions, tau, c_act0)), state)[1]
    np.testing.assert_allclose(part, whole[7:9], rtol=1e-6)


def test_untrained_sigma_is_left_alone():
    base, _, truth, tau, c_act0 = make_windows()
    state = adapter.fit(base, base, truth, tau, c_act0, adapter.AdapterConfig())
    adapted, _, risk, _ = adapt(base, base, tau, c_act0, state)
    assert np.isfinite(risk).all()
    assert np.array_equal(adapted.traj, base.traj)


def test_fit_needs_a_finite_window():
    base, actions, truth, tau, c_act0 = make_windows(4)
    with pytest.raises(UserError, match='0 of 4'):
        adapter.fit(
            base, actions, truth, np.full_like(tau, np.nan), c_act0, adapter.AdapterConfig()
        )


def test_state_survives_json():
    state = adapter.fit(*make_windows(), adapter.AdapterConfig())
    back = adapter.from_dict(json.loads(json.dumps(adapter.to_dict(state))))
    assert all(
        jnp.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True)
    )
    with pytest.raises(UserError, match='fit the adapter again'):
        adapter.from_dict({'sigma_res': [1.0]})
