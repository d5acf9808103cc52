"""LoRA factors as openpi keeps them: leaves beside the matrices of both Gemmas, merged by openpi's
own rule.

openpi's attention computes `x W + alpha / rank * (x A) B` for each head; its output projection sums
A over heads first, so that every head's B is added up. Its feed-forward layers know no alpha: they
add `(x A) B` as it is.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from sigma_jax.convert.slices import Slice
from sigma_jax.errors import UserError

FACTOR = re.compile(r'(.*?)([/_])lora_([ab])')
LEAF = re.compile(r'.*/layers/(attn/(q|kv|attn_vec)_einsum(_1)?/w|mlp(_1)?/(gating_einsum|linear))')
EXPERTS = ('language model', 'action expert')
# ranks of gemma_2b_lora and gemma_300m_lora; alpha is the rank
PUBLIC = {'language model': 16, 'action expert': 32}
SUMMED = 'attn_vec_einsum'
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What openpi's training config says of LoRA: `alpha` for both Gemmas, or for each; None as its
    variants have.
    """

    alpha: tuple[float, ...] | None = None
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        wrong = self.alpha is not None and not all(
            math.isfinite(one) and one > 0 for one in self.alpha
        )
        if wrong or (self.alpha is not None and len(self.alpha) not in (1, 2)):
            got = ','.join(f'{one:g}' for one in self.alpha or ()) or 'none'
            raise UserError(
                'expected --lora_alpha as one number above 0, or as two (language model, action '
                f"expert), got {got}; give those of openpi's training config"
            )

    @classmethod
    def parse(cls, alpha: str | None, rank_stabilised: bool) -> 'Rule':
        """From the texts of flags.

        Args:
          alpha: a number, or two such as '16,32'; None: not given.
          rank_stabilised: whether the strength is alpha / sqrt(rank).

        Returns:
          The rule.

        Raises:
          UserError: `alpha` is neither.
        """
        try:
            return cls(
                None if alpha is None else tuple(map(float, alpha.split(','))), rank_stabilised
            )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f'expected --lora_alpha as a number, or as two like 16,32, got {alpha!r}; write '
                'it so'
            ) from error


def split(shapes: Shapes) -> tuple[dict[str, tuple[int, ...]], dict[str, dict[str, str]]]:
    """Which leaves of a checkpoint are LoRA factors.

    Args:
      shapes: of all leaves.

    Returns:
      leaves: that are none.
      pairs: {leaf that they belong to: {'a': its factor's path, 'b': ...}}.
    """
    pairs: dict[str, dict[str, str]] = {}
    for path in shapes:
        if found := FACTOR.fullmatch(path):
            leaf = found[1] + ('/w' if found[2] == '/' else '')
            if LEAF.fullmatch(leaf):
                pairs.setdefault(leaf, {})[found[3]] = path
    factors = {path for pair in pairs.values() for path in pair.values()}
    return {path: shape for path, shape in shapes.items() if path not in factors}, pairs


