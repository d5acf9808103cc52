"""Closed-loop environment at 30 Hz: joint targets in, joint angles and camera images out.

In LeRobot's units and key names.
"""

import atexit
from collections.abc import Callable
from types import TracebackType
from weakref import finalize

import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.sim import script
from sigma_jax.sim.arm import Arm
from sigma_jax.sim.engine import mujoco
from sigma_jax.sim.scene import BRICKS, CAMERAS, JOINTS, SUBSTEPS, SceneLayout, build_model, place
from sigma_jax.sim.tasks import TARGET_TASK, find_task, is_done, sample_layout

HEIGHT, WIDTH = 120, 160
_SETTLING_STEPS = 240


def close_at_exit(owner: object, close: Callable[[], None]) -> Callable[[], object]:
    """Has `close` called once: by what is returned, when `owner` goes, or first of all when the
    interpreter ends.

    A finalizer alone would run at the exit after hooks that are registered later than the first
    finalizer of anybody, such as JAX's; MuJoCo's is among them, and ends the display in which the
    context lies.

    Args:
      owner: whose end closes it.
      close: called once.

    Returns:
      A function that closes it now.
    """
    closing = finalize(owner, close)
    closing.atexit = False
    atexit.register(closing)

    def let_go() -> None:
        atexit.unregister(closing)
        closing()

    return let_go


class PickPlaceEnv:
    """One SO-101 at a table with two bricks, a box and a plate.

    Observations are dicts: `observation.state` float32 [6] (degrees, gripper percent open), `task`
    str and, where `images` is true, `observation.images.up` and `.side` uint8 [height, width, 3].
    Actions are joint targets [6] in the same units.

    Args:
      task: one of `tasks`.
      images: whether observations hold them.
      height: of the images, pixels.
      width: of the images, pixels.

    Raises:
      UserError: an unknown task, or no off-screen renderer.
    """

    def __init__(
        self, task: str = TARGET_TASK, images: bool = True, height: int = HEIGHT, width: int = WIDTH
    ):
        """Builds the scene."""
        self.task = find_task(task)
        self.images = images
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self.arm = Arm(self.model)
        self.layout: SceneLayout | None = None
        self._size = (height, width)
        self._renderer: mujoco.Renderer | None = None
        self._let_go: Callable[[], object] = lambda: None
        self._touched = False
        self._pads = {self.model.geom(f'{jaw}_jaw_pad').id for jaw in ('fixed', 'moving')}
        self._brick_geoms = {color: self.model.geom(f'{color}_brick').id for color in BRICKS}

    def reset(self, seed: int | list[int], task: str | None = None) -> dict[str, np.ndarray | str]:
        """Starts the episode that belongs to a seed: same seed, same task, same episode.

        Args:
          seed: of the episode.
          task: one of `tasks`; None: that of the environment.

        Returns:
          The first observation.
        """
        self.task = self.task if task is None else find_task(task)
        self.rng = np.random.default_rng(seed)
        self.layout = sample_layout(self.task, self.rng)
        self.start = script.starting_joints(self.rng)
        self._touched = False
        mujoco.mj_resetData(self.model, self.data)
        place(self.model, self.data, self.layout)
        self._settle()
        return self.observe()

    def demonstrate(self) -> np.ndarray:
        """Scripted actions [T, 6] for the episode just reset, drawn from the same seed."""
        return script.plan(self.arm, self.task, self._placed(), self._start_command(), self.rng)

    def step(self, action: np.ndarray) -> dict[str, np.ndarray | str]:
        """Holds joint targets for 1/30 s; they are clipped to the joints' ranges.

        Args:
          action: [6].

        Returns:
          The next observation.

        Raises:
          UserError: targets that are no six finite numbers.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (len(JOINTS),) or not np.isfinite(action).all():
            raise UserError(
                f'expected an action of {len(JOINTS)} finite numbers, got {action}; check the '
                "policy's output"
            )
        self._placed()
        self._command(action)
        for _ in range(SUBSTEPS):
            mujoco.mj_step(self.model, self.data)
        self._touched = self._touched or self._in_touch()
        return self.observe()

    def joints(self) -> np.ndarray:
        """Measured joint angles float32 [6], degrees and percent open."""
        return self.arm.to_units(self.data.qpos[self.arm.qpos_index]).astype(np.float32)

    def observe(self) -> dict[str, np.ndarray | str]:
        """The present observation."""
        observation: dict[str, np.ndarray | str] = {
            'observation.state': self.joints(),
            'task': self.task.text,
        }
        if self.images:
            observation |= {
                f'observation.images.{camera}': self.render(camera) for camera in CAMERAS
            }
        return observation

    def render(self, camera: str = 'up') -> np.ndarray:
        """The image of a camera.

        Args:
          camera: 'up' or 'side'.

        Returns:
          uint8 [height, width, 3].
        """
        if self._renderer is None:
            self._renderer = self._open_renderer()
            self._let_go = close_at_exit(self, self._renderer.close)
        self._pose_for_rendering()
        self._renderer.update_scene(self.data, camera)
        return self._renderer.render().copy()

    def success(self) -> bool:
        """Whether the task is fulfilled now (box, plate, lift) or has been fulfilled and left alone
        (push, touch).
        """
        layout = self._placed()
        return is_done(
            self.task, layout, self.data.body(self.task.color).xpos.copy(), self._touched
        )

    def show(self, qpos: np.ndarray) -> None:
        """Puts the scene into a recorded configuration for rendering; velocities and contacts are
        not restored.

        Args:
          qpos: of MuJoCo.
        """
        self.data.qpos[:] = qpos
        self._pose_for_rendering()

    def close(self) -> None:
        """Frees the renderer's graphics context; the physics stays usable."""
        if self._renderer is not None:
            self._let_go()
            self._renderer = None

    def __enter__(self) -> 'PickPlaceEnv':
        """Returns itself, so that `with` closes the renderer."""
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the renderer."""
        self.close()

    def _pose_for_rendering(self) -> None:
        """Brings body and camera poses up to date with qpos; a physics step leaves them one substep
        behind.
        """
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _placed(self) -> SceneLayout:
        if self.layout is None:
            raise UserError(
                'expected an episode in progress, got an environment that was never reset; call '
                'reset(seed) first'
            )
        return self.layout

    def _start_command(self) -> np.ndarray:
        joints = self.arm.to_radians(self.start)
        command = np.append(self.arm.holding_command(joints[:-1]), joints[-1])
        return self.arm.to_units(command)

    def _settle(self) -> None:
        self.data.qpos[self.arm.qpos_index] = self.arm.to_radians(self.start)
        self._command(self._start_command())
        for _ in range(_SETTLING_STEPS):
            mujoco.mj_step(self.model, self.data)

    def _command(self, action: np.ndarray) -> None:
        low, high = self.arm.ranges.T
        self.data.ctrl[:] = np.clip(self.arm.to_radians(action), low, high)

    def _in_touch(self) -> bool:
        brick = self._brick_geoms[self.task.color]
        pairs = self.data.contact.geom
        return any(brick in pair and not self._pads.isdisjoint(pair) for pair in pairs.tolist())

    def _open_renderer(self) -> 'mujoco.Renderer':
        try:
            renderer = mujoco.Renderer(self.model, *self._size)
        except Exception as error:  # every GL backend raises a class of its own
            raise UserError(
                f'expected an off-screen renderer, got {type(error).__name__}: {error}; '
                'install EGL (libegl1, libgl1-mesa-dri) or OSMesa (libosmesa6)'
            ) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        return renderer
