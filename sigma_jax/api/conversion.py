"""Checkpoints from layout to layout, and the proof that one is equal to what others computed."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from sigma_jax.convert import assets, source
from sigma_jax.convert import checkpoint as weights
from sigma_jax.convert.merge import merge_slice
from sigma_jax.convert.openpi import lora
from sigma_jax.convert.overrides import Overrides, apply_overrides
from sigma_jax.convert.parity import verify as parity
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.convert.peft import adapter_assets
from sigma_jax.convert.slices import Slice
from sigma_jax.errors import UserError
from sigma_jax.settings import check_choice
from sigma_jax.training.progress import SILENT, Reporter

Path = str | pathlib.Path
DTYPES = (None, 'stored', 'float32', 'bfloat16')
Change = Callable[[Slice, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert_weights` has written.

    Attributes:
      folder: the new folder.
      layout: 'jax', 'lerobot' or 'openpi-pytorch'.
      format: what the source was.
      parameters: how many numbers the weights are.
      digest: SHA-256 over all leaves as written.
      notes: what was assumed, left out or found odd on the way.
    """

    folder: pathlib.Path
    layout: str
    format: str
    parameters: int
    digest: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Proof:
    """What `verify` has compared.

    Attributes:
      rows: one for each quantity of the fixture, in its order.
      dtype: what our model computed in.
      tolerance: largest relative difference in float32.
    """

    rows: tuple[parity.Row, ...]
    dtype: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether no quantity differs and at least one was compared."""
        return parity.passed(self.rows)

    @property
    def compared(self) -> int:
        """How many quantities our model computes too."""
        return sum(row.max_abs is not None for row in self.rows)


def convert_weights(
    checkpoint: Path,
    out: Path,
    *,
    layout: str = 'jax',
    dtype: str | None = None,
    adapter: Path | None = None,
    merge_lora: bool = False,
    lora_alpha: str | float | Sequence[float] | None = None,
    rslora: bool = False,
    stats: Path | None = None,
    action_horizon: int | None = None,
    sample_steps: int | None = None,
    prompt_state: str | None = None,
    reporter: Reporter = SILENT,
) -> Conversion:
    """Writes another layout of the same weights, or of weights with LoRA factors merged in.

    One slice at a time, in well under 3 GiB whatever the model's size; `out` is whole or not there.

    Args:
      checkpoint: a .safetensors file, a folder with weights of any layout, or a hub id.
      out: folder to write; must not exist.
      layout: 'jax' (for `train` and openpi), 'lerobot' or 'openpi-pytorch'.
      dtype: 'stored', 'float32' or 'bfloat16' (the matrices of both Gemmas, as the originals keep
        them); None is 'stored', or 'float32' where factors are merged.
      adapter: a PEFT adapter, folder or hub id, to merge in, with the statistics beside it.
      merge_lora: merge the LoRA factors in openpi's own (JAX) checkpoint by openpi's rule.
      lora_alpha: their alpha, or two (language model, action expert); None is openpi's own.
      rslora: they were trained rank-stabilised.
      stats: statistics from elsewhere: norm_stats.json, a LeRobot policy or data set.
      action_horizon: actions that the policy was trained to give at once.
      sample_steps: steps in which it samples them.
      prompt_state: the state in the prompt: 'robot' (its own joints), 'none' or 'padded'.
      reporter: receives notes on an adapter, and bytes done.

    Returns:
      Where they are, what they are, and what was assumed or left out.

    Raises:
      UserError: `out` exists, no pi0.5 or a damaged one, an adapter of another model, or settings
        that contradict each other.

    Examples:
      >>> import sigma_jax as sj
      >>> done = sj.convert_weights('assets/pi05_tiny', 'runs/base')
      >>> done.format, done.layout, done.parameters
      ('lerobot', 'jax', 829800)
    """
    dtype = _chosen_dtype(dtype, bool(adapter), merge_lora)
    overrides = Overrides(action_horizon, sample_steps, prompt_state)
    opened = source.open_source(checkpoint, _lora_rule(merge_lora, lora_alpha, rslora))
    stats = None if stats is None else str(stats)
    change: Change | None
    if adapter:
        opened, policy_assets, change = _with_adapter(opened, adapter, stats, overrides, reporter)
    else:
        horizon = action_horizon or opened.config.action_horizon
        policy_assets = assets.read(opened.folder, opened.format, stats, horizon)
        change = opened.factors.merge if opened.factors else None
    opened, policy_assets = apply_overrides(opened, policy_assets, overrides)
    return _written(opened, policy_assets, change, pathlib.Path(out), layout, dtype, reporter)


def _chosen_dtype(dtype: str | None, adapter: bool, merge_lora: bool) -> str:
    check_choice('dtype', dtype, DTYPES)
    merging = [name for name, on in (('adapter', adapter), ('merge_lora', merge_lora)) if on]
    if merging and dtype in ('stored', 'bfloat16'):
        raise UserError(
            f'expected --dtype=float32 with --{merging[0]}, got {dtype}: added in bfloat16, '
            'most of it is rounded away; leave --dtype out'
        )
    return 'float32' if merging else dtype or 'stored'


def _with_adapter(
    opened: source.Source,
    adapter: Path,
    stats: str | None,
    overrides: Overrides,
    reporter: Reporter,
) -> tuple[source.Source, assets.PolicyAssets, Change]:
    """(the base as its adapter says, what lies beside both, the change of each slice)."""
    own = overrides.action_horizon or opened.config.action_horizon
    policy_assets = assets.read(opened.folder, opened.format, None, own)
    folder = adapter_assets.home(adapter)
    found = peft.load(folder, opened.config, peft.MERGE_LAYOUTS)
    change = _merged(found, opened.factors.merge if opened.factors else None)
    opened, more = adapter_assets.sized(opened, folder)
    horizon = overrides.action_horizon or opened.config.action_horizon
    policy_assets = adapter_assets.merged(policy_assets, folder, stats, horizon)
    for note in (*found.notes, *more):
        reporter.say(note)
    return opened, policy_assets, change


def _written(
    opened: source.Source,
    policy_assets: assets.PolicyAssets,
    change: Change | None,
    out: pathlib.Path,
    layout: str,
    dtype: str,
    reporter: Reporter,
) -> Conversion:
    with reporter.bars('bytes') as bars:
        update = bars.add(f'{opened.format} -> {layout}').update
        record = weights.convert(
            opened, out, layout, dtype, change, progress=update, policy_assets=policy_assets
        )
    facts = record['format'], record['parameters'], record['digest'], tuple(record['notes'])
    return Conversion(out, layout, *facts)


def _merged(found: peft.Adapter, first: Change | None) -> Change:
    """Each slice after `first`, where there is one, with an adapter's factors added."""

    def change(part: Slice, array: np.ndarray) -> np.ndarray:
        array = first(part, array) if first else array
        layouts, alpha = peft.MERGE_LAYOUTS, found.config.alpha
        return merge_slice(part.path, part.index, array, found.factors, layouts, alpha)

    return change


