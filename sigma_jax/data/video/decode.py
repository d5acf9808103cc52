"""Frame-exact video reading with PyAV: a frame is chosen by its time, never by counting."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from sigma_jax.data.lerobot.schema import MAX_PIXELS
from sigma_jax.data.video.file import TOLERANCE, open_video
from sigma_jax.data.video.turn import quarter_turns, turn
from sigma_jax.errors import UserError

RATE_TOLERANCE = 0.1  # by which a file's mean frame rate may differ from the data set's
# damaged frames are errors; without 'explode' the decoder paints over the holes
DECODER = {'err_detect': 'explode', 'max_pixels': str(MAX_PIXELS)}


class _NoFrameError(Exception):
    """The wanted frame is not there: the time (s) that was wanted, and that of the last frame seen,
    or None.
    """


_DAMAGE = (av.error.FFmpegError, _NoFrameError, ValueError, ArithmeticError, MemoryError)


def read_frames(
    path: Path,
    times: Sequence[float],
    fps: float,
    until: float,
    *,
    name: str = '',
    size: tuple[int, int] | None = None,
    pixels: Callable[[av.VideoFrame, str], np.ndarray] | None = None,
) -> Iterator[UInt8[np.ndarray, 'h x 3']]:
    """Yields the frames of a video that are shown at some times.

    Args:
      path: of the video.
      times: ascending, seconds from the file's start.
      fps: frames a second that the data set names.
      until: time of the last frame that the file must hold, whether it is read or not.
      name: whose frames these are, for messages.
      size: (height, width) every frame must have, as it is stored or once it is turned as the
        container says.
      pixels: `(frame, place) -> array`, for frames that are no colour images.

    Returns:
      An iterator of RGB frames, one after another.

    Raises:
      UserError: the file is missing, damaged or too short, of another frame rate or size, or holds
        no frame within a quarter period of a time.
    """
    place = f'{path} ({name})' if name else str(path)
    if not path.is_file():
        there = 'a folder' if path.is_dir() else 'nothing'
        raise UserError(
            f'expected a video at {place}, got {there} there; download or copy the data set again'
        )
    if not len(times):
        return
    # where no key frame is a clean start, seeking fails or skips the wanted frame; then everything
    # is decoded
    for seek in (True, False) if times[0] > TOLERANCE / fps else (False,):
        count = 0
        try:
            with open_video(path) as container:
                _check_stream(container, place, fps, until)
                for frame in _matching_frames(container, list(times), fps, seek):
                    yield turn((pixels or _colours)(frame, place), _turns(frame, place, size))
                    count += 1
            return
        except UserError:
            raise
        except _DAMAGE as error:
            if count or not seek:
                raise _as_user_error(error, place, fps) from error


def _as_user_error(error: Exception, place: str, fps: float) -> UserError:
    if isinstance(error, _NoFrameError):
        target, last = error.args
        seen = 'no frame at all' if last is None else f'a frame at {last:.3f} s'
        if last is not None and last > target:
            return UserError(
                f'expected a frame at {target:.3f} s in {place}, got {seen} as the next; a frame '
                f'is missing there or the clock is shaken, encode the video again at {fps:g} '
                'frames a second'
            )
        return UserError(
            f'expected a frame at {target:.3f} s in {place}, got {seen} and none closer; '
            'the video is shorter than the rows, fetch or record it again'
        )
    reason = error.strerror if isinstance(error, av.error.FFmpegError) else type(error).__name__
    return UserError(
        f'expected a readable video at {place}, got "{reason}"; the file is truncated or damaged, '
        'fetch it again'
    )


def _check_stream(container, place: str, fps: float, until: float) -> None:
    if not container.streams.video:
        raise UserError(
            f'expected a video stream in {place}, got none; the file is truncated, fetch it again'
        )
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise UserError(
            f'expected a known video codec in {place}, got another; encode it again as AV1 or H.264'
        )
    rate = float(stream.average_rate or fps)
    # over fewer frames it is hardly defined
    if stream.frames >= 10 and abs(rate - fps) > RATE_TOLERANCE * fps:
        raise UserError(
            f'expected {fps:g} frames a second in {place}, got {rate:g}; correct fps in '
            'meta/info.json or encode the video again'
        )
    length = stream.duration and max(stream.start_time or 0, 0) + stream.duration
    end = length and stream.time_base and float(length * stream.time_base)
    if end is not None and end <= until:
        raise UserError(
            f'expected frames up to {until:.3f} s in {place}, got {end:.3f} s; the video is '
            'shorter than the rows, fetch or record it again'
        )


def _matching_frames(
    container, times: list[float], fps: float, seek: bool
) -> Iterator[av.VideoFrame]:
    stream = container.streams.video[0]
    stream.codec_context.options = DECODER
    tolerance = TOLERANCE / fps
    if seek and stream.time_base:  # to the key frame at or before the first wanted frame
        container.seek(int((times[0] - tolerance) / stream.time_base), stream=stream)
    target = 0
    last = None
    # libav reports the end of a cut file as an error on some containers; both ends mean the same to
    # the reader
    with contextlib.suppress(av.error.EOFError):
        for frame in container.decode(stream):
            last = frame.time
            if last is None or last < times[target] - tolerance:
                continue
            if last > times[target] + tolerance:
                break
            yield frame
            target += 1
            if target == len(times):
                return
    raise _NoFrameError(times[target], last)


def _colours(frame: av.VideoFrame, place: str) -> UInt8[np.ndarray, 'h x 3']:
    # gray10le to gray16le; eight bits are just gray
    if (kind := frame.format.name).startswith('gray1'):
        depth = (
            ", or mark it with 'is_depth_map' and a shape of one channel in meta/info.json and "
            'name it in data.depth'
        )
        raise UserError(
            f'expected 8-bit colour in {place}, got {kind}, as depth is stored; leave out this '
            f'camera{depth if kind.startswith("gray12") else ""}'
        )
    return frame.to_ndarray(format='rgb24')


def _turns(frame: av.VideoFrame, place: str, size: tuple[int, int] | None) -> int:
    """By how many quarters a frame is to be turned; raises UserError where it is of another size
    both ways.
    """
    turns = quarter_turns(frame, place)
    lies = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    if size is not None and size not in (lies, (frame.height, frame.width)):
        raise UserError(
            f'expected frames of {size[0]} x {size[1]} pixels in {place}, got {lies[0]} x '
            f'{lies[1]} at {frame.time:.3f} s; correct the shape in meta/info.json or encode the '
            'video again'
        )
    return turns
