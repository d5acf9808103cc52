"""One recorded demonstration: columns in memory, frames decoded on demand."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from sigma_jax.errors import UserError

CLOCK_TOLERANCE = 0.25  # of a frame period, by which a row's time may differ from its frame's

FrameReader = Callable[[Sequence[int]], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Episode:
    """One demonstration, as every data source gives it.

    `n` frames, `p` state and `a` action dimensions, raw robot units.

    Attributes:
      index: in its data set.
      state: readings at each frame.
      actions: recorded at each frame.
      timestamps: seconds.
      frame_index: from 0.
      tasks: the instruction at each frame.
      readers: one function a camera: ascending row numbers in, RGB frames out, one at a time, so
        that an episode never lies in memory as pixels.
    """

    index: int
    state: Float[np.ndarray, 'n p']
    actions: Float[np.ndarray, 'n a']
    timestamps: Float[np.ndarray, ' n']
    frame_index: Int[np.ndarray, ' n']
    tasks: tuple[str, ...]
    readers: Mapping[str, FrameReader]

    def __len__(self) -> int:
        return len(self.state)

    @property
    def task(self) -> str:
        """The instruction at the first frame."""
        return self.tasks[0]

    def frames(
        self, camera: str, rows: Sequence[int] | None = None
    ) -> Iterator[UInt8[np.ndarray, 'h x 3']]:
        """Yields a camera's frames, decoding lazily.

        Args:
          camera: its key.
          rows: ascending row numbers; None: all.

        Returns:
          An iterator of RGB frames.

        Raises:
          UserError: unknown camera, or a video that is damaged or shorter than the rows.
        """
        if camera not in self.readers:
            known = ', '.join(self.readers) or 'none'
            raise UserError(
                f"expected one of this data set's cameras ({known}), got '{camera}'; "
                'correct data.cameras'
            )
        return self.readers[camera](range(len(self)) if rows is None else rows)


def check_episode(episode: Episode, fps: float) -> None:
    """Checks that numbers are finite, rows are consecutive and time advances by one frame a row.

    Args:
      episode: its columns.
      fps: frames a second.

    Raises:
      UserError: they are not.
    """
    check_rows(episode)
    check_steps(episode, fps)


def check_rows(episode: Episode) -> None:
    """Checks that numbers are finite and rows are consecutive.

    Args:
      episode: its columns.

    Raises:
      UserError: they are not.
    """
    name = f'episode {episode.index}'
    for column, values in (
        ('states', episode.state),
        ('actions', episode.actions),
        ('times', episode.timestamps),
    ):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise UserError(
                f'expected finite {column} in {name}, got {values[tuple(bad[0])]} at frame '
                f'{bad[0][0]}; repair or leave out this episode'
            )
    if not np.array_equal(episode.frame_index, np.arange(len(episode))):
        raise UserError(
            f'expected frame_index 0 to {len(episode) - 1} in {name}, got '
            f'{episode.frame_index[0]} to {episode.frame_index[-1]} with gaps or repeats; the '
            'data set is damaged, record or convert it again'
        )


def check_rising(episode: Episode) -> None:
    """Checks that time does not run back.

    Args:
      episode: its columns.

    Raises:
      UserError: it does.
    """
    back = np.flatnonzero(np.diff(episode.timestamps) < 0)
    if len(back):
        before, after = episode.timestamps[back[0] : back[0] + 2]
        raise UserError(
            f'expected timestamps that rise in episode {episode.index}, got {before:.3f} s and '
            f'then {after:.3f} s at frame {back[0]}; its rows are out of order, record or convert '
            'it again'
        )


def check_steps(episode: Episode, fps: float) -> None:
    """Checks that time starts at 0 and advances by one frame a row.

    Args:
      episode: its columns.
      fps: frames a second.

    Raises:
      UserError: it does not.
    """
    name = f'episode {episode.index}'
    if abs(episode.timestamps[0]) * fps > 0.5:  # the frames of another episode would be taken
        raise UserError(
            f'expected timestamps from 0 s on in {name}, got {episode.timestamps[0]:.3f} s at '
            'frame 0; count them from the start of the episode'
        )
    steps = np.diff(episode.timestamps) * fps
    jumps = np.flatnonzero(np.abs(steps - 1) > 0.5)
    if len(jumps):
        raise UserError(
            f'expected timestamps 1/{fps:g} s apart in {name}, got a step of '
            f'{steps[jumps[0]]:.2f} frames at frame {jumps[0]}; fps in meta/info.json is wrong or '
            'the recording has a gap'
        )


def check_clock(episode: Episode, fps: float) -> None:
    """Checks that every row's time is that of its own video frame, whichever rows are read.

    A clock that runs a little fast or slow is a whole frame off somewhere, where the frame of
    another row would seem to fit.

    Args:
      episode: its columns.
      fps: frames a second.

    Raises:
      UserError: a row's time is a quarter of a frame or more off.
    """
    drift = episode.timestamps * fps - episode.frame_index
    off = np.flatnonzero(np.abs(drift) > CLOCK_TOLERANCE)
    if len(off):
        row, most = off[0], np.abs(drift).argmax()
        raise UserError(
            f'expected timestamps of frame_index / {fps:g} s in episode {episode.index}, as its '
            f'video is shown, got {episode.timestamps[row]:.4f} s at frame {row}, '
            f'{drift[row]:+.2f} frames off ({drift[most]:+.2f} at frame {most}); write '
            f'frame_index / {fps:g} into the timestamps or leave out this episode'
        )
