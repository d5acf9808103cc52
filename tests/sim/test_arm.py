"""Inverse kinematics against MuJoCo's forward kinematics, and LeRobot's units."""

import numpy as np
import pytest

from sigma_jax.sim.arm import BODY_JOINTS, Pose
from sigma_jax.sim.engine import mujoco
from sigma_jax.sim.scene import SceneLayout, place
from sigma_jax.sim.script import HOME

HOME_RADIANS = np.deg2rad(HOME)


def poses(count, height):
    rng = np.random.default_rng(0)
    places = rng.uniform((0.17, -0.18, height), (0.28, 0.16, height), size=(count, 3))
    return [Pose(tuple(place), rng.uniform(0.9, 2.2)) for place in places]


@pytest.mark.parametrize('height', [0.013, 0.05, 0.11])
def test_inverse_reaches_the_position_and_both_axes(arm, env, height):
    data = mujoco.MjData(env.model)
    for pose in poses(8, height):
        data.qpos[arm.qpos_index[:BODY_JOINTS]] = arm.inverse(pose, HOME_RADIANS)
        mujoco.mj_forward(env.model, data)
        site = data.site('grasp')
        rotation = site.xmat.reshape(3, 3)
        assert np.linalg.norm(site.xpos - pose.position) < 1e-3
        # approach axis
        assert abs(np.degrees(np.arccos(rotation[2, 2])) - np.degrees(pose.tilt)) < 4
        wanted = np.array([np.cos(pose.yaw), np.sin(pose.yaw)])
        found = rotation[:2, 0] / np.linalg.norm(rotation[:2, 0])
        assert abs(wanted @ found) > np.cos(np.deg2rad(10))  # either way round


def test_inverse_of_forward_is_the_identity_on_the_position(arm):
    position, _ = arm.forward(np.deg2rad([10, -20, 40, 60, -90]))
    joints = arm.inverse(Pose(tuple(position), 1.4), HOME_RADIANS)
    np.testing.assert_allclose(arm.forward(joints)[0], position, atol=1e-4)


def test_inverse_stays_within_the_joint_ranges_out_of_reach(arm):
    joints = arm.inverse(Pose((0.9, 0.0, 0.1), 1.5), HOME_RADIANS)
    low, high = arm.ranges[:BODY_JOINTS].T
    assert np.isfinite(joints).all()
    assert ((low <= joints) & (joints <= high)).all()


def test_the_tip_site_is_not_the_grasp_site(arm):
    joints = arm.inverse(Pose((0.24, 0.0, 0.03), 1.5, site='tip'), HOME_RADIANS)
    np.testing.assert_allclose(arm.forward(joints, 'tip')[0], (0.24, 0.0, 0.03), atol=1e-3)
    assert np.linalg.norm(arm.forward(joints, 'grasp')[0] - (0.24, 0.0, 0.03)) > 0.01


def test_units_are_degrees_and_percent_open_and_invert(arm):
    radians = arm.ranges[:, 0].copy()
    assert arm.to_units(radians)[-1] == pytest.approx(0)
    radians[-1] = arm.ranges[-1, 1]
    assert arm.to_units(radians)[-1] == pytest.approx(100)
    np.testing.assert_allclose(arm.to_units(radians)[:-1], np.rad2deg(arm.ranges[:-1, 0]))
    units = np.random.default_rng(1).uniform(0, 60, size=(5, 6))
    np.testing.assert_allclose(arm.to_units(arm.to_radians(units)), units, atol=1e-12)


def test_holding_command_holds_the_arm_against_gravity(arm, env):
    joints = np.deg2rad([0.0, -5.0, 0.0, 76.0, -90.0])
    data = mujoco.MjData(env.model)
    sag = []
    for command in (joints, arm.holding_command(joints)):
        mujoco.mj_resetData(env.model, data)
        place(
            env.model,
            data,
            SceneLayout(
                {'pink': (0.2, 0.3, 0.0), 'blue': (0.2, -0.3, 0.0)}, (0, 0.5, 0), (0, -0.5)
            ),
        )
        data.qpos[arm.qpos_index[:BODY_JOINTS]] = joints
        data.ctrl[:BODY_JOINTS] = command
        mujoco.mj_step(env.model, data, 480)
        sag.append(np.rad2deg(np.abs(data.qpos[arm.qpos_index[:BODY_JOINTS]] - joints).max()))
    assert sag[1] < 0.25 < sag[0]
