"""Safetensors files: one file or a sharded set, read and written a slice at a time; pickles are
refused.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sigma_jax.errors import UserError, few

DTYPES = {
    'F32': np.dtype(np.float32),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'F16': np.dtype(np.float16),
}
READ_AS = {**DTYPES, 'F64': DTYPES['F32']}  # a file's types, and what its tensors are read as
CODES = {dtype: code for code, dtype in DTYPES.items()}
PICKLED = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
# files and folders by which other folders of this project are known
OTHERS = {
    'train_log.csv': 'the folder of a training; export it with --merge, or name its policy/',
    'export.json': 'an export without merged weights; export with --merge, and name merged/',
}
ADAPTER, ADAPTER_CONFIG = 'adapter_model.safetensors', 'adapter_config.json'


class TensorFiles:
    """Lazy mapping from tensor name to numpy array over one or several memory-mapped safetensors
    files.

    Args:
      files: of a checkpoint.

    Raises:
      UserError: a file is damaged, or two have a tensor of one name.
    """

    def __init__(self, files: list[pathlib.Path]):
        self.files = files
        self._where: dict[str, pathlib.Path] = {}
        self._open: dict[pathlib.Path, Any] = {}
        for file in files:
            self._open[file] = _open(file)
            names = self._open[file].keys()
            if twice := sorted(set(names) & set(self._where)):
                raise UserError(
                    f'expected tensors of its own in {file.name}, got some of another shard: '
                    f'{few(twice, ", ")}; keep one set of shards'
                )
            self._where |= dict.fromkeys(names, file)

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it.

        Args:
          name: of the tensor.

        Returns:
          The shape.
        """
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """A tensor's type as the file spells it: F32, BF16, F16, F64, or one that no weight should
        have.

        Args:
          name: of the tensor.

        Returns:
          Its spelling.
        """
        return self._slice(name).get_dtype()

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """One tensor as stored, or some of its rows; float64 as float32.

        Args:
          name: of the tensor.
          rows: a slice; None: all.

        Returns:
          The numbers.
        """
        found = (
            self._open[self._where[name]].get_tensor(name)
            if rows is None
            else self._slice(name)[rows]
        )
        return found.astype(np.float32) if found.dtype == np.float64 else found

    def _slice(self, name: str) -> Any:
        return self._open[self._where[name]].get_slice(name)


def _open(file: pathlib.Path) -> Any:
    try:
        return safe_open(file, framework='np')
    except (SafetensorError, OSError) as error:
        raise UserError(
            f'expected a whole safetensors file at {file}, got {_where_it_ends(file) or error}; '
            'it is damaged or truncated: copy it again'
        ) from error


def _where_it_ends(file: pathlib.Path) -> str:
    """What of a truncated file is missing, '' where its header does not say."""
    size = file.stat().st_size
    with open(file, 'rb') as opened:
        start = 8 + int.from_bytes(opened.read(8), 'little')
        if start > size:
            return f'{size:,} bytes, which end within the header, so that no tensor can be found'
        if start > LONGEST_HEADER:
            return ''
        try:
            header = json.loads(opened.read(start - 8))
            ends = {
                name: start + int(one['data_offsets'][1])
                for name, one in header.items()
                if name != '__metadata__'
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return ''
    lost = sorted((name for name in ends if ends[name] > size), key=ends.__getitem__)
    rest = f' and {len(lost) - 1} more tensors' if lost[1:] else ''
    return f'{size:,} of {max(ends.values()):,} bytes, without {lost[0]}{rest}' if lost else ''


def find_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint path: a file, or a folder with one file or a sharded
    set.

    Args:
      path: of a checkpoint.

    Returns:
      The files.

    Raises:
      UserError: there is none, an incomplete set, pickled files, or those of a PEFT adapter.
    """
    if path.is_file():
        if path.suffix != '.safetensors':
            raise _refused(path.name)
        if path.name == ADAPTER:
            raise _adapter(path.parent)
        return [path]
    if (path / INDEX).is_file():
        return _shards(path / INDEX)
    files = sorted(path.glob('*.safetensors'))
    if (path / WEIGHTS) in files:
        return [path / WEIGHTS]
    if (path / ADAPTER) in files:
        raise _adapter(path)
    if kind := next((kind for name, kind in OTHERS.items() if (path / name).exists()), ''):
        raise UserError(f'expected the folder of a checkpoint, got {path}, {kind}')
    if len(files) == 1:
        return files
    found = [file.name for file in sorted(path.iterdir())]
    if pickled := [name for name in found if name.endswith(PICKLED)]:
        raise _refused(pickled[0])
    raise UserError(
        f'expected {WEIGHTS}, {INDEX} or an orbax folder `params` in {path}, got {found[:8]}; '
        'name the file itself'
    )


def _adapter(folder: pathlib.Path) -> UserError:
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text()).get('base_model_name_or_path')
    except (OSError, ValueError, AttributeError):
        base = None
    named = f' (it names {base})' if base else ''
    return UserError(
        f'expected the weights of a pi0.5, got {folder}, which is a PEFT adapter, which needs its '
        f'base{named}; merge them: convert_weights.py --checkpoint={base or "BASE"} '
        f'--adapter={folder}'
    )


def _refused(name: str) -> UserError:
    return UserError(
        f'expected a .safetensors file, got {name}; pickled weights can run code and are refused: '
        'save them again with safetensors.torch.save_file'
    )


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    try:
        weight_map = dict(json.loads(index.read_text())['weight_map'])
        files = [index.parent / name for name in sorted(set(weight_map.values()))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'expected {index} to map tensors to files, got {error}; copy it again'
        ) from error
    if outside := [f.name for f in files if f.parent != index.parent or f.suffix != '.safetensors']:
        raise UserError(
            f'expected .safetensors shards beside {index}, got {outside}; the index '
            'points elsewhere'
        )
    if absent := [f.name for f in files if not f.is_file()]:
        raise UserError(
            f'expected all shards that {index} names, got none of {few(absent, ", ")}; copy them '
            'too'
        )
    return files


class TensorWriter:
    """Writes a safetensors file whose tensors arrive in any order, slice by slice; rows never
    written read as zeros.

    Use as a context manager, which flushes to disk.

    Args:
      file: the new file.
      tensors: {name: (shape, dtype)}.
    """

    def __init__(
        self, file: str | os.PathLike[str], tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    ):
        header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
        self._places, end = {}, 0
        for name, (shape, dtype) in tensors.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {
                'dtype': CODES[dtype],
                'shape': list(shape),
                'data_offsets': [start, end],
            }
            self._places[name] = (start, math.prod(shape[1:]) * dtype.itemsize)
        text = json.dumps(header, separators=(',', ':')).encode()
        text += b' ' * (-len(text) % 8)
        self._data = 8 + len(text)
        self._file = pathlib.Path(file).open('wb')  # noqa: SIM115 (closed by __exit__)
        self._file.write(len(text).to_bytes(8, 'little') + text)
        self._file.truncate(self._data + end)

    def __enter__(self) -> 'TensorWriter':
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, name: str, array: np.ndarray, first_row: int = 0) -> None:
        """Writes rows of a tensor.

        Args:
          name: of the tensor.
          array: the rows.
          first_row: where they begin.
        """
        start, row = self._places[name]
        self._file.seek(self._data + start + first_row * row)
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