def _lora_rule(
    merge: bool, alpha: str | float | Sequence[float] | None, rslora: bool
) -> lora.Rule | None:
    """How openpi's LoRA factors are to be merged, None where they are not."""
    if merge:
        if alpha is not None and not isinstance(alpha, str):
            alpha = ','.join(map(str, [alpha] if isinstance(alpha, int | float) else alpha))
        return lora.Rule.parse(alpha, rslora)
    if alpha is not None or rslora:
        alone = '--rslora' if alpha is None else '--lora_alpha'
        raise UserError(f'expected {alone} with --merge_lora, got it alone; give both')
    return None


def verify(
    checkpoint: Path,
    fixture: Path,
    *,
    tolerance: float = 1e-4,
    dtype: str = 'float32',
) -> Proof:
    """Compares our pi0.5 with what a public implementation computed from the same weights.

    In float32 a quantity is equal when max |ours - theirs| is at most `tolerance` of max |theirs|;
    where a side ran in bfloat16, when their cosine is at least 0.999.

    Args:
      checkpoint: the weights, in any layout.
      fixture: folder with inputs.npz, outputs.npz and config.json (tools/make_fixture.py makes
        one).
      tolerance: largest relative difference in float32.
      dtype: 'float32' or 'bfloat16', what our model computes in.

    Returns:
      A row for each quantity; `passed` says whether the checkpoint is proven.

    Raises:
      UserError: a checkpoint or fixture that cannot be read, or that do not belong together.

    Examples:
      >>> import sigma_jax as sj
      >>> proof = sj.verify('tests/data/pi05_tiny/openpi_jax', 'tests/data/pi05_tiny')
      >>> proof.passed, proof.compared
      (True, 28)
    """
    return Proof(tuple(parity.verify(checkpoint, fixture, tolerance, dtype)), dtype, tolerance)
