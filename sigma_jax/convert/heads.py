"""Sigma's trainable heads as one safetensors file: parameter paths as names, their settings in its
metadata.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from sigma_jax import __version__, files, trees
from sigma_jax.convert import small_file
from sigma_jax.errors import UserError
from sigma_jax.types import PyTree

FORMAT, VERSION = 'sigma_jax heads', 1


def save_heads(tree: PyTree, out: str | pathlib.Path, config: Mapping[str, Any]) -> pathlib.Path:
    """Writes parameters ('sigma' of a run) to a .safetensors file, whole or not at all.

    Args:
      tree: the parameters.
      out: the file.
      config: plain JSON: the fields of `SigmaConfig`, so that a reader can build the model.

    Returns:
      `out`.

    Raises:
      UserError: `out` exists or is not called .safetensors.
    """
    out = pathlib.Path(out)
    if out.suffix != '.safetensors' or out.exists():
        raise UserError(
            f'expected the name of a new .safetensors file, got {out}; choose another name'
        )
    flat = {path: np.asarray(leaf, order='C') for path, leaf in trees.flatten(tree).items()}
    metadata = {
        'format': FORMAT,
        'format_version': str(VERSION),
        'sigma_jax': __version__,
        'config': json.dumps(config),
        'digest': trees.digest(tree),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(out, save(flat, metadata))
    return out


def load_heads(
    file: str | pathlib.Path, expected: PyTree | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """The parameters in a file that `save_heads` wrote.

    Args:
      file: the file.
      expected: arrays or their shapes, to check against; None: no check.

    Returns:
      tree: numpy.
      config: plain JSON.

    Raises:
      UserError: another kind or version of file, contents that differ from the digest written with
        them, or leaves that do not fit, all of which are named.
    """
    file = pathlib.Path(file)
    tensors, metadata = small_file.read(file)
    if metadata.get('format') != FORMAT:
        raise UserError(
            f"expected Sigma's heads in {file}, got safetensors of format "
            f'{metadata.get("format")!r}; give a file that an export of a sigma run wrote'
        )
    if metadata.get('format_version') != str(VERSION):
        raise UserError(
            f'expected version {VERSION} of the heads in {file}, got '
            f'{metadata.get("format_version")!r}, written by sigma_jax '
            f'{metadata.get("sigma_jax")}; read it with that version'
        )
    tree = _tree(tensors)
    if trees.digest(tree) != metadata.get('digest'):
        raise UserError(
            f'expected in {file} the heads that were written, got others; copy the file again'
        )
    if expected is not None:
        trees.check_same(expected, tree, str(file))
    return tree, _config(metadata, file)


def _tree(tensors: Mapping[str, np.ndarray]) -> PyTree:
    """A tree of the tensors; an empty one where a name runs through another's leaf."""
    try:
        return trees.unflatten(tensors)
    except (AttributeError, TypeError, IndexError):
        return {}


def _config(metadata: Mapping[str, str], file: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata['config']))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'expected the settings of the heads in {file}, got {error!r}; copy the file again'
        ) from error
