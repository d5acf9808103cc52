"""Metrics by hand, and intervals that hold what they promise."""

import numpy as np
import pytest

from sigma_jax.evaluation import metrics
from sigma_jax.types import Actions

RNG = np.random.default_rng(0)


def test_window_errors_by_hand():
    target = np.zeros((2, 4, 2))
    traj = np.asarray([[[1, 1], [2, 2], [3, 3], [4, 4]], [[0, 2], [0, 0], [9, 9], [9, 9]]], float)
    mask = np.asarray([[True] * 4, [True, True, False, False]])
    errors = metrics.window_errors(Actions.from_trajectory(traj, 2), target, mask)
    assert errors['mse_vec'].tolist() == [1.0, 2.0]
    assert errors['mse_chk'].tolist() == [2.5, 1.0]
    assert errors['mse_trj'].tolist() == [7.5, 1.0]
    assert metrics.error_by_step(traj, target, mask).tolist() == [1.5, 2.0, 9.0, 16.0]


@pytest.mark.parametrize('chunk', [2, 3])
def test_each_branch_is_held_against_the_first_steps_of_the_window(chunk):
    """A target that moves: the end of the window is another place than its beginning."""
    target, traj = RNG.normal(size=(2, 5, 4, 3)).cumsum(axis=2)
    errors = metrics.window_errors(
        Actions.from_trajectory(traj, chunk), target, np.ones((5, 4), bool)
    )
    for n in range(5):
        for name, steps in (('mse_vec', 1), ('mse_chk', chunk), ('mse_trj', 4)):
            want = np.mean([(traj[n, t] - target[n, t]) ** 2 for t in range(steps)])
            assert errors[name][n] == pytest.approx(want)


def test_success_and_hard_are_opposites_at_equal_thresholds():
    errors = {'mse_vec': np.asarray([0.05, 0.1, 0.05]), 'mse_chk': np.asarray([0.1, 0.1, 0.3])}
    errors['mse_trj'] = np.asarray([0.19, 0.1, 0.1])
    assert metrics.is_success(errors, metrics.Thresholds()).tolist() == [True, False, False]
    assert metrics.is_hard(errors, metrics.Thresholds()).tolist() == [False, True, True]


def test_paper_summary_has_the_papers_keys_and_sums():
    errors = {
        name: np.asarray([0.0, 1.0, 2.0, 3.0, 4.0]) * (i + 1)
        for i, name in enumerate(metrics.ERRORS)
    }
    summary = metrics.paper_summary(
        errors, np.full(5, 51.6), np.full(5, 0.13), *[metrics.Thresholds()] * 2
    )
    assert summary['num_samples'] == 5 and summary['num_batches'] == 2
    assert (summary['avg_mse_vector'], summary['avg_mse_chunk'], summary['avg_mse_traj']) == (
        2.0,
        4.0,
        6.0,
    )
    assert (summary['total_hard_samples'], summary['hard_sample_fraction']) == (4, 0.8)
    assert (summary['avg_hard_mse_vector'], summary['avg_hard_mse_traj']) == (2.5, 7.5)
    assert summary['success_rate'] == 0.2
    assert summary['avg_tau_l2'] == pytest.approx(51.6)


def test_the_papers_run_has_its_number_of_batches():
    errors = {name: np.ones(723) for name in metrics.ERRORS}
    summary = metrics.paper_summary(errors, np.ones(723), np.ones(723), *[metrics.Thresholds()] * 2)
    assert summary['num_batches'] == 181
    assert summary['total_hard_samples'] == 723


def test_cosine_of_a_zero_row_is_zero():
    assert metrics.cosine(
        np.asarray([[3.0, 4.0], [0.0, 0.0]]), np.asarray([[6.0, 8.0], [1.0, 0.0]])
    ).tolist() == [1, 0]


def test_tau_l2_is_a_norm():
    assert metrics.tau_l2(np.asarray([[3.0, 4.0]])).tolist() == [5.0]


def test_relative_change_is_paired():
    """A method at 0.8 of a noisy base has no uncertainty at all."""
    base = RNG.gamma(1.0, 10.0, 60)
    change = metrics.relative_change(0.8 * base, base, np.arange(60) // 6)
    np.testing.assert_allclose(change, -0.2, rtol=1e-12)


def test_means_weigh_windows_not_episodes():
    interval = metrics.mean_interval(np.asarray([1.0, 1.0, 1.0, 5.0]), np.asarray([7, 7, 7, 9]))
    assert interval.value == 2.0
    assert 1.0 <= interval.low <= 2.0 <= interval.high <= 5.0


def test_one_episode_has_no_interval():
    interval = metrics.mean_interval(np.asarray([1.0, 3.0]), np.asarray([4, 4]))
    assert interval.value == 2.0
    assert np.isnan(interval.low) and np.isnan(interval.high)


@pytest.mark.parametrize('episodes', [8, 30])
def test_intervals_cover_the_truth(episodes):
    trials = 300
    hits = 0
    for trial in range(trials):
        sums = np.random.default_rng(trial).normal(3.0, 1.0, episodes)
        interval = metrics.ratio_interval(sums, np.ones(episodes), seed=trial, resamples=800)
        hits += interval.low <= 3.0 <= interval.high
    assert 0.92 <= hits / trials <= 0.98


def test_seeds_widen_the_interval():
    """Two seeds that disagree leave doubt that no number of episodes removes."""
    agree = metrics.ratio_interval(np.full((4, 50), 2.0), np.ones((4, 50)))
    differ = metrics.ratio_interval(
        np.asarray([1.0, 1.0, 3.0, 3.0])[:, None].repeat(50, 1), np.ones((4, 50))
    )
    assert agree.high - agree.low < 1e-9
    assert differ.high - differ.low > 1.0
    assert differ.value == 2.0
