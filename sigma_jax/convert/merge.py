"""LoRA factors merged into base weights a slice at a time, in numpy: for conversion and export,
never for training (docs/design.md, "LoRA").
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sigma_jax.nn import lora
from sigma_jax.types import PyTree


def merge_slice(
    path: str,
    index: tuple[int | slice, ...],
    part: np.ndarray,
    factors: PyTree,
    layouts: Mapping[str, lora.MatrixLayout],
    alpha: float,
) -> np.ndarray:
    """`W + alpha / r * B A` in float32 for one slice of a leaf, with the same slice of its factors.

    A slice of a leaf without factors comes back as it is, in its own dtype.

    Args:
      path: of the leaf, its keys joined by '/'.
      index: `part = base[path][index]`: a whole number for each of the leading axes (scanned
        layers, stacked matrices) that the caller goes through.
      part: W, in the axes of the leaf's layout.
      factors: {leaf path: {'a': [.. r d_in], 'b': [.. d_out r]}} as a nested dictionary.
      layouts: {pattern over whole paths: layout}, which says where inputs and outputs are in W.
      alpha: the update is multiplied by alpha / r.

    Returns:
      The merged slice, in the axes of `part`.
    """
    pair = _pair(factors, path)
    if pair is None:
        return part
    layout = lora.find_layout(path, layouts)
    a, b = (np.asarray(pair[half])[index].astype(np.float32) for half in 'ab')
    extra = np.ndim(pair['a']) - 2 - len(layout.stack)  # scanned axes
    free = max(0, extra - len(index))  # of them left in the slice
    letters = layout.weight[max(0, len(index) - extra) :]
    inner = ''.join(x for x in layout.stack if x in letters) + layout.outputs + layout.inputs
    size = dict(zip(letters, part.shape[free:], strict=True))
    delta = (b @ a) * np.float32(alpha / a.shape[-2])
    delta = delta.reshape(*part.shape[:free], *(size[x] for x in inner))
    order = [*range(free), *(free + inner.index(x) for x in letters)]
    return part.astype(np.float32) + delta.transpose(order)


def _pair(factors: PyTree, path: str) -> Mapping[str, Any] | None:
    """The factors of one leaf, None where there are none."""
    node = factors
    for key in path.split('/'):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node if set(node) == {'a', 'b'} else None
