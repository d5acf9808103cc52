"""An episode as a file for the Rerun viewer; needs the extra `rerun`."""

import importlib.util
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

QUALITY = 90  # of JPEG


def installed() -> bool:
    """Whether such files can be written here."""
    return importlib.util.find_spec('rerun') is not None


def write(
    path: pathlib.Path,
    task: str,
    rows: Iterable[tuple[float, Mapping[str, np.ndarray], np.ndarray, np.ndarray]],
) -> None:
    """Writes one episode: pictures, state and actions on the clock of its requests.

    Args:
      path: of the new file, .rrd.
      task: the instruction.
      rows: (when it was asked for, seconds since 1970; frames by camera; state [p]; actions [t a]).
    """
    import rerun

    stream: Any = rerun.RecordingStream('sigma_jax', recording_id=path.stem)
    stream.save(path)
    stream.log('task', rerun.TextDocument(task), static=True)
    for came, frames, state, actions in rows:
        stream.set_time('asked', timestamp=came)
        for camera, frame in frames.items():
            stream.log(f'camera/{camera}', rerun.Image(frame).compress(jpeg_quality=QUALITY))
        stream.log('state', rerun.Scalars(state))
        stream.log('action', rerun.Scalars(actions[0]))
        stream.log('chunk', rerun.Tensor(actions, dim_names=('step', 'joint')))
    stream.disconnect()
