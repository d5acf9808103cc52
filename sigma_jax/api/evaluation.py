"""Trainings against their frozen base, simple methods and each other, as a report."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.evaluation import runner
from sigma_jax.evaluation.compare import runs
from sigma_jax.evaluation.measure import EvaluationConfig
from sigma_jax.evaluation.replay_shards import SPLITS
from sigma_jax.evaluation.request import Request
from sigma_jax.sigma import adapter as inference_adapter
from sigma_jax.training.compilation import enable_compilation_cache
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.progress import SILENT, Reporter

Folder = str | pathlib.Path


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has measured and written.

    Attributes:
      report: everything, as sigma_eval_report.json has it.
      folder: where the files are.
    """

    report: Mapping[str, Any]
    folder: pathlib.Path

    @property
    def report_file(self) -> pathlib.Path:
        """The report as JSON."""
        return self.folder / runner.REPORT

    @property
    def page(self) -> pathlib.Path:
        """The report to read."""
        return self.folder / runner.PAGE


def evaluate(
    workdir: Folder | Sequence[Folder],
    *,
    shards: Folder | None = None,
    out: Folder | None = None,
    splits: Sequence[str] = SPLITS,
    adapter: str = 'default',
    episodes_at_once: int = 4,
    stress: bool = False,
    robustness: bool = False,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Evaluates trained Sigmas on recorded episodes, and writes a report.

    Args:
      workdir: folder of a finished training, or one with rows/<row>/seed<k>/ in it; several
        compare. 'NAME=PATH' names the row of a training folder.
      shards: prepared shards; None are those it was trained on.
      out: where the report goes; None is the training folder (of several: the first one given).
      splits: some of 'train', 'calibration' and 'test'; the adapter is fitted on calibration.
      adapter: 'default' (max_scale chosen on calibration) or 'paper'.
      episodes_at_once: whole episodes a batch.
      stress: stress tests of the adapter too; four more replays of the last split.
      robustness: nine perturbations too; each samples the base on every window anew.
      reporter: receives what is odd, and batches done.

    Returns:
      The report and where its files are.

    Raises:
      UserError: no finished training, trainings that do not go together, shards of another base or
        with episodes that a training learned from, or a folder that cannot be written to.
    """
    asked = request(
        workdir,
        shards=shards,
        out=out,
        splits=splits,
        adapter=adapter,
        episodes_at_once=episodes_at_once,
        stress=stress,
        robustness=robustness,
    )
    enable_compilation_cache(RunFolder(asked.workdir).config().compilation_cache)
    return Evaluation(*runner.run(asked, reporter))


def request(
    workdir: Folder | Sequence[Folder],
    *,
    shards: Folder | None = None,
    out: Folder | None = None,
    adapter: str = 'default',
    splits: Sequence[str] = SPLITS,
    **more: Any,
) -> Request:
    """What `evaluate` is asked for, its folders looked through.

    Args:
      workdir: as `evaluate` takes it.
      shards: as `evaluate` takes them.
      out: as `evaluate` takes it.
      adapter: as `evaluate` takes it.
      splits: as `evaluate` takes them.
      **more: as they are in a `Request`.

    Returns:
      The request, for `evaluation.runner`.

    Raises:
      UserError: no finished training, trainings that do not go together, or an argument of another
        kind.
    """
    if isinstance(splits, str):
        raise UserError(f'expected a sequence of splits, got {splits!r}; give ({splits!r},)')
    if more.get('episodes_at_once', 1) < 1:
        raise UserError(
            f'expected episodes_at_once of at least 1, got {more["episodes_at_once"]}; correct it'
        )
    folders = [workdir] if isinstance(workdir, str | pathlib.Path) else list(workdir)
    paths = [str(path) for path in folders]
    found, left_out = runs.find(paths)
    head = runs.reference_run(found)
    several = len(found) > 1 or bool(left_out)
    if out is None and several:
        out = runs.split_name(paths[0])[1]
    return Request(
        head.folder,
        None if shards is None else pathlib.Path(shards),
        None if out is None else pathlib.Path(out),
        tuple(splits),
        config=EvaluationConfig(adapter=inference_adapter.preset(adapter)),
        rows=tuple(found) if several else (),
        left_out=tuple(left_out),
        **more,
    )
