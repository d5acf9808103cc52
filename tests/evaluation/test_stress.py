"""Stress tests on a stand-in whose behaviour under a foreign tau is known."""

import types

import numpy as np
import pytest

from sigma_jax.evaluation import adapter_sweep, measure
from sigma_jax.evaluation.measure import EvaluationConfig
from sigma_jax.evaluation.replay import CARRIED, replay
from sigma_jax.evaluation.report.trials import verdicts
from sigma_jax.evaluation.stress import stress
from sigma_jax.evaluation.stress.stress import Stress
from sigma_jax.types import Ablation
from tests import handmade


def run_windows(batch, ablation):
    """Follows the tau it is given: the larger it is, the further its actions lie from the truth."""
    output = handmade.run_windows(batch, ablation)
    if 'tau_override' not in batch:
        return output
    wrong = np.linalg.norm(batch['tau_override'], axis=-1)[..., None]
    actions = output.actions.replace(
        vec=output.actions.vec + wrong,
        chk=output.actions.chk + wrong[..., None],
        traj=output.actions.traj + wrong[..., None],
    )
    return output.replace(
        actions=actions, telepathy=output.telepathy.replace(tau=batch['tau_override'])
    )


TRAINED = types.SimpleNamespace(predict=run_windows, sequence_length=2, gates=Ablation())


def batches(split='test'):
    return [handmade.make_batch(split)]


@pytest.fixture(scope='module')
def clean():
    return {name: replay(batches(name), run_windows, 2) for name in ('calibration', 'test')}


@pytest.fixture(scope='module')
def state(clean):
    return measure.fit_adapter(clean['calibration'], EvaluationConfig().adapter)


def test_residuals_are_blown_up_around_the_base(clean):
    blown = stress.scaled_residual(clean['test'], 10.0)
    residual = clean['test'].predictions[CARRIED].actions.traj - clean['test'].base
    np.testing.assert_allclose(
        blown.predictions[CARRIED].actions.traj - blown.base, 10 * residual, rtol=1e-5
    )
    assert np.array_equal(blown.actions, clean['test'].actions)


def test_tau_of_another_episode_comes_from_the_same_place(clean):
    """Episode 20 has windows with |tau| 5, 10, 15, episode 21 with 5, 10: its last one serves
    twice.
    """
    norms = np.linalg.norm(stress.swapped_tau(clean['test']), axis=1)
    assert norms.tolist() == [5, 10, 10, 5, 10]
    windows = stress.with_tau(batches(), TRAINED, clean['test'], stress.swapped_tau(clean['test']))
    assert np.linalg.norm(windows.predictions[CARRIED].tau, axis=1).tolist() == norms.tolist()


def test_noise_is_each_window_s_own(clean):
    noise = stress.noise(clean['test'], 2.0, seed=0)
    assert np.array_equal(
        noise[3:], stress.noise(clean['test'].select(slice(3, None)), 2.0, seed=0)
    )
    assert len(np.unique(noise[:, 0])) == len(noise)


def test_all_stresses_are_run_and_judged(clean, state):
    found = stress.report(
        clean['test'], stress.every_stress(clean['test'], batches, TRAINED), state
    )
    names = [row['stress'] for row in found['rows']]
    assert names[0] == 'residual × 10' and names[-1] == 'τ from another episode' and len(names) == 5
    for row in found['rows']:
        assert row['informative'] == (max(row['sigma'].values()) >= 1.5)
        assert (row['holds'] is None) == (not row['informative'])
    lines = verdicts(found)
    assert len(lines) == 6 and lines[-1].startswith('without stress: ')


def row(state, clean, error):
    """Plain Sigma this far from the truth everywhere, base 1 to 3 off."""
    run = clean.predictions[CARRIED]
    traj = clean.actions + np.float32(error)
    actions = run.actions.replace(vec=traj[:, 0], chk=traj[:, :2], traj=traj)
    windows = stress.dataclasses.replace(
        clean, predictions={CARRIED: stress.dataclasses.replace(run, actions=actions)}
    )
    return stress.row('x', windows, state)


def test_what_counts_and_what_holds(clean, state):
    far, near, blind = row(state, clean['test'], 100.0), row(state, clean['test'], 1.5), None
    assert far['informative'] and far['holds'] and far['adapter']['mse_vec'] == pytest.approx(1.0)
    assert not near['informative'] and near['holds'] is blind
    trusting = row(state.replace(k_ratio=np.float32(0)), clean['test'], 100.0)
    assert trusting['informative'] and trusting['holds'] is False
    text = verdicts(
        {'rows': [far, near, trusting], 'without_stress': {'gain_kept': {'mse_vec': None}}}
    )
    assert [line.split()[1] for line in text[:3]] == ['holds', 'uninformative', 'FAILS']
    assert text[3] == (
        'without stress: uninformative, Sigma gains nothing that the adapter could keep'
    )


def test_the_least_gain_kept_decides():
    assert stress.keeps_enough_gain({'mse_vec': 0.99, 'mse_chk': None}) is True
    assert stress.keeps_enough_gain({'mse_vec': 0.99, 'mse_chk': 0.94}) is False
    assert stress.keeps_enough_gain({'mse_vec': None}) is None


def test_the_sweep_is_chosen_on_calibration(clean, state):
    """Half of the error is repaired, so the best scale is 2 and the largest on offer wins."""
    found = adapter_sweep.sweep(clean, state)
    chosen = found['rows'][found['chosen']]
    assert chosen['max_scale'] == 1.5 and chosen['calibration'] == pytest.approx(0.0625, rel=1e-4)
    assert all(row['min_scale'] <= row['max_scale'] for row in found['rows'])
    zero = next(row for row in found['rows'] if (row['min_scale'], row['max_scale']) == (0.0, 1.0))
    assert zero['calibration'] == pytest.approx(0.25, rel=1e-4)


def test_a_single_episode_has_no_foreign_tau(clean):
    alone = clean['test'].select(clean['test'].episode == 20)
    first = [{key: x[:1] for key, x in handmade.make_batch('test').items()}]
    names = [
        s.name for s in stress.every_stress(alone, lambda: first, TRAINED) if isinstance(s, Stress)
    ]
    assert len(names) == 4 and 'τ from another episode' not in names
