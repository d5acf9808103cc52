"""LoRA factors to and from an adapter of the PEFT library: `adapter_config.json`,
`adapter_model.safetensors`.

PEFT keeps a pair for each PyTorch matrix, lora_A [r d_in] and lora_B [d_out r]. Our factors hold
the same pairs, stacked over scanned layers and over the matrices that share a leaf (k and v, gate
and up), with heads flattened in PyTorch's order. So a conversion is names and slices, bitwise both
ways.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from sigma_jax import files, trees
from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.convert import small_file
from sigma_jax.convert.peft import config as peft_config
from sigma_jax.convert.peft import tensors as peft_tensors
from sigma_jax.convert.peft.config import CONFIG
from sigma_jax.errors import UserError, few
from sigma_jax.nn import lora
from sigma_jax.types import PyTree

WEIGHTS = 'adapter_model.safetensors'
PREFIXES = {'lerobot': 'base_model.model.model.', 'openpi-pytorch': 'base_model.model.'}
VISION, NEW_VISION = 'vision_tower.vision_model.', 'vision_tower.'  # transformers' spellings
# Matrices that have no side path here but that an adapter can be merged into (LeRobot's defaults
# adapt two of them).
DENSE = lora.MatrixLayout('io', 'i', 'o')
SPEC = kinds.USUAL  # whose PyTorch modules PEFT adapts
LAYOUTS = SPEC.layouts
MERGE_LAYOUTS = dict(LAYOUTS) | {
    r'((action|time)_\w+|PaliGemma/llm/.*norm(_1)?/Dense_0)/kernel': DENSE
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Factors in our tree (numpy, dtypes as stored), their settings, and what was noticed on the
    way.
    """

    factors: PyTree
    config: lora.LoraConfig
    notes: tuple[str, ...] = ()


def save(
    factors: PyTree,
    config: lora.LoraConfig,
    model: BackboneConfig | PyTree,
    out: str | pathlib.Path,
    *,
    layout: str = 'lerobot',
    base: str = '',
    dtype: str = 'float32',
    vision_model: bool = True,
) -> pathlib.Path:
    """Writes an adapter folder for `PeftModel.from_pretrained`, whole or not at all.

    Args:
      factors: {leaf: {'a', 'b'}}.
      config: rank and strength.
      model: sizes, or a tree of the base's shapes; the factors are checked against it.
      out: the new folder.
      layout: 'lerobot' for LeRobot's `PI05Policy`, 'openpi-pytorch' for the bare module of either.
      base: name or folder of the adapted checkpoint, which LeRobot reads to find it.
      dtype: 'float32', or 'stored' to keep bfloat16 factors as they are.
      vision_model: False for transformers that call the image encoder `vision_tower.encoder`.

    Returns:
      `out`.

    Raises:
      UserError: factors that do not fit, an unknown layout, or `out` exists.
    """
    if layout not in PREFIXES or dtype not in ('float32', 'stored'):
        raise UserError(
            f'expected a layout among {", ".join(PREFIXES)} and a dtype among float32, stored, '
            f'got {layout!r} and {dtype!r}; choose one of each'
        )
    leaves = trees.flatten(factors)
    paths = sorted({path.rsplit('/', 1)[0] for path in leaves})
    trees.check_same(
        _expected(_base(model), paths, config.rank, LAYOUTS), factors, 'the LoRA factors'
    )
    spelt = functools.partial(_spell, vision_model=vision_model)
    tensors = {}
    for path, index, module in _modules({path: leaves[f'{path}/a'].shape[0] for path in paths}):
        for half in 'ab':
            array = np.asarray(leaves[f'{path}/{half}'])[index]
            array = array if dtype == 'stored' else array.astype(np.float32)
            tensors[f'{PREFIXES[layout]}{spelt(module)}.lora_{half.upper()}.weight'] = (
                np.ascontiguousarray(array)
            )
    names = [
        spelt(rule.name.removesuffix('.weight')) for rule in SPEC.names.rules if rule.path in paths
    ]
    settings = peft_config.to_json(config, _pattern(names, PREFIXES[layout]), base)
    with files.atomic_folder(out) as folder:
        (folder / CONFIG).write_text(json.dumps(settings, indent=2))
        save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
    return pathlib.Path(out)


