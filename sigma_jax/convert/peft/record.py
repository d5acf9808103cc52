"""What an export of ours says in its export.json of the training behind an adapter."""

import dataclasses
import pathlib

from sigma_jax.convert.lerobot.read import read_json
from sigma_jax.objectives import kinds

EXPORT = 'export.json'


@dataclasses.dataclass(frozen=True)
class ExportRecord:
    """The settings of a training that its adapter goes by.

    Attributes:
      trains_policy: whether the policy itself was trained, not heads around it.
      base_statistics: whether its numbers were scaled as the base's are.
      relative_joints: one flag an action; none where the base's count.
    """

    trains_policy: bool
    base_statistics: bool
    relative_joints: tuple[bool, ...]

    @classmethod
    def read(cls, folder: pathlib.Path) -> 'ExportRecord':
        """The record of an export.

        Args:
          folder: of the export.

        Returns:
          Its record.

        Raises:
          UserError: a damaged file, or an objective that is not known.
        """
        config = read_json(folder / EXPORT).get('config') or {}
        objective = config.get('objective')
        return cls(
            objective is not None and kinds.find(objective).trains_policy,
            config.get('stats_from') == 'base',
            tuple(map(bool, config.get('relative_joints') or ())),
        )
