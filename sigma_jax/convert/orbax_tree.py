"""Which leaves of an Orbax tree are the weights: their plain tree, a train state, raw weights
beside averaged ones.

openpi serves the averaged weights (EMA) wherever its training kept them; so they are taken wherever
they are.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Sequence

from sigma_jax.backbones import kinds
from sigma_jax.errors import UserError, few

Key = tuple[str, ...]
FOREIGN = {'state_proj'}  # first keys of models that are refused by them
# an optimiser's moments have the weights' names
NOT_WEIGHTS = {'opt_state', 'mu', 'nu', 'grads', 'gradients'}
VALUE = 'value'  # a last key that nnx adds
WEIGHTS, STATE = 'params', 'train_state'


@dataclasses.dataclass(frozen=True)
class Chosen:
    """`leaves` are the whole keys of the leaves, by path; `note` says which weights they are, ''
    where it is plain.
    """

    leaves: dict[str, Key]
    note: str = ''


def choose(keys: Sequence[Key], where: str) -> Chosen:
    """The weights among all leaves of a tree.

    Args:
      keys: of all leaves.
      where: they are from, for messages.

    Returns:
      What was chosen.

    Raises:
      UserError: there are several weights and none is averaged, or an optimiser's state alone.
    """
    roots = list(dict.fromkeys(root for key in keys if (root := _root(key)) is not None))
    plain = [root for root in roots if not NOT_WEIGHTS & set(root)]
    averaged = [root for root in plain if is_averaged(root)]
    if roots and not plain:
        raise UserError(
            f'expected weights in {where}, got a train state without them ({_spell(roots[0])}); '
            f'name the folder of the step: openpi writes its weights to `{WEIGHTS}` beside '
            f'`{STATE}`'
        )
    candidates = averaged or plain
    if len(candidates) > 1:
        names = ', '.join(map(_spell, candidates))
        raise UserError(
            f'expected one set of weights in {where}, got {names}; save the one that you mean'
        )
    root = (
        candidates[0]
        if candidates
        else (WEIGHTS,)
        if any(key[0] == WEIGHTS for key in keys)
        else ()
    )
    found = [key for key in keys if key[: len(root)] == root and len(key) > len(root)]
    leaves = {_path(key[len(root) :]): key for key in found}
    _check_whole(root, leaves, plain, keys, where)
    return Chosen(leaves, _note(root, plain, keys))


def _check_whole(
    root: Key, leaves: Collection[str], plain: Sequence[Key], keys: Sequence[Key], where: str
) -> None:
    """Raises UserError where averaged weights lack leaves that the raw ones beside them have."""
    for raw in plain if is_averaged(root) else ():
        whole = {
            _path(key[len(raw) :]) for key in keys if key[: len(raw)] == raw and _root(key) == raw
        }
        if absent := sorted(whole - set(leaves)):
            raise UserError(
                f'expected averaged weights (EMA) as many as raw ones in {where}, got '
                f'{_spell(root)} without {len(absent)} of {len(whole)} leaves of {_spell(raw)}: '
                f'{few(absent, ", ")}; save it whole, or {_spell(raw)} alone'
            )


def _root(key: Key) -> Key | None:
    """What stands before the model's own names; None for a leaf that is not the model's."""
    tops = kinds.tops() | FOREIGN
    places = [n for n, name in enumerate(key) if name in tops]
    return key[: places[0]] if places else None


def is_averaged(root: Sequence[str]) -> bool:
    """Whether these keys name averaged weights.

    Args:
      root: keys above the weights.

    Returns:
      Whether they do.
    """
    return any('ema' in name.lower().split('_') for name in root)


def _path(key: Key) -> str:
    return '/'.join(key[:-1] if key[-1] == VALUE and len(key) > 1 else key)


def _spell(root: Key) -> str:
    return f'`{"/".join(root) or "."}`'


def _note(root: Key, plain: Sequence[Key], keys: Sequence[Key]) -> str:
    left = [one for one in plain if one != root]
    if is_averaged(root):
        rest = f'; {", ".join(map(_spell, left))} is left out' if left else ''
        return f'{_spell(root)} is taken: averaged weights (EMA), as openpi serves them{rest}'
    if any('opt_state' in key for key in keys):
        return (
            f'{_spell(root)} of a train state is taken: raw weights, no averaged ones (EMA) '
            'are there'
        )
    return ''


def find_folder(path: pathlib.Path) -> tuple[pathlib.Path | None, pathlib.Path, str]:
    """The Orbax folder with the weights of a checkpoint.

    A step of openpi's training holds `params/`, which it serves, and `train_state/`, from which it
    goes on.

    Args:
      path: that was named.

    Returns:
      orbax: the folder; None: there is none.
      folder: the checkpoint's own.
      which: was taken out of several, in words.

    Raises:
      UserError: several folders of averaged weights.
    """
    path = path.parent if path.name == STATE and _is_orbax(path.parent / WEIGHTS) else path
    if path.name == WEIGHTS and _is_orbax(path) and (beside := _averaged_folders(path.parent)):
        named = ', '.join(f'{name}/' for name in beside)
        return (
            path,
            path,
            f'{WEIGHTS}/ is taken, as named: the averaged weights (EMA) lie in {named} beside it',
        )
    averaged = _averaged_folders(path)
    if len(averaged) > 1:
        raise UserError(
            f'expected one folder of averaged weights (EMA) in {path}, got {", ".join(averaged)}; '
            'name the one that you mean'
        )
    names = (*averaged, WEIGHTS, '', 'default', STATE)
    found = [path / name for name in names if _is_orbax(path / name)]
    if not found or found[0] == path:
        return found[0] if found else None, path, ''
    others = [f'{one.name}/' for one in found[1:] if one != path]
    others += sorted(file.name for file in path.glob('*.safetensors'))
    return found[0], path, _taken(found[0].name, others)


def _averaged_folders(path: pathlib.Path) -> list[str]:
    """Names of the Orbax folders in a folder that hold averaged weights."""
    inside = sorted(path.iterdir()) if path.is_dir() else []
    return [one.name for one in inside if is_averaged((one.name,)) and _is_orbax(one)]


def _taken(name: str, left: Sequence[str]) -> str:
    """Which of several weights were taken, in words; '' where there are no others."""
    if not left:
        return ''
    if is_averaged((name,)):
        kind = ', as openpi serves it: averaged weights (EMA)'
    elif f'{STATE}/' in left:
        kind = ', as openpi serves it: averaged (EMA) where the training kept such'
    else:
        kind = ''
    return f'{name}/ is taken{kind}; {", ".join(left)} is left out'


def _is_orbax(folder: pathlib.Path) -> bool:
    return (folder / '_METADATA').is_file()
