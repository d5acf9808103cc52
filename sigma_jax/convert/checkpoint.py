"""pi0.5 checkpoints in and out: LeRobot and openpi PyTorch, openpi JAX, and our own converted
folder.

A converted folder holds the weights in the layout asked for (`params/` in openpi's JAX layout, or
`model.safetensors`), `sigma_config.json` (sizes), `source.json` (where it came from, digests, what
was left out) and whatever stood beside the source. Weights pass one slice at a time: a conversion
needs well under 3 GiB, whatever the model's size.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from sigma_jax import files, trees
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.backbones.names import NameTable
from sigma_jax.convert import assets, joints, sizes
from sigma_jax.convert.leaf_digests import Digests
from sigma_jax.convert.openpi import training_config
from sigma_jax.convert.openpi.training_config import RECORD
from sigma_jax.convert.slices import Slice, slices_of
from sigma_jax.convert.source import Source, from_memory, open_source
from sigma_jax.convert.tensor_files import DTYPES
from sigma_jax.convert.writers import open_writer
from sigma_jax.errors import UserError, few
from sigma_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights in our tree (numpy, dtypes as stored), their sizes, what was noticed on the way, and
    their digest.
    """

    params: PyTree
    config: BackboneConfig
    format: str
    notes: tuple[str, ...] = ()
    digest: str = ''


def load(path: str | pathlib.Path) -> Checkpoint:
    """Any supported checkpoint, whole.

    Args:
      path: of it, or a hub id.

    Returns:
      The weights and sizes.

    Raises:
      UserError: a tensor does not fit; names every one.
    """
    return load_source(open_source(path))


def load_source(source: Source) -> Checkpoint:
    """The weights of an opened checkpoint, whole.

    Args:
      source: opened.

    Returns:
      The weights and sizes.

    Raises:
      UserError: they differ from the digests recorded with them.
    """
    leaves = {p: np.empty(shape, source.dtypes[p]) for p, shape in source.shapes.items()}
    with Digests(source.shapes, source.dtypes) as digests:
        for part in slices_of(source.shapes, source.spec.names):
            array = source.read(part)
            leaves[part.path][part.index] = digests.add(part, array)
    _check_digests(source, digests.leaves)
    digest = trees.combine_digests(digests.leaves)
    return Checkpoint(trees.unflatten(leaves), source.config, source.format, source.notes, digest)


def save(
    checkpoint: Checkpoint,
    folder: str | pathlib.Path,
    out: str | pathlib.Path,
    layout: str = 'jax',
    **options: Any,
) -> pathlib.Path:
    """Writes weights in memory as `convert` does.

    Args:
      checkpoint: the weights.
      folder: whose statistics and settings go along, if no `policy_assets` is given.
      out: the new folder.
      layout: of the names.
      **options: for `convert`.

    Returns:
      `out`.
    """
    folder = pathlib.Path(folder)
    source = from_memory(
        checkpoint.params, checkpoint.config, checkpoint.format, folder, checkpoint.notes
    )
    convert(source, out, layout, **options)
    return pathlib.Path(out)


