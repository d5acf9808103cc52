"""Chunks that go on from the one before: against numpy in the paper's own time, and against what
LeRobot computes.
"""

import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones import flow, pi05
from sigma_jax.types import Continuation
from tests import golden, quick
from tests.backbones import lerobot_chunking as lerobot

FIXTURE = golden.DATA / 'chunking/lerobot.npz'
ROWS, STEPS, WIDTH = 3, 8, 2
RNG = np.random.default_rng(7)
A = 0.4 * RNG.standard_normal((WIDTH, WIDTH))
Q = 0.2 * RNG.standard_normal((WIDTH, WIDTH, WIDTH))
NOISE = 0.5 * RNG.standard_normal((ROWS, STEPS, WIDTH))
EARLIER = 0.5 * RNG.standard_normal((ROWS, STEPS, WIDTH))
WEIGHTS = np.clip(RNG.uniform(-0.3, 1.3, (ROWS, STEPS)), 0, 1)
BETA = np.array([5.0, 1.5, 3.0])


def bound(mode, weights=WEIGHTS, earlier=EARLIER, beta=BETA) -> Continuation:
    return Continuation(*(np.float32(x) for x in (earlier, weights, beta)), mode=mode)


def field(kind):
    """v(x, t): x A, or x A + x Q x, and more of it late; steps are mixed by their mean."""

    def velocity(x, time):
        v = (x + 0.3 * x.mean(1, keepdims=True)) @ np.float32(A)
        if kind == 'quadratic':
            v += jnp.einsum('bti,ijk,btj->btk', x, np.float32(Q), x)
        return v * (2 - time.reshape(*time.shape, *[1] * (x.ndim - time.ndim)))

    return velocity


def in_numpy(kind, exact, flow_steps, rows=range(ROWS)):
    """The paper's algorithm, one window at a time: tau from 0 to 1, velocities towards the data,
    the Jacobian as a matrix over all numbers of the chunk.
    """
    out, size = [], STEPS * WIDTH
    mean = np.eye(STEPS) + 0.3 / STEPS
    for row in rows:
        x, y, w = NOISE[row].copy(), EARLIER[row], np.repeat(WEIGHTS[row], WIDTH)
        for n in range(flow_steps):
            tau = n / flow_steps
            late = 1 + tau
            v, jacobian = -late * mean @ x @ A, -late * np.kron(mean, A.T)
            if kind == 'quadratic':
                v -= late * np.einsum('ti,ijk,tj->tk', x, Q, x)
                both = np.einsum('ijk,tj->tki', Q, x) + np.einsum('jik,tj->tki', Q, x)
                for t in range(STEPS):
                    at = slice(t * WIDTH, (t + 1) * WIDTH)
                    jacobian[at, at] -= late * both[t]
            to_data = np.eye(size) + (1 - tau) * jacobian if exact else np.eye(size)
            error = w * (y - (x + (1 - tau) * v)).ravel()
            guidance = (error @ to_data).reshape(STEPS, WIDTH)
            variance = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
            scale = min(BETA[row], (1 - tau) / tau / variance) if tau else BETA[row]
            x = x + (v + scale * guidance) / flow_steps
        out.append(x)
    return np.stack(out)


@pytest.mark.parametrize('mode', ['guided', 'lerobot'])
@pytest.mark.parametrize('kind', ['linear', 'quadratic'])
@pytest.mark.parametrize('flow_steps', [1, 5, 10])
def test_guidance_equals_the_paper_in_numpy(kind, mode, flow_steps):
    got = flow.integrate(field(kind), NOISE, flow_steps, bound(mode))
    want = in_numpy(kind, mode == 'guided', flow_steps)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    other = in_numpy(kind, mode != 'guided', flow_steps)
    assert np.abs(got - other).max() > 0.01


def test_the_jacobian_is_the_identity_where_the_velocity_does_not_depend_on_x():
    def velocity(x, time):
        return jnp.zeros_like(x) + jnp.cos(time)[:, None, None]

    got, other = (flow.integrate(velocity, NOISE, 5, bound(m)) for m in ('guided', 'lerobot'))
    np.testing.assert_allclose(got, other, rtol=1e-6, atol=1e-7)


def test_guidance_draws_a_chunk_to_the_one_before():
    """With the sign of the other time it would be driven away."""
    weights = np.repeat([[1.0], [0.0], [1.0]], STEPS, axis=1)
    free, held = (
        flow.integrate(field('linear'), NOISE, 10, bound('guided', w))
        for w in (0 * weights, weights)
    )
    far = [np.abs(x - EARLIER).mean((1, 2)) for x in (free, held)]
    assert (far[1][[0, 2]] < 0.5 * far[0][[0, 2]]).all() and far[1][1] == far[0][1]


def test_the_weight_of_the_guidance_is_cut_at_both_ends():
    """It is infinite at pure noise, 2 at half time, and infinite at the actions again."""
    time = jnp.asarray([1.0, 0.999, 0.5, 0.001])
    got = jax.vmap(flow.guidance_weight, (0, None))(time, jnp.asarray([5.0, 2.5]))
    np.testing.assert_allclose(got, [[5, 2.5], [5, 2.5], [2, 2], [5, 2.5]], rtol=1e-6)


