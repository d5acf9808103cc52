"""What one training gave on one split, kept on disk until the report is written: a stopped
comparison continues.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sigma_jax.evaluation import metrics
from sigma_jax.files import atomic_write

FOLDER = '.measured'
ABOUT, BY_STEP = 'about', 'by_step'


@dataclasses.dataclass(frozen=True)
class Measured:
    """Arms of one training by name: errors of every window, error by step of the window; its row of
    costs.
    """

    methods: dict[str, tuple[metrics.Errors, Float[np.ndarray, 't']]]
    cost: dict[str, Any]


def once(
    folder: pathlib.Path, name: str, key: Mapping[str, Any], make: Callable[[], Measured]
) -> Measured:
    """A measurement, read where an interrupted evaluation has kept it.

    A file that is damaged, or of another key, is made again.

    Args:
      folder: of what is kept.
      name: of the file.
      key: what the measurement depends on, JSON-ready.
      make: measures.

    Returns:
      The measurement.
    """
    file = folder / FOLDER / f'{name}.npz'
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    try:
        return read(file, digest)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, pack(found, digest))
    return found


def clear(folder: pathlib.Path) -> None:
    """Removes what was kept: the report holds it now, and the next evaluation measures anew.

    Args:
      folder: of what is kept.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def pack(found: Measured, digest: str) -> bytes:
    """As a .npz file: 'method/quantity' to array, and the rest as JSON.

    Args:
      found: a measurement.
      digest: of its key.

    Returns:
      The bytes of a file.
    """
    arrays: dict[str, Any] = {ABOUT: np.array(json.dumps({'key': digest, 'cost': found.cost}))}
    for name, (errors, by_step) in found.methods.items():
        arrays |= {f'{name}/{quantity}': x for quantity, x in (*errors.items(), (BY_STEP, by_step))}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read(file: pathlib.Path, digest: str) -> Measured:
    """A measurement that was kept.

    Args:
      file: of `once`.
      digest: of its key.

    Returns:
      The measurement.

    Raises:
      ValueError: the file was made for another key; a damaged one raises what numpy does.
    """
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        about = json.loads(str(arrays[ABOUT]))
        if about['key'] != digest:
            raise ValueError(f'{file} was made for something else')
        methods: dict[str, dict[str, np.ndarray]] = {}
        for path in arrays.files:
            if path != ABOUT:
                name, _, quantity = path.rpartition('/')
                methods.setdefault(name, {})[quantity] = arrays[path]
    return Measured({name: (of, of.pop(BY_STEP)) for name, of in methods.items()}, about['cost'])