def convert(
    source: Source,
    out: str | pathlib.Path,
    layout: str,
    dtype: str = 'stored',
    change: Callable[[Slice, np.ndarray], np.ndarray] | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    policy_assets: assets.PolicyAssets | None = None,
) -> dict:
    """Writes a checkpoint to a new folder, whole or not at all.

    Args:
      source: opened.
      out: the new folder.
      layout: one of `writers.LAYOUTS`.
      dtype: 'stored', 'float32' or 'bfloat16' (the matrices of both Gemmas, as the originals).
      change: maps each slice to what is written; None: as it is.
      progress: called with (bytes done, bytes in all).
      policy_assets: assets to write in place of the source's own.

    Returns:
      The record that is also written.

    Raises:
      UserError: `out` exists, the weights differ from the digests recorded with them, or
        statistics, relative joints and the model have other numbers of actions.
    """
    policy_assets = _fitted(
        policy_assets or assets.read(source.folder, source.format), source.config
    )
    shapes, table = source.shapes, source.spec.names
    dtypes = {path: target_dtype(path, one, dtype, table) for path, one in source.dtypes.items()}
    todo = list(slices_of(shapes, table))
    total, done = sum(_size(part, dtypes) for part in todo), 0
    with (
        files.atomic_folder(out) as folder,
        Digests(shapes, source.dtypes) as before,
        Digests(shapes, dtypes) as after,
    ):
        with open_writer(layout, folder, shapes, dtypes, table) as put:
            for part in todo:
                array = source.read(part)
                new = (change(part, array) if change else array).astype(
                    dtypes[part.path], copy=False
                )
                put(part, after.add(part, np.ascontiguousarray(new)))
                if source.digests:
                    before.add(part, array)
                done += _size(part, dtypes)
                progress(done, total)
        _check_digests(source, before.leaves)
        half = DTYPES['BF16'] in {
            dtypes[path] for path in dtypes if table.group(path) in table.half
        }
        notes = list(
            assets.write(
                folder, layout, policy_assets, source.config, 'bfloat16' if half else 'float32'
            )
        )
        assumed = {**source.assumed, **policy_assets.assumed}
        notes += training_config.assumption_notes(
            assumed, source.config, policy_assets.policy.prompt_state_dim
        )
        record = _record(source, layout, notes, after.leaves) | (
            {'assumed': assumed} if assumed else {}
        )
        (folder / RECORD).write_text(json.dumps(record, indent=1))
        (folder / sizes.CONFIG_FILE).write_text(json.dumps(sizes.to_json(source.config), indent=1))
    return record


def _fitted(policy_assets: assets.PolicyAssets, config: BackboneConfig) -> assets.PolicyAssets:
    """`policy_assets` with as many flags as actions, and with the model's sizes for LeRobot's
    config.json; notes on both.
    """
    policy, notes = joints.fitted(policy_assets.policy, policy_assets.statistics, config.action_dim)
    return assets.sized(
        dataclasses.replace(policy_assets, policy=policy, notes=(*policy_assets.notes, *notes)),
        config,
    )


def target_dtype(path: str, stored: np.dtype, dtype: str, table: NameTable) -> np.dtype:
    """The dtype that a leaf is written in.

    Args:
      path: of the leaf.
      stored: its dtype.
      dtype: as for `convert`.
      table: names, and which leaves are matrices of the Gemmas.

    Returns:
      The dtype.
    """
    if dtype == 'float32':
        return DTYPES['F32']
    return DTYPES['BF16'] if dtype == 'bfloat16' and table.group(path) in table.half else stored


def _size(part: Slice, dtypes: Mapping[str, np.dtype]) -> int:
    return int(np.prod(part.shape)) * dtypes[part.path].itemsize


def _record(source: Source, layout: str, more: Iterable[str], leaves: Mapping[str, str]) -> dict:
    notes = [*source.notes, *more]
    if layout != 'jax':
        notes.append(
            f'{source.spec.names.unused} is unused and written as zeros, which loaders of '
            'this layout ask for'
        )
    return {
        'source': source.name,
        'format': source.format,
        'layout': layout,
        'parameters': sum(int(np.prod(shape)) for shape in source.shapes.values()),
        'notes': notes,
        'digest': trees.combine_digests(leaves),
        'leaves': dict(leaves),
    }


def _check_digests(source: Source, found: Mapping[str, str]) -> None:
    wrong = sorted(path for path, digest in source.digests.items() if found.get(path) != digest)
    if wrong:
        raise UserError(
            f'expected the weights that {RECORD} records in {source.folder}, got others in '
            f'{few(wrong, ", ")}; copy the folder again, or remove {RECORD} if they were changed '
            'on purpose'
        )
