"""Looks into a `.pt` file before torch does: only plain containers, numbers, text and tensors may
be in it.

torch.load(weights_only=True) refuses the rest too, and stays the guard; this one needs no torch,
and has an error that says what was found.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError

_HARMLESS = re.compile(r'torch\._utils _rebuild_tensor_v2|collections OrderedDict|torch \w+Storage')
# torch.save writes none
_LOADS_CODE = {'INST', 'OBJ', 'NEWOBJ', 'NEWOBJ_EX', 'STACK_GLOBAL', 'EXT1', 'EXT2', 'EXT4'}


def check_pickle(path: Path) -> None:
    """Checks that a file is a zip of torch.save with plain contents; nothing is executed.

    Args:
      path: of the file.

    Raises:
      UserError: it is anything else.
    """
    if not path.is_file():
        raise UserError(f'expected a shard at {path}, got nothing there; copy it again')
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith('/data.pkl')]
            claimed = sum(entry.file_size for entry in entries)
            if len(pickles) != 1 or claimed > path.stat().st_size:
                raise _refused(
                    path, f'{len(pickles)} pickles and {claimed} bytes in {path.stat().st_size}'
                )
            _check_opcodes(path, archive.read(pickles[0]))
    # the last two: odd compression
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise _refused(path, str(error) or type(error).__name__) from error


def _check_opcodes(path: Path, data: bytes) -> None:
    try:
        for name, argument in walk_pickle(data):
            if name in _LOADS_CODE:
                raise _refused(path, f'the instruction {name}')
            if name == 'GLOBAL' and not _HARMLESS.fullmatch(str(argument)):
                raise _refused(path, str(argument).replace(' ', '.'))
    except DamagedPickleError as error:
        raise _refused(path, f'a damaged pickle: {error}') from error


class DamagedPickleError(Exception):
    """A pickle that ends too early, or has something else than an instruction in it."""


def walk_pickle(data: bytes) -> Iterator[tuple[str, Any]]:
    """The instructions of a pickle; none is carried out.

    Args:
      data: the pickle.

    Yields:
      Name and argument, None where it has none.

    Raises:
      DamagedPickleError: it is damaged.

    Examples:
      >>> from sigma_jax.data.pt.safety import walk_pickle
      >>> [name for name, _ in walk_pickle(b'cos\\nsystem\\n.')]
      ['GLOBAL', 'STOP']
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):
            yield opcode.name, argument
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise DamagedPickleError(str(error)) from error


def _refused(path: Path, found: str) -> UserError:
    return UserError(
        f'expected a whole file of torch.save at {path}, with tensors, numbers and text only, got '
        f'{found.splitlines()[0]}; nothing of it was run: do not use it, or save its tensors again'
    )
