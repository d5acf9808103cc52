"""How a stranger's video file is opened: as a video and nothing else."""

from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

TOLERANCE = 0.25  # of a frame period; a neighbour is a whole period away
# FFmpeg tells a format by its content: a playlist called .mp4 would open the files and addresses
# that it names
CONTAINER = {
    'format_whitelist': 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi',
    'protocol_whitelist': 'file',
}
# names in a file that are no text are no reason to refuse its frames; PyAV 19 keeps their bytes
# without being asked
LENIENT: dict[str, Any] = (
    {} if int(av.__version__.split('.')[0]) >= 19 else {'metadata_errors': 'replace'}
)


def open_video(path: Path) -> InputContainer:
    """Opens a video file for reading; what is none raises an error of FFmpeg's.

    Args:
      path: of the file.

    Returns:
      PyAV's container.
    """
    return av.open(str(path), options=CONTAINER, **LENIENT)
