"""The SO-101's units and its inverse kinematics by damped least squares.

LeRobot's units: degrees for the five body joints, percent open for the gripper (0 closed, 100
open). MuJoCo's: radians.
"""

from dataclasses import dataclass

import numpy as np

from sigma_jax.sim.engine import mujoco
from sigma_jax.sim.scene import JOINTS

BODY_JOINTS = len(JOINTS) - 1
# the gripper points down and 20 degrees outward; straight down meets the wrist's limit
TILT = np.deg2rad(20)
# metres per radian: five joints cannot meet six constraints, position comes first
_ROTATION_WEIGHT = 0.02
_DAMPING = 1e-3
_LARGEST_STEP = 0.2  # radians per iteration


@dataclass(frozen=True)
class Pose:
    """A gripper pose: where one of its sites is and how the gripper is turned.

    Attributes:
      position: (x, y, z) of the site, metres.
      yaw: direction of the jaws' opening in the table plane, radians; opposite directions are
        equivalent.
      tilt: angle between the approach direction and straight down, outward from the base, radians.
      site: 'grasp' (between the open jaws' pads) or 'tip' (between the closed fingertips).
    """

    position: tuple[float, float, float]
    yaw: float
    tilt: float = float(TILT)
    site: str = 'grasp'


class Arm:
    """Kinematics and units of the SO-101 in a compiled scene; works on scratch data of its own.

    Args:
      model: the compiled scene.
    """

    def __init__(self, model: 'mujoco.MjModel'):
        """Looks up the arm's joints and actuators."""
        self.model = model
        self.scratch = mujoco.MjData(model)
        joints = [model.joint(name) for name in JOINTS]
        self.qpos_index = np.array([joint.qposadr[0] for joint in joints])
        self.dof_index = np.array([joint.dofadr[0] for joint in joints])
        # [6, 2] radians
        self.ranges = np.array([model.actuator(name).ctrlrange for name in JOINTS])
        self.stiffness = np.array([model.actuator(name).gainprm[0] for name in JOINTS])
        self._pan_origin = model.body('shoulder').pos[:2].copy()

    def to_units(self, radians: np.ndarray) -> np.ndarray:
        """Radians to degrees and percent open.

        Args:
          radians: [..., 6].

        Returns:
          [..., 6].
        """
        units = np.rad2deg(radians)
        low, high = self.ranges[-1]
        units[..., -1] = 100 * (radians[..., -1] - low) / (high - low)
        return units

    def to_radians(self, units: np.ndarray) -> np.ndarray:
        """Degrees and percent open to radians.

        Args:
          units: [..., 6].

        Returns:
          [..., 6].
        """
        radians = np.deg2rad(units)
        low, high = self.ranges[-1]
        radians[..., -1] = low + np.asarray(units)[..., -1] / 100 * (high - low)
        return radians

    def forward(self, joints: np.ndarray, site: str = 'grasp') -> tuple[np.ndarray, np.ndarray]:
        """Where the arm is at some joint angles.

        Args:
          joints: of the body, [5], radians.
          site: whose position it is.

        Returns:
          position: [3], metres.
          rotation: of the gripper, [3, 3].
        """
        self.scratch.qpos[self.qpos_index[:BODY_JOINTS]] = joints
        mujoco.mj_kinematics(self.model, self.scratch)
        mujoco.mj_comPos(self.model, self.scratch)
        found = self.scratch.site(site)
        return found.xpos.copy(), found.xmat.reshape(3, 3).copy()

    def inverse(self, pose: Pose, start: np.ndarray, iterations: int = 200) -> np.ndarray:
        """Body joint angles that bring a site to a pose.

        Damped least squares on position, approach axis and jaw axis; the caller compares `forward`
        with `pose` where reach matters.

        Args:
          pose: wanted.
          start: [5], radians, from which they are searched.
          iterations: at most.

        Returns:
          [5], radians.
        """
        joints = np.array(start, dtype=float)
        for _ in range(iterations):
            error, jacobian = self._residual(joints, pose)
            normal = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(normal, error)
            step *= min(1.0, _LARGEST_STEP / max(np.abs(step).max(), 1e-12))
            joints = np.clip(
                joints + step, self.ranges[:BODY_JOINTS, 0], self.ranges[:BODY_JOINTS, 1]
            )
            if np.abs(step).max() < 1e-7:
                break
        return joints

    def holding_command(self, joints: np.ndarray) -> np.ndarray:
        """Servo targets that hold the arm against gravity.

        A position servo sags by torque over stiffness, so that much is added to the position.

        Args:
          joints: [5], radians.

        Returns:
          [5], radians.
        """
        self.forward(joints)
        self.scratch.qvel[:] = 0
        mujoco.mj_forward(self.model, self.scratch)
        torque = self.scratch.qfrc_bias[self.dof_index[:BODY_JOINTS]]
        return joints + torque / self.stiffness[:BODY_JOINTS]

    def _residual(self, joints: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        position, rotation = self.forward(joints, pose.site)
        linear, angular = np.zeros((2, 3, self.model.nv))
        mujoco.mj_jacSite(self.model, self.scratch, linear, angular, self.model.site(pose.site).id)
        body = self.dof_index[:BODY_JOINTS]
        approach, jaw = self._axes(pose, rotation)
        turn = (np.cross(-rotation[:, 2], approach) + np.cross(rotation[:, 0], jaw)) / 2
        error = np.concatenate([np.subtract(pose.position, position), _ROTATION_WEIGHT * turn])
        return error, np.concatenate([linear[:, body], _ROTATION_WEIGHT * angular[:, body]])

    def _axes(self, pose: Pose, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Wanted approach axis and jaw axis, unit vectors [3]; the jaw axis nearer to the present
        one.
        """
        outward = np.append(np.subtract(pose.position[:2], self._pan_origin), 0.0)
        outward /= np.linalg.norm(outward)
        approach = np.sin(pose.tilt) * outward - np.cos(pose.tilt) * np.array([0.0, 0.0, 1.0])
        jaw = np.array([np.cos(pose.yaw), np.sin(pose.yaw), 0.0])
        jaw -= (jaw @ approach) * approach
        jaw /= np.linalg.norm(jaw)
        return approach, jaw if jaw @ rotation[:, 0] >= 0 else -jaw
