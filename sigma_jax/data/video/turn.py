"""How a container says that its video is to be turned: a matrix beside the stream, as telephones
write it.
"""

from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from sigma_jax.errors import UserError


def quarter_turns(frame: av.VideoFrame, place: str) -> int:
    """By how many quarters a frame is to be turned counterclockwise.

    Args:
      frame: decoded.
      place: of the frame, for messages.

    Returns:
      0 to 3.

    Raises:
      UserError: for a matrix that mirrors, scales or turns by another angle: readers differ there.
    """
    side: Any = frame.side_data.get('DISPLAYMATRIX')
    if side is None:
        return 0
    numbers = np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]]
    x, y = numbers[:2] / 2**16  # where a step to the right leads: to the right and down
    for turns, step in enumerate([(1, 0), (0, -1), (-1, 0), (0, 1)]):
        if (x, y) == step and tuple(numbers[2:] / 2**16) == (-step[1], step[0]):
            return turns
    raise UserError(
        f'expected a video turned by quarters in {place}, got the matrix '
        f'{(numbers / 2**16).tolist()}, which mirrors, scales or slants it; encode the video '
        'again as it is to be seen'
    )


def turn(pixels: UInt8[np.ndarray, 'h w 3'], turns: int) -> UInt8[np.ndarray, 'a b 3']:
    """An image turned by quarters.

    Args:
      pixels: of the image.
      turns: counterclockwise.

    Returns:
      The turned one.
    """
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
