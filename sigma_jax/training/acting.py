"""All that acting needs of a training: taken from its folder, or from an export that needs neither
shards nor run.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sigma_jax.convert.base_policy import Base
from sigma_jax.data.shards.base_record import BaseRecord
from sigma_jax.errors import UserError
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.policies.robot import RobotSpec
from sigma_jax.sigma import adapter as inference_adapter
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training.build import Statistics, build, objective_of
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.types import PyTree

ADAPTER = 'adapter.json'  # beside a run, where it was evaluated


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
    statistics: Statistics
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
    config = folder.config()
    chosen, trainable = folder.trainable(step)
    plan = build(config)
    sampled = BaseRecord(base_digest=plan.base.digest)
    if config.kind.needs_base_actions:
        sampled = check_baselines(plan.shards, plan.base.digest)
    return Acting(
        config,
        chosen,
        plan.base,
        RobotSpec.of(plan.shards.meta),
        plan.statistics,
        trainable,
        sampled,
        config.tokenizer,
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
