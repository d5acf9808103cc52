"""A small safetensors file, read whole: tensors and metadata."""

import pathlib

import ml_dtypes  # noqa: F401  (gives numpy the bfloat16 that safetensors needs)
import numpy as np
from safetensors import SafetensorError, safe_open

from sigma_jax.errors import UserError


def read(file: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A small safetensors file.

    Args:
      file: its path.

    Returns:
      tensors: by name.
      metadata: texts by name.

    Raises:
      UserError: it is absent, pickled, damaged or cut short.
    """
    if not file.is_file():
        raise UserError(f'expected a safetensors file at {file}, got no such file; check the path')
    if file.suffix != '.safetensors':
        raise UserError(
            f'expected a .safetensors file, got {file.name}; pickled weights can run code and are '
            'refused: save them again with safetensors.torch.save_file'
        )
    try:
        with safe_open(file, framework='np') as opened:
            return {
                name: opened.get_tensor(name)
                for name in opened.keys()  # noqa: SIM118
            }, opened.metadata() or {}
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise UserError(
            f'expected a whole safetensors file of arrays at {file}, got {error}; '
            'it is damaged or truncated: copy it again'
        ) from error
