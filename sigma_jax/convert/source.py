"""An opened checkpoint of any layout: its sizes and types, checked, and a reader of slices. No
weight is read yet.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Mapping

import numpy as np

from sigma_jax import trees
from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig, BackboneSpec
from sigma_jax.backbones.names import NameTable
from sigma_jax.convert import orbax_tree, other_models, sizes, validate, wrappers
from sigma_jax.convert.openpi import lora as openpi_lora
from sigma_jax.convert.openpi import training_config
from sigma_jax.convert.openpi.training_config import RECORD
from sigma_jax.convert.orbax_leaves import LeafReader
from sigma_jax.convert.slices import Slice, slices_of
from sigma_jax.convert.tensor_files import READ_AS, TensorFiles, find_files
from sigma_jax.errors import UserError
from sigma_jax.hub.download import local_path
from sigma_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose weights `read(part)` gives, one slice of our tree at a time, in the dtype
    as stored.

    `assumed` names the sizes that no file says, and where they come from (`training_config`).
    `read` gives the base's weights; `factors`, where there are some, are merged in by
    `factors.merge`.
    """

    name: str
    folder: pathlib.Path
    config: BackboneConfig
    format: str
    dtypes: Mapping[str, np.dtype]
    read: Callable[[Slice], np.ndarray]
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    factors: openpi_lora.Factors | None = None

    @property
    def spec(self) -> BackboneSpec:
        """Its kind of backbone."""
        return kinds.of(self.config)

    @property
    def digest(self) -> str:
        """Digest of the weights as recorded beside them; '' where none is."""
        return (
            trees.combine_digests(self.digests) if self.digests.keys() == self.shapes.keys() else ''
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every leaf."""
        leaves = trees.flatten(self.spec.abstract_params(self.config))
        return {path: leaf.shape for path, leaf in leaves.items()}


def open_source(path: str | pathlib.Path, lora: openpi_lora.Rule | None = None) -> Source:
    """Opens any supported checkpoint; weights are read when they are asked for.

    Args:
      path: of it, or a hub id.
      lora: how openpi's factors in it are to be merged; None: it has none.

    Returns:
      The checkpoint.

    Raises:
      UserError: a tensor is missing, extra or mis-shaped, factors without `lora`, or `lora` without
        any.
    """
    path = local_path(path)
    if not (path / 'params').exists() and (path / 'pretrained_model').is_dir():
        path = path / 'pretrained_model'  # a step of LeRobot's training
    folder, path, note = orbax_tree.find_folder(path)
    if folder is not None:
        source = _open_orbax(folder, path, note, lora)
    else:
        source = _open_torch(TensorFiles(find_files(path)), path)
    if lora is not None and source.factors is None:
        raise UserError(
            f'expected LoRA factors of openpi in {path}, got none; leave --merge_lora out'
        )
    return source


def from_memory(
    params: PyTree, config: BackboneConfig, kind: str, folder: pathlib.Path, notes: tuple[str, ...]
) -> Source:
    """A tree of arrays as a source.

    Args:
      params: the tree.
      config: sizes.
      kind: of checkpoint.
      folder: of its assets.
      notes: sentences.

    Returns:
      The source.

    Raises:
      UserError: it does not fit `config`.
    """
    trees.check_same(kinds.of(config).abstract_params(config), params, kind)
    flat = trees.flatten(params)
    dtypes = {path: np.dtype(leaf.dtype) for path, leaf in flat.items()}
    return Source(
        folder.name,
        folder,
        config,
        kind,
        dtypes,
        lambda p: np.asarray(flat[p.path][p.index]),
        notes,
    )


def _open_orbax(
    params: pathlib.Path, folder: pathlib.Path, note: str, lora: openpi_lora.Rule | None
) -> Source:
    reader = LeafReader(params)
    spec = _kind(reader.shapes, str(params))
    hints, assumed = training_config.complete(sizes.read_hints(folder, spec), folder)
    shapes, pairs = openpi_lora.split(reader.shapes)
    config = spec.from_leaves(shapes, hints)
    found = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    trees.check_same(spec.abstract_params(config), trees.unflatten(found), str(params))
    dtypes = {path: reader.dtypes[path] for path in shapes}
    validate.check_dtypes(dtypes, {path: path for path in dtypes}, spec.names, str(params))
    factors = (
        openpi_lora.open_factors(reader.shapes, pairs, reader.whole, lora, str(params))
        if pairs
        else None
    )
    return Source(
        name=folder.name,
        folder=folder,
        config=config,
        format='openpi-jax',
        dtypes=dtypes,
        read=lambda part: reader.read(part.path, part.index),
        notes=tuple(one for one in (note, reader.note, factors.note if factors else '') if one),
        digests=_recorded(folder),
        assumed=assumed,
        factors=factors,
    )


def _open_torch(files: TensorFiles, path: pathlib.Path) -> Source:
    folder, where = path if path.is_dir() else path.parent, str(files.files[0])
    other_models.refuse_unmerged(files.names(), where)
    spec = _kind(files.names(), where)
    names = wrappers.resolve(files.names(), spec.names, where)
    stored = names.stored
    notes = [*names.notes, *_resolve_table(stored, spec.names, files)]
    hints, assumed = training_config.complete(sizes.read_hints(folder, spec), folder)
    config = spec.from_tensors({name: files.shape(key) for name, key in stored.items()}, hints)
    leaves = trees.flatten(spec.abstract_params(config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    owner = {part.name: part for part in slices_of(shapes, spec.names, whole=True)}
    validate.check_tensors(files, stored, owner, where)
    tensors = {name: READ_AS[files.dtype(key)] for name, key in stored.items()}
    if wide := sum(files.dtype(key) == 'F64' for key in stored.values()):
        notes.append(f'{wide} tensors of float64 are read as float32')
    paths = {name: part.path for name, part in owner.items()}
    validate.check_dtypes(tensors, paths, spec.names, where)
    return Source(
        path.name,
        folder,
        config,
        'lerobot' if names.lerobot else 'openpi-pytorch',
        {part.path: tensors[name] for name, part in owner.items()},
        lambda p: p.tensor_map.to_jax(files.read(stored[p.name], p.rows), p.shape),
        tuple(notes),
        _recorded(folder),
        assumed,
    )


def _kind(names: Collection[str], where: str) -> BackboneSpec:
    """The kind of backbone that a checkpoint is of, by the names in it. Raises UserError for that
    of a model that is known to be another.
    """
    if (spec := kinds.of_names(names)) is None:
        other_models.refuse(names, where)
        return kinds.USUAL  # which says what is missing
    return spec


def _resolve_table(stored: dict[str, str], table: NameTable, files: TensorFiles) -> list[str]:
    """Leaves one name for the token table in `stored`, drops known-unused tensors, and says so."""
    notes = [f'{table.unused} is unused and left out'] if stored.pop(table.unused, None) else []
    head = stored.pop(table.tied, None)
    if head and table.table not in stored:
        stored[table.table] = head
    elif head:
        same = _equal(files, head, stored[table.table])
        notes.append(f'lm_head {"equals" if same else "differs from"} embed_tokens and is left out')
    return notes


def _equal(files: TensorFiles, one: str, other: str) -> bool:
    if files.shape(one) != files.shape(other) or files.dtype(one) != files.dtype(other):
        return False
    rows, step = (files.shape(one) or (1,))[0], 4096
    cuts = (slice(n, min(n + step, rows)) for n in range(0, rows, step))
    return all(np.array_equal(files.read(one, cut), files.read(other, cut)) for cut in cuts)


def _recorded(folder: pathlib.Path) -> dict[str, str]:
    """Digests of the leaves that a conversion recorded beside its weights; {} where there is
    none.
    """
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        leaves = json.loads(file.read_text()).get('leaves', {})
        return {str(path): str(one) for path, one in leaves.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f'expected the record of a conversion in {file}, got {error}; copy it again'
        ) from error
