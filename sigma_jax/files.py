"""Files that appear whole or not at all, one writer a folder, and what a full disk looks like."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from sigma_jax.errors import UserError

LOCK = '.lock'


@contextlib.contextmanager
def atomic_folder(out: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder to fill, renamed to `out` when the block ends well, removed when it fails.

    Args:
      out: the folder; nothing is overwritten.

    Returns:
      A context with the folder to fill.

    Raises:
      UserError: `out` exists.
    """
    out = pathlib.Path(out)
    if out.exists():
        raise UserError(
            f'expected {out} not to exist yet, got a finished one; remove it or choose another name'
        )
    part = out.with_name(f'.{out.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextlib.contextmanager
def replaced_folder(out: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The name of a folder to make, which takes the place of `out` when the block ends well; else
    `out` stays.

    Args:
      out: the folder.

    Returns:
      A context with that name.
    """
    out = pathlib.Path(out)
    new, old = (out.with_name(f'.{out.name}.{word}') for word in ('new', 'old'))

    def clean_up() -> None:
        if old.exists() and not out.exists():  # stopped between the two steps of a replacement
            os.replace(old, out)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)

    clean_up()
    try:
        yield new
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)
    finally:
        clean_up()


def atomic_write(out: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it; a failure keeps the
    old file.

    Args:
      out: the file.
      data: its contents.
    """
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


@contextlib.contextmanager
def writer_lock(folder: str | os.PathLike, what: str) -> Iterator[None]:
    """Holds a folder, made where it is missing, for one writer; the system lets go when the process
    ends, however.

    Args:
      folder: to hold.
      what: the writer does, such as 'training'.

    Returns:
      A context.

    Raises:
      UserError: another process holds it.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f'expected to be the only writer of {folder}, got another running {what}; wait '
                'for it or name another'
            ) from error
        yield


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or what caused it, is want of room: on the disk, in a quota, or under a
    limit on files.

    Args:
      error: any.

    Returns:
      Whether it is.
    """
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in codes:
        return True
    # ArrayRecord and TensorStore have no error type of their own, only the system's words
    said = isinstance(error, (RuntimeError, ValueError)) and any(
        os.strerror(code) in str(error) for code in codes
    )
    return said or (error.__cause__ is not None and is_full_disk(error.__cause__))
