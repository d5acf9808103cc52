"""The closed-loop environment, the generator and its command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sigma_jax.data.video.encode import VideoSettings
from sigma_jax.errors import UserError
from sigma_jax.sim.env import PickPlaceEnv
from sigma_jax.sim.record import RecordingPlan, record, roll_out
from sigma_jax.sim.tasks import MIXES, TARGET_TASK


def test_playing_the_script_step_by_step_equals_the_rollout(env):
    rollout = roll_out(env, 11, TARGET_TASK)
    observation = env.reset(11, TARGET_TASK)
    states = []
    for action in env.demonstrate():
        states.append(observation['observation.state'])
        observation = env.step(action)
    np.testing.assert_array_equal(np.array(states), rollout.states)
    assert observation['task'] == TARGET_TASK
    assert env.success() == rollout.success


def test_actions_beyond_the_joint_ranges_are_clipped(env):
    env.reset(0)
    for _ in range(20):
        state = env.step(np.array([500.0, 0, 0, 0, 0, 500.0]))['observation.state']
    assert np.isfinite(state).all()
    assert state[0] <= 111 and state[-1] <= 101


@pytest.mark.parametrize('action', [np.zeros(5), np.full(6, np.nan)])
def test_bad_actions_are_refused(env, action):
    env.reset(0)
    with pytest.raises(UserError, match='6 finite numbers'):
        env.step(action)


def test_stepping_before_reset_is_explained():
    fresh = PickPlaceEnv(images=False)
    with pytest.raises(UserError, match='call reset'):
        fresh.step(np.zeros(6))


def test_record_refuses_an_unknown_mix_no_episodes_and_an_existing_folder(tmp_path):
    with pytest.raises(UserError, match="'base', 'target'"):
        record(RecordingPlan('other', 1), tmp_path / 'a')
    with pytest.raises(UserError, match='at least one episode'):
        record(RecordingPlan('target', 0), tmp_path / 'a')
    with pytest.raises(UserError, match='exists'):
        record(RecordingPlan('target', 1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tasks_of_the_mix_take_turns():
    plan = RecordingPlan('base', 10)
    assert [plan.task_of(i) for i in range(10)] == 2 * list(MIXES['base'])


def test_command_line_explains_itself_and_fails_with_one_sentence(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, '-m', 'sigma_jax.sim', *arguments], capture_output=True, text=True
        )

    helped = call('--help')
    assert helped.returncode == 0 and '--task-mix' in helped.stdout
    refused = call('--out', str(tmp_path))
    assert refused.returncode == 2
    assert 'exists' in refused.stderr and 'Traceback' not in refused.stderr


def test_without_mujoco_the_first_use_says_what_to_install():
    code = (
        "import sys; sys.modules['mujoco'] = None\n"
        'import sigma_jax.sim\n'
        'try: sigma_jax.sim.PickPlaceEnv\n'
        'except ValueError as error: print(error)'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert 'pip install sigma_jax[sim]' in result.stdout


@pytest.mark.render
def test_images_show_the_pink_brick_where_it_stands():
    with PickPlaceEnv() as env:
        observation = env.reset(0)
        image = observation['observation.images.up'].astype(int)
        assert image.shape == (120, 160, 3)
        pink = (image[..., 0] - image[..., 1] > 70) & (image[..., 2] - image[..., 1] > 20)
        rows, columns = np.nonzero(pink)
        x, y, _ = env.layout.bricks['pink']
        metres = 2 * 0.61 * np.tan(np.deg2rad(38 / 2)) / 120  # per pixel, at the brick's height
        assert 20 < len(rows) < 200
        np.testing.assert_allclose(0.20 - (rows.mean() - 59.5) * metres, x, atol=0.006)
        np.testing.assert_allclose(-(columns.mean() - 79.5) * metres, y, atol=0.006)


ENDINGS = {
    'left open': 'env.render()',
    'two, one closed and opened again': 'other = PickPlaceEnv(); other.reset(1); other.render(); '
    'other.close(); other.render()',
    'gone before the end': 'env.render(); del env',
    'closed twice': 'env.render(); env.close(); env.close()',
}


@pytest.mark.render
@pytest.mark.parametrize('name', ENDINGS)
def test_a_renderer_ends_silently_where_jax_came_first(name):
    """JAX makes a finalizer when it first computes, whose hook at the exit is then the first, and
    runs last.
    """
    code = (
        'import jax, weakref\n'
        'jax.jit(lambda x: x + 1)(1)\n'
        'weakref.finalize(jax, print)\n'
        'from sigma_jax.sim.env import PickPlaceEnv\n'
        'env = PickPlaceEnv(); env.reset(0)\n'
    )
    environment = {'MUJOCO_GL': 'egl'} | dict(os.environ)
    command = [sys.executable, '-c', code + ENDINGS[name]]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (0, '')


@pytest.mark.render
def test_closed_loop_images_equal_those_rendered_from_the_recorded_configuration():
    with PickPlaceEnv() as env:
        rollout = roll_out(PickPlaceEnv(images=False), 2, TARGET_TASK)
        env.reset(2)
        for action in rollout.actions[:40]:
            observation = env.step(action)
        env.show(rollout.configurations[40])
        np.testing.assert_array_equal(env.render('side'), observation['observation.images.side'])


@pytest.mark.render
def test_recording_twice_gives_the_same_data_set(tmp_path):
    plan = RecordingPlan(
        'target', 1, seed=3, height=48, width=64, video=VideoSettings('h264', 30, 30, 'fast')
    )
    folders = [record(plan, tmp_path / name) for name in ('a', 'b')]
    for file in ('data/chunk-000/file-000.parquet', 'meta/stats.json', 'meta/info.json'):
        assert folders[0].joinpath(file).read_bytes() == folders[1].joinpath(file).read_bytes()
    assert json.loads(folders[0].joinpath('meta/info.json').read_text())['total_episodes'] == 1
