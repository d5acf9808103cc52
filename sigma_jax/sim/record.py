"""Records scripted demonstrations as a LeRobot data set: simulate, keep the successes, render,
write.

Episode e is drawn from the seed sequence (seed, e, attempt), attempt 0 first and the next where the
script failed, so that the data set depends on the seed alone, not on the number of worker
processes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from sigma_jax.data.lerobot.writer import LeRobotWriter, Recording
from sigma_jax.data.loader.workers import end_with_parent
from sigma_jax.data.video.encode import VideoSettings
from sigma_jax.errors import UserError
from sigma_jax.sim.env import HEIGHT, WIDTH, PickPlaceEnv
from sigma_jax.sim.scene import CAMERAS, FPS, JOINTS
from sigma_jax.sim.tasks import MIXES

MAX_ATTEMPTS = 20
JOINT_NAMES = tuple(f'{name}.pos' for name in JOINTS)


@dataclass(frozen=True)
class Rollout:
    """One played script.

    Attributes:
      states: measured joints [T, 6] before each action, degrees and percent open.
      actions: joint targets [T, 6], same units.
      configurations: MuJoCo's qpos [T, nq], for rendering afterwards.
      success: whether the task was fulfilled at the end.
    """

    states: np.ndarray
    actions: np.ndarray
    configurations: np.ndarray
    success: bool


@dataclass(frozen=True)
class Demonstration:
    """A successful rollout, rendered.

    Attributes:
      rollout: states and actions.
      images: {camera: uint8 [T, h, w, 3]}.
      task: the instruction.
      attempts: how many scripts were played until one succeeded.
    """

    rollout: Rollout
    images: dict[str, np.ndarray]
    task: str
    attempts: int


@dataclass(frozen=True)
class RecordingPlan:
    """What to record: the mix's name, how many episodes, the seed and the image size."""

    mix: str
    episodes: int
    seed: int = 0
    height: int = HEIGHT
    width: int = WIDTH
    video: VideoSettings = field(default_factory=VideoSettings)

    def task_of(self, episode: int) -> str:
        """The task of an episode; tasks take turns.

        Args:
          episode: its number.

        Returns:
          Its text.
        """
        texts = MIXES[self.mix]
        return texts[episode % len(texts)]


def roll_out(env: PickPlaceEnv, seed: int | list[int], task: str) -> Rollout:
    """Plays the script of one episode, without rendering.

    Args:
      env: the scene.
      seed: of the episode.
      task: its text.

    Returns:
      What happened.
    """
    env.reset(seed, task)
    actions = env.demonstrate()
    states, configurations = [], []
    for action in actions:
        states.append(env.joints())
        configurations.append(env.data.qpos.copy())
        env.step(action)
    return Rollout(
        np.array(states), actions.astype(np.float32), np.array(configurations), env.success()
    )


def demonstrate(env: PickPlaceEnv, plan: RecordingPlan, episode: int) -> Demonstration:
    """The first successful attempt at an episode, rendered.

    Args:
      env: the scene.
      plan: of the recording.
      episode: its number.

    Returns:
      The demonstration.

    Raises:
      UserError: MAX_ATTEMPTS failures.
    """
    task = plan.task_of(episode)
    for attempt in range(MAX_ATTEMPTS):
        rollout = roll_out(env, [plan.seed, episode, attempt], task)
        if rollout.success:
            return Demonstration(rollout, _render(env, rollout), task, attempt + 1)
    raise UserError(
        f'expected the script of {task!r} to succeed, got {MAX_ATTEMPTS} failures in a row; try '
        'another --seed'
    )


def record(
    plan: RecordingPlan,
    out: str | Path,
    workers: int = 1,
    on_episode: Callable[[Demonstration], None] | None = None,
) -> Path:
    """Records a data set at `out`, which must not exist.

    Args:
      plan: what to record.
      out: folder to create.
      workers: processes that simulate and render; the result does not depend on it.
      on_episode: called after each written episode.

    Returns:
      The folder.

    Raises:
      UserError: for an unknown mix, a non-positive number of episodes, or where `out` exists.
    """
    if plan.mix not in MIXES:
        raise UserError(
            f'expected a task mix of {sorted(MIXES)}, got {plan.mix!r}; choose one of these'
        )
    if plan.episodes < 1 or workers < 1:
        raise UserError(
            f'expected at least one episode and one worker, got {plan.episodes} and '
            f'{workers}; raise them'
        )
    cameras = dict.fromkeys(CAMERAS, (plan.height, plan.width))
    with LeRobotWriter(out, Recording(JOINT_NAMES, cameras, FPS), plan.video) as writer:
        for demonstration in _demonstrations(plan, workers):
            rollout = demonstration.rollout
            writer.add_episode(
                rollout.states, rollout.actions, demonstration.images, demonstration.task
            )
            if on_episode is not None:
                on_episode(demonstration)
    return Path(out)


def success_rate(task: str, episodes: int, seed: int = 0) -> float:
    """How many scripted episodes succeed at the first attempt, unrendered.

    Args:
      task: its text.
      episodes: that are tried.
      seed: of the first.

    Returns:
      0 to 1.
    """
    env = PickPlaceEnv(task, images=False)
    return float(
        np.mean([roll_out(env, [seed, episode, 0], task).success for episode in range(episodes)])
    )


def _render(env: PickPlaceEnv, rollout: Rollout) -> dict[str, np.ndarray]:
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in CAMERAS}
    for configuration in rollout.configurations:
        env.show(configuration)
        for camera in CAMERAS:
            images[camera].append(env.render(camera))
    return {camera: np.stack(frames) for camera, frames in images.items()}


def _demonstrations(plan: RecordingPlan, workers: int) -> Iterator[Demonstration]:
    """Demonstrations in the order of their episodes."""
    if workers == 1:
        with PickPlaceEnv(images=False, height=plan.height, width=plan.width) as env:
            for episode in range(plan.episodes):
                yield demonstrate(env, plan, episode)
        return
    with ProcessPoolExecutor(workers, get_context('spawn'), end_with_parent) as pool:
        jobs = [pool.submit(_work, plan, episode) for episode in range(plan.episodes)]
        try:
            for job in jobs:
                yield job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker_env: dict[tuple[int, int], PickPlaceEnv] = {}


def _work(plan: RecordingPlan, episode: int) -> Demonstration:
    """Runs in a worker process, which keeps its environment from one episode to the next."""
    size = (plan.height, plan.width)
    if size not in _worker_env:
        _worker_env[size] = PickPlaceEnv(images=False, height=plan.height, width=plan.width)
    return demonstrate(_worker_env[size], plan, episode)
