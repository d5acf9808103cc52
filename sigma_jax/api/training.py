"""A run, an ablation, and what a run gives to others."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping

from sigma_jax.ablations import side_by_side
from sigma_jax.training import trainer
from sigma_jax.training.compilation import keep_programs
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import use_all_cores
from sigma_jax.training.export import export_run
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.logs import read_rows


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` has come to.

    Attributes:
      folder: config, checkpoints and log.
      step: optimiser steps that the newest checkpoint has seen.
      losses: the last row of the log, by its columns.
    """

    folder: RunFolder
    step: int
    losses: Mapping[str, float]


def train(config: RunConfig, workdir: str | pathlib.Path) -> Training:
    """Trains Sigma, or pi0.5 itself, to `config.steps`.

    Goes on from the newest checkpoint in `workdir`, bit for bit as if it had never stopped.

    Args:
      config: every setting; it names base and shards.
      workdir: folder for train_log.csv, tensorboard/, checkpoints/ and config.json, and policy/
        after flow matching of all weights.

    Returns:
      The folder, the step reached and the last losses.

    Raises:
      UserError: anything wrong with config, shards, base or checkpoint; a loss that is not finite;
        a full disk.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    keep_programs(config.compilation_cache)
    state = trainer.train(config, workdir)
    folder = RunFolder(pathlib.Path(workdir))
    return Training(folder, int(state.step), last_losses(folder))


def last_losses(folder: RunFolder) -> dict[str, float]:
    """The last row of a log without its step; empty where there is none.

    Args:
      folder: of the training.

    Returns:
      {column: value}.
    """
    rows = read_rows(folder.log)
    return {k: float(v) for k, v in rows[-1].items() if k != 'step'} if rows else {}


def train_ablations(
    config: RunConfig, grid: Mapping, workdir: str | pathlib.Path
) -> dict[str, tuple[RunFolder, ...]]:
    """Trains rows of gates and their seeds, all in one program.

    Where JAX runs on a CPU and has not been used yet, every core becomes a device of its own.

    Args:
      config: every setting of each of them but gates and seed.
      grid: `rows`, {name: {gate: value}}, and `seeds`, as configs/ablations.py returns them.
      workdir: holds rows/ROW/seedK/, each a training folder as of `train`, and ablations.json.

    Returns:
      The training folders of each row, in the order of its seeds.

    Raises:
      UserError: as `train` does, and when no training is left.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    keep_programs(config.compilation_cache)
    with contextlib.suppress(RuntimeError):  # JAX knows its devices already
        use_all_cores()
    members, _ = side_by_side.train(config, grid, workdir)
    folder = RunFolder(pathlib.Path(workdir))
    rows: dict[str, tuple[RunFolder, ...]] = {}
    for member in members:
        place = side_by_side.place(folder, member)
        rows[member.row] = (*rows.get(member.row, ()), place)
    return rows


def export(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    step: int | None = None,
    layout: str = 'lerobot',
    merge: bool = False,
    base_model: str = '',
) -> pathlib.Path:
    """Writes what a training gives to others: a PEFT adapter, Sigma's heads, merged weights.

    Args:
      workdir: folder of a training.
      out: folder to write; must not exist.
      step: which checkpoint; None is the newest.
      layout: 'lerobot' or 'openpi-pytorch', of adapter and merged weights.
      merge: write base and trained weights as one float32 checkpoint too.
      base_model: what the adapter names as its base: a hub id or a folder.

    Returns:
      The folder; its export.json says what is what.

    Raises:
      UserError: `out` exists, no checkpoint of that step, or nothing to export.
    """
    return export_run(workdir, out, step, layout, merge, base_model)
