"""Episodes to windows of `t` actions, each with the observation at its first frame only (paper 4.1,
docs/design.md, "Causality").
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from sigma_jax.data.episode import Episode
from sigma_jax.errors import UserError

TAILS = ('drop', 'pad')


@dataclasses.dataclass(frozen=True)
class WindowTable:
    """A column table of `m` windows; actions and states in raw robot units.

    `avg_action_l2` and `max_action_l2` are the mean and largest Euclidean norm of a window's
    actions (paper 4.1); `avg_motion` and `max_motion` those of its steps a_{t+1} - a_t. Padding
    actions count in none of them.
    """

    episode: Int[np.ndarray, ' m']
    frame: Int[np.ndarray, ' m']
    task: np.ndarray  # [m] instruction at the first frame
    state: Float[np.ndarray, 'm p']
    actions: Float[np.ndarray, 'm t a']
    action_mask: Bool[np.ndarray, 'm t']
    avg_action_l2: Float[np.ndarray, ' m']
    max_action_l2: Float[np.ndarray, ' m']
    avg_motion: Float[np.ndarray, ' m']
    max_motion: Float[np.ndarray, ' m']

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, selection: np.ndarray) -> 'WindowTable':
        """Some of the windows.

        Args:
          selection: indices, or a mask.

        Returns:
          Their table.
        """
        return WindowTable(*(column[selection] for column in columns(self)))


def columns(windows: WindowTable) -> tuple[np.ndarray, ...]:
    """The columns in the order of the fields.

    Args:
      windows: a table.

    Returns:
      Arrays.
    """
    return tuple(getattr(windows, field.name) for field in dataclasses.fields(WindowTable))


def cut_windows(episode: Episode, *, horizon: int, stride: int, tail: str = 'drop') -> WindowTable:
    """Cuts an episode into windows (docs/design.md, "Windows").

    Args:
      episode: its columns.
      horizon: actions of a window.
      stride: frames from one window to the next.
      tail: what happens to a window that runs over the episode's end: 'drop' leaves it out, 'pad'
        repeats the last action with `action_mask` false.

    Returns:
      The windows.

    Raises:
      UserError: an unknown tail, or a horizon or stride below 1.
    """
    if tail not in TAILS:
        raise UserError(
            f"expected data.tail to be one of {TAILS}, got '{tail}'; choose one of them"
        )
    if horizon < 1 or stride < 1:
        raise UserError(
            f'expected horizon and stride of at least 1, got {horizon} and {stride}; '
            'correct the config'
        )
    length = len(episode)
    frame = np.arange(0, length if tail == 'pad' else length - horizon + 1, stride)
    steps = frame[:, None] + np.arange(horizon)
    mask = steps < length
    actions = episode.actions[np.minimum(steps, length - 1)]
    return WindowTable(
        episode=np.full(len(frame), episode.index, np.int64),
        frame=frame.astype(np.int64),
        task=np.array([episode.tasks[i] for i in frame], dtype=object),
        state=episode.state[frame],
        actions=actions,
        action_mask=mask,
        **_statistics(actions, mask),
    )


def _statistics(actions: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    norm = np.linalg.norm(actions.astype(np.float64), axis=-1)
    step = np.linalg.norm(np.diff(actions.astype(np.float64), axis=1), axis=-1)
    average_norm, largest_norm = _masked_mean_max(norm, mask)
    average_motion, largest_motion = _masked_mean_max(step, mask[:, 1:])
    return {
        'avg_action_l2': average_norm,
        'max_action_l2': largest_norm,
        'avg_motion': average_motion,
        'max_motion': largest_motion,
    }


def _masked_mean_max(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and maximum over the last axis where `mask` holds; 0 where it holds nowhere."""
    kept = np.where(mask, values, 0.0)
    mean = kept.sum(-1) / np.maximum(mask.sum(-1), 1)
    return mean.astype(np.float32), kept.max(-1, initial=0.0).astype(np.float32)


def filter_windows(
    windows: WindowTable, *, min_motion: float, min_action_norm: float
) -> tuple[WindowTable, dict[str, int]]:
    """Drops windows in which the robot barely moves (docs/design.md, "Windows").

    Args:
      windows: a table.
      min_motion: least `avg_motion`, raw units; 0: no limit.
      min_action_norm: least `avg_action_l2` (paper 4.1; on absolute joint positions it filters
        nothing); 0: no limit.

    Returns:
      kept: the others.
      dropped: {reason: how many}.
    """
    still = windows.avg_motion < min_motion
    small = ~still & (windows.avg_action_l2 < min_action_norm)
    dropped = {
        'avg_motion below min_motion': int(still.sum()),
        'avg_action_l2 below min_action_norm': int(small.sum()),
    }
    return windows.take(~(still | small)), dropped


def first_windows(windows: WindowTable, stride: int) -> Bool[np.ndarray, ' m']:
    """True where a window has no predecessor `stride` frames earlier: the memory starts anew there
    (docs/design.md, "The sequence").

    Args:
      windows: a table.
      stride: frames.

    Returns:
      One flag a window.
    """
    if not len(windows):
        return np.zeros(0, bool)
    follows = (np.diff(windows.episode) == 0) & (np.diff(windows.frame) == stride)
    return np.concatenate([[True], ~follows])


def concatenate(tables: Sequence[WindowTable]) -> WindowTable:
    """Joins tables in order; at least one is needed.

    Args:
      tables: at least one.

    Returns:
      One table.
    """
    return WindowTable(
        *(np.concatenate(parts) for parts in zip(*map(columns, tables), strict=True))
    )
