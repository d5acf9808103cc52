"""Normalisation of states and actions: openpi's and LeRobot's as they compute it, and ours, which
guards still joints.

Every mode is an affine map: `low` goes to -1 and `low + span` to 1.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError

EPSILONS = {'sigma': 1e-6, 'openpi': 1e-6, 'lerobot': 1e-8}  # each original's own
# raw units; a q01..q99 range below it is no movement in degrees, per cent or radians
NEAR_CONSTANT = 1e-3
# of the standard deviation: a range below it means that the movement lies outside q01..q99
RARE_MOVE = 0.1

# mode -> what -1, 1 are
ENDS = {'quantile': ('q01', 'q99'), 'quantile10': ('q10', 'q90'), 'min_max': ('min', 'max')}
NEEDS = {**ENDS, 'mean_std': ('mean', 'std'), 'identity': ()}
FORMULAS = {
    'sigma': ('quantile',),
    'openpi': ('quantile', 'mean_std', 'identity'),
    'lerobot': tuple(NEEDS),
}
ALWAYS = ('mean', 'std')  # openpi's file has them whatever the mode
BOTH = ('state', 'actions')
ABSENT: Any = None  # a column that the source lacks


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How a quantity is normalised.

    Attributes:
      mode: 'quantile' (q01..q99 to -1..1), 'quantile10' (q10..q90), 'min_max', 'mean_std' or
        'identity'.
      formula: precision, and what the epsilon does. 'openpi' adds it to every range and computes in
        float64; 'lerobot' puts it in place of a range of zero, adds it to standard deviations and
        computes in float32; 'sigma' is openpi's in float32, except in near-constant joints (see
        `Statistics`).
      epsilon: None is the formula's own, 1e-6 in openpi's and ours, 1e-8 in LeRobot's.

    Raises:
      UserError: an unknown formula, or a mode that it does not have.
    """

    mode: str = 'quantile'
    formula: str = 'sigma'
    epsilon: float | None = None

    @property
    def added(self) -> float:
        """The epsilon in use."""
        return EPSILONS[self.formula] if self.epsilon is None else self.epsilon

    def __post_init__(self) -> None:
        if self.mode not in FORMULAS.get(self.formula, ()):
            raise UserError(
                f'expected a normalisation out of {FORMULAS}, got mode {self.mode!r} of '
                f'{self.formula!r}; correct the policy'
            )


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Per-dimension statistics of one quantity, raw units, [p] each; those that its source lacks
    are None.

    `span` is the denominator of the normalisation. In our own formula it is q99 - q01 + 1e-6 as in
    openpi, except in near-constant dimensions, where it is max(1, 4 std), so that the mean square
    of the normalised, centred values stays below 0.25.
    """

    mean: Float[np.ndarray, ' p']
    std: Float[np.ndarray, ' p']
    q01: Float[np.ndarray, ' p'] = ABSENT
    q99: Float[np.ndarray, ' p'] = ABSENT
    min: Float[np.ndarray, ' p'] = ABSENT
    max: Float[np.ndarray, ' p'] = ABSENT
    q10: Float[np.ndarray, ' p'] = ABSENT
    q90: Float[np.ndarray, ' p'] = ABSENT
    scaling: Scaling = Scaling()

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """([p], [p]) what maps to -1 and 1 before any epsilon."""
        if self.scaling.mode == 'identity':
            return -np.ones_like(self.mean), np.ones_like(self.mean)
        if self.scaling.mode == 'mean_std':
            return self.mean - self.std, self.mean + self.std
        low, high = (getattr(self, name) for name in ENDS[self.scaling.mode])
        return low, high

    @functools.cached_property
    def near_constant(self) -> np.ndarray:
        """[p] true where the range is too small to divide by."""
        low, high = self.ends
        return (high - low) < np.maximum(NEAR_CONSTANT, RARE_MOVE * self.std)

    @functools.cached_property
    def span(self) -> Float[np.ndarray, ' p']:
        """[p] float32, what differences are divided by, times two."""
        return self.exact_span.astype(np.float32)

    @functools.cached_property
    def exact_span(self) -> Float[np.ndarray, ' p']:
        """`span` in the precision of the formula: float32 for LeRobot's, else float64."""
        low, high = self.ends
        if self.scaling.mode == 'identity':
            return high - low
        if self.scaling.mode == 'mean_std':
            return 2 * (self.std + self.scaling.added)
        if self.scaling.formula == 'lerobot':
            difference = high.astype(np.float32) - low.astype(np.float32)
            return np.where(difference == 0, np.float32(self.scaling.added), difference)
        if self.scaling.formula == 'openpi':
            return high - low + self.scaling.added
        return np.where(
            self.near_constant, np.maximum(1.0, 4.0 * self.std), high - low + self.scaling.added
        )

    @functools.cached_property
    def low(self) -> Float[np.ndarray, ' p']:
        """[p] float32, what maps to -1."""
        if self.scaling.mode == 'mean_std':
            return (self.mean - self.exact_span / 2).astype(np.float32)
        return self.ends[0].astype(np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        named = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != 'scaling'
        }
        return {name: column for name, column in named.items() if column is not None}

    def cut(self, width: int) -> 'Statistics':
        """The first dimensions: openpi's files have 32 whatever the robot.

        Args:
          width: how many.

        Returns:
          Statistics of those.
        """
        columns: dict[str, Any] = {name: column[:width] for name, column in self.columns().items()}
        return dataclasses.replace(self, **columns)


