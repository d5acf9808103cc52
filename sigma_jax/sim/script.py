"""Scripted demonstrations: keyframes of each task, solved by inverse kinematics and joined by
smooth joint motion.

A script is computed once, at the start of an episode, from where things stand; it is then played
without feedback. Variability is human-like and smooth: durations, keyframe positions and heights
vary per episode, and slow sinusoids of under a degree ride on the joint motion except where the
fingers must be exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sigma_jax.sim.arm import BODY_JOINTS, Arm, Pose
from sigma_jax.sim.scene import BRICK_HALF, FPS, PLATE_HEIGHT, SceneLayout
from sigma_jax.sim.tasks import Habits, Task

HOME = (0.0, -90.0, 70.0, 70.0, -45.0)  # degrees
RELAXED = 8.0  # gripper opening at rest, percent
# commanded opening while holding, percent; the torque limit stops the jaws at the brick
SQUEEZE = 4.0
GRASP_HEIGHT = 0.013  # metres; the pads clear the table
_SMOOTHING = 2.2  # frames, standard deviation of the kernel that rounds the corners
_SWAY = 0.5  # degrees, amplitude of the slow deviation


@dataclass(frozen=True)
class Keyframe:
    """Where to be `seconds` after the previous keyframe.

    Attributes:
      pose: gripper pose, or None for home.
      gripper: opening, percent.
      seconds: duration of the motion to here.
      sway: how much of the slow deviation is allowed here, 0..1.
    """

    pose: Pose | None
    gripper: float
    seconds: float
    sway: float = 1.0


class Sketch:
    """Collects keyframes in one operator's style, with this episode's variation.

    Args:
      habits: the operator's means.
      rng: of this episode.
    """

    def __init__(self, habits: Habits, rng: np.random.Generator):
        """Draws this episode's pace, tilt and opening around the operator's means."""
        self.rng = rng
        self.habits = habits
        self.pace = habits.pace * rng.uniform(0.9, 1.12)
        self.tilt = np.deg2rad(habits.tilt + rng.normal(0, 1.0))
        self.opening = habits.opening + rng.uniform(-3, 3)
        self.frames: list[Keyframe] = []

    def to(
        self,
        place: np.ndarray,
        yaw: float,
        gripper: float,
        seconds: float,
        sway: float = 1.0,
        site: str = 'grasp',
    ) -> None:
        """Adds a motion of a site to a place.

        Args:
          place: [3], metres.
          yaw: of the gripper, radians.
          gripper: percent open.
          seconds: that it takes.
          sway: scales the slow deviation, and the keyframe's own jitter of 5 mm.
          site: that is moved.
        """
        jitter = sway * self.rng.normal(0, 0.005, size=3)
        x, y, z = (float(v) for v in np.asarray(place) + jitter)
        self._add(
            Keyframe(
                Pose((x, y, z), float(yaw), float(self.tilt), site),
                gripper,
                self._duration(seconds),
                sway,
            )
        )

    def home(self, gripper: float, seconds: float) -> None:
        """Adds a motion to the home pose.

        Args:
          gripper: percent open.
          seconds: that it takes.
        """
        self._add(Keyframe(None, gripper, self._duration(seconds)))

    def hold(self, gripper: float, seconds: float, sway: float = 0.0) -> None:
        """Adds a stay at the present pose.

        Args:
          gripper: percent open, at its end.
          seconds: that it takes.
          sway: scales the slow deviation.
        """
        last = self.frames[-1]
        self._add(Keyframe(last.pose, gripper, self._duration(seconds), min(sway, last.sway)))

    def _duration(self, seconds: float) -> float:
        return float(seconds * self.pace * self.rng.uniform(0.9, 1.1))

    def _add(self, keyframe: Keyframe) -> None:
        self.frames.append(keyframe)


def _grasp(sketch: Sketch, brick: tuple[float, float, float]) -> None:
    x, y, yaw = brick
    jaws = yaw + np.pi / 2  # across the brick's short side
    low = np.array([x, y, GRASP_HEIGHT])
    sketch.to(low + [0, 0, sketch.habits.approach], jaws, sketch.opening, 1.0, sway=0.6)
    sketch.to(low, jaws, sketch.opening, 0.55, sway=0.0)
    sketch.hold(SQUEEZE, 0.4)


def _carry_to(
    sketch: Sketch,
    brick: tuple[float, float, float],
    goal: tuple[float, float],
    turn: float,
    drop: float,
) -> None:
    x, y, yaw = brick
    sketch.to(np.array([x, y, sketch.habits.carry]), yaw + np.pi / 2, SQUEEZE, 0.5, sway=0.5)
    above = np.array([*goal, sketch.habits.carry])
    sketch.to(above, turn, SQUEEZE, 0.95, sway=0.6)
    sketch.to(np.array([*goal, drop]), turn, SQUEEZE, 0.4, sway=0.2)
    sketch.hold(sketch.opening, 0.35)
    sketch.to(above, turn, sketch.opening, 0.4)
    sketch.home(RELAXED, 0.9)


def _into_box(sketch: Sketch, task: Task, layout: SceneLayout) -> None:
    _grasp(sketch, layout.bricks[task.color])
    _carry_to(
        sketch, layout.bricks[task.color], layout.box[:2], layout.box[2] + np.pi / 2, drop=0.045
    )


def _onto_plate(sketch: Sketch, task: Task, layout: SceneLayout) -> None:
    _grasp(sketch, layout.bricks[task.color])
    _carry_to(
        sketch,
        layout.bricks[task.color],
        layout.plate,
        np.pi / 2,
        drop=PLATE_HEIGHT + BRICK_HALF[2] + 0.004,
    )


def _lift(sketch: Sketch, task: Task, layout: SceneLayout) -> None:
    x, y, yaw = layout.bricks[task.color]
    _grasp(sketch, (x, y, yaw))
    top = np.array([x, y, 0.13])
    sketch.to(top - [0, 0, 0.05], yaw + np.pi / 2, SQUEEZE, 0.6)
    sketch.to(top, yaw + np.pi / 2, SQUEEZE, 0.6)
    sketch.hold(SQUEEZE, 1.0, sway=1.0)


def _push_left(sketch: Sketch, task: Task, layout: SceneLayout) -> None:
    x, y, _ = layout.bricks[task.color]
    side = np.array([x, y - 0.045, 0.012])
    sketch.to(side + [0, 0, sketch.habits.approach], np.pi, RELAXED, 1.0, sway=0.6, site='tip')
    sketch.to(side, np.pi, 0.0, 0.55, sway=0.1, site='tip')
    sketch.to(side + [0, 0.075, 0], np.pi, 0.0, 1.1, sway=0.2, site='tip')
    sketch.to(side + [0, 0.03, sketch.habits.approach], np.pi, 0.0, 0.6, site='tip')
    sketch.home(RELAXED, 1.0)


def _touch(sketch: Sketch, task: Task, layout: SceneLayout) -> None:
    x, y, yaw = layout.bricks[task.color]
    top = np.array([x, y, 2 * BRICK_HALF[2] + 0.003])
    sketch.to(top + [0, 0, sketch.habits.approach], yaw + np.pi / 2, 0.0, 1.1, sway=0.6, site='tip')
    sketch.to(top, yaw + np.pi / 2, 0.0, 0.7, sway=0.0, site='tip')
    sketch.hold(0.0, 0.4)
    sketch.to(top + [0, 0, sketch.habits.approach], yaw + np.pi / 2, 0.0, 0.7, site='tip')
    sketch.home(RELAXED, 1.0)


PLANS: dict[str, Callable[[Sketch, Task, SceneLayout], None]] = {
    'into_box': _into_box,
    'onto_plate': _onto_plate,
    'lift': _lift,
    'push_left': _push_left,
    'touch': _touch,
}


def starting_joints(rng: np.random.Generator) -> np.ndarray:
    """Joint angles at the start of an episode: home, with a deviation of a few degrees.

    Args:
      rng: of the episode.

    Returns:
      [6], degrees and percent open.
    """
    return np.append(
        np.array(HOME) + rng.normal(0, 3.0, size=BODY_JOINTS), RELAXED + rng.uniform(-2, 2)
    )


def plan(
    arm: Arm, task: Task, layout: SceneLayout, start: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Joint targets [T, 6] of one demonstration at 30 Hz, degrees and percent open.

    Args:
      arm: kinematics of the scene.
      task: what to do.
      layout: where things stand.
      start: joint angles [6] at rest before the first frame, degrees and percent open.
      rng: source of this episode's variation.

    Returns:
      The targets, one row a frame.
    """
    sketch = Sketch(task.habits, rng)
    PLANS[task.plan](sketch, task, layout)
    targets, sway = _solve(arm, sketch.frames, start)
    seconds = [sketch.rng.uniform(0.1, 0.25)] + [frame.seconds for frame in sketch.frames]
    path = _smooth(interpolate(np.insert(targets, 0, targets[0], axis=0), seconds))
    envelope = _smooth(interpolate(np.insert(sway, 0, sway[0], axis=0)[:, None], seconds))
    path[:, :BODY_JOINTS] += envelope * slow_deviation(len(path), rng)
    path[:, -1] = np.clip(path[:, -1], 0, 100)
    return path


