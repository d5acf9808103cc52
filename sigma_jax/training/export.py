"""What a training run gives to others: a PEFT adapter, Sigma's heads, merged float32 weights.

adapter/            LoRA factors, for peft's `PeftModel.from_pretrained` (LoRA runs)
sigma.safetensors   Sigma's heads, for `convert.heads.load_heads` (Sigma runs)
norm_stats.json     statistics of the training data, in whose units the heads' residuals count (Sigma runs)
merged/             base and trained weights in one checkpoint (on request)
export.json         what is what, from which step, on which base
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sigma_jax import __version__, files, trees
from sigma_jax.backbones.pi05 import LAYOUTS
from sigma_jax.convert import assets, checkpoint, heads
from sigma_jax.convert.base_policy import load_base
from sigma_jax.convert.lerobot import read
from sigma_jax.convert.merge import merge_piece
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.convert.slices import Piece
from sigma_jax.convert.source import Source, from_memory, open_source
from sigma_jax.data.shards.meta import read_meta
from sigma_jax.data.shards.records import relative_statistics
from sigma_jax.errors import UserError
from sigma_jax.nn.lora import LoraConfig
from sigma_jax.processing import fitting, normalize
from sigma_jax.processing.spec import OURS, ProcessorConfig
from sigma_jax.settings import from_section
from sigma_jax.sigma.model import SigmaConfig
from sigma_jax.training.checkpoints import Checkpoints

PyTree = Any
RECORD, ADAPTER, HEADS, MERGED, STATISTICS = (
    'export.json',
    'adapter',
    'sigma.safetensors',
    'merged',
    'norm_stats.json',
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """One checkpoint of a run (running averages where they were kept) and the base under it,
    opened, not read.
    """

    config: dict
    step: int
    trainable: PyTree
    source: Source
    digest: str

    @property
    def trains_policy(self) -> bool:
        """Whether the policy itself was trained, not Sigma around it."""
        return self.config['objective'] == 'flow_matching'

    @property
    def meta(self) -> dict[str, Any]:
        """What the shards of the run hold."""
        return read_meta(self.config['shards'])

    @property
    def lora(self) -> LoraConfig:
        """Settings of the factors."""
        return from_section(LoraConfig, self.config['lora'], 'lora')


def export_run(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    step: int | None = None,
    layout: str = 'lerobot',
    merge: bool = False,
    base_model: str = '',
) -> pathlib.Path:
    """Writes the export of a training folder, whole or not at all.

    Args:
      step: which checkpoint; None is the newest.
      layout: 'lerobot' or 'openpi-pytorch', of adapter and merged weights.
      merge: write merged weights too; runs that changed the base weights have nothing else to give.
      base_model: name or folder, in `layout`, of the adapted checkpoint, for the adapter's
        settings.

    Raises UserError if `out` exists, for a folder without the checkpoint, and for a run with
    nothing to export.
    """
    run = read_run(pathlib.Path(workdir), step)
    groups = set(run.trainable)
    if 'params' in groups and not merge:
        raise UserError(
            f'expected LoRA factors or heads on a frozen base in {workdir}, got trained base '
            f"weights at step {run.step}; export them merged, or use the run's own folder policy"
        )
    contents = {STATISTICS: 'statistics that the weights were trained with'}
    with files.atomic_folder(out) as folder:
        (folder / STATISTICS).write_text(normalize.norm_stats_json(statistics(run)))
        if 'lora' in groups and 'params' not in groups:
            factors, model = run.trainable['lora'], run.source.config
            peft.save(factors, run.lora, model, folder / ADAPTER, layout=layout, base=base_model)
            if run.trains_policy:
                describe_adapter(run, folder / ADAPTER, layout)
            contents[ADAPTER] = (
                f"LoRA factors for peft's PeftModel.from_pretrained, layout {layout}"
            )
        if 'sigma' in groups:
            heads.save_heads(
                run.trainable['sigma'], folder / HEADS, dataclasses.asdict(sigma_config(run))
            )
            contents[HEADS] = "Sigma's heads; the metadata holds their SigmaConfig"
        if merge:
            save_merged(run, folder / MERGED, layout)
            contents[MERGED] = (
                f'base and trained weights in one checkpoint, float32, layout {layout}'
            )
        (folder / RECORD).write_text(json.dumps(record(run, contents), indent=1))
    return pathlib.Path(out)


def read_run(workdir: pathlib.Path, step: int | None = None) -> Trained:
    """A checkpoint of a training folder. Raises UserError where there is none of that step, naming
    those there are.
    """
    file = workdir / 'config.json'
    if not file.is_file():
        raise UserError(
            f'expected a training folder at {workdir}, got no config.json in it; run train.py first'
        )
    config = json.loads(file.read_text())
    names = (one.name.removeprefix('step_') for one in (workdir / 'checkpoints').glob('step_*'))
    steps = sorted(int(name) for name in names if name.isdigit())
    if not steps or (step is not None and step not in steps):
        wanted = 'a checkpoint' if step is None else f'checkpoint {step}'
        raise UserError(
            f'expected {wanted} in {workdir}, got steps {steps}; choose one of them or train on'
        )
    chosen = steps[-1] if step is None else step
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        trainable = checkpoints.restore_trainable(chosen)
    return Trained(config, chosen, trainable, *open_base(config))


def open_base(config: Mapping[str, Any]) -> tuple[Source, str]:
    """The base of a run and its digest; its weights are read only where no digest was recorded
    beside them.
    """
    if config['base']:
        source = open_source(config['base'])
        if source.digests:
            return source, trees.combine_digests(source.digests)
    base = load_base(config)
    folder = base.folder or pathlib.Path('random')
    return from_memory(
        base.params, base.config, 'random' if base.folder is None else 'base', folder, ()
    ), base.digest


def base_beside(run: Trained) -> assets.Beside:
    """What lies beside the base's weights."""
    if not run.config['base']:
        return assets.Beside(OURS)
    return assets.read(run.source.folder, run.source.format)


