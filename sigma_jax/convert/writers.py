"""Checkpoints of any layout, written slice by slice."""

import collections
import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sigma_jax.backbones.names import NameTable
from sigma_jax.convert.leaf_digests import PREFETCH
from sigma_jax.convert.orbax_leaves import LeafWriter
from sigma_jax.convert.slices import Slice
from sigma_jax.convert.tensor_files import WEIGHTS, TensorWriter
from sigma_jax.errors import UserError

Put = Callable[[Slice, np.ndarray], Any]
Shapes = Mapping[str, tuple[int, ...]]
LAYOUTS = ('jax', 'lerobot', 'openpi-pytorch')


@contextlib.contextmanager
def open_writer(
    layout: str,
    folder: pathlib.Path,
    shapes: Shapes,
    dtypes: Mapping[str, np.dtype],
    table: NameTable,
) -> Iterator[Put]:
    """Within the block, slices of a checkpoint can be written; all are on the disk when it ends.

    Args:
      layout: one of `LAYOUTS`.
      folder: where to.
      shapes: of our leaves.
      dtypes: of our leaves.
      table: names of the model's tensors.

    Returns:
      A context with a function that writes one slice.

    Raises:
      UserError: an unknown layout, one that the model has no names for, or a write that fails.
    """
    if layout not in LAYOUTS:
        raise UserError(f'expected a layout among {", ".join(LAYOUTS)}, got {layout!r}; choose one')
    if layout != 'jax' and not table.rules:
        raise UserError(
            "expected layout 'jax' for a model without a public PyTorch checkpoint, got "
            f'{layout!r}; choose it'
        )
    if layout != 'jax':
        prefix = 'model.' if layout == 'lerobot' else ''
        with _torch_writer(folder, shapes, dtypes, table, prefix) as put:
            yield put
        return
    pending: collections.deque[Any] = collections.deque()
    writer = LeafWriter(
        folder / 'params', {path: (shape, dtypes[path]) for path, shape in shapes.items()}
    )

    def write(part: Slice, array: np.ndarray) -> None:
        if (future := writer.write(part.path, part.index, array)) is not None:
            pending.append(future)
        _wait(pending, PREFETCH)

    try:
        yield write
        _wait(pending, 0)
    except BaseException as error:
        for future in pending:  # they still write: who clears the folder must come after them
            with contextlib.suppress(Exception):
                future.result()
        if isinstance(error, ValueError) and not isinstance(error, UserError):
            raise UserError(
                f'expected to write {folder}, got: {str(error)[:200]}; look whether the disk '
                'is full'
            ) from error
        raise


def _wait(pending: collections.deque[Any], left: int) -> None:
    """Waits for the oldest writes until no more than `left` are under way."""
    while len(pending) > left:
        pending[0].result()
        pending.popleft()


@contextlib.contextmanager
def _torch_writer(
    folder: pathlib.Path,
    shapes: Shapes,
    dtypes: Mapping[str, np.dtype],
    table: NameTable,
    prefix: str,
) -> Iterator[Put]:
    """LeRobot's set has the token table twice, openpi's as `lm_head` alone; both have an unused
    expert head.
    """
    tables = [table.tied, table.table] if prefix else [table.tied]
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for rule in table.rules:
        shape, dtype = shapes[rule.path], dtypes[rule.path]
        for index, name in rule.names(shape[0]):
            stub = rule.tensor_map.to_torch(np.broadcast_to(np.int8(0), shape[len(index) :]))
            tensors[prefix + name] = (stub.shape, dtype)
    rows = tensors.pop(prefix + table.table)
    tensors |= dict.fromkeys((prefix + name for name in tables), rows)
    width = tensors[prefix + table.unused_width][0][-1]
    tensors[prefix + table.unused] = ((rows[0][0], width), rows[1])
    with TensorWriter(folder / WEIGHTS, tensors) as writer:

        def write(part: Slice, array: np.ndarray) -> None:
            tensor, row = part.tensor_map.to_torch(array), part.rows.start if part.rows else 0
            for name in tables if part.name == table.table else [part.name]:
                writer.write(prefix + name, tensor, row)

        yield write
