"""Looks into a `.pt` file before torch does: only plain containers, numbers, text and tensors may
be in it.

torch.load(weights_only=True) refuses the rest too, and stays the guard; this one needs no torch,
and has an error that says what was found.
"""

import pickletools
import re
import zipfile
from pathlib import Path

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
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _LOADS_CODE:
                raise _refused(path, f'the instruction {opcode.name}')
            if opcode.name == 'GLOBAL' and not _HARMLESS.fullmatch(str(argument)):
                raise _refused(path, str(argument).replace(' ', '.'))
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise _refused(path, f'a damaged pickle: {error}') from error


def _refused(path: Path, found: str) -> UserError:
    return UserError(
        f'expected a whole file of torch.save at {path}, with tensors, numbers and text only, got '
        f'{found.splitlines()[0]}; nothing of it was run: do not use it, or save its tensors again'
    )
