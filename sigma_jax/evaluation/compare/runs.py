"""Which trainings an evaluation compares: folders to rows, a row's seeds together (docs/design.md,
"Evaluation protocol").
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sigma_jax.data.shards import seen
from sigma_jax.data.shards.directory import Split, is_finished, open_shards
from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError
from sigma_jax.training.checkpoints import compare
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.types import Ablation

FULL, NO_TAU, ABLATION, TUNED = 'full', 'no_tau', 'ablation', 'flow_matching'
SEED_FOLDER = re.compile(r'seed_?\d+')


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: the row it belongs to, its folder and config."""

    row: str
    folder: pathlib.Path
    config: RunConfig

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return self.config.seed

    @property
    def role(self) -> str:
        """'full' Sigma, 'no_tau' (that gate alone off), another 'ablation', or 'flow_matching'."""
        if self.config.kind.trains_policy:
            return TUNED
        usual = vars(Ablation())
        gates = {k for k, v in vars(self.config.ablation).items() if v != usual[k]}
        if gates or 'lora' not in self.config.trainable:
            return NO_TAU if gates == {'tau'} and 'lora' in self.config.trainable else ABLATION
        return FULL


def find(paths: Iterable[str]) -> tuple[list[Training], list[str]]:
    """The trainings that a command line names, rows in the order given.

    A path is a training folder, or a folder with rows/<row>/seed<k>/ in it; `NAME=PATH` names the
    row of a training folder, otherwise it is named by its folder, or by the one above where it is
    called seed<k>. Of several trainings, those that stopped before their last step, such as one
    that met NaN, are left out and reported.

    Args:
      paths: of `--workdir`.

    Returns:
      trainings: found.
      left_out: folders of the others.

    Raises:
      UserError: there is no training, two with one seed in a row, or configs that differ in more
        than that.
    """
    found: list[Training] = []
    left_out: list[str] = []
    for path in paths:
        name, folder = split_name(path)
        rows = sorted(
            folder.glob('rows/*/seed*'), key=lambda p: (p.parent.name, seed_order(p.name))
        )
        if rows and name:
            raise UserError(
                f'--workdir: expected {name}= before one training, got {folder} with rows of '
                'their own names'
            )
        if rows:
            whole = {p for p in rows if RunFolder(p).finished}
            left_out += [str(p) for p in rows if p not in whole]
            found += [opened(p.parent.name, p) for p in rows if p in whole]
        else:
            found.append(opened(name or own_name(folder), folder))
    if len(found) > 1:  # one alone may be looked at before its end
        left_out += [str(one.folder) for one in found if not RunFolder(one.folder).finished]
        found = [one for one in found if RunFolder(one.folder).finished]
    if not found:
        raise UserError(
            f'expected finished trainings in {", ".join(paths) or "some folders"}, got none; run '
            'train.py to its end, and name its workdir'
        )
    check(found)
    return found, left_out


def opened(row: str, folder: pathlib.Path) -> Training:
    """The training in a folder.

    Args:
      row: it belongs to.
      folder: of the training.

    Returns:
      The training.

    Raises:
      UserError: there is none.
    """
    return Training(row, folder, RunFolder(folder).config())


def split_name(path: str) -> tuple[str, pathlib.Path]:
    """'NAME=PATH' in its parts; a path that exists as it is has no name.

    Args:
      path: of `--workdir`.

    Returns:
      name: '' for none.
      path: the rest.
    """
    name, sign, rest = path.partition('=')
    if sign and '/' not in name and not pathlib.Path(path).exists():
        return name, pathlib.Path(rest)
    return '', pathlib.Path(path)


def own_name(folder: pathlib.Path) -> str:
    """The row's name that a folder suggests.

    Args:
      folder: of a training.

    Returns:
      The name.
    """
    folder = folder.resolve()
    return folder.parent.name if SEED_FOLDER.fullmatch(folder.name) else folder.name


def seed_order(name: str) -> int:
    """What folders are sorted by: seed10 comes after seed9.

    Args:
      name: of a folder.

    Returns:
      The number.
    """
    return int('0' + re.sub(r'\D', '', name))