def compute_statistics(values: Float[np.ndarray, 'n p']) -> Statistics:
    """Exact statistics over all rows, in float64 (numpy's linear quantiles, population standard
    deviation).

    Args:
      values: raw units.

    Returns:
      mean, std, q01 and q99, for our own formula.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.processing import normalize
      >>> statistics = normalize.compute_statistics(np.arange(101.0)[:, None])
      >>> statistics.q01, statistics.q99
      (array([1.]), array([99.]))
      >>> x = normalize.normalize(np.array([1.0, 50.0, 99.0])[:, None], statistics)
      >>> x.ravel().round(5).tolist()
      [-1.0, 0.0, 1.0]
      >>> normalize.denormalize(x, statistics).ravel().round(5).tolist()
      [1.0, 50.0, 99.0]
    """
    exact = np.asarray(values, np.float64)
    low, high = np.quantile(exact, [0.01, 0.99], axis=0)
    return Statistics(exact.mean(0), exact.std(0), low, high)


def normalize(x: Any, statistics: Statistics) -> Any:
    """Raw units -> normalised ones, in the order and precision of the formula.

    Every mode is an affine map over the last axis: `low` goes to -1 and `low + span` to 1.

    Args:
      x: numpy or jax, [... p], raw units.
      statistics: of that quantity.

    Returns:
      The same shape; openpi's formula gives float64 of numpy arrays, the others keep float32.
    """
    mode, formula = statistics.scaling.mode, statistics.scaling.formula
    if mode == 'identity':
        return x
    if formula == 'sigma':
        return to_unit(x, statistics.low, statistics.span)
    width = np.float32 if formula == 'lerobot' else np.float64
    if mode == 'mean_std':
        return (x - statistics.mean.astype(width)) / (
            statistics.std.astype(width) + np.asarray(statistics.scaling.added, width)
        )
    low, span = statistics.ends[0].astype(width), statistics.exact_span
    if formula == 'lerobot':
        return 2.0 * (x - low) / span - 1.0
    return to_unit(x, low, span)


def to_unit(x: Any, low: Any, span: Any) -> Any:
    """The formula of quantiles: `low` goes to -1 and `low + span` to 1.

    Args:
      x: numpy or jax, [... p], raw units.
      low: of each of them.
      span: of each of them, not 0.

    Returns:
      The same shape.

    Examples:
      >>> from sigma_jax.processing import normalize
      >>> normalize.to_unit(45.0, low=-90.0, span=180.0)
      0.5
    """
    return (x - low) / span * 2.0 - 1.0


def from_unit(x: Any, low: Any, span: Any) -> Any:
    """The inverse of `to_unit`.

    Args:
      x: numpy or jax, [... p], normalised.
      low: of each of them.
      span: of each of them.

    Returns:
      The same shape, raw units.
    """
    return (x + 1.0) / 2.0 * span + low


def first_joints(x: Float[np.ndarray, '... p'], width: int) -> Float[np.ndarray, '... a']:
    """The first entries of a state: those that actions can count from.

    Args:
      x: a state, or statistics of it.
      width: number of actions.

    Returns:
      `width` entries, zeros where the state has fewer.
    """
    cut = np.asarray(x)[..., :width]
    return np.pad(cut, [(0, 0)] * (cut.ndim - 1) + [(0, width - cut.shape[-1])])


def denormalize(x: Any, statistics: Statistics) -> Any:
    """Normalised units -> raw ones: the inverse of `normalize`.

    Args:
      x: numpy or jax, [... p], normalised.
      statistics: of that quantity.

    Returns:
      The same shape, raw units.
    """
    if statistics.scaling.mode == 'identity':
        return x
    return from_unit(x, statistics.low, statistics.span)


def norm_stats_json(statistics: Mapping[str, Statistics]) -> str:
    """The text of openpi's norm_stats.json.

    Args:
      statistics: {'state': ..., 'actions': ...}; openpi skips columns that it does not know.

    Returns:
      JSON.
    """
    body = {
        name: {field: value.tolist() for field, value in one.columns().items()}
        for name, one in statistics.items()
    }
    return json.dumps({'norm_stats': body}, indent=2) + '\n'


