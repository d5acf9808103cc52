"""pi0.5 checkpoints in and out: LeRobot and openpi PyTorch, openpi JAX, and our own converted folder.

A converted folder holds `params/` (orbax, openpi's layout), `sigma_config.json` (sizes), `source.json` (where it
came from, digest, what was left out) and whatever stood beside the source: `norm_stats.json`, `tokenizer.json`.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

from sigma_jax import files, trees
from sigma_jax.backbones.pi05 import Pi05Config, abstract_params
from sigma_jax.convert import pytorch, sizes
from sigma_jax.convert.tensors import TensorFiles, find_files
from sigma_jax.errors import UserError

PyTree = Any
BESIDE = ('norm_stats.json', 'tokenizer.json', 'policy.json')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights in our tree (numpy, dtypes as stored), their sizes, and what was noticed on the way."""

    params: PyTree
    config: Pi05Config
    format: str
    notes: tuple[str, ...] = ()


def load(path: str | pathlib.Path) -> Checkpoint:
    """Any supported checkpoint. Raises UserError naming every missing, extra and mis-shaped tensor."""
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f'expected a checkpoint at {path}, got no such file or folder; check the path')
    for folder in (path / 'params', path):
        if (folder / '_METADATA').is_file():
            return _load_orbax(folder, sizes.read_hints(path))
    folder = path if path.is_dir() else path.parent
    return _load_torch(TensorFiles(find_files(path)), sizes.read_hints(folder))


def _load_orbax(folder: pathlib.Path, hints: dict) -> Checkpoint:
    try:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.restore(folder.absolute(), restore_args=_as_numpy(reader, folder))
    except (ValueError, FileNotFoundError, KeyError) as error:
        reason = str(error)[:200].splitlines()[0]  # Orbax's own tells the whole path of every call
        raise UserError(f'expected an orbax checkpoint in {folder}, got: {reason}; copy it again') from error
    flat = {p.removesuffix('/value'): x for p, x in trees.flatten(tree.get('params', tree)).items()}
    params = trees.unflatten(flat)
    try:
        config = sizes.from_jax_shapes({p: x.shape for p, x in flat.items()}, hints)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f'{folder} is no pi0.5: {_what(error)}; choose a pi0.5 checkpoint') from error
    trees.check_same(abstract_params(config), params, str(folder))
    return Checkpoint(params, config, 'openpi-jax')


def _as_numpy(reader: ocp.PyTreeCheckpointer, folder: pathlib.Path) -> PyTree:
    meta = reader.metadata(folder.absolute())
    tree = getattr(meta, 'item_metadata', meta)
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), getattr(tree, 'tree', tree))


def _load_torch(source: TensorFiles, hints: dict) -> Checkpoint:
    stored = {pytorch.canonical(name): name for name in source.names()}
    notes = _resolve_table(stored, source)
    shapes = {name: source.shape(key) for name, key in stored.items()}
    try:
        config = sizes.from_torch_shapes(shapes, hints)
    except UserError:
        raise
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f'{source.files[0]} is no pi0.5: {_what(error)}; choose a pi0.5 checkpoint') from error
    want = trees.flatten(abstract_params(config))
    leaves: dict[str, np.ndarray] = {}
    problems, seen = [], set()
    for rule in pytorch.RULES:
        shape = want[rule.path].shape
        for index, name in rule.names(shape[0]):
            if name not in stored:
                problems.append(f'missing {name}')
                continue
            seen.add(name)
            tensor, slot = source.read(stored[name]), shape[len(index) :]
            expected = rule.form.to_torch(np.empty(slot, np.int8)).shape
            if tensor.shape != expected:
                problems.append(f'{name}: expected shape {expected}, got {tensor.shape}')
                continue
            leaf = leaves.setdefault(rule.path, np.empty(shape, tensor.dtype))
            if leaf.dtype != tensor.dtype:
                problems.append(f'{name}: expected dtype {leaf.dtype} as its other layers, got {tensor.dtype}')
                continue
            leaf[index] = rule.form.to_jax(tensor, slot)
    problems += [f'unexpected {name}' for name in stored if name not in seen]
    if problems:
        raise UserError(f'{source.files[0]} does not fit pi0.5 ({len(problems)} differences): ' + '; '.join(problems))
    lerobot = any(name.startswith('model.') for name in source.names())
    params = trees.unflatten({path: leaves[path] for path in want})
    return Checkpoint(params, config, 'lerobot' if lerobot else 'openpi-pytorch', tuple(notes))