def interpolate(targets: np.ndarray, seconds: list[float]) -> np.ndarray:
    """Minimum-jerk motion through targets with a stop at each.

    Args:
      targets: [n + 1, j].
      seconds: n durations.

    Returns:
      [T, j] at 30 Hz.
    """
    pieces = []
    for start, end, duration in zip(targets[:-1], targets[1:], seconds, strict=True):
        frames = max(1, round(duration * FPS))
        phase = np.arange(1, frames + 1)[:, None] / frames
        pieces.append(start + (end - start) * (10 * phase**3 - 15 * phase**4 + 6 * phase**5))
    tail = np.repeat(targets[-1:], round(0.3 * FPS), axis=0)
    return np.concatenate([*pieces, tail])


def slow_deviation(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Two slow sinusoids per body joint, of `_SWAY` amplitude in all.

    Args:
      frames: how many.
      rng: of the episode.

    Returns:
      [frames, 5], degrees.
    """
    time = np.arange(frames)[:, None, None] / FPS
    frequency = rng.uniform(0.12, 0.45, size=(1, BODY_JOINTS, 2))
    phase = rng.uniform(0, 2 * np.pi, size=(1, BODY_JOINTS, 2))
    return _SWAY * np.sin(2 * np.pi * frequency * time + phase).mean(axis=-1)


def _solve(arm: Arm, frames: list[Keyframe], start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joint targets [n + 1, 6] in degrees and percent, and sway [n + 1]; row 0 is the start."""
    rows, sway = [np.array(start, dtype=float)], [1.0]
    seed = arm.to_radians(np.append(HOME, 0.0))[:BODY_JOINTS]
    for frame in frames:
        joints = seed
        if frame.pose is not None:
            joints = arm.inverse(frame.pose, seed)
        command = arm.holding_command(joints)
        rows.append(np.append(np.rad2deg(command), frame.gripper))
        sway.append(frame.sway)
    return np.array(rows), np.array(sway)


def _smooth(path: np.ndarray) -> np.ndarray:
    """Convolves [T, j] along time with a Gaussian of `_SMOOTHING` frames, ends repeated."""
    reach = int(3 * _SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _SMOOTHING) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(path, ((reach, reach), (0, 0)), mode='edge')
    return np.stack([np.convolve(column, kernel, mode='valid') for column in padded.T], axis=1)