def statistics(run: Trained) -> dict[str, normalize.Statistics]:
    """Those that the run used: the data's for Sigma; for the policy itself its base's or the
    data's, as configured.
    """
    shards, base = pathlib.Path(run.config['shards']), base_beside(run)
    if run.trains_policy and run.config['stats_from'] == 'base' and base.statistics is not None:
        widths = {'state': len(run.meta['state_names']), 'actions': len(run.meta['action_names'])}
        return normalize.cut_to(base.statistics, widths, f'the statistics of {run.source.folder}')
    own = normalize.read_norm_stats(shards / STATISTICS)
    return (
        relative_statistics(shards, own, relative_joints(run, base.policy))
        if run.trains_policy
        else own
    )


def relative_joints(run: Trained, policy: ProcessorConfig) -> tuple[bool, ...]:
    """Joints whose actions count from the state: the run's own setting, else the base's."""
    return fitting.of_shards(
        run.config['relative_joints'], policy, run.meta, run.source.config.action_dim
    )


def trained_beside(run: Trained) -> assets.Beside:
    """What belongs beside the trained policy's weights."""
    base = base_beside(run)
    return assets.trained_with(base, statistics(run), relative_joints(run, base.policy), run.meta)


def sigma_config(run: Trained) -> SigmaConfig:
    """Sizes of the heads, from base, data and config as training had them."""
    meta = run.meta
    sizes = {
        'd_model': run.source.config.language.width,
        'state_dim': len(meta['state_names']),
        'action_dim': len(meta['action_names']),
    }
    return from_section(SigmaConfig, sizes | dict(run.config['sigma']), 'sigma')


def describe_adapter(run: Trained, adapter: pathlib.Path, layout: str) -> None:
    """Adds to an adapter how the policy sees the world, and what LeRobot reads: a config.json that
    says what it is.
    """
    assets.write(adapter, layout, trained_beside(run), run.source.config)
    if layout == 'lerobot':
        file = adapter / read.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | {'use_peft': True}, indent=4))


def save_merged(run: Trained, out: pathlib.Path, layout: str) -> None:
    """Base and trained weights in one float32 checkpoint, one slice in memory at a time."""
    around = trained_beside(run) if run.trains_policy else base_beside(run)
    checkpoint.convert(run.source, out, layout, 'float32', merger(run), around=around)


def merger(run: Trained) -> Callable[[Piece, np.ndarray], np.ndarray]:
    """`change(piece, base weights) -> weights as trained`."""
    trained = trees.flatten(run.trainable.get('params', {}))
    factors, alpha = run.trainable.get('lora', {}), run.lora.alpha

    def change(piece: Piece, array: np.ndarray) -> np.ndarray:
        array = trained[piece.path][piece.index] if piece.path in trained else array
        return merge_piece(piece.path, piece.index, array, factors, LAYOUTS, alpha)

    return change


def record(run: Trained, contents: Mapping[str, str]) -> dict[str, Any]:
    """What `export.json` holds."""
    return {
        'sigma_jax': __version__,
        'objective': run.config['objective'],
        'step': run.step,
        'weights': 'as trained'
        if run.config['ema'] is None
        else f'running average, decay {run.config["ema"]}',
        'base': {'name': run.source.name, 'digest': run.digest},
        'files': dict(contents),
        'config': run.config,
    }
