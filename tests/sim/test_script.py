"""The scripted demonstrations: they succeed, are smooth, reproducible and differ between
operators.
"""

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.sim import script
from sigma_jax.sim.record import roll_out
from sigma_jax.sim.tasks import MIXES, TARGET_TASK, TASKS, find_task, is_done, sample_layout


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_target_script_puts_the_brick_into_the_box(env, seed):
    rollout = roll_out(env, seed, TARGET_TASK)
    assert rollout.success
    assert 150 <= len(rollout.actions) <= 210
    corner = np.abs(env.data.body('pink').xpos[:2] - env.layout.box[:2]).max()
    assert corner < 0.065  # half a box and its turn


@pytest.mark.parametrize('text', MIXES['base'])
def test_every_task_of_the_mix_has_a_script_that_works(env, text):
    assert any(roll_out(env, [7, attempt], text).success for attempt in range(2))


def test_doing_nothing_fulfils_no_task(env):
    for text in TASKS:
        env.reset(3, text)
        for _ in range(10):
            env.step(env.joints())
        assert not env.success(), text


def test_same_seed_same_episode_other_seed_another(env):
    first, again, other = (roll_out(env, seed, TARGET_TASK) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.states, again.states)
    np.testing.assert_array_equal(first.actions, again.actions)
    np.testing.assert_array_equal(first.configurations, again.configurations)
    assert not np.array_equal(first.actions[:100], other.actions[:100])


def test_actions_are_smooth_and_lead_the_states(env):
    rollout = roll_out(env, 4, TARGET_TASK)
    speed, jerkiness = np.diff(rollout.actions, axis=0), np.diff(rollout.actions, n=3, axis=0)
    assert np.abs(speed).max() < 8  # degrees or percent per frame
    assert np.abs(jerkiness).max() < 1.0
    moving = np.abs(speed[:, 0]) > 1
    lags = [
        np.square(rollout.states[5:, 0] - rollout.actions[5 - lag : len(speed) + 1 - lag, 0]).mean()
        for lag in range(6)
    ]
    assert moving.any()
    assert 1 <= int(np.argmin(lags)) <= 5


def test_first_command_holds_the_starting_pose(env):
    rollout = roll_out(env, 9, TARGET_TASK)
    np.testing.assert_allclose(rollout.states[0], env.start, atol=0.6)
    np.testing.assert_allclose(rollout.states[3], rollout.states[0], atol=1.0)


def test_the_mix_is_slower_and_approaches_from_higher(env):
    target = [roll_out(env, seed, TARGET_TASK) for seed in range(3)]
    mix = [roll_out(env, seed, MIXES['base'][0]) for seed in range(3)]
    assert np.mean([len(r.actions) for r in mix]) > 1.05 * np.mean([len(r.actions) for r in target])
    assert TARGET_TASK not in MIXES['base']


def test_layouts_respect_regions_and_keep_the_bricks_apart():
    rng = np.random.default_rng(0)
    for text, task in TASKS.items():
        for _ in range(50):
            layout = sample_layout(task, rng)
            pink, blue = (np.array(layout.bricks[color][:2]) for color in ('pink', 'blue'))
            assert np.linalg.norm(pink - blue) > 0.07, text
            low, high = np.transpose(task.habits.box)
            assert ((low <= layout.box[:2]) & (layout.box[:2] <= high)).all()


def test_box_success_turns_with_the_box():
    task = find_task(TARGET_TASK)
    layout = sample_layout(task, np.random.default_rng(1))
    cos, sin = np.cos(layout.box[2]), np.sin(layout.box[2])
    for offset, inside in ((0.044, True), (0.046, False)):
        x, y = layout.box[0] + cos * offset, layout.box[1] + sin * offset
        assert is_done(task, layout, np.array([x, y, 0.012]), touched=False) is inside
    assert not is_done(task, layout, np.array([*layout.box[:2], 0.08]), touched=False)


def test_interpolation_stops_at_every_target():
    targets = np.array([[0.0], [1.0], [-1.0]])
    path = script.interpolate(targets, [1.0, 0.5])
    assert path[29, 0] == pytest.approx(1)
    assert path[44, 0] == pytest.approx(-1)
    assert np.abs(np.diff(path[26:30, 0])).max() < 0.01  # slow near a stop
    assert path.min() >= -1 and path.max() <= 1


def test_unknown_task_names_the_known_ones():
    with pytest.raises(UserError, match=r'fold the towel.*pass one of these'):
        find_task('fold the towel')
