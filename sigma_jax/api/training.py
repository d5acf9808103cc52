"""A run, an ablation, their memory, and what a run gives to others."""

import contextlib
import pathlib
from collections.abc import Mapping

from sigma_jax.ablations import stacked_trainer
from sigma_jax.ablations.stacked_trainer import AblationResult
from sigma_jax.training import memory_check, trainer
from sigma_jax.training.compilation import enable_compilation_cache
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import use_all_cores
from sigma_jax.training.export import export_run
from sigma_jax.training.grid import Grid
from sigma_jax.training.memory_check import Forecast
from sigma_jax.training.progress import SILENT, Reporter
from sigma_jax.training.trainer import TrainingResult


def train(
    config: RunConfig | Mapping, workdir: str | pathlib.Path, *, reporter: Reporter = SILENT
) -> TrainingResult:
    """Trains Sigma, or pi0.5 itself, to `config.steps`.

    Goes on from the newest checkpoint in `workdir`, bit for bit as if it had never stopped.

    Args:
      config: every setting, or a nested dictionary of them; it names base and shards.
      workdir: folder for train_log.csv, tensorboard/, checkpoints/ and config.json, and policy/
        after flow matching of all weights.
      reporter: receives what is trained, steps done and losses.

    Returns:
      The folder, the state reached and the last losses.

    Raises:
      UserError: anything wrong with config, shards, base or checkpoint; a loss that is not finite;
        a full disk.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    config = RunConfig.of(config)
    enable_compilation_cache(config.compilation_cache)
    return trainer.train(config, workdir, reporter)


def train_ablations(
    config: RunConfig | Mapping,
    grid: Grid | Mapping,
    workdir: str | pathlib.Path,
    *,
    reporter: Reporter = SILENT,
) -> AblationResult:
    """Trains rows of gates and their seeds, all in one program.

    Where JAX runs on a CPU and has not been used yet, every core becomes a device of its own.

    Args:
      config: every setting of each of them but gates and seed, or a dictionary.
      grid: a `Grid`, or `rows`, {name: {gate: value}}, and `seeds`, as configs/ablations.py returns
        them.
      workdir: holds rows/ROW/seedK/, each a training folder as of `train`, and ablations.json.
      reporter: receives what is trained, steps done, and which training has met NaN.

    Returns:
      The training folders of each row, the states and the last losses.

    Raises:
      UserError: as `train` does, and when no training is left.
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call continues.
    """
    config = RunConfig.of(config)
    grid = Grid.of(grid, config.ablation)
    enable_compilation_cache(config.compilation_cache)
    with contextlib.suppress(RuntimeError):  # JAX knows its devices already
        use_all_cores()
    return stacked_trainer.train(config, grid, workdir, reporter)


def forecast(
    config: RunConfig | Mapping,
    *,
    card_gib: float | None = None,
    grid: Grid | Mapping | None = None,
) -> Forecast:
    """Says what a training will need of a GPU, from shapes alone: no weight is read, none compiled.

    Args:
      config: every setting of the training, or a nested dictionary of them.
      card_gib: memory of the card in GiB, such as 24; None is the GPU here.
      grid: rows and seeds where many are to be trained in one program, as `train_ablations` takes
        them.

    Returns:
      Bytes of each part, whether they fit, and what would make them fewer.

    Raises:
      UserError: no GPU here and none named, or anything wrong with the config.

    Examples:
      >>> import sigma_jax as sj
      >>> from configs import sigma_pi05  # full size, on a base in bfloat16
      >>> config = sj.RunConfig.from_dict(sigma_pi05.get_config().to_dict())
      >>> sj.forecast(config, card_gib=24).fits
      True
    """
    config = RunConfig.of(config)
    known = None if grid is None else Grid.of(grid, config.ablation)
    members = 1 if known is None else len(known.rows) * len(known.seeds)
    return memory_check.forecast(config, card_gib, members)


def export(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    step: int | None = None,
    layout: str = 'lerobot',
    merge: bool = False,
    base_model: str = '',
    with_base: bool = False,
) -> pathlib.Path:
    """Writes what a training gives to others: a PEFT adapter, Sigma's heads, merged weights.

    Args:
      workdir: folder of a training.
      out: folder to write; must not exist.
      step: which checkpoint; None is the newest.
      layout: 'lerobot' or 'openpi-pytorch', of adapter and merged weights.
      merge: write base and trained weights as one float32 checkpoint too.
      base_model: what the adapter names as its base: a hub id or a folder.
      with_base: write the base too, so that the folder acts alone (`load_policy`).

    Returns:
      The folder; its export.json says what is what.

    Raises:
      UserError: `out` exists, no checkpoint of that step, or nothing to export.
    """
    return export_run(workdir, out, step, layout, merge, base_model, with_base=with_base)
