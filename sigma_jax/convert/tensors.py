"""Tensors of safetensors files, one file or a sharded set, one tensor at a time; pickles are refused."""

import json
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  (gives numpy the bfloat16 that safetensors needs)
import numpy as np
from safetensors import SafetensorError, safe_open

from sigma_jax.errors import UserError


class TensorFiles:
    """Lazy mapping from tensor name to numpy array over one or several safetensors files."""

    def __init__(self, files: list[pathlib.Path]):
        self.files = files
        self._where: dict[str, pathlib.Path] = {}
        self._open: dict[pathlib.Path, Any] = {}
        for file in files:
            self._open[file] = _open(file)
            self._where |= dict.fromkeys(self._open[file].keys(), file)

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._open[self._where[name]].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor, as stored."""
        return self._open[self._where[name]].get_tensor(name)


def _open(file: pathlib.Path):
    try:
        return safe_open(file, framework='np')
    except (SafetensorError, OSError) as error:
        raise UserError(
            f'expected a whole safetensors file at {file}, got {error}; it is damaged or truncated: copy it again'
        ) from error


def find_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint path: a file, or a folder with one file or a sharded set."""
    if path.is_file():
        if path.suffix != '.safetensors':
            raise UserError(
                f'expected a .safetensors file, got {path.name}; pickled weights can run code and are refused: '
                'save them again with safetensors.torch.save_file'
            )
        return [path]
    index = path / 'model.safetensors.index.json'
    if index.is_file():
        files = [path / name for name in _shard_names(index)]
        if outside := [f.name for f in files if f.resolve().parent != path.resolve()]:
            raise UserError(f'expected shards beside {index}, got {outside}; the index points outside its folder')
        if absent := [f.name for f in files if not f.is_file()]:
            raise UserError(f'{index} names shards that are not there: {", ".join(absent)}; copy them too')
        return files
    files = sorted(path.glob('*.safetensors'))
    if len(files) != 1:
        raise UserError(
            f'expected model.safetensors, an index or an orbax folder in {path}, got '
            f'{[f.name for f in sorted(path.iterdir())][:8]}; name the file itself'
        )
    return files


def _shard_names(index: pathlib.Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'expected {index} to map tensors to files, got {error}; copy it again') from error
