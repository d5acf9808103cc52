"""A tau from outside takes the inferred one's place in all that is downstream of pass 1, and
nowhere else.
"""

import dataclasses

import jax
import numpy as np
import pytest

from tests import quick
from tests.sigma import test_model as toy

SHAPE = (toy.B, toy.G, toy.CONFIG.d_tau)


def sequence(params, batch, ablation):
    return toy.sequence(params, batch, ablation)[1]


@pytest.fixture(scope='module')
def params():
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(toy.init, jax.random.key(0), toy.make_batch())
    return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), shapes)


@pytest.fixture(scope='module')
def run():
    return quick.jit(sequence)


def with_tau(tau):
    return dataclasses.replace(toy.make_batch(), tau_override=np.float32(tau))


def test_the_inferred_tau_given_back_changes_nothing(params, run):
    inferred = run(params, toy.make_batch(), toy.gates())
    again = run(params, with_tau(inferred.telepathy.tau), toy.gates())
    for got, want in zip(jax.tree.leaves(again), jax.tree.leaves(inferred), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_another_tau_reaches_all_that_is_downstream(params, run):
    noise = np.random.default_rng(2).standard_normal(SHAPE)
    usual, given = (
        run(params, batch, toy.gates()) for batch in (toy.make_batch(), with_tau(noise))
    )
    assert np.array_equal(given.telepathy.tau, np.float32(noise)), (
        'the adapter sees the tau that was used'
    )
    for name in ('z_pool', 'memory', 'c_env', 'z_intent'):
        np.testing.assert_allclose(
            getattr(given.telepathy, name), getattr(usual.telepathy, name), rtol=1e-5, atol=1e-5
        )
    np.testing.assert_allclose(given.c_act0, usual.c_act0, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        jax.tree.leaves((given.actions, given.c_act)),
        jax.tree.leaves((usual.actions, usual.c_act)),
        strict=True,
    ):
        assert np.abs(one - other).max() > 1e-2
    by_film = run(params, with_tau(noise), toy.gates(film=0.0))
    assert np.abs(by_film.actions.traj - given.actions.traj).max() > 1e-3, (
        'FiLM of pass 2 reads it too'
    )


def test_a_closed_gate_lets_no_tau_through(params, run):
    noise = with_tau(np.random.default_rng(2).standard_normal(SHAPE))
    silent = run(params, with_tau(np.zeros(SHAPE)), toy.gates(tau=0.0))
    assert toy.same(run(params, noise, toy.gates(tau=0.0)).actions, silent.actions)


def test_windows_one_by_one_agree(params, run):
    noise = with_tau(np.random.default_rng(2).standard_normal(SHAPE))
    at_once, (_, stepped) = run(params, noise, toy.gates()), toy.stepped(params, noise, toy.gates())
    np.testing.assert_allclose(stepped.actions.traj, at_once.actions.traj, rtol=1e-4, atol=1e-4)
