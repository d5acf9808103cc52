"""Whether a video's clock shows each row's own frame: by the times in its container, without
decoding.

A frame is chosen by its time. Where a file starts late, ticks at another rate or skips, the frame
of another row stands at that time; the number of frames before it says.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from sigma_jax.data.lerobot.meta import EpisodeEntry
from sigma_jax.data.video.file import TOLERANCE, open_video
from sigma_jax.errors import UserError

SLIP = 0.5  # of a frame period: from there on the neighbour is closer
FILES = 32  # whose times are kept: some cameras of some files
_DAMAGE = (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError)


@dataclasses.dataclass(frozen=True)
class FileRows:
    """An episode's place among all that lie in one video file.

    `since` is the time (s) at which the first of them starts, `before` the rows of those that start
    earlier, `total` the rows of all; `last` is the time at which the last of them starts,
    `last_rows` its rows.
    """

    since: float
    before: int
    total: int
    last: float
    last_rows: int


def place_rows(entries: Iterable[EpisodeEntry], camera: str) -> Mapping[int, FileRows]:
    """The place of every episode in its file of one camera.

    Args:
      entries: episodes.
      camera: its key.

    Returns:
      {episode: place}.
    """
    files: dict[Path, list[EpisodeEntry]] = {}
    for entry in entries:
        files.setdefault(entry.videos[camera][0], []).append(entry)
    found = {}
    for group in files.values():
        group.sort(key=lambda entry: entry.videos[camera][1])
        ends = np.cumsum([entry.length for entry in group]).tolist()
        (since, last), last_rows = (
            (group[place].videos[camera][1] for place in (0, -1)),
            group[-1].length,
        )
        for entry, end in zip(group, ends, strict=True):
            found[entry.index] = FileRows(since, end - entry.length, ends[-1], last, last_rows)
    return found


def check_video_clock(
    path: Path, times: Float[np.ndarray, ' n'], fps: float, rows: FileRows, name: str
) -> None:
    """Checks that the frame shown at the time of any row is that row's own.

    A file that cannot be read is left to whoever reads it.

    Args:
      path: of the video.
      times: of all rows of the episode, seconds of the file.
      fps: frames a second.
      rows: the episode's place in the file.
      name: of the episode, for messages.

    Raises:
      UserError: the frame of another row is shown.
    """
    shown, resolution, declared = _shown(path)
    if not len(shown):
        return
    place = f'{path} ({name})'
    late = shown[0] * fps
    if abs(late) > TOLERANCE and abs(shown[0] - rows.since) * fps > TOLERANCE:
        raise UserError(
            f'expected the first frame of {place} at 0.000 s, got it at {shown[0]:.3f} s, '
            f'{late:+.2f} frames off, where readers of LeRobot disagree; write the video again '
            'with a clock from 0 s'
        )
    complete = len(shown) == rows.total
    wrong = _other_numbers(shown, times, fps, rows.before) if complete else {}
    if wrong or not complete:
        _check_rate(shown, times, fps, resolution, place)
    # a download that stopped declares those that did not arrive
    if max(declared, len(shown)) < rows.total:
        _check_end(shown, fps, rows, place)
    for row, number in wrong.items():
        raise UserError(
            f'expected frame {rows.before + row} of {place} at {times[row]:.3f} s, where row '
            f'{row} is, got frame {number} of {len(shown)}; its clock skips, encode the video '
            f'again at {fps:g} frames a second'
        )


def _other_numbers(shown: np.ndarray, times: np.ndarray, fps: float, before: int) -> dict[int, int]:
    """{row: number of the frame shown at its time} where that is another row's; the file has a
    frame for every row.
    """
    nearest = _nearest(shown, times)
    hit = np.abs(shown[nearest] - times) * fps <= TOLERANCE
    wrong = np.flatnonzero(hit & (nearest != before + np.arange(len(times))))
    return dict(zip(wrong.tolist(), nearest[wrong].tolist(), strict=True))


def _check_end(shown: np.ndarray, fps: float, rows: FileRows, place: str) -> None:
    """Frames are missing: where the others come one after another and end early, they may be
    missing anywhere.
    """
    lacking = rows.last * fps + rows.last_rows - 1 - shown[-1] * fps
    if lacking > SLIP:
        raise UserError(
            f'expected {rows.total} frames in {place}, one for every row of the episodes in it, '
            f'got {len(shown)} that end {lacking:.0f} before the last row; the video is shorter '
            'than the rows and nothing says which of them lost theirs, fetch or record it again '
            'or leave out every episode in it'
        )


def _check_rate(
    shown: np.ndarray, times: np.ndarray, fps: float, resolution: float, place: str
) -> None:
    """Rows are missing from the list or frames from the file: a clock of another rate slips all the
    same.
    """
    steps = np.diff(shown)
    usual = steps[np.abs(steps - np.median(steps)) <= 2.5 * resolution] if len(steps) else steps
    if not usual.sum():
        return
    drift = abs(usual.mean() * fps - 1) * np.searchsorted(shown, times[-1])
    if drift > SLIP:
        raise UserError(
            f'expected {fps:g} frames a second in {place}, got {1 / usual.mean():.4g}; at '
            f'{times[-1]:.3f} s they are {drift:.1f} frames off, correct fps in meta/info.json or '
            'encode the video again'
        )


def _nearest(shown: np.ndarray, times: np.ndarray) -> np.ndarray:
    right = np.searchsorted(shown, times).clip(1, max(len(shown) - 1, 1))
    left = right - 1
    right = right.clip(max=len(shown) - 1)
    return np.where(times - shown[left] <= shown[right] - times, left, right)


def _shown(path: Path) -> tuple[Float[np.ndarray, ' n'], float, int]:
    """Ascending times (s) at which a file shows a frame, their resolution, and how many frames the
    file declares.

    No times where the file does not say them; 0 frames where it declares none.
    """
    if not path.is_file():
        return np.zeros(0), 0.0, 0
    status = path.stat()
    return _read_times(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=FILES)
def _read_times(
    path: Path, _changed: int, _size: int
) -> tuple[Float[np.ndarray, ' n'], float, int]:
    times: list[int] = []
    base, declared = 0.0, 0
    with contextlib.suppress(*_DAMAGE), open_video(path) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            return np.zeros(0), 0.0, 0
        base, declared = float(stream.time_base or 0), stream.frames
        for packet in container.demux(stream):
            if not packet.is_discard and packet.size:
                if packet.pts is None:  # as in AVI: only decoding says
                    return np.zeros(0), 0.0, 0
                times.append(packet.pts)
    return np.sort(np.array(times, np.float64)) * base, base, declared