def check(found: list[Training]) -> None:
    """Checks that trainings may be compared.

    Args:
      found: all of them.

    Raises:
      UserError: a row's trainings are not the same but for their seeds, or Sigma with and without
        tau not the same but for that gate.
    """
    first: dict[str, Training] = {}
    seen: dict[tuple[str, int], Training] = {}
    for training in found:
        other = first.setdefault(training.row, training)
        if differences := apart(other, training, 'seed'):
            raise UserError(
                f'row {training.row}: expected trainings that differ in their seed alone, got '
                f'{other.folder} and {training.folder} with {"; ".join(differences[:3])}; name '
                'rows apart with --workdir=NAME=PATH'
            )
        if (twice := seen.setdefault((training.row, training.seed), training)) is not training:
            raise UserError(
                f'row {training.row}: expected one training a seed, got seed {training.seed} in '
                f'{twice.folder} and {training.folder}; leave one out'
            )
    by_role = {training.role: training for training in reversed(found)}
    if FULL in by_role and NO_TAU in by_role:
        full, without = by_role[FULL], by_role[NO_TAU]
        if differences := apart(full, without, 'seed', 'ablation'):
            raise UserError(
                f'expected Sigma with and without tau to be trained alike, got {full.folder} and '
                f'{without.folder} with {"; ".join(differences[:3])}; compare them in evaluations '
                'of their own, or train one of them anew'
            )


def apart(one: Training, other: Training, *but: str) -> list[str]:
    """Settings in which two trainings differ, what changes no result left out.

    Args:
      one: training.
      other: training.
      *but: sections that do not count.

    Returns:
      Their names.
    """
    plain = [
        {k: v for k, v in training.config.to_dict().items() if k not in but}
        for training in (one, other)
    ]
    said = [(t.config.steps, t.config.loader.augment) for t in (one, other)]
    names = ('steps', 'loader.augment')
    more = [f'{n}: {a!r} and {b!r}' for n, a, b in zip(names, *said, strict=True) if a != b]
    return compare(*plain) + more


def check_held_out(training: Training, split: Split) -> str:
    """Checks that a training has not learned from episodes of a split that is to judge it.

    Episodes count by what they are; where nothing says that of one side, by their numbers in the
    same data set.

    Args:
      training: of a row.
      split: of the shards.

    Returns:
      What there is to report: that nothing can be said, or that a data set has an episode twice.

    Raises:
      UserError: it has learned from some.
    """
    if split.name == 'train':
        return ''
    shards, own = split.shards.path, pathlib.Path(training.config.shards)
    ours, theirs = split.shards.meta, open_shards(own).meta if is_finished(own) else None
    learned, judging = learned_from(training, theirs), seen.of_split(ours, split.name)
    if learned is not None and judging is not None:
        twice = {judging[digest]: learned[digest] for digest in judging if digest in learned}
        if learned.keys() == (seen.of_split(ours, 'train') or {}).keys():  # these very shards
            found = (
                f'{shards}: episodes {sorted(twice)} of the {split.name} split are there again '
                'among those of train'
            )
            return found if twice else ''
        refuse(twice, training, split.name, own)
    elif theirs is None:
        return (
            f'{training.folder}: nothing says from which episodes it has learned, neither its '
            f'folder nor {own}'
        )
    elif own.resolve() != shards.resolve():
        numbers = set(theirs.splits['train']) & set(split.episodes)
        if theirs.source_digest != ours.source_digest:
            return (
                f'{shards} or {own} do not say what their episodes are: {training.folder} may '
                f'know those of {split.name}'
            )
        refuse({number: number for number in numbers}, training, split.name, own)
    return ''


def learned_from(training: Training, meta: Meta | None) -> Mapping[str, Any] | None:
    """What a training and its base have learned from, as far as it is known.

    Args:
      training: of a row.
      meta: of its shards; None: they are gone.

    Returns:
      {digest: episode}; None where nothing is known.
    """
    found = RunFolder(training.folder).episodes()
    return found if found is not None or meta is None else seen.of_split(meta, 'train')


def refuse(twice: Mapping[int, Any], training: Training, split: str, own: pathlib.Path) -> None:
    """Checks that there are no episodes of a split that a training has learned from.

    Args:
      twice: those there are.
      training: of a row.
      split: its name.
      own: shards of the training.

    Raises:
      UserError: there is one.
    """
    if twice:
        first = min(twice)
        name = (
            f'{first}'
            if str(twice[first]) == str(first)
            else (f'{first}, which was its episode {twice[first]}')
        )
        raise UserError(
            f'expected episodes of the {split} split that {training.folder} has not learned from, '
            f'got {len(twice)} of its own training episodes (in {own}), such as {name}; cut both '
            'shards with the same splits'
        )


def reference_run(found: list[Training]) -> Training:
    """The training whose own report the comparison extends: full Sigma (rather the row named
    sigma), lowest seed.

    Args:
      found: all trainings.

    Returns:
      One of them.

    Raises:
      UserError: no Sigma is among them.
    """
    sigmas = [m for m in found if m.role != TUNED]
    if not sigmas:
        raise UserError(
            f'expected at least one training with objective sigma, got {found[0].folder} and '
            'others of flow matching alone; add one with --workdir'
        )
    order = [FULL, NO_TAU, ABLATION]
    return min(
        sigmas,
        key=lambda m: (order.index(m.role), m.row != 'sigma', sigmas[0].row != m.row, m.seed),
    )