def read_norm_stats(
    path: str | Path,
    widths: Mapping[str, int] | None = None,
    scalings: Mapping[str, Scaling] | None = None,
) -> dict[str, Statistics]:
    """Reads openpi's norm_stats.json.

    Args:
      path: of the file.
      widths: {'state': p, 'actions': a}: what must be there; padded entries beyond are cut
        (openpi's files are 32 wide). None: whatever there is.
      scalings: how each quantity will be used; default: our own quantile formula.

    Returns:
      {'state': ..., 'actions': ...}, raw units.

    Raises:
      UserError: missing or malformed file, a missing quantity, or fewer numbers than `widths` asks
        for.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f'expected normalisation statistics at {path}, got nothing there; run '
            'prepare_data.py first'
        )
    try:
        body = json.loads(path.read_text())['norm_stats']
        used = {name: (scalings or {}).get(name, Scaling()) for name in body}
        found = {name: statistics_from(entry, used[name]) for name, entry in body.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected openpi's norm_stats.json with mean, std, q01 and q99 in {path}, got a file "
            f'without ({error}); compute the statistics again'
        ) from error
    return cut_to(found, widths or {}, str(path))


def read_both(
    path: str | Path, scalings: Mapping[str, Scaling] | None = None
) -> dict[str, Statistics]:
    """`read_norm_stats` of a whole policy.

    Args:
      path: of the file.
      scalings: how each quantity will be used.

    Returns:
      {'state': ..., 'actions': ...}.

    Raises:
      UserError: as `read_norm_stats`, and where state or actions are absent.
    """
    found = read_norm_stats(path, scalings=scalings)
    if absent := [name for name in BOTH if name not in found]:
        raise UserError(
            f'expected statistics of {" and ".join(BOTH)} in {path}, got '
            f'{", ".join(sorted(found)) or "none"}; take a file that has {absent[0]} too'
        )
    return found


def cut_to(
    statistics: Mapping[str, Statistics], widths: Mapping[str, int], where: str
) -> dict[str, Statistics]:
    """Statistics cut to a robot's widths.

    Args:
      statistics: by quantity.
      widths: {quantity: how many dimensions}; others stay as they are.
      where: they are from, for the message.

    Returns:
      By quantity.

    Raises:
      UserError: there are fewer numbers than the robot has.
    """
    cut = dict(statistics)
    for name, width in widths.items():
        have = len(cut[name].mean) if name in cut else 0
        if have < width:
            raise UserError(
                f"expected {width} numbers for '{name}' in {where}, got {have}; take statistics "
                'of this robot'
            )
        cut[name] = cut[name].cut(width)
    return cut


def statistics_from(entry: Mapping[str, Any], scaling: Scaling = Scaling()) -> Statistics:
    """Statistics from plain lists.

    Args:
      entry: {'mean': [...], 'std': [...], ...}.
      scaling: how they will be used, which says what must be there.

    Returns:
      Statistics, float64.

    Raises:
      KeyError: a column is absent.
      ValueError: columns of different lengths, not finite, or of numbers that no data have.
    """
    names = [field.name for field in dataclasses.fields(Statistics) if field.name != 'scaling']
    parts = {
        name: np.asarray(entry[name], np.float64) for name in names if entry.get(name) is not None
    }
    if absent := [name for name in (*ALWAYS, *NEEDS[scaling.mode]) if name not in parts]:
        raise KeyError(absent[0])
    shapes = {part.shape for part in parts.values()}
    if (
        len(shapes) != 1
        or len(next(iter(shapes))) != 1
        or not all(np.isfinite(x).all() for x in parts.values())
    ):
        raise ValueError('entries of different lengths or not finite')
    _check_order(parts)
    return Statistics(**parts, scaling=scaling)


def _check_order(parts: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for numbers that no data have: a negative std, a low end above the high
    one.
    """
    if (wrong := np.flatnonzero(parts['std'] < 0)).size:
        raise ValueError(f'std of at least 0: {wrong[0]} has {parts["std"][wrong[0]]:g}')
    for low, high in (ends for ends in ENDS.values() if set(ends) <= set(parts)):
        rounding = 1e-6 * np.maximum(np.abs(parts[low]), np.abs(parts[high]))
        if (wrong := np.flatnonzero(parts[low] > parts[high] + rounding)).size:
            one = int(wrong[0])
            raise ValueError(
                f'{low} up to {high}: {one} has {parts[low][one]:g} and {parts[high][one]:g}'
            )


NormStats = dict[str, Statistics]  # 'state', 'actions'
