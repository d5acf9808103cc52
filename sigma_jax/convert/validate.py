"""Do the tensors of a file fit the model? Differences of all kinds are reported at once, some of
each.
"""

from collections.abc import Mapping

import numpy as np

from sigma_jax import trees
from sigma_jax.backbones.names import NameTable
from sigma_jax.convert.slices import Slice
from sigma_jax.convert.tensor_files import DTYPES, READ_AS, TensorFiles
from sigma_jax.errors import UserError, few


def check_tensors(
    files: TensorFiles, stored: Mapping[str, str], owner: Mapping[str, Slice], where: str
) -> None:
    """Checks the tensors of a checkpoint against what is needed.

    Args:
      files: its tensors.
      stored: {canonical name: name in the files}.
      owner: {name that is needed: the slice that it fills}.
      where: they are from, for messages.

    Raises:
      UserError: tensors that are missing, extra, mis-shaped or of no weight's type.
    """
    shapes: dict[tuple, tuple[int, ...]] = {}
    # some alone are damage
    allowed = READ_AS if {files.dtype(key) for key in stored.values()} == {'F64'} else DTYPES
    missing = [f'missing {name}' for name in owner if name not in stored]
    unexpected, misshaped, mistyped = [], [], []
    for name, key in stored.items():
        if name not in owner:
            near = trees.closest(name, [one for one in owner if one not in stored])
            unexpected.append(f'unexpected {name}' + (f' (closest: {near})' if near else ''))
            continue
        part = owner[name]
        if (kind := (part.tensor_map, part.shape)) not in shapes:
            shapes[kind] = part.tensor_map.to_torch(np.broadcast_to(np.int8(0), part.shape)).shape
        if files.shape(key) != shapes[kind]:
            misshaped.append(f'{name}: expected shape {shapes[kind]}, got {files.shape(key)}')
        if files.dtype(key) not in allowed:
            mistyped.append(
                f'{name}: expected a type among {", ".join(DTYPES)}, got {files.dtype(key)}'
            )
    if kinds := [kind for kind in (missing, unexpected, misshaped, mistyped) if kind]:
        count = sum(map(len, kinds))
        raise UserError(
            f'{where}: expected the tensors of pi0.5, got {count} differences: '
            + '; '.join(map(few, kinds))
        )


def check_dtypes(
    found: Mapping[str, np.dtype], paths: Mapping[str, str], table: NameTable, where: str
) -> None:
    """Checks that tensors which belong together (the groups of the table) have one dtype.

    Args:
      found: {name: dtype}.
      paths: {name: leaf}.
      table: names and groups of the model's tensors.
      where: they are from, for messages.

    Raises:
      UserError: they differ.
    """
    allowed = list(DTYPES.values())
    problems = [
        f'{n}: expected {", ".join(map(str, allowed))}, got {d}'
        for n, d in found.items()
        if d not in allowed
    ]
    groups: dict[str, dict[np.dtype, list[str]]] = {}
    for name, dtype in found.items():
        groups.setdefault(table.group(paths[name]), {}).setdefault(dtype, []).append(name)
    for group, kinds in groups.items():
        most = sorted(kinds, key=lambda dtype: len(kinds[dtype]))[-1]
        alike = [dtype for dtype in kinds if len(kinds[dtype]) == len(kinds[most])]
        for dtype in kinds if len(alike) > 1 else set(kinds) - {most}:
            expected = ' or '.join(str(one) for one in alike if one != dtype)
            problems += [
                f'{name}: expected {expected} as the rest of the {group}, got {dtype}'
                for name in kinds[dtype]
            ]
    if problems:
        raise UserError(
            f'{where}: expected one dtype in each group of tensors, got {len(problems)} '
            f'differences: {few(problems)}'
        )
