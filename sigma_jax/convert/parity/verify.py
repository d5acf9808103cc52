"""Parity: our pi0.5 against what a public implementation computed from the same weights and inputs.

Every quantity of a fixture is recomputed from the checkpoint and compared:

    max_abs = max |ours - theirs|    max_rel = max_abs / max |theirs|    cosine over all elements

In float32 a quantity is equal when max_rel is at most the tolerance (masks and positions: when all
are the same). Where our side or theirs ran in bfloat16, rounding alone exceeds any such bound, and
it is equal when its cosine is at least 0.999.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.convert import checkpoint
from sigma_jax.convert.parity.fixture import (
    REMEDY,
    Fixture,
    check_inputs,
    check_sizes,
    read_fixture,
)
from sigma_jax.errors import UserError
from sigma_jax.types import PyTree

# bfloat16 keeps 8 bits; a wrong norm, mask or rotation lands far below (golden fixture's notes)
COSINE = 0.999
# a second implementation's numbers stand beside the first one's under this ending
OPENPI = '_openpi'
TRAINING = {
    'time_cond',
    'suffix_embeddings',
    'suffix_positions',
    'suffix_hidden',
    'velocity',
    'loss',
}
TOKENS = ('image_embeddings_', 'token_', 'prefix_')
TRAINING_INPUTS, SAMPLING_INPUTS = {'actions', 'noise', 'time'}, {'sample_noise'}
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared quantity; the numbers are None where we do not compute it (`verdict`
    'unknown').
    """

    quantity: str
    source: str
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    verdict: str

    @property
    def differs(self) -> bool:
        """Whether this row speaks against the checkpoint."""
        return self.verdict.startswith('DIFFERS')


def passed(rows: Iterable[Row]) -> bool:
    """True when no quantity differs and at least one was compared: the exit status of `verify` is 0
    then, else 1.

    Args:
      rows: of `verify`.

    Returns:
      Whether they pass.
    """
    rows = list(rows)
    return not any(row.differs for row in rows) and any(row.max_abs is not None for row in rows)


def verify(
    checkpoint_path: str | pathlib.Path,
    fixture_dir: str | pathlib.Path,
    tolerance: float = 1e-4,
    dtype: str = 'float32',
) -> list[Row]:
    """Compares every quantity of a fixture, in the order of the file.

    A quantity that is not known here is a row of its own.

    Args:
      checkpoint_path: or a hub id.
      fixture_dir: folder of the fixture.
      tolerance: largest relative difference.
      dtype: that is computed in here.

    Returns:
      One row a quantity.

    Raises:
      UserError: a checkpoint or fixture that cannot be read, or that do not belong together.
    """
    if dtype not in DTYPES:
        raise UserError(
            f'expected one of {", ".join(DTYPES)} to compute in, got {dtype!r}; choose one of them'
        )
    fixture = read_fixture(fixture_dir)
    loaded = checkpoint.load(checkpoint_path)
    check_sizes(fixture, loaded.config)
    config = dataclasses.replace(
        loaded.config, dtype=dtype, sample_steps=fixture.config['num_steps']
    )
    names = {key: quantity_of(key, fixture.cameras) for key in fixture.outputs}
    with jax.default_matmul_precision('highest' if dtype == 'float32' else 'default'):
        ours = compute(config, loaded.params, fixture, {name for name, _ in names.values()})
    half = 'bfloat16' in (dtype, fixture.config.get('dtype'))
    rows = []
    for key, (name, openpi) in names.items():
        source = OPENPI[1:] if openpi else str(fixture.config.get('library', 'lerobot'))
        theirs, mask = (
            fixture.outputs[key],
            ours.get('prefix_mask') if name == 'prefix_hidden' else None,
        )
        rows.append(compare(name, source, ours.get(name), theirs, tolerance, half=half, mask=mask))
    return rows


