"""Names of tensors as training wrappers leave them: `module.`, `_orig_mod.`, `ema_model.`, in any
combination.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from sigma_jax.backbones.names import NameTable
from sigma_jax.convert.orbax_tree import is_averaged
from sigma_jax.errors import UserError, few

WRAPPERS = {
    'module',
    '_orig_mod',
    '_forward_module',
    '_fsdp_wrapped_module',
    '_checkpoint_wrapped_module',
}
# that averages keep beside weights
COUNTERS = {'n_averaged', 'num_updates', 'initted', 'step', 'decay'}
Prefix = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Names:
    """`stored` maps canonical names to those in the files; `lerobot`: they are as LeRobot's policy
    has them.
    """

    stored: dict[str, str]
    lerobot: bool
    notes: list[str]


def resolve(names: Iterable[str], table: NameTable, where: str) -> Names:
    """Which tensor is which, averaged weights (EMA) before raw ones.

    Args:
      names: of all tensors.
      table: names of the model's tensors.
      where: they are from, for messages.

    Returns:
      The names.

    Raises:
      UserError: two tensors would be the same one, and none of them is averaged.
    """
    found: dict[str, dict[Prefix, str]] = {}
    for name in names:
        prefix, own = _parts(name, table.tops)
        if prefix is None and own.rpartition('.')[2] in COUNTERS:
            continue
        group = found.setdefault(table.canonical(own), {})
        if (prefix or ()) in group:
            raise _twice(where, [group[prefix or ()], name])
        group[prefix or ()] = name
    prefixes = list(dict.fromkeys(prefix for group in found.values() for prefix in group))
    averaged = [prefix for prefix in prefixes if is_averaged(prefix)]
    stored = {}
    for name, group in found.items():
        best = [prefix for prefix in group if prefix in averaged] or list(group)
        if len(best) > 1:
            raise _twice(where, [group[prefix] for prefix in best])
        stored[name] = group[best[0]]
    lerobot = any(prefix[-1:] == ('model',) for prefix in prefixes)
    return Names(stored, lerobot, _notes(found, averaged))


def _parts(name: str, tops: Sequence[str]) -> tuple[Prefix | None, str]:
    """(what stands before the model's own name, that name), without wrappers; None for a tensor of
    no such model's.
    """
    parts = [part for part in name.split('.') if part not in WRAPPERS]
    places = [n for n, part in enumerate(parts) if part in tops]
    return (
        (tuple(parts[: places[0]]), '.'.join(parts[places[0] :]))
        if places
        else (None, '.'.join(parts))
    )


def _twice(where: str, names: Sequence[str]) -> UserError:
    return UserError(
        f'expected one set of weights in {where}, got two names for one tensor: '
        f'{few(names, ", ")}; save the one that you mean'
    )


def _notes(found: dict[str, dict[Prefix, str]], averaged: Sequence[Prefix]) -> list[str]:
    if not averaged:
        return []
    groups = [group for group in found.values() if set(group) & set(averaged)]
    doubled = sum(len(group) > 1 for group in groups)
    text = f'`{".".join(averaged[0])}.` is taken: averaged weights (EMA)'
    text += '; the raw ones beside them are left out' if doubled else ''
    rest = len(found) - len(groups)
    return [text + (f'; {rest} tensors are there raw alone and taken so' if rest else '')]
