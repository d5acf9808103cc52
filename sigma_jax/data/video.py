"""Frame-exact video reading with PyAV: a frame is chosen by its time, never by counting."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from sigma_jax.errors import UserError

TOLERANCE = 0.25  # of a frame period; a neighbour is a whole period away


def read_frames(path: Path, times: Sequence[float], fps: float, until: float) -> Iterator[UInt8[np.ndarray, 'h x 3']]:
    """Yields the RGB frames shown at ascending `times` (seconds from the file's start), one after another.

    `until` is the time of the last frame the file must hold, wanted or not.

    Raises:
      UserError: the file is missing, damaged or too short, or holds no frame within a quarter period of a time.
    """
    if not path.is_file():
        raise UserError(f'Expected a video at {path}, got nothing there; download or copy the data set again.')
    if not len(times):
        return
    try:
        with av.open(str(path)) as container:
            _check_length(container, path, until)
            yield from _matching_frames(container, path, list(times), fps)
    except av.error.FFmpegError as error:
        raise UserError(
            f'Expected a readable video at {path}, got "{error.strerror}"; '
            'the file is truncated or damaged, fetch it again.'
        ) from error


def _check_length(container, path: Path, until: float) -> None:
    if not container.streams.video:
        raise UserError(f'Expected a video stream in {path}, got none; the file is truncated, fetch it again.')
    stream = container.streams.video[0]
    end = None if stream.duration is None else float(stream.duration * stream.time_base)
    if end is not None and end <= until:
        raise UserError(
            f'Expected frames up to {until:.3f} s in {path}, got {end:.3f} s; the video is shorter than the rows, '
            'fetch or record it again.'
        )


def _matching_frames(container, path: Path, times: list[float], fps: float) -> Iterator[np.ndarray]:
    stream = container.streams.video[0]
    tolerance = TOLERANCE / fps
    if times[0] > tolerance:  # to the key frame at or before the first wanted frame
        container.seek(int((times[0] - tolerance) / stream.time_base), stream=stream)
    wanted = 0
    last = None
    # libav reports the end of a cut file as an error on some containers; both ends mean the same to the reader
    with contextlib.suppress(av.error.EOFError):
        for frame in container.decode(stream):
            last = frame.time
            if last is None or last < times[wanted] - tolerance:
                continue
            if last > times[wanted] + tolerance:
                break
            yield frame.to_ndarray(format='rgb24')
            wanted += 1
            if wanted == len(times):
                return
    seen = 'no frame at all' if last is None else f'a frame at {last:.3f} s'
    raise UserError(
        f'Expected a frame at {times[wanted]:.3f} s in {path}, got {seen} and none closer; '
        'the video is shorter than the rows or has another frame rate.'
    )
