"""Tensors of a PEFT adapter: which matrix each belongs to, what is wrong with them, and their
stacks in our tree.
"""

import dataclasses
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from sigma_jax import trees
from sigma_jax.backbones import kinds
from sigma_jax.convert.peft.config import PeftConfig
from sigma_jax.errors import UserError, few
from sigma_jax.nn import lora

KEY = re.compile(
    r'(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight'
)
VISION = ('vision_tower.vision_model.', 'vision_tower.')  # transformers' spellings
FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
Places = Mapping[str, tuple[str, tuple[int, ...]]]  # canonical module -> (path, index) in our tree


@dataclasses.dataclass
class Pair:
    """The factors of one matrix: `a` [r d_in], `b` [d_out r], None until found; `name` is the
    adapter's spelling.
    """

    name: str
    a: np.ndarray | None = None
    b: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """r, from A."""
        return 0 if self.a is None else len(self.a)


@dataclasses.dataclass(frozen=True)
class FactorPairs:
    """Pairs by canonical module, and a sentence for each tensor that is unexpected or missing."""

    pairs: dict[str, Pair]
    problems: list[str]


def collect(
    tensors: Mapping[str, np.ndarray],
    places: Places,
    settings: PeftConfig,
    layouts: Mapping[str, lora.MatrixLayout],
) -> FactorPairs:
    """Pairs of tensors, in any spelling of their names, in the order of `places`.

    Args:
      tensors: of the adapter.
      places: where factors may be.
      settings: of the adapter.
      layouts: of our leaves.

    Returns:
      What was found.
    """
    pairs: dict[str, Pair] = {}
    problems, adapters = [], set()
    for key, array in tensors.items():
        match = KEY.fullmatch(key)
        module = (
            kinds.USUAL.names.canonical(f'{match["module"]}.weight').removesuffix('.weight')
            if match
            else ''
        )
        if not match or module not in places:
            problems.append(
                f'unexpected {key}'
                + (f' (closest: {trees.closest(module, list(places))})' if match else '')
            )
            continue
        adapters.add(match['adapter'])
        if reason := _unusable(module, places[module][0], settings, layouts):
            problems.append(f'{key}: {reason}')
            continue
        pair = pairs.setdefault(module, Pair(match['module']))
        if getattr(pair, match['half'].lower()) is not None:
            problems.append(f'{key} repeats another spelling of its name')
        setattr(pair, match['half'].lower(), array)
    problems += [f'several adapters {sorted(map(str, adapters))}'] if len(adapters) > 1 else []
    problems += _missing(pairs, places, settings, layouts)
    return FactorPairs({module: pairs[module] for module in places if module in pairs}, problems)


def _unusable(
    module: str, path: str, settings: PeftConfig, layouts: Mapping[str, lora.MatrixLayout]
) -> str:
    """Why a pair cannot be used; '' if it can."""
    if not _has_layout(path, layouts):
        return 'this matrix has no side path here; merge the adapter into the base weights instead'
    if _selected(module, settings) is False:
        return 'target_modules does not select it, so peft would leave it out'
    return ''


def _has_layout(path: str, layouts: Mapping[str, lora.MatrixLayout]) -> bool:
    try:
        return lora.find_layout(path, layouts) is not None
    except UserError:
        return False


def _selected(module: str, settings: PeftConfig) -> bool | None:
    """Whether the settings select a module in one of its spellings; None where they do not say."""
    spellings = (
        f'{prefix}{module.replace(VISION[0], vision)}'
        for prefix in ('', 'model.')
        for vision in VISION
    )
    answers = {settings.selects(name) for name in spellings}
    return None if None in answers else True in answers


def _missing(
    pairs: Mapping[str, Pair],
    places: Places,
    settings: PeftConfig,
    layouts: Mapping[str, lora.MatrixLayout],
) -> list[str]:
    problems = []
    for module, (path, _) in places.items():
        if (pair := pairs.get(module)) is not None:
            problems += [
                f'missing {module}.lora_{h.upper()}.weight'
                for h in 'ab'
                if getattr(pair, h) is None
            ]
        elif _has_layout(path, layouts) and _selected(module, settings):
            problems.append(f'missing {module}, which target_modules selects')
    return problems


def misfits(
    pairs: Mapping[str, Pair],
    places: Places,
    shapes: Mapping[str, tuple[int, ...]],
    settings: PeftConfig,
) -> list[str]:
    """A sentence for each tensor of another shape or type than its place takes.

    Args:
      pairs: of `collect`.
      places: where factors may be.
      shapes: of our leaves.
      settings: of the adapter.

    Returns:
      Sentences.
    """
    problems: list[str] = []
    dtypes: dict[str, np.dtype] = {}
    for module, pair in pairs.items():
        path, rank = places[module][0], settings.rank(pair.name)
        want = {'a': (rank, shapes[f'{path}/a'][-1]), 'b': (shapes[f'{path}/b'][-2], rank)}
        for half, shape in want.items():
            array, name = getattr(pair, half), f'{module}.lora_{half.upper()}.weight'
            if array is None:
                continue
            if array.shape != shape:
                problems.append(f'{name}: expected shape {shape}, got {array.shape}')
            first = dtypes.setdefault(path, array.dtype)
            if array.dtype not in FLOATS or array.dtype != first:
                expected = first if first in FLOATS else 'a floating type'
                problems.append(
                    f'{name}: expected dtype {expected} as in the rest of its leaf, got '
                    f'{array.dtype}'
                )
    return problems


def assemble(
    pairs: Mapping[str, Pair],
    places: Places,
    shapes: Mapping[str, tuple[int, ...]],
    gains: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Our leaves, zero where there is no pair.

    Args:
      pairs: of `collect`.
      places: where factors may be.
      shapes: of our leaves.
      gains: what each matrix's B is multiplied by (in float32 where that is not 1).

    Returns:
      {path: array}.
    """
    leaves: dict[str, np.ndarray] = {}
    exact = {path: True for path, _ in places.values()}
    for module, gain in gains.items():
        exact[places[module][0]] &= gain == 1
    for module, pair in pairs.items():
        (path, index), rank = places[module], pair.rank
        for half, array in (('a', pair.a), ('b', pair.b)):
            assert array is not None
            dtype = array.dtype if exact[path] else np.dtype(np.float32)
            leaf = leaves.setdefault(f'{path}/{half}', np.zeros(shapes[f'{path}/{half}'], dtype))
            if half == 'a':
                leaf[index][:rank] = array
            else:
                leaf[index][:, :rank] = (
                    array if exact[path] else array.astype(np.float32) * np.float32(gains[module])
                )
    return leaves


def notes(places: Places, pairs: Mapping[str, Pair], gains: Mapping[str, float]) -> tuple[str, ...]:
    """What a reader of the adapter should know: matrices without factors, and strengths moved into
    B.

    Args:
      places: where factors may be.
      pairs: of `collect`.
      gains: of each matrix.

    Returns:
      Sentences.
    """
    out = []
    for path in {places[module][0]: None for module in pairs}:
        idle = [
            module for module, (owner, _) in places.items() if owner == path and module not in pairs
        ]
        if idle:
            out.append(
                f'{len(idle)} matrices of {path} are not in the adapter and get factors of zero: '
                f'{few(idle, ", ")}'
            )
    moved = [module for module, gain in gains.items() if gain != 1]
    if moved:
        out.append(
            f'{len(moved)} matrices have another alpha / r than the rest; it was '
            'multiplied into their B'
        )
    return tuple(out)
