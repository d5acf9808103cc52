"""The model cut into slices small enough to hold a few of: one PyTorch tensor each, large tables by
rows.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from sigma_jax.backbones.names import SAME, NameTable, Rule, TensorMap
from sigma_jax.convert.orbax_leaves import Index

LARGEST_SLICE = 32 * 2**20  # elements; a larger table is cut by rows


@dataclasses.dataclass(frozen=True)
class Slice:
    """One tensor's share of a leaf, or some rows of it: `leaf[path][index]` of `shape` <- tensor
    `name` in `tensor_map`.
    """

    path: str
    index: Index
    name: str
    tensor_map: TensorMap
    shape: tuple[int, ...]
    rows: slice | None = None


def slices_of(
    shapes: Mapping[str, tuple[int, ...]], table: NameTable, whole: bool = False
) -> Iterator[Slice]:
    """All slices, leaf after leaf, those of a leaf in the order of its elements.

    Args:
      shapes: of the leaves.
      table: the tensors that fill them; a leaf that none fills is a slice by itself.
      whole: whether no tensor is cut.

    Returns:
      An iterator of slices.
    """
    by_path: dict[str, list[Rule]] = {}
    for rule in table.rules:
        by_path.setdefault(rule.path, []).append(rule)
    for path, rules in by_path.items():
        shape = shapes[path]
        named = [
            (index, name, rule.tensor_map) for rule in rules for index, name in rule.names(shape[0])
        ]
        for index, name, tensor_map in sorted(named, key=lambda one: one[0]):
            slot = shape[len(index) :]
            cut = tensor_map is SAME and not whole
            parts = max(1, math.ceil(math.prod(slot) / LARGEST_SLICE)) if cut else 1
            step = math.ceil(slot[0] / parts)
            if parts == 1:
                yield Slice(path, index, name, tensor_map, slot)
            for start in range(0, slot[0], step) if parts > 1 else ():
                rows = slice(start, min(start + step, slot[0]))
                yield Slice(
                    path, (*index, rows), name, tensor_map, (rows.stop - start, *slot[1:]), rows
                )
    for path in (path for path in shapes if path not in by_path):
        yield Slice(path, (), path, SAME, shapes[path])