@dataclasses.dataclass
class Factors:
    """The factors of a checkpoint, and how many of each leaf's are added: `scales`, by leaf. `read`
    gives a leaf.
    """

    pairs: Mapping[str, Mapping[str, str]]
    scales: Mapping[str, float]
    read: Callable[[str], np.ndarray]
    note: str
    _kept: tuple[str, np.ndarray, np.ndarray] | None = None

    def merge(self, part: Slice, array: np.ndarray) -> np.ndarray:
        """A slice of the base with its part of the factors, in float32; as it is where there are
        none.

        Args:
          part: which slice.
          array: its numbers.

        Returns:
          The slice.
        """
        if part.path not in self.pairs:
            return array
        a, b = (one[part.index] for one in self._pair(part.path))
        if SUMMED in part.path:
            b = b.sum(axis=0, keepdims=True)
        return array.astype(np.float32) + np.float32(self.scales[part.path]) * (a @ b)

    def _pair(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        if self._kept is None or self._kept[0] != path:
            a, b = (self.read(self.pairs[path][half]).astype(np.float32) for half in 'ab')
            self._kept = path, a, b
        return self._kept[1:]


def open_factors(
    shapes: Shapes,
    pairs: Mapping[str, Mapping[str, str]],
    read: Callable[[str], np.ndarray],
    rule: Rule | None,
    where: str,
) -> Factors:
    """The factors of a checkpoint, checked.

    Args:
      shapes: of all leaves.
      pairs: of `split`.
      read: gives an array by its path.
      rule: of their strength; None: openpi's own.
      where: they are from, for messages.

    Returns:
      The factors.

    Raises:
      UserError: some do not fit, or `rule` does not suffice.
    """
    ranks = _ranks(shapes, pairs, where)
    text = describe(ranks)
    if rule is None:
        alpha = '' if all(map(_is_public, ranks, ranks.values())) else ' --lora_alpha=ALPHA'
        raise UserError(
            f'expected plain weights in {where}, got {text} beside them, without which the policy '
            f'is another one; merge them: convert_weights.py --merge_lora{alpha}'
        )
    scales, said = _scales(ranks, rule, text, where)
    return Factors(pairs, scales, read, f'{text} are merged in{said}')


def describe(ranks: Mapping[str, int]) -> str:
    """Whose factors, and of which rank.

    Args:
      ranks: {leaf: rank}.

    Returns:
      In words.
    """
    parts = []
    for name in EXPERTS:
        own = {path: rank for path, rank in ranks.items() if expert(path) == name}
        kinds = {
            kind: {own[path] for path in own if _kind(path) == kind}
            for kind in ('attention', 'feed-forward')
        }
        kinds = {kind: found for kind, found in kinds.items() if found}
        every = set().union(*kinds.values())
        if len(every) == 1 and len(kinds) == 2:
            parts.append(f'rank {every.pop()} in the {name}')
        elif kinds:
            each = ', '.join(
                f'rank {"/".join(map(str, sorted(found)))} in {kind}'
                for kind, found in kinds.items()
            )
            parts.append(f'{each} of the {name}')
    return f'LoRA factors of openpi ({", ".join(parts)})'


def expert(path: str) -> str:
    """Whose matrix a leaf is.

    Args:
      path: of a leaf.

    Returns:
      In words.
    """
    return EXPERTS[1] if re.search(r'(einsum|mlp)_1/', path) else EXPERTS[0]


def _kind(path: str) -> str:
    return 'attention' if '/attn/' in path else 'feed-forward'


def _is_public(path: str, rank: int) -> bool:
    """Whether openpi's variants say all of a leaf's factors."""
    return _kind(path) == 'feed-forward' or rank == PUBLIC[expert(path)]


def _ranks(shapes: Shapes, pairs: Mapping[str, Mapping[str, str]], where: str) -> dict[str, int]:
    ranks = {}
    for leaf, pair in pairs.items():
        if len(pair) == 1:
            (half,) = pair
            raise UserError(
                f'expected both LoRA factors of {leaf} in {where}, got lora_{half} alone; copy '
                'the checkpoint again'
            )
        shape, a, b = shapes[leaf], shapes[pair['a']], shapes[pair['b']]
        rank = a[-1] if a else 0
        if not rank or (a, b) != ((*shape[:-1], rank), (*shape[:-2], rank, shape[-1])):
            raise UserError(
                f'expected LoRA factors of {leaf} {shape} in {where} as openpi shapes them, got '
                f'{a} and {b}; copy it again'
            )
        ranks[leaf] = rank
    return ranks


def _scales(
    ranks: Mapping[str, int], rule: Rule, text: str, where: str
) -> tuple[dict[str, float], str]:
    """(the scale of each leaf's factors, what is said of it)."""
    scales, said = dict.fromkeys(ranks, 1.0), []
    for n, name in enumerate(EXPERTS):
        own = {
            path: rank
            for path, rank in ranks.items()
            if expert(path) == name and _kind(path) == 'attention'
        }
        if not own:
            continue
        public = all(map(_is_public, own, own.values())) and not rule.rank_stabilised
        if rule.alpha is None and not public:
            raise UserError(
                f'expected --lora_alpha for {text} in {where}, got none: only of rank '
                f"{PUBLIC[name]} in the {name} it is known, as openpi's variant has it; give the "
                'alpha of its training config'
            )
        alpha = (
            rule.alpha[min(n, len(rule.alpha) - 1)]
            if rule.alpha is not None
            else float(PUBLIC[name])
        )
        for path, rank in own.items():
            scales[path] = alpha / (math.sqrt(rank) if rule.rank_stabilised else rank)
        assumed = (
            "assumed, as openpi's variant of that rank has it; give --lora_alpha where the "
            'training had another'
        )
        origin = (
            assumed
            if rule.alpha is None
            else 'as given, rank-stabilised'
            if rule.rank_stabilised
            else 'as given'
        )
        said.append(f'alpha {alpha:g} in attention of the {name} ({origin})')
    said += (
        ['none in feed-forward, where openpi scales nothing']
        if 'feed-forward' in map(_kind, ranks)
        else []
    )
    return scales, f': {", ".join(said)}'
