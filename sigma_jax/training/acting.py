"""All that acting needs of a training: taken from its folder or from its export, neither of which
needs shards.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sigma_jax import trees
from sigma_jax.convert import heads
from sigma_jax.convert.load_base import open_base
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.errors import UserError
from sigma_jax.sigma import adapter as inference_adapter
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training import acting_record
from sigma_jax.training.acting_record import KEPT, OWN, RECORD, Surroundings
from sigma_jax.training.build import Blueprint, build, objective_of
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.types import PyTree

ADAPTER = 'adapter.json'  # beside a run, where it was evaluated
# what the record of an export says, too
OF_EXPORT = {'config': Mapping, 'step': int, 'objective': str, 'weights': str, 'files': Mapping}
# of an export: LoRA factors, Sigma's heads, base and merged weights where they were asked for
FACTORS, HEADS, BASE, MERGED = 'adapter', 'sigma.safetensors', 'base', 'merged'
LEARNED = {'lora': FACTORS, 'sigma': HEADS}  # where a group of what was trained lies


@dataclasses.dataclass(frozen=True, eq=False)
class Acting(Surroundings):
    """A trained checkpoint, ready to be put around its base.

    Attributes:
      config: all settings of its training.
      step: of the checkpoint.
      trainable: what it learned, by group, numpy.
      adapter: weighs Sigma's residual; None: none was fitted.
    """

    config: RunConfig
    step: int
    trainable: PyTree
    adapter: AdapterState | None = None

    @property
    def objective(self) -> Any:
        """Its objective, for the sizes of its base."""
        robot = self.robot
        widths = len(robot.state_names), len(robot.action_names)
        return objective_of(self.config, self.base.config, *widths)


def of_run(folder: RunFolder, step: int | None = None, base: str = '') -> Acting:
    """A checkpoint of a training, on a machine that need not have its shards.

    Args:
      folder: of the training.
      step: which; None is the newest.
      base: its base; '': where the training had it.

    Returns:
      What acting needs.

    Raises:
      UserError: no checkpoint of that step, no base, a damaged record or adapter; or no shards,
        where the training is from before it kept a record.
    """
    learned, (told, config, where) = folder.trainable(step), base_of(folder.path, base)
    if not told:
        return of_plan(build(dataclasses.replace(config, base=where)), *learned, folder)
    opened = open_base(where, config.model, config.lora)
    around = acting_record.read(folder.path / KEPT, told, opened, config)
    return _acting(around, config, learned, folder.path)


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
    around = acting_record.of_shards(plan, plan.base)
    return _acting(around, plan.config, (step, trainable), folder.path)


def _acting(
    around: Surroundings, config: RunConfig, learned: tuple[int, PyTree], folder: pathlib.Path
) -> Acting:
    return Acting(
        **vars(around),
        config=config,
        step=learned[0],
        trainable=learned[1],
        adapter=read_adapter(folder / ADAPTER),
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
    if found.adapter is not None:
        text = json.dumps(inference_adapter.to_dict(found.adapter), indent=1)
        (folder / ADAPTER).write_text(text)
    return acting_record.write(found, found.config, folder)


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


def is_weights(folder: pathlib.Path) -> bool:
    """Whether an export is one of nothing but merged weights, as that of a policy all of whose
    weights were trained. One that lacks its other parts is not: its record says how it acts.

    Args:
      folder: of the export.

    Returns:
      Whether it is.
    """
    parts, record = (folder / FACTORS, folder / HEADS), folder / RECORD
    if not (folder / MERGED).is_dir() or any(part.exists() for part in parts):
        return False
    try:
        return not record.is_file() or 'acting' not in json.loads(record.read_text())
    except (OSError, ValueError, TypeError):  # damaged: who reads it says so
        return False


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
    told, config, where = base_of(folder, base)
    _check_whole(folder, told, config)
    opened = open_base(where, config.model, config.lora)
    trainable: dict[str, PyTree] = {}
    if (folder / FACTORS).is_dir():
        trainable['lora'] = _factors(folder, told, opened.config)
    if (folder / HEADS).is_file():
        trainable['sigma'] = heads.load_heads(folder / HEADS)[0]
    around = acting_record.read(folder, told, opened, config)
    return _acting(around, config, (told['step'], trainable), folder)


def _check_whole(folder: pathlib.Path, told: Mapping[str, Any], config: RunConfig) -> None:
    """Whether an export still holds what was trained and fitted; else it would act otherwise."""
    held = [LEARNED[group] for group in config.trainable if group in LEARNED]
    held += [ADAPTER] * (ADAPTER in told['files'])
    if missing := [name for name in held if not (folder / name).exists()]:
        raise UserError(
            f'expected {" and ".join(missing)} in {folder}, as its record says, got none; copy '
            'the whole export again'
        )


def _factors(folder: pathlib.Path, told: Mapping[str, Any], model: Any) -> PyTree:
    """LoRA factors of an export, the same that were written, as far as its record says."""
    factors = peft.load(folder / FACTORS, model).factors
    if trees.digest(factors) != told.get('factors_digest', trees.digest(factors)):
        raise UserError(
            f'expected in {folder / FACTORS} the factors that were written, got others; copy the '
            'export again'
        )
    return factors


def base_of(folder: pathlib.Path, base: str = '') -> tuple[Mapping[str, Any], RunConfig, str]:
    """What a training was, and where its base lies here.

    Args:
      folder: of a training, or of its export.
      base: its base, where it does not lie in the export; '': where the training had it.

    Returns:
      told: its record; empty for a training from before it kept one.
      config: of the training.
      base: its folder; '' where the training drew its weights.

    Raises:
      UserError: a damaged config or record, or no base.
    """
    run, inside = RunFolder(folder), folder / BASE
    if run.config_file.is_file():
        config, kept = run.config(), folder / KEPT
        told = acting_record.read_record(kept / RECORD) if kept.is_dir() else {}
    else:
        told = acting_record.read_record(folder / RECORD, OF_EXPORT)
        config = RunConfig.from_dict(told['config'])
        base = str(inside) if inside.is_dir() else base
    return told, config, acting_record.find_base(config, told, base)