def _base(model: BackboneConfig | PyTree) -> PyTree:
    sizes: Any = model if isinstance(model, SPEC.config) else None
    return model if sizes is None else SPEC.abstract_params(sizes)


def _expected(
    base: PyTree, paths: Iterable[str], rank: int, layouts: Mapping[str, lora.MatrixLayout]
) -> PyTree:
    """Shapes of the factors of some leaves."""
    config = lora.LoraConfig(tuple(map(re.escape, paths)), rank)
    return jax.eval_shape(
        lambda key: lora.init_factors(key, base, layouts, config), jax.random.key(0)
    )


def _modules(layers: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(path, index, PyTorch module) of every matrix in the leaves named, with their number of
    layers.
    """
    for rule in SPEC.names.rules:
        if rule.path in layers and rule.name.endswith('.weight'):
            for index, name in rule.names(layers[rule.path]):
                yield rule.path, index, name.removesuffix('.weight')


def _spell(module: str, vision_model: bool) -> str:
    return module if vision_model else module.replace(VISION, NEW_VISION)


def _pattern(names: Iterable[str], prefix: str) -> str:
    """A regular expression of exactly these modules, `{n}` standing for every layer, in the model
    that PEFT wraps.
    """
    inner = prefix.removeprefix('base_model.model.')
    return '|'.join(re.escape(inner + name).replace(r'\{n\}', r'\d+') for name in names)


def load(
    folder: str | pathlib.Path,
    model: BackboneConfig | PyTree,
    layouts: Mapping[str, lora.MatrixLayout] = LAYOUTS,
) -> Adapter:
    """Reads an adapter folder that PEFT wrote for LeRobot's policy or the bare PyTorch module, any
    spelling of names.

    Matrices of an adapted leaf that the adapter leaves out get factors of zero, which change
    nothing; `notes` says so. `use_rslora` goes into alpha; smaller ranks are padded with zeros
    where matrices differ in alpha, the difference goes into B. `layouts=MERGE_LAYOUTS` also takes
    matrices that factors can only be merged into.

    Args:
      folder: of the adapter.
      model: sizes, or a tree of the base's shapes.
      layouts: `MERGE_LAYOUTS` also takes matrices that factors can only be merged into.

    Returns:
      Factors, settings and notes.

    Raises:
      UserError: it is no plain LoRA, or tensors are missing, unknown or mis-shaped, all of which
        are named.
    """
    folder, base = pathlib.Path(folder), trees.flatten(_base(model))
    settings = peft_config.read(folder)
    places = {
        m: (path, index)
        for path, index, m in _modules({p: x.shape[0] for p, x in base.items() if x.ndim > 1})
    }
    found = peft_tensors.collect(_read_weights(folder), places, settings, layouts)
    rank = max((settings.rank(pair.name) for pair in found.pairs.values()), default=1)
    paths = {places[module][0]: None for module in found.pairs}
    shapes = {
        p: x.shape
        for p, x in trees.flatten(_expected(trees.unflatten(base), paths, rank, layouts)).items()
    }
    problems = [*found.problems, *peft_tensors.misfits(found.pairs, places, shapes, settings)]
    if problems or not found.pairs:
        raise UserError(
            f'expected factors that fit pi0.5 in {folder / WEIGHTS}, got {len(problems)} '
            f'differences: {few(problems) or "it holds no factors"}; give a whole adapter of this '
            'pi0.5'
        )
    alphas = {m: settings.alpha(pair.name, pair.rank, rank) for m, pair in found.pairs.items()}
    alpha = max(alphas.values(), key=abs)
    gains = {m: one / alpha if alpha else 1.0 for m, one in alphas.items()}
    leaves = peft_tensors.assemble(found.pairs, places, shapes, gains)
    config = lora.LoraConfig(tuple(map(re.escape, paths)), rank, alpha, settings.lora_dropout)
    notes = peft_tensors.notes(places, found.pairs, gains)
    return Adapter(trees.unflatten({path: leaves[path] for path in shapes}), config, notes)


def _read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    if not (folder / WEIGHTS).is_file():
        others = sorted(file.name for file in folder.glob('adapter_model*'))
        raise UserError(
            f'expected {WEIGHTS} in {folder}, got {others or "no weights"}; pickled and sharded '
            'adapters are refused: save it again with peft, safe_serialization=True and one shard'
        )
    return small_file.read(folder / WEIGHTS)[0]