def _what(error: Exception) -> str:
    return f'{error} is missing' if isinstance(error, KeyError) else f'an array has another rank ({error})'


def _resolve_table(stored: dict[str, str], source: TensorFiles) -> list[str]:
    """Leaves one name for the token table in `stored`, drops known-unused tensors, and says so."""
    notes = [f'{name} is unused and left out' for name in pytorch.UNUSED if stored.pop(name, None)]
    head = stored.pop(pytorch.LM_HEAD, None)
    if head and pytorch.EMBED not in stored:
        stored[pytorch.EMBED] = head
    elif head:
        same = np.array_equal(source.read(head), source.read(stored[pytorch.EMBED]))
        notes.append(f'lm_head {"equals" if same else "differs from"} embed_tokens and is left out')
    return notes


def save(checkpoint: Checkpoint, source: str | pathlib.Path, out: str | pathlib.Path) -> pathlib.Path:
    """Writes a converted folder, whole or not at all. Raises UserError if `out` exists."""
    with files.atomic_folder(out) as folder:
        with ocp.PyTreeCheckpointer() as writer:
            writer.save((folder / 'params').absolute(), {'params': checkpoint.params})
        record = {
            'source': pathlib.Path(source).name,
            'format': checkpoint.format,
            'digest': trees.digest(checkpoint.params),
            'parameters': trees.count(checkpoint.params),
            'notes': list(checkpoint.notes),
        }
        (folder / 'source.json').write_text(json.dumps(record, indent=1))
        (folder / sizes.CONFIG_FILE).write_text(json.dumps(sizes.to_json(checkpoint.config), indent=1))
        copy_beside(source, folder)
    return pathlib.Path(out)


def copy_beside(source: str | pathlib.Path, folder: pathlib.Path) -> None:
    """Copies statistics, tokenizer and policy settings that stand beside a checkpoint."""
    beside = pathlib.Path(source)
    beside = beside if beside.is_dir() else beside.parent
    for name in BESIDE:
        if (beside / name).is_file():
            shutil.copy(beside / name, folder / name)


def to_torch(params: PyTree, prefix: str = '') -> dict[str, np.ndarray]:
    """Our tree as PyTorch tensors under openpi's names; `prefix='model.'` gives LeRobot's.

    LeRobot's set has the token table twice and an unused expert head; openpi's converter keeps `lm_head` alone.
    """
    leaves, out = trees.flatten(params), {}
    for rule in pytorch.RULES:
        for index, name in rule.names(leaves[rule.path].shape[0]):
            out[prefix + name] = np.ascontiguousarray(rule.form.to_torch(np.asarray(leaves[rule.path][index])))
    table = out.pop(prefix + pytorch.EMBED)
    out[prefix + pytorch.LM_HEAD] = table
    return out | ({prefix + pytorch.EMBED: table.copy()} if prefix else {})


def in_bfloat16(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors under PyTorch names in bfloat16, but those that LeRobot keeps in float32: image encoder, norms, heads."""
    keep = re.compile(r'vision_tower|multi_modal_projector|norm|(action_(in|out)_proj|time_mlp_(in|out))\.')
    return {k: x if keep.search(k) else x.astype(ml_dtypes.bfloat16) for k, x in tensors.items()}


def save_torch(
    checkpoint: Checkpoint,
    out: str | pathlib.Path,
    layout: str,
    dtype: str = 'stored',
    source: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes `model.safetensors`, `sigma_config.json` and what stood beside `source`, the checkpoint it came from.

    `layout` is 'lerobot' or 'openpi-pytorch'; `dtype` is 'stored' or 'bfloat16' (see `in_bfloat16`).
    """
    with files.atomic_folder(out) as folder:
        tensors = to_torch(checkpoint.params, 'model.' if layout == 'lerobot' else '')
        tensors = in_bfloat16(tensors) if dtype == 'bfloat16' else tensors
        if source is not None:
            copy_beside(source, folder)
        save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
        (folder / sizes.CONFIG_FILE).write_text(json.dumps(sizes.to_json(checkpoint.config), indent=1))
    return pathlib.Path(out)
