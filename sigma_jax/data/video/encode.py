"""Encodes frames into one mp4 through PyAV (which bundles FFmpeg): AV1 as LeRobot writes it, or
H.264.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

# the AV1 encoder prints its settings to stderr unless told to report errors only
os.environ.setdefault('SVT_LOG', '1')

import av

from sigma_jax.errors import UserError

ENCODERS = {'av1': 'libsvtav1', 'h264': 'libx264'}


@dataclass(frozen=True)
class VideoSettings:
    """How to encode.

    Attributes:
      codec: 'av1' or 'h264'.
      crf: constant rate factor; higher is smaller (AV1 0..63, H.264 0..51).
      gop: frames from one key frame to the next; a reader decodes at most this many to reach a
        frame.
      preset: the encoder's speed preset.
    """

    codec: str = 'av1'
    crf: int = 45
    gop: int = 60
    preset: str = '4'

    def __post_init__(self) -> None:
        """Raises UserError for an unknown codec."""
        if self.codec not in ENCODERS:
            raise UserError(
                f'expected a video codec of {sorted(ENCODERS)}, got {self.codec!r}; '
                'choose one of these'
            )


class VideoWriter:
    """One mp4 file; `write` appends frames, `close` flushes.

    Args:
      path: of the new file.
      height: pixels, even.
      width: pixels, even.
      fps: frames a second.
      settings: of the encoder.
    """

    def __init__(self, path: Path, height: int, width: int, fps: int, settings: VideoSettings):
        """Opens the file; height and width are even."""
        self._container = av.open(str(path), 'w')
        options = {'crf': str(settings.crf), 'g': str(settings.gop), 'preset': settings.preset}
        stream = self._container.add_stream(ENCODERS[settings.codec], rate=fps, options=options)
        self._stream = cast(av.VideoStream, stream)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, 'yuv420p'
        self._open = True

    def write(self, images: np.ndarray) -> None:
        """Appends frames.

        Args:
          images: uint8 [n, height, width, 3], RGB.
        """
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what the encoder still holds and closes the file; a second call does nothing."""
        if self._open:
            self._open = False
            self._container.mux(self._stream.encode())
            self._container.close()
