"""The tasks: their text, the operator's habits, where things may stand, and when a task is done.

`TARGET_TASK` is the text of `lerobot/svla_so101_pickplace`. The five tasks of the mix never use
that text and are recorded with other habits (`MIX_HABITS`): slower, approaching from higher, jaws
less open, box and plate elsewhere.
"""

from dataclasses import dataclass

import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.sim.scene import (
    BOX_HALF,
    BOX_HEIGHT,
    BRICKS,
    PLATE_HEIGHT,
    PLATE_RADIUS,
    SceneLayout,
)

# ((x low, x high), (y low, y high)), metres
Region = tuple[tuple[float, float], tuple[float, float]]

_BRICK_SEPARATION = 0.075  # metres between the two bricks' centres, room for the open jaws


@dataclass(frozen=True)
class Habits:
    """How one operator moves; every number is a mean that an episode varies around.

    Attributes:
      pace: multiplies every duration.
      approach: height of the grasp point above the brick before descending, metres.
      carry: height of the grasp point while carrying, metres.
      opening: gripper opening before a grasp, percent.
      tilt: outward tilt of the gripper, degrees.
      box: where the box's centre may stand.
      plate: where the plate's centre may stand.
    """

    pace: float
    approach: float
    carry: float
    opening: float
    tilt: float
    box: Region
    plate: Region


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      text: the instruction stored in the data set.
      plan: name of the script in `script.PLANS`.
      color: the brick the instruction speaks of.
      habits: the operator.
      bricks: where the bricks' centres may stand.
    """

    text: str
    plan: str
    color: str
    habits: Habits
    bricks: Region


TARGET_HABITS = Habits(
    pace=1.0,
    approach=0.055,
    carry=0.085,
    opening=46.0,
    tilt=20.0,
    box=((0.17, 0.23), (0.13, 0.17)),
    plate=((0.15, 0.19), (-0.21, -0.18)),
)
MIX_HABITS = Habits(
    pace=1.15,
    approach=0.085,
    carry=0.11,
    opening=42.0,
    tilt=16.0,
    box=((0.22, 0.27), (0.11, 0.15)),
    plate=((0.17, 0.22), (-0.20, -0.17)),
)
_BRICK_REGION = ((0.19, 0.28), (-0.11, 0.05))
_PUSH_REGION = ((0.20, 0.28), (-0.08, -0.01))

TARGET_TASK = 'pink lego brick into the transparent box'
TASKS = {
    task.text: task
    for task in (
        Task(TARGET_TASK, 'into_box', 'pink', TARGET_HABITS, _BRICK_REGION),
        Task(
            'blue lego brick into the transparent box',
            'into_box',
            'blue',
            MIX_HABITS,
            _BRICK_REGION,
        ),
        Task('pink lego brick onto the plate', 'onto_plate', 'pink', MIX_HABITS, _BRICK_REGION),
        Task('lift the pink lego brick', 'lift', 'pink', MIX_HABITS, _BRICK_REGION),
        Task('push the blue lego brick to the left', 'push_left', 'blue', MIX_HABITS, _PUSH_REGION),
        Task('touch the pink lego brick', 'touch', 'pink', MIX_HABITS, _BRICK_REGION),
    )
}
MIXES = {'target': (TARGET_TASK,), 'base': tuple(text for text in TASKS if text != TARGET_TASK)}


def find_task(text: str) -> Task:
    """The task with a text.

    Args:
      text: of the task.

    Returns:
      The task.

    Raises:
      UserError: there is none; names the known ones.
    """
    if text not in TASKS:
        raise UserError(
            f'expected one of the tasks {sorted(TASKS)}, got {text!r}; pass one of these texts'
        )
    return TASKS[text]


def sample_layout(task: Task, rng: np.random.Generator) -> SceneLayout:
    """Draws where bricks, box and plate stand; the bricks keep `_BRICK_SEPARATION` between their
    centres.

    Args:
      task: whose objects must be apart.
      rng: of the episode.

    Returns:
      The layout.
    """
    while True:
        main = rng.uniform(*np.transpose(task.bricks))
        other = rng.uniform(*np.transpose(_BRICK_REGION))
        clear_of_push = (
            task.plan != 'push_left' or abs(other[0] - main[0]) > 0.035 or other[1] < main[1] - 0.07
        )
        if np.linalg.norm(other - main) > _BRICK_SEPARATION and clear_of_push:
            break
    yaws = rng.uniform(-0.7, 0.7, size=2)
    places = {
        task.color: (*main, yaws[0]),
        next(c for c in BRICKS if c != task.color): (*other, yaws[1]),
    }
    bricks = {color: (float(x), float(y), float(yaw)) for color, (x, y, yaw) in places.items()}
    box_x, box_y = rng.uniform(*np.transpose(task.habits.box))
    box = (float(box_x), float(box_y), float(rng.uniform(-0.3, 0.3)))
    plate_x, plate_y = rng.uniform(*np.transpose(task.habits.plate))
    return SceneLayout(
        {color: bricks[color] for color in BRICKS}, box, (float(plate_x), float(plate_y))
    )


def is_done(task: Task, layout: SceneLayout, brick: np.ndarray, touched: bool) -> bool:
    """Whether the task is fulfilled.

    Args:
      task: the task.
      layout: where things stood at the start.
      brick: the position [3] of the task's brick now, metres.
      touched: whether a jaw has touched the task's brick so far.

    Returns:
      True where it is.
    """
    start = np.array(layout.bricks[task.color][:2])
    if task.plan == 'into_box':
        cos, sin = np.cos(layout.box[2]), np.sin(layout.box[2])
        offset = np.array([[cos, sin], [-sin, cos]]) @ (brick[:2] - layout.box[:2])
        return bool(np.abs(offset).max() < BOX_HALF and brick[2] < BOX_HEIGHT)
    if task.plan == 'onto_plate':
        near = np.linalg.norm(brick[:2] - layout.plate) < PLATE_RADIUS
        return bool(near and PLATE_HEIGHT + 0.005 < brick[2] < 0.03)
    if task.plan == 'lift':
        return bool(brick[2] > 0.05)
    if task.plan == 'push_left':
        return bool(
            brick[1] - start[1] > 0.03 and abs(brick[0] - start[0]) < 0.03 and brick[2] < 0.03
        )
    return bool(touched and np.linalg.norm(brick[:2] - start) < 0.015)
