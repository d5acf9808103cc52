"""What a training run gives to others: a PEFT adapter, Sigma's heads, merged float32 weights.

adapter/            LoRA factors, for peft's `PeftModel.from_pretrained` (LoRA runs)
sigma.safetensors   Sigma's heads, for `convert.heads.load_heads` (Sigma runs)
norm_stats.json     statistics of the training data, in whose units the heads' residuals count
                    (Sigma runs)
statistics/, tokenizer.json, adapter.json
                    what acting needs besides, where the base stayed frozen
merged/, base/      base and trained weights in one checkpoint; the base (on request)
export.json         what is what, from which step, on which base
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sigma_jax import __version__, files, trees
from sigma_jax.convert import assets, checkpoint, heads
from sigma_jax.convert.lerobot import read
from sigma_jax.convert.load_base import read_weights
from sigma_jax.convert.merge import merge_slice
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.convert.slices import Slice
from sigma_jax.convert.source import Source, from_memory
from sigma_jax.errors import UserError
from sigma_jax.processing import normalize
from sigma_jax.processing.spec import OURS
from sigma_jax.training import acting, acting_record
from sigma_jax.training.acting import BASE, FACTORS, HEADS, MERGED
from sigma_jax.training.acting_record import RECORD
from sigma_jax.training.build import Blueprint, build
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.types import PyTree

STATISTICS = 'norm_stats.json'


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """One checkpoint of a run (running averages where they were kept), and the run by shapes."""

    plan: Blueprint
    step: int
    trainable: PyTree
    source: Source
    digest: str

    @property
    def config(self) -> RunConfig:
        """All settings of the run."""
        return self.plan.config

    @property
    def trains_policy(self) -> bool:
        """Whether the policy itself was trained, not Sigma around it."""
        return self.plan.kind.trains_policy


def export_run(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    step: int | None = None,
    layout: str = 'lerobot',
    merge: bool = False,
    base_model: str = '',
    *,
    with_base: bool = False,
) -> pathlib.Path:
    """Writes the export of a training folder, whole or not at all.

    Args:
      workdir: the training folder.
      out: the new folder.
      step: which checkpoint; None is the newest.
      layout: 'lerobot' or 'openpi-pytorch', of adapter and merged weights.
      merge: write merged weights too; runs that changed the base weights have nothing else to give.
      base_model: name or folder, in `layout`, of the adapted checkpoint, for the adapter's
        settings.
      with_base: write the base too, so that the folder acts alone.

    Returns:
      `out`.

    Raises:
      UserError: `out` exists, the folder lacks the checkpoint, or the run has nothing to export.
    """
    source = RunFolder(pathlib.Path(workdir))
    run = read_run(source, step)
    groups = set(run.trainable)
    if 'params' in groups and not merge:
        raise UserError(
            f'expected LoRA factors or heads on a frozen base in {workdir}, got trained base '
            f"weights at step {run.step}; export them merged, or use the run's own folder policy"
        )
    contents = {STATISTICS: 'statistics that the weights were trained with'}
    told: dict[str, Any] = {}
    with files.atomic_folder(out) as folder:
        (folder / STATISTICS).write_text(normalize.norm_stats_json(statistics(run)))
        if 'lora' in groups and 'params' not in groups:
            factors, model = run.trainable['lora'], run.source.config
            peft.save(
                factors, run.config.lora, model, folder / FACTORS, layout=layout, base=base_model
            )
            written = peft.load(folder / FACTORS, model).factors
            told['factors_digest'] = trees.digest(written)
            if run.trains_policy:
                describe_adapter(run, folder / FACTORS, layout)
            contents[FACTORS] = (
                f"LoRA factors for peft's PeftModel.from_pretrained, layout {layout}"
            )
        if 'sigma' in groups:
            heads.save_heads(
                run.trainable['sigma'], folder / HEADS, dataclasses.asdict(run.plan.objective.sigma)
            )
            contents[HEADS] = "Sigma's heads; the metadata holds their SigmaConfig"
        if merge:
            save_merged(run, folder / MERGED, layout)
            acting_record.copy_tokenizer(run.config.tokenizer, folder / MERGED)
            contents[MERGED] = (
                f'base and trained weights in one checkpoint, float32, layout {layout}'
            )
        if 'params' not in groups:
            found = acting.of_plan(run.plan, run.step, run.trainable, source)
            told['acting'] = acting.write(found, folder)
            contents |= acting.contents(folder)
        if with_base:
            checkpoint.convert(run.source, folder / BASE, 'jax', policy_assets=base_assets(run))
            contents[BASE] = 'the base, layout jax'
        (folder / RECORD).write_text(json.dumps(record(run, contents) | told, indent=1))
    return pathlib.Path(out)


def read_run(folder: RunFolder, step: int | None = None) -> TrainedRun:
    """A checkpoint of a training.

    Args:
      folder: of the training.
      step: which; None is the newest.

    Returns:
      The checkpoint.

    Raises:
      UserError: there is none of that step; names those there are.
    """
    config = folder.config()
    chosen, trainable = folder.trainable(step)
    plan = build(config)
    return TrainedRun(plan, chosen, trainable, *opened(plan))


def opened(plan: Blueprint) -> tuple[Source, str]:
    """The base of a run and its digest; its weights are read only where no digest was recorded with
    them.

    Args:
      plan: of the run.

    Returns:
      source: of the weights.
      digest: of the weights.
    """
    base = plan.base
    if base.source is not None and base.source.digests:
        return base.source, trees.combine_digests(base.source.digests)
    base = read_weights(base, plan.config.seed, plan.config.tokenizer)
    if base.source is not None:
        return base.source, base.digest
    source = from_memory(base.params, base.config, 'random', pathlib.Path('random'), ())
    return source, base.digest


def base_assets(run: TrainedRun) -> assets.PolicyAssets:
    """The assets of a run's base.

    Args:
      run: a checkpoint.

    Returns:
      The assets.
    """
    source = run.plan.base.source
    return (
        assets.PolicyAssets(OURS) if source is None else assets.read(source.folder, source.format)
    )


def statistics(run: TrainedRun) -> dict[str, normalize.Statistics]:
    """The statistics that a run used: the data's for Sigma; for the policy itself its base's or the
    data's, as configured.

    Args:
      run: a checkpoint.

    Returns:
      {'state', 'actions'}.
    """
    found = run.plan.statistics
    return found.policy if run.trains_policy else found.own


def trained_assets(run: TrainedRun) -> assets.PolicyAssets:
    """The assets of the trained policy.

    Args:
      run: a checkpoint.

    Returns:
      The assets.
    """
    joints, delay = run.plan.statistics.relative_joints, run.config.rtc.max_delay
    base, meta = base_assets(run), run.plan.shards.meta
    return assets.trained_with(base, statistics(run), joints, meta, max_delay=delay)


def describe_adapter(run: TrainedRun, adapter: pathlib.Path, layout: str) -> None:
    """Adds to an adapter how the policy sees the world, and what LeRobot reads: a config.json that
    says what it is.

    Args:
      run: a checkpoint.
      adapter: its folder.
      layout: of its names.
    """
    assets.write(adapter, layout, trained_assets(run), run.source.config)
    if layout == 'lerobot':
        file = adapter / read.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | {'use_peft': True}, indent=4))


def save_merged(run: TrainedRun, out: pathlib.Path, layout: str) -> None:
    """Base and trained weights in one float32 checkpoint, one slice in memory at a time.

    Args:
      run: a checkpoint.
      out: the new folder.
      layout: of its names.
    """
    policy_assets = trained_assets(run) if run.trains_policy else base_assets(run)
    checkpoint.convert(run.source, out, layout, 'float32', merger(run), policy_assets=policy_assets)


def merger(run: TrainedRun) -> Callable[[Slice, np.ndarray], np.ndarray]:
    """How a slice of the base becomes one of the trained policy.

    Args:
      run: a checkpoint.

    Returns:
      `change(part, base weights) -> weights as trained`.
    """
    trained = trees.flatten(run.trainable.get('params', {}))
    factors, alpha = run.trainable.get('lora', {}), run.config.lora.alpha
    layouts = run.plan.base.spec.layouts

    def change(part: Slice, array: np.ndarray) -> np.ndarray:
        array = trained[part.path][part.index] if part.path in trained else array
        return merge_slice(part.path, part.index, array, factors, layouts, alpha)

    return change


def record(run: TrainedRun, contents: Mapping[str, str]) -> dict[str, Any]:
    """The contents of `export.json`.

    Args:
      run: a checkpoint.
      contents: {file: what it is}.

    Returns:
      For JSON.
    """
    return {
        'sigma_jax': __version__,
        'objective': run.config.objective,
        'step': run.step,
        'weights': 'as trained'
        if run.config.ema is None
        else f'running average, decay {run.config.ema}',
        'base': {'name': run.source.name, 'digest': run.digest},
        'files': dict(contents),
        'config': run.config.to_dict(),
    }
