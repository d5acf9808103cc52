"""The answer as LeRobot's client unpickles it, written without LeRobot and without PyTorch.

It is a list of `TimedAction`, each with a `torch.Tensor` [a] on the CPU, float32. The client makes
the tensors itself: the pickle says `torch.tensor([...])`.
"""

import struct
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

MOST_TIMESTEP = 2**31 - 1  # what a number of four bytes holds

# the two names, once, at the places 0 and 1 of the reader's memory
_HEAD = b'\x80\x02clerobot.async_inference.helpers\nTimedAction\nq\x000ctorch\ntensor\nq\x010'
_NEW, _TENSOR = b'h\x00)\x81', b'h\x01'


def write_chunk(
    actions: Float[np.ndarray, 't a'], timestamp: float, timestep: int, fps: float
) -> bytes:
    """A chunk for LeRobot's client.

    Args:
      actions: raw units, the first to be carried out now.
      timestamp: of the observation, seconds.
      timestep: of the observation, which is the first action's.
      fps: actions a second.

    Returns:
      A pickle.
    """
    rows = np.asarray(actions, np.float32).tolist()
    timed = (_timed(row, timestamp + n / fps, timestep + n) for n, row in enumerate(rows))
    return b''.join([_HEAD, b'](', *(part for one in timed for part in one), b'e.'])


def _timed(row: Sequence[float], timestamp: float, timestep: int) -> Iterator[bytes]:
    """A TimedAction, filled with its state."""
    yield _NEW + b'}('
    yield _text('timestamp') + _number(timestamp)
    yield _text('timestep') + b'J' + struct.pack('<i', timestep)
    yield _text('action') + _TENSOR + b']('
    yield from map(_number, row)
    yield b'e\x85Rub'


def _text(text: str) -> bytes:
    return b'X' + struct.pack('<I', len(text)) + text.encode()


def _number(value: float) -> bytes:
    return b'G' + struct.pack('>d', value)