def test_given_actions_stay_and_the_others_see_them_clean():
    """By hand: the velocity is the mean of the chunk, its own time, and the mean of all times."""
    seen = []

    def velocity(x, time):
        seen.append(time.shape)
        means = x.mean(1, keepdims=True) + time.mean(1)[:, None, None]
        return means + time[..., None] + jnp.zeros_like(x)

    given = np.arange(STEPS) < np.array([[3], [0], [8]])
    got = np.asarray(flow.integrate(velocity, NOISE, 4, bound('trained', given)))
    assert set(seen) == {(ROWS, STEPS)}
    x = np.where(given[..., None], EARLIER, NOISE)
    for time in (1.0, 0.75, 0.5, 0.25):
        means = x.mean(1, keepdims=True) + (time * ~given).mean(1)[:, None, None]
        x = np.where(given[..., None], EARLIER, x - (means + time) / 4)
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-6)
    assert np.array_equal(got[given], np.float32(EARLIER)[given])

    def times(x, time):
        return jnp.zeros_like(x) + time[..., None]

    moved = NOISE - np.asarray(flow.integrate(times, NOISE, 4, bound('trained', given)))
    np.testing.assert_allclose(moved[~given], 2.5 / 4, rtol=1e-5)
    still = flow.integrate(times, NOISE, 1, bound('trained', given, NOISE))
    assert np.array_equal(np.asarray(still)[given], np.float32(NOISE)[given])


@pytest.mark.parametrize('mode', ['guided', 'lerobot', 'trained'])
def test_bound_to_nothing_a_chunk_is_free(mode):
    """Whatever lies in the chunk before; a program serves bound ones too."""
    run = jax.jit(lambda noise, after: flow.integrate(field('quadratic'), noise, 10, after))
    x = np.float32(NOISE)
    for n in range(10):
        x = x - field('quadratic')(x, jnp.full(ROWS, jnp.float32(1) - jnp.float32(n) / 10)) / 10
    got = run(NOISE, bound(mode, 0 * WEIGHTS))
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)
    assert np.array_equal(got, run(NOISE, bound(mode, 0 * WEIGHTS, 9 + EARLIER, 3 * BETA)))
    assert np.abs(got - run(NOISE, bound(mode))).max() > 0.1 and run._cache_size() == 1


def test_what_is_missing_of_the_chunk_before_is_zero():
    short = Continuation(
        np.float32(EARLIER[:, :5, :1]), np.float32(WEIGHTS[:, :5]), np.float32(BETA)
    )
    padded = bound('guided', WEIGHTS * (np.arange(STEPS) < 5), EARLIER * 0)
    padded.actions[:, :5, :1] = EARLIER[:, :5, :1]
    got, want = (flow.integrate(field('linear'), NOISE, 5, x) for x in (short, padded))
    assert np.array_equal(got, want)


# LeRobot


@pytest.mark.parametrize('schedule', lerobot.SCHEDULES)
@pytest.mark.parametrize('kind', ['linear', 'quadratic'])
def test_the_mode_of_its_name_is_what_lerobot_computes(kind, schedule):
    """Its function, on fields; with the Jacobian it would be something else."""
    known = np.load(FIXTURE)

    def velocity(x, time):
        v = x @ known['linear']
        if kind == 'quadratic':
            v += jnp.einsum('bti,ijk,btj->btk', x, known['quadratic'], x)
        return v * (2 - time[:, None, None])

    def sample(mode):
        weights = known[f'weights_{schedule}'][lerobot.CASES.index((2, 6))]
        after = bound(mode, np.tile(weights, (2, 1)), known['earlier'], np.full(2, lerobot.BETA))
        return flow.integrate(velocity, known['noise'], lerobot.FLOW_STEPS, after)

    want = known[f'{kind}_{schedule}']
    np.testing.assert_allclose(sample('lerobot'), want, rtol=0, atol=1e-5)
    assert np.abs(sample('guided') - want).max() > 0.05


@pytest.fixture(scope='module')
def sample_tiny(golden_params):
    """The golden pi0.5 on the golden inputs, bound to something."""
    i, observation = golden.inputs(), golden.observation()
    model = pi05.BoundPi05(golden.config(), golden_params)

    @quick.jit
    def run(after):
        seen = model._apply('read_prefix', observation, 10)
        return flow.integrate(
            lambda x, time: model._apply('denoise', x, time, seen), i['sample_noise'], 10, after
        )

    return run


@pytest.mark.parametrize('name', ['exp', 'linear', 'none'])
def test_lerobots_policy_gives_the_same_chunks(sample_tiny, name):
    """pi0.5 of LeRobot, guided, with the same weights: fewer steps and numbers are left over than
    the policy has.
    """
    from sigma_jax.policies.chunking import prefix_weights

    known = np.load(FIXTURE)
    schedule, delay, horizon, beta = {c[0]: c[1:] for c in lerobot.CHUNKS}[name]
    reach = min(horizon, lerobot.LEFT)
    weights = np.tile(prefix_weights(delay, reach, lerobot.LEFT, schedule), (3, 1))
    got = sample_tiny(bound('lerobot', weights, known['left'], np.full(3, beta)))
    np.testing.assert_allclose(got, known[f'policy_{name}'], rtol=0, atol=1e-5)
    assert name == 'none' or np.abs(got - known['policy_none']).max() > 0.5


@pytest.mark.reference
def test_the_stored_numbers_are_lerobots(tmp_path):
    """`REFERENCE_LEROBOT` names a Python with LeRobot 0.6.1."""
    script = pathlib.Path(lerobot.__file__)
    command = [os.environ['REFERENCE_LEROBOT'], str(script), str(tmp_path / 'out.npz')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known, anew = np.load(FIXTURE), np.load(tmp_path / 'out.npz')
    assert set(known) == set(anew)
    differences = {name: float(np.abs(known[name] - anew[name]).max()) for name in known}
    print(differences)
    assert max(differences.values()) < 1e-5
