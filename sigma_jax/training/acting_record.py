"""What acting needs of a training beside what it learned: written down in its folder before the
first step, and in an export; read without shards.

acting/ of a training, or an export itself:

    export.json                 robot, units, base by digest; of an export also what it holds
    statistics/, tokenizer.*    units of the data and of the policy's actions; words
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from sigma_jax import __version__, files
from sigma_jax.convert.load_base import Base
from sigma_jax.data.shards.base_record import KINDS, BaseRecord
from sigma_jax.errors import UserError
from sigma_jax.hub.download import local_path
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.policies.robot import ANEW, RobotSpec
from sigma_jax.processing import normalize
from sigma_jax.processing.tokenizer import tokenizer_file
from sigma_jax.settings import is_a
from sigma_jax.training.build import Blueprint, RunStatistics
from sigma_jax.training.config import RunConfig

KEPT = 'acting'  # folder of a training that holds its record
# the record, statistics of the data and of the policy's actions
RECORD, OWN, POLICY = 'export.json', 'statistics/data.json', 'statistics/policy.json'
NOTHING: Mapping[str, type] = {}
_FIELDS = {
    'robot': Mapping,
    'tokenizer': str,
    'stats_from': str,
    'relative_joints': list,
    'sampled': Mapping,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Surroundings:
    """What a trained policy acts with, beside what it learned.

    Attributes:
      base: opened.
      robot: whose data it learned from.
      statistics: by which states and actions are scaled.
      sampled: how the base is sampled, and its digest.
      tokenizer: file.
    """

    base: Base
    robot: RobotSpec
    statistics: RunStatistics
    sampled: BaseRecord
    tokenizer: str


def of_shards(plan: Blueprint, base: Base) -> Surroundings:
    """Those of a training, by its shards.

    Args:
      plan: of the training.
      base: of the plan, with weights or without.

    Returns:
      What it acts with.

    Raises:
      UserError: no shards, or some without this base's actions.
    """
    sampled = BaseRecord(base_digest=base.digest)
    if plan.kind.needs_base_actions:
        sampled = check_baselines(plan.shards, base.digest)
    robot = RobotSpec.of(plan.shards.meta)
    return Surroundings(base, robot, plan.statistics, sampled, plan.config.tokenizer)


def keep(plan: Blueprint, base: Base, workdir: pathlib.Path) -> None:
    """Writes the record of a training into its folder, whole or not at all.

    Args:
      plan: of the training.
      base: of the plan, with its weights.
      workdir: its folder.

    Raises:
      UserError: shards without this base's actions.
    """
    found = of_shards(plan, base)
    with files.replaced_folder(workdir / KEPT) as new:
        new.mkdir()
        told = {'sigma_jax': __version__, 'acting': write(found, plan.config, new)}
        name = base.source.name if base.source else 'random'
        told['base'] = {'name': name, 'digest': found.sampled.base_digest}
        (new / RECORD).write_text(json.dumps(told, indent=1))


def write(found: Surroundings, config: RunConfig, folder: pathlib.Path) -> dict[str, Any]:
    """Writes what acting needs beside weights and record.

    Args:
      found: of a training.
      config: of the training.
      folder: of the record.

    Returns:
      What the record is to say under 'acting'.
    """
    statistics = found.statistics
    (folder / OWN).parent.mkdir()
    (folder / OWN).write_text(normalize.norm_stats_json(statistics.own))
    (folder / POLICY).write_text(normalize.norm_stats_json(statistics.policy))
    return {
        'robot': found.robot.to_json(),
        'tokenizer': copy_tokenizer(found.tokenizer, folder),
        'stats_from': 'data' if statistics.loader is statistics.own else 'base',
        'relative_joints': list(statistics.relative_joints),
        'sampled': {'seed': found.sampled.seed, 'dtype': found.sampled.dtype},
        'base_on_hub': not pathlib.Path(config.base).exists(),
    }


def copy_tokenizer(tokenizer: str, folder: pathlib.Path) -> str:
    """A tokenizer's file beside weights.

    Args:
      tokenizer: file, folder or hub id.
      folder: of the weights.

    Returns:
      The name of the copy.
    """
    file = tokenizer_file(tokenizer)
    return shutil.copyfile(file, folder / f'tokenizer{file.suffix}').name


def read(
    folder: pathlib.Path, told: Mapping[str, Any], base: Base, config: RunConfig
) -> Surroundings:
    """What `write` wrote.

    Args:
      folder: of the record.
      told: the record.
      base: opened.
      config: of the training.

    Returns:
      What the policy acts with.

    Raises:
      UserError: damaged statistics, or a damaged robot.
    """
    acting, digest = told['acting'], told['base']['digest']
    if base.source is None and config.kind.trains_policy:
        digest = ''  # drawn from a seed: rounded otherwise on another device
    robot = RobotSpec.from_json(acting['robot'], str(folder / RECORD))
    widths = {'state': len(robot.state_names), 'actions': len(robot.action_names)}
    of_base = acting['stats_from'] == 'base'
    scalings = base.policy.scalings() if of_base else None
    own = normalize.read_norm_stats(folder / OWN, widths)
    policy = normalize.read_norm_stats(folder / POLICY, widths, scalings)
    relative = tuple(acting['relative_joints'])
    return Surroundings(
        base,
        robot,
        RunStatistics(own, policy, policy if of_base else own, relative),
        BaseRecord(base_digest=digest, **acting['sampled']),
        str(folder / pathlib.PurePath(acting['tokenizer']).name),
    )


def read_record(file: pathlib.Path, also: Mapping[str, type] = NOTHING) -> dict[str, Any]:
    """A record.

    Args:
      file: export.json.
      also: what it has to say beside what acting needs, {name: kind}.

    Returns:
      What it says.

    Raises:
      UserError: it is damaged, or of a version that did not note what acting needs.
    """
    try:
        told = json.loads(file.read_text())
        acting, digest = told['acting'], told['base']['digest']
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(acting[name], kind)]
        sampled = acting['sampled']
        wrong += [name for name in sampled if not is_a(KINDS[name], sampled[name])]
        wrong += [name for name, kind in also.items() if not is_a(kind, told[name])]
        if acting['stats_from'] not in ('base', 'data'):
            wrong.append('stats_from')
        if not all(isinstance(flag, bool) for flag in acting['relative_joints']):
            wrong.append('relative_joints')
        if wrong or not isinstance(digest, str):
            raise TypeError(wrong[0] if wrong else f'digest {digest!r}')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'expected the record of a policy that can act in {file}, got none of {error}; {ANEW}'
        ) from error
    return told


def find_base(config: RunConfig, told: Mapping[str, Any], base: str = '') -> str:
    """Where the base of a training lies here; one on a hub is fetched.

    Args:
      config: of the training.
      told: its record, or {}.
      base: its name; '': as the training had it.

    Returns:
      Its folder; '' where the training drew its weights.

    Raises:
      UserError: it is not there; says how to name it.
    """
    where, on_hub = base or config.base, told.get('acting', {}).get('base_on_hub', True)
    if not where:
        return ''
    if not base and not on_hub and not pathlib.Path(where).exists():  # nor asked of a hub
        here = '' if pathlib.Path(where).is_absolute() else f', seen from {pathlib.Path.cwd()}'
        raise UserError(
            f'expected the base that was trained around at {where}, got nothing there{here}; name '
            'it with base='
        )
    try:
        return str(local_path(where))
    except UserError as error:
        raise UserError(
            f'expected the base that was trained around at {where}, got: {error}; if it is '
            'elsewhere, name it with base='
        ) from error
