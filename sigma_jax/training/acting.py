"""All that acting needs of a training: taken from its folder, or from an export that needs neither
shards nor run.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from sigma_jax.convert import heads
from sigma_jax.convert.load_base import Base, open_base
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.data.shards.base_record import BaseRecord
from sigma_jax.errors import UserError
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.policies.robot import RobotSpec
from sigma_jax.processing import normalize
from sigma_jax.processing.tokenizer import tokenizer_file
from sigma_jax.sigma import adapter as inference_adapter
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training.build import Blueprint, RunStatistics, build, objective_of
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.types import PyTree

ADAPTER = 'adapter.json'  # beside a run, where it was evaluated
# of an export: its record, statistics of the data and of the policy's actions, LoRA factors,
# Sigma's heads, base and merged weights where they were asked for
RECORD, OWN, POLICY = 'export.json', 'statistics/data.json', 'statistics/policy.json'
FACTORS, HEADS, BASE, MERGED = 'adapter', 'sigma.safetensors', 'base', 'merged'


@dataclasses.dataclass(frozen=True, eq=False)
class Acting:
    """A trained checkpoint, ready to be put around its base.

    Attributes:
      config: all settings of its training.
      step: of the checkpoint.
      base: opened, its weights unread.
      robot: whose data it learned from.
      statistics: by which states and actions are scaled.
      trainable: what it learned, by group, numpy.
      sampled: how the base is sampled.
      tokenizer: file.
      adapter: weighs Sigma's residual; None: none was fitted.
    """

    config: RunConfig
    step: int
    base: Base
    robot: RobotSpec
    statistics: RunStatistics
    trainable: PyTree
    sampled: BaseRecord
    tokenizer: str
    adapter: AdapterState | None = None

    @property
    def objective(self) -> Any:
        """Its objective, for the sizes of its base."""
        robot = self.robot
        widths = len(robot.state_names), len(robot.action_names)
        return objective_of(self.config, self.base.config, *widths)


def of_run(folder: RunFolder, step: int | None = None) -> Acting:
    """A checkpoint of a training.

    Args:
      folder: of the training.
      step: which; None is the newest.

    Returns:
      What acting needs.

    Raises:
      UserError: no checkpoint of that step, no base or shards, or a damaged adapter beside it.
    """
    chosen, trainable = folder.trainable(step)
    return of_plan(build(folder.config()), chosen, trainable, folder)


def of_plan(plan: Blueprint, step: int, trainable: PyTree, folder: RunFolder) -> Acting:
    """A checkpoint that is read already.

    Args:
      plan: of its run.
      step: of the checkpoint.
      trainable: its leaves.
      folder: of the training.

    Returns:
      What acting needs.

    Raises:
      UserError: shards without the base's actions, or a damaged adapter.
    """
    sampled = BaseRecord(base_digest=plan.base.digest)
    if plan.kind.needs_base_actions:
        sampled = check_baselines(plan.shards, plan.base.digest)
    return Acting(
        plan.config,
        step,
        plan.base,
        RobotSpec.of(plan.shards.meta),
        plan.statistics,
        trainable,
        sampled,
        plan.config.tokenizer,
        read_adapter(folder.path / ADAPTER),
    )


def read_adapter(file: pathlib.Path) -> AdapterState | None:
    """The inference adapter that an evaluation fitted.

    Args:
      file: adapter.json.

    Returns:
      The adapter; None where there is no file.

    Raises:
      UserError: the file holds something else.
    """
    if not file.is_file():
        return None
    try:
        found: Mapping = json.loads(file.read_text())
        return inference_adapter.from_dict(found)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'expected an adapter in {file}, got {error}; run evaluate.py again, or act without it'
        ) from error


def write(found: Acting, folder: pathlib.Path) -> dict[str, Any]:
    """Writes into an export what acting needs beside the weights.

    Args:
      found: of the run.
      folder: of the export.

    Returns:
      What `export.json` is to say under 'acting'.
    """
    statistics = found.statistics
    (folder / OWN).parent.mkdir()
    (folder / OWN).write_text(normalize.norm_stats_json(statistics.own))
    (folder / POLICY).write_text(normalize.norm_stats_json(statistics.policy))
    if found.adapter is not None:
        text = json.dumps(inference_adapter.to_dict(found.adapter), indent=1)
        (folder / ADAPTER).write_text(text)
    tokenizer = copy_tokenizer(found.tokenizer, folder)
    return {
        'robot': found.robot.to_json(),
        'tokenizer': tokenizer,
        'stats_from': 'data' if statistics.loader is statistics.own else 'base',
        'relative_joints': list(statistics.relative_joints),
        'sampled': {'seed': found.sampled.seed, 'dtype': found.sampled.dtype},
    }


def contents(folder: pathlib.Path) -> dict[str, str]:
    """What `write` wrote.

    Args:
      folder: of the export.

    Returns:
      {file or folder: what it is}.
    """
    known = {
        pathlib.PurePath(OWN).parts[0]: "statistics of the data and of the policy's actions",
        ADAPTER: 'the inference adapter',
        **{file.name: 'the tokenizer' for file in folder.glob('tokenizer.*')},
    }
    return {name: what for name, what in known.items() if (folder / name).exists()}


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


def is_weights(folder: pathlib.Path) -> bool:
    """Whether an export holds nothing but merged weights, as that of a policy all of whose weights
    were trained does.

    Args:
      folder: of the export.

    Returns:
      Whether it does.
    """
    parts = (folder / FACTORS, folder / HEADS)
    return (folder / MERGED).is_dir() and not any(part.exists() for part in parts)


def of_export(folder: pathlib.Path, base: str = '') -> Acting:
    """What `export` wrote, on a machine that need not have shards or run.

    Args:
      folder: of the export.
      base: its base, where it does not lie in the export; '': where the run had it.

    Returns:
      What acting needs.

    Raises:
      UserError: a damaged export, one of an earlier version, or no base.
    """
    told = read_record(folder / RECORD)
    acting, config = told['acting'], RunConfig.from_dict(told['config'])
    where = folder / BASE if (folder / BASE).is_dir() else base or config.base
    opened = open_base(str(where), config.model, config.lora)
    robot = RobotSpec.from_json(acting['robot'], str(folder / RECORD))
    widths = {'state': len(robot.state_names), 'actions': len(robot.action_names)}
    of_base = acting['stats_from'] == 'base'
    scalings = opened.policy.scalings() if of_base else None
    own = normalize.read_norm_stats(folder / OWN, widths)
    policy = normalize.read_norm_stats(folder / POLICY, widths, scalings)
    relative = tuple(acting['relative_joints'])
    trainable: dict[str, PyTree] = {}
    if (folder / FACTORS).is_dir():
        trainable['lora'] = peft.load(folder / FACTORS, opened.config).factors
    if (folder / HEADS).is_file():
        trainable['sigma'] = heads.load_heads(folder / HEADS)[0]
    return Acting(
        config,
        told['step'],
        opened,
        robot,
        RunStatistics(own, policy, policy if of_base else own, relative),
        trainable,
        BaseRecord(base_digest=told['base']['digest'], **acting['sampled']),
        str(folder / pathlib.PurePath(acting['tokenizer']).name),
        read_adapter(folder / ADAPTER),
    )


def read_record(file: pathlib.Path) -> dict[str, Any]:
    """The record of an export.

    Args:
      file: export.json.

    Returns:
      What it says.

    Raises:
      UserError: it is damaged, or of a version that did not note what acting needs.
    """
    try:
        told = json.loads(file.read_text())
        parts = told['acting'], told['config'], told['base']['digest'], told['step']
        if not isinstance(parts[0], dict):
            raise TypeError(f'acting {parts[0]!r}')
        for name in ('robot', 'tokenizer', 'stats_from', 'relative_joints', 'sampled'):
            parts[0][name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'expected the record of an export that can act in {file}, got none of {error}; '
            'export the run again'
        ) from error
    return told
