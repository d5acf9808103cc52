"""What an evaluation is asked for."""

import dataclasses
import pathlib

from sigma_jax.errors import UserError
from sigma_jax.evaluation.compare.runs import Training
from sigma_jax.evaluation.measure import EvaluationConfig
from sigma_jax.evaluation.replay_shards import SPLITS


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate: a training folder, shards (default: those it was trained on), where to
    write, on what.

    `rows` are all trainings of a comparison, that of `workdir` among them, and `left_out` those
    that cannot take part.
    """

    workdir: pathlib.Path
    shards: pathlib.Path | None = None
    out: pathlib.Path | None = None  # default: the training folder
    splits: tuple[str, ...] = SPLITS
    episodes_at_once: int = 4
    config: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    rows: tuple[Training, ...] = ()
    left_out: tuple[str, ...] = ()
    stress: bool = False
    robustness: bool = False

    @property
    def folder(self) -> pathlib.Path:
        """Where the files go."""
        return self.out or self.workdir


def check_splits(splits: tuple[str, ...], stress: bool = False) -> None:
    """Checks the names of splits.

    Args:
      splits: asked for.
      stress: whether there are stress tests, which need the adapter and so calibration.

    Raises:
      UserError: one does not exist, there is none, or stress tests without an adapter.
    """
    if unknown := [name for name in splits if name not in SPLITS] or ([''] if not splits else []):
        raise UserError(
            f'splits: expected some of {", ".join(SPLITS)}, got {unknown[0]!r}; name others'
        )
    if stress and 'calibration' not in splits:
        raise UserError(
            "stress: expected 'calibration' among the splits, to fit the adapter on, got "
            f'{",".join(splits)}; add it'
        )
