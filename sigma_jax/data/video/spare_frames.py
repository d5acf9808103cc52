"""Videos with more frames than rows: valid where the spare ones are at the end, which no clock
says.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from sigma_jax.data.video.clock import SLIP, FileRows, place_rows
from sigma_jax.data.video.file import open_video

SHOWN = 3  # files that are named
_DAMAGE = (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError, OSError)


def spare_notes(dataset: Any, keys: Sequence[str]) -> tuple[str, ...]:
    """Notes on files that declare more frames than the rows that fill them from 0 on.

    Only headers are read; a file that cannot be read is left to whoever reads it.

    Args:
      dataset: of `sources.open_source`.
      keys: of the videos' features.

    Returns:
      A note for each of the first few such files.
    """
    entries = [entry for entry in dataset.episodes.values() if getattr(entry, 'videos', None)]
    files: dict[Path, FileRows] = {}
    for key in dict.fromkeys(getattr(dataset, 'theirs', {}).get(key, key) for key in keys):
        shown = [entry for entry in entries if key in entry.videos]
        places = place_rows(shown, key)
        files |= {entry.videos[key][0]: places[entry.index] for entry in shown}
    counted = {
        path: (_declared(path), rows.total)
        for path, rows in files.items()
        if _filled(rows, dataset.fps)
    }
    spare = [(path, frames, rows) for path, (frames, rows) in counted.items() if frames > rows]
    notes = [
        f'{path.relative_to(dataset.root)} holds {frames} frames for {rows} rows; where the spare '
        'ones are not at its end, every row after them has the frame of an earlier one'
        for path, frames, rows in spare[:SHOWN]
    ]
    return (
        *notes,
        *([f'and so do {len(spare) - SHOWN} more videos'] if len(spare) > SHOWN else []),
    )


def _filled(rows: FileRows, fps: float) -> bool:
    """Whether the rows follow each other from the first frame on."""
    return rows.since * fps <= SLIP and abs(rows.last * fps + rows.last_rows - rows.total) <= SLIP


def _declared(path: Path) -> int:
    """How many frames a file's header says it has; 0 where it does not."""
    with contextlib.suppress(*_DAMAGE), open_video(path) as container:
        return container.streams.video[0].frames if container.streams.video else 0
    return 0
