"""Quantile normalisation as openpi does it, with exact quantiles and a guard for joints that hardly move."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError

EPSILON = 1e-6  # openpi's
NEAR_CONSTANT = 1e-3  # raw units; a q01..q99 range below it is no movement in degrees, per cent or radians
RARE_MOVE = 0.1  # of the standard deviation: a range below it means that the movement lies outside q01..q99


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Per-dimension statistics of one quantity, raw units, [p] each.

    `span` is the denominator of the normalisation: q99 - q01 + 1e-6 as in openpi, except in near-constant
    dimensions, where it is max(1, 4 std), so that the mean square of the normalised, centred values stays below 0.25.
    """

    mean: Float[np.ndarray, ' p']
    std: Float[np.ndarray, ' p']
    q01: Float[np.ndarray, ' p']
    q99: Float[np.ndarray, ' p']

    @property
    def near_constant(self) -> np.ndarray:
        """[p] true where the range between the quantiles is too small to divide by."""
        return (self.q99 - self.q01) < np.maximum(NEAR_CONSTANT, RARE_MOVE * self.std)

    @property
    def span(self) -> Float[np.ndarray, ' p']:
        """[p] what differences are divided by."""
        clamped = np.maximum(1.0, 4.0 * self.std)
        return np.where(self.near_constant, clamped, self.q99 - self.q01 + EPSILON).astype(np.float32)

    @property
    def low(self) -> Float[np.ndarray, ' p']:
        """[p] q01 in float32, what maps to -1."""
        return self.q01.astype(np.float32)


def compute_statistics(values: Float[np.ndarray, 'n p']) -> Statistics:
    """Exact statistics over all rows, in float64 (numpy's linear quantiles, population standard deviation)."""
    exact = np.asarray(values, np.float64)
    low, high = np.quantile(exact, [0.01, 0.99], axis=0)
    return Statistics(exact.mean(0), exact.std(0), low, high)


def quantile_normalize(x: Any, statistics: Statistics) -> Any:
    """(x - q01) / (q99 - q01 + 1e-6) * 2 - 1 over the last axis: q01..q99 becomes -1..1. Numpy or jax arrays."""
    return (x - statistics.low) / statistics.span * 2.0 - 1.0


def quantile_denormalize(x: Any, statistics: Statistics) -> Any:
    """The inverse: raw units from normalised ones. Numpy or jax arrays."""
    return (x + 1.0) / 2.0 * statistics.span + statistics.low


def norm_stats_json(statistics: Mapping[str, Statistics]) -> str:
    """The text of openpi's norm_stats.json for {'state': ..., 'actions': ...}."""
    body = {
        name: {field: value.tolist() for field, value in dataclasses.asdict(one).items()}
        for name, one in statistics.items()
    }
    return json.dumps({'norm_stats': body}, indent=2) + '\n'


def read_norm_stats(path: str | Path, widths: Mapping[str, int] | None = None) -> dict[str, Statistics]:
    """Reads openpi's norm_stats.json.

    `widths` ({'state': p, 'actions': a}) names what must be there and cuts padded entries (openpi's are 32 wide).

    Raises:
      UserError: missing or malformed file, a missing quantity, or fewer numbers than `widths` asks for.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'Expected normalisation statistics at {path}, got nothing there; run prepare_data.py first.')
    try:
        body = json.loads(path.read_text())['norm_stats']
        found = {name: _statistics_from(entry) for name, entry in body.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Expected openpi's norm_stats.json with mean, std, q01 and q99 in {path}, got a file without ({error}); "
            'compute the statistics again.'
        ) from error
    for name, width in (widths or {}).items():
        have = len(found[name].mean) if name in found else 0
        if have < width:
            raise UserError(
                f"Expected {width} numbers for '{name}' in {path}, got {have}; take statistics of this robot."
            )
        found[name] = Statistics(*(column[:width] for column in dataclasses.astuple(found[name])))
    return found


def _statistics_from(entry: Mapping[str, Any]) -> Statistics:
    parts = [np.asarray(entry[field.name], np.float64) for field in dataclasses.fields(Statistics)]
    if len({part.shape for part in parts}) != 1 or parts[0].ndim != 1 or not np.isfinite(parts).all():
        raise ValueError('entries of different lengths or not finite')
    return Statistics(*parts)
