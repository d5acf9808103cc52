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
    rows: Iterable[tuple[float, Mapping[str, np.ndarray], np.ndarray, Mapping[str, np.ndarray]]],
) -> None:
    """Writes one episode: pictures, state and actions on the clock of its answers.

    Args:
      path: of the new file, .rrd.
      task: the instruction.
      rows: (when it was answered, seconds since 1970; frames by camera; state [p]; by name what was
        answered [t a]: the first step is drawn as NAME, all of them are in chunk/NAME).
    """
    import rerun

    stream: Any = rerun.RecordingStream('sigma_jax', recording_id=path.stem)
    stream.save(path)
    stream.log('task', rerun.TextDocument(task), static=True)
    for time_s, frames, state, chunk in rows:
        stream.set_time('answered', timestamp=time_s)
        for camera, frame in frames.items():
            stream.log(f'camera/{camera}', rerun.Image(frame).compress(jpeg_quality=QUALITY))
        stream.log('state', rerun.Scalars(state))
        for name, steps in chunk.items():
            stream.log(name, rerun.Scalars(steps[0]))
            stream.log(f'chunk/{name}', rerun.Tensor(steps, dim_names=('step', 'joint')))
    stream.disconnect()
