"""The methods without Sigma."""

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.evaluation import simple_baselines

RNG = np.random.default_rng(0)


def test_hold_repeats_the_state():
    state = RNG.normal(size=(3, 2))
    held = simple_baselines.hold(state, 5, 2)
    assert held.shape == (3, 5, 2)
    assert (held == state[:, None]).all()


def test_hold_refuses_other_widths():
    with pytest.raises(UserError, match='got 3'):
        simple_baselines.hold(np.zeros((1, 3)), 5, 2)


def test_mean_action_counts_valid_steps_only():
    actions = np.asarray([[[1.0], [10.0]], [[3.0], [99.0]]])
    assert simple_baselines.mean_action(
        actions, np.asarray([[True, True], [True, False]])
    ).tolist() == [
        [2.0],
        [10.0],
    ]


def test_bias_fit_equals_numpy_polyfit():
    base, actions = RNG.normal(size=(2, 50, 4, 3))
    mask = RNG.random((50, 4)) < 0.8
    fit = simple_baselines.fit_bias(base, actions, mask)
    for t in range(4):
        for a in range(3):
            weight, bias = np.polyfit(base[mask[:, t], t, a], actions[mask[:, t], t, a], 1)
            np.testing.assert_allclose(
                (fit.weight[t, a], fit.bias[t, a]), (weight, bias), rtol=1e-8
            )


def test_bias_fit_undoes_an_affine_error():
    actions = RNG.normal(size=(20, 4, 3))
    mask = np.ones((20, 4), bool)
    fit = simple_baselines.fit_bias(2 * actions - 3, actions, mask)
    np.testing.assert_allclose(
        simple_baselines.apply_bias(2 * actions - 3, fit), actions, atol=1e-12
    )


def test_a_base_that_never_moves_is_only_shifted():
    actions = RNG.normal(size=(20, 2, 1))
    fit = simple_baselines.fit_bias(np.full((20, 2, 1), 7.0), actions, np.ones((20, 2), bool))
    assert (fit.weight == 1).all()
    np.testing.assert_allclose(fit.bias, actions.mean(0) - 7.0)
