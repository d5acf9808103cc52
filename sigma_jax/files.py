"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from sigma_jax.errors import UserError


@contextlib.contextmanager
def atomic_folder(out: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder to fill, renamed to `out` when the block ends well, removed when it fails.

    Raises UserError if `out` exists: nothing is overwritten.
    """
    out = pathlib.Path(out)
    if out.exists():
        raise UserError(f'expected {out} not to exist yet, got a finished one; remove it or choose another name')
    part = out.with_name(f'.{out.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def atomic_write(out: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it; a failure keeps the old file."""
    out = pathlib.Path(out)
    part = out.with_name(f'.{out.name}.part')
    try:
        with open(part, 'wb') as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