def quantity_of(key: str, cameras: tuple[str, ...]) -> tuple[str, bool]:
    """What a key of `outputs.npz` is.

    Args:
      key: of the file.
      cameras: names.

    Returns:
      name: of the quantity.
      second: whether it is the second implementation's.
    """
    known = {f'image_embeddings_{camera}' for camera in cameras}
    openpi = key.endswith(OPENPI) and key not in known
    return (key.removesuffix(OPENPI) if openpi else key), openpi


def compute(
    config: BackboneConfig, params: PyTree, fixture: Fixture, names: set[str]
) -> dict[str, np.ndarray]:
    """Quantities of a fixture's inputs as computed here; those that are not known are left out.

    Args:
      config: sizes.
      params: weights.
      fixture: its inputs.
      names: of the quantities.

    Returns:
      {quantity: float32}.

    Raises:
      UserError: inputs that are missing or of another shape than the model's.
    """
    needed = TRAINING_INPUTS if names & TRAINING else set()
    needed = needed | (SAMPLING_INPUTS if 'sampled_actions' in names else set())
    check_inputs(fixture, config, needed)
    spec = kinds.of(config)
    if (quantities := spec.quantities) is None:
        raise UserError(
            f'expected a model whose quantities can be compared, got {spec.name!r}, of which none '
            'are known; give a checkpoint of another kind'
        )

    @jax.jit  # what nobody asks for is not computed: XLA drops it
    def run(params, observation, inputs):
        found = quantities(config, params, observation, inputs, fixture.cameras)
        return {name: x for name, x in found.items() if name in names or name == 'prefix_mask'}

    inputs = {name: fixture.inputs[name] for name in needed}
    found = run(jax.device_put(params), fixture.observation(), inputs)
    return {
        name: np.asarray(x if x.dtype != jnp.bfloat16 else x.astype(jnp.float32))
        for name, x in found.items()
    }


def compare(
    quantity: str,
    source: str,
    ours: np.ndarray | None,
    theirs: np.ndarray,
    tolerance: float,
    *,
    half: bool = False,
    mask: np.ndarray | None = None,
) -> Row:
    """The difference of one quantity.

    Of prefix tokens (axis 1) `theirs` may hold the first alone.

    Args:
      quantity: its name.
      source: whose numbers `theirs` are.
      ours: or None where it is not known.
      theirs: of the fixture.
      tolerance: largest relative difference.
      half: whether a side ran in bfloat16.
      mask: [b s], which tokens count; None: all.

    Returns:
      A row.

    Raises:
      UserError: shapes that differ.
    """
    if ours is None:
        return Row(quantity, source, None, None, None, 'unknown')
    cut = ours[:, : theirs.shape[1]] if quantity.startswith(TOKENS) and theirs.ndim > 1 else ours
    if cut.shape != theirs.shape:
        raise UserError(
            f'expected {quantity} of shape {ours.shape} in outputs.npz, got '
            f'{theirs.shape}; {REMEDY}'
        )
    exact = theirs.dtype.kind in 'iub'
    a, b = cut.astype(np.float64), theirs.astype(np.float64)
    if mask is not None:
        a, b = (x[mask[:, : x.shape[1]]] for x in (a, b))
    if not np.isfinite(a).all():
        return Row(quantity, source, np.inf, np.inf, 0.0, 'DIFFERS (ours is not finite)')
    max_abs, scale = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
    max_rel = max_abs / scale if scale else float(np.inf if max_abs else 0)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a.ravel() @ b.ravel()) / norms if norms else float(max_abs == 0)
    return Row(
        quantity,
        source,
        max_abs,
        max_rel,
        cosine,
        _verdict(max_rel, cosine, tolerance, exact, half),
    )


def _verdict(max_rel: float, cosine: float, tolerance: float, exact: bool, half: bool) -> str:
    if exact:
        return 'equal' if max_rel == 0 else 'DIFFERS (expected the same)'
    if half:
        return f'equal (cosine >= {COSINE})' if cosine >= COSINE else f'DIFFERS (cosine < {COSINE})'
    return f'equal (<= {tolerance:g})' if max_rel <= tolerance else f'DIFFERS (> {tolerance:g})'
