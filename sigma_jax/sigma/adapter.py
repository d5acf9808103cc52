"""Inference adapter: how far to trust Sigma's residual, window by window (paper 4.3;
docs/design.md, "Inference adapter").

    residual = actions - a_base
    ratio = |S^-1 residual|             drift = |rms(tau) - tau_target| / tau_target   mis = 1 - cos(tau, c_act0)
    risk  = k_ratio relu(ratio - ratio_ok) + k_tau relu(drift - drift_ok) + k_mis relu(mis - mis_ok)
    scale = min_scale + (max_scale - min_scale) exp(-risk), below 1e-3 exactly 0
    adapted = a_base + scale * residual

`S` is the spread of calibration residuals, all three branches side by side: a standard deviation
for every entry, and the `rank` directions in which they vary together; `ratio` is 1 in the mean
square there. A small residual blown up ten times is no larger than a large true one, but it is
large in directions in which true ones are small: a spread for each joint alone lets it pass. All
functions are pure and treat each window by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from sigma_jax.errors import UserError
from sigma_jax.nn.layers import safe_cosine
from sigma_jax.types import Actions

NEGLIGIBLE = 1e-3  # a scale below this is exactly 0, so that the base action comes back bitwise
NARROWEST = 0.1  # floor of the variance along a direction, in units of the mean variance (ours)
# floor of sigma_res (raw units) and tau_target, for a residual or tau that is 0 throughout
SMALLEST = 1e-6


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of the fit; `preset` gives the paper's."""

    min_scale: float = 0.0  # (paper 4.3: converges to near zero)
    # upper limit where it is chosen, else the value itself (preset 'paper')
    max_scale: float = 1.25
    choose_max_scale: bool = True  # on calibration episodes (ours)
    candidates: int = 26  # evenly spaced values of max_scale tried
    # a signal is no risk below this quantile of its calibration values ...
    ok_quantile: float = 0.99
    # ... times this, since few calibration episodes show less than all there is (ours)
    ok_margin: float = 1.25
    # directions of the residuals' spread (ours); 4 to 32 give the same on the demo, 2 are too few
    rank: int = 16
    k_ratio: float = 4.0  # (ours)
    k_tau: float = 10.0  # (ours)
    k_mis: float = 10.0  # (ours)


@struct.dataclass
class AdapterState:
    """What the fit found; travels with the checkpoint."""

    sigma_res: Float[Array, 'a']  # per-joint rms of calibration residuals, raw units
    spread: Float[Array, 'm']  # rms of every entry of [vec chk traj], m = (1 + c + t) a, raw units
    directions: Float[Array, 'k m']  # orthonormal, of residuals divided by `spread`
    weights: Float[Array, 'k+1']  # inverse variance along each direction, and across them all
    tau_target: Float[Array, '']
    ratio_ok: Float[Array, '']
    drift_ok: Float[Array, '']
    mis_ok: Float[Array, '']
    min_scale: Float[Array, '']
    max_scale: Float[Array, '']
    k_ratio: Float[Array, '']
    k_tau: Float[Array, '']
    k_mis: Float[Array, '']


@struct.dataclass
class Reasons:
    """Why a window got its scale: the signals, each one's share of the risk, and the flag."""

    ratio: Float[Array, 'b']
    drift: Float[Array, 'b']
    mis: Float[Array, 'b']
    risk_ratio: Float[Array, 'b']
    risk_tau: Float[Array, 'b']
    risk_mis: Float[Array, 'b']
    non_finite: Bool[Array, 'b']


def preset(name: str) -> AdapterConfig:
    """'default' (max_scale chosen on calibration episodes) or 'paper' (min 0, max 1.25 as they
    are).
    """
    presets = {'default': AdapterConfig(), 'paper': AdapterConfig(choose_max_scale=False)}
    if name not in presets:
        raise UserError(
            f'adapter preset: expected one of {sorted(presets)}, got {name!r}; change the config'
        )
    return presets[name]


def adapt(
    base: Actions,
    actions: Actions,
    tau: Float[Array, 'b e'],
    c_act0: Float[Array, 'b e'],
    state: AdapterState,
) -> tuple[Actions, Float[Array, 'b'], Float[Array, 'b'], Reasons]:
    """Adapted actions, scale, risk and reasons.

    A non-finite residual, tau or c_act0 gives scale 0 and infinite risk, hence the base action.
    """
    residual = jax.tree.map(jnp.subtract, actions, base)
    finite = all_finite(residual.vec, residual.chk, residual.traj, tau, c_act0)
    ratio, drift, mis = signals(residual, tau, c_act0, state)
    parts = (
        state.k_ratio * jax.nn.relu(ratio - state.ratio_ok),
        state.k_tau * jax.nn.relu(drift - state.drift_ok),
        state.k_mis * jax.nn.relu(mis - state.mis_ok),
    )
    risk = jnp.where(finite, sum(parts), jnp.inf)
    scale = state.min_scale + (state.max_scale - state.min_scale) * jnp.exp(-risk)
    scale = jnp.where(finite & (scale >= NEGLIGIBLE), scale, 0.0)
    adapted = jax.tree.map(lambda a, r: add_scaled(a, r, scale), base, residual)
    return adapted, scale, risk, Reasons(ratio, drift, mis, *parts, non_finite=~finite)


def fit(
    base: Actions,
    actions: Actions,
    target: Actions,
    tau: Float[Array, 'b e'],
    c_act0: Float[Array, 'b e'],
    config: AdapterConfig,
) -> AdapterState:
    """Fits every level, and max_scale where asked, on calibration windows; all actions in raw
    units.

    max_scale minimises the mean, over the three branches, of adapted error relative to the base's.
    Windows with a non-finite residual or tau are left out; raises UserError when none is left.
    """
    residual = jax.tree.map(jnp.subtract, actions, base)
    keep = np.asarray(all_finite(residual.vec, residual.chk, residual.traj, tau, c_act0))
    if not keep.any():
        raise UserError(
            'adapter: expected calibration windows with finite residual and tau, got 0 of '
            f'{keep.size}; look for NaN in the checkpoint or give more calibration episodes'
        )
    base, residual, target, tau, c_act0 = jax.tree.map(
        lambda x: x[keep], (base, residual, target, tau, c_act0)
    )
    sigma_res = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(residual.traj), axis=(0, 1))), SMALLEST)
    tau_target = jnp.maximum(jnp.median(rms(tau, 1)), SMALLEST)
    constants = (config.min_scale, config.max_scale, config.k_ratio, config.k_tau, config.k_mis)
    limits = [jnp.zeros(())] * 3 + [jnp.asarray(x, jnp.float32) for x in constants]
    state: Any = AdapterState(
        sigma_res, *fit_spread(side_by_side(residual), config.rank), tau_target, *limits
    )
    observed = signals(residual, tau, c_act0, state)
    levels = [config.ok_margin * jnp.quantile(x, config.ok_quantile) for x in observed]
    state = state.replace(ratio_ok=levels[0], drift_ok=levels[1], mis_ok=levels[2])
    if not config.choose_max_scale:
        return state
    candidates = jnp.linspace(config.min_scale, config.max_scale, config.candidates)
    actions = jax.tree.map(jnp.add, base, residual)
    scores = score_max_scales(candidates, base, actions, target, tau, c_act0, state)
    return state.replace(max_scale=candidates[int(np.argmin(scores))])


@jax.jit
def score_max_scales(candidates: Float[Array, 'm'], *windows_and_state: Any) -> Float[Array, 'm']:
    """`relative_error` of the same windows at every candidate for max_scale."""
    base, actions, target, tau, c_act0, state = windows_and_state

    def score(max_scale: Array) -> Array:
        return relative_error(
            base, actions, target, tau, c_act0, state.replace(max_scale=max_scale)
        )

    return jax.lax.map(score, candidates)


def relative_error(
    base: Actions,
    actions: Actions,
    target: Actions,
    tau: Float[Array, 'b e'],
    c_act0: Float[Array, 'b e'],
    state: AdapterState,
) -> Float[Array, '']:
    """Mean over the three branches of adapted squared error / base squared error."""
    adapted = adapt(base, actions, tau, c_act0, state)[0]
    ratios = jax.tree.map(
        lambda x, a, y: (
            jnp.sum(jnp.square(x - y)) / jnp.maximum(jnp.sum(jnp.square(a - y)), SMALLEST)
        ),
        adapted,
        base,
        target,
    )
    return jnp.mean(jnp.stack(jax.tree.leaves(ratios)))


def signals(
    residual: Actions, tau: Float[Array, 'b e'], c_act0: Float[Array, 'b e'], state: AdapterState
) -> tuple[Float[Array, 'b'], Float[Array, 'b'], Float[Array, 'b']]:
    """ratio, drift, mis: none has units, none is negative."""
    scaled = side_by_side(residual) / state.spread
    along = scaled @ state.directions.T
    across = scaled - along @ state.directions
    square = jnp.sum(jnp.square(along) * state.weights[:-1], axis=1)
    ratio = jnp.sqrt(square + jnp.sum(jnp.square(across), axis=1) * state.weights[-1])
    drift = jnp.abs(rms(tau, 1) - state.tau_target) / state.tau_target
    return ratio, drift, 1.0 - safe_cosine(tau, c_act0)


def side_by_side(residual: Actions) -> Float[Array, 'b m']:
    """[vec chk traj], flat."""
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(residual)], axis=1)


def fit_spread(
    residual: Float[Array, 'b m'], rank: int
) -> tuple[Float[Array, 'm'], Float[Array, 'k m'], Float[Array, 'k+1']]:
    """`spread`, `directions` and `weights` (probabilistic principal components); the mean squared
    ratio is 1.

    No direction counts as narrower than a tenth of the mean variance: a few hundred windows say
    nothing of those.
    """
    values = np.asarray(residual, np.float64)
    spread = np.maximum(np.sqrt(np.mean(np.square(values), axis=0)), SMALLEST)
    scaled = values / spread
    variance, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    variance, directions = np.maximum(variance[::-1], 0), vectors[:, ::-1][:, :rank].T
    rest = np.mean(variance[rank:]) if len(variance) > rank else 0.0
    weights = 1 / np.maximum(np.append(variance[:rank], rest), NARROWEST)
    total = np.sum(variance[:rank] * weights[:-1]) + np.sum(variance[rank:]) * weights[-1]
    arrays = spread, directions, weights / max(total, SMALLEST)
    return (
        jnp.asarray(arrays[0], jnp.float32),
        jnp.asarray(arrays[1], jnp.float32),
        jnp.asarray(arrays[2], jnp.float32),
    )


def to_dict(state: AdapterState) -> dict[str, Any]:
    """Plain numbers and lists, for JSON beside the checkpoint."""
    return {name: np.asarray(value, np.float64).tolist() for name, value in vars(state).items()}


def from_dict(values: Mapping[str, Any]) -> AdapterState:
    """Inverse of `to_dict`; raises UserError when the fields are not those of `AdapterState`."""
    expected = set(AdapterState.__dataclass_fields__)
    if set(values) != expected:
        raise UserError(
            f'adapter state: expected the fields {sorted(expected)}, got {sorted(values)}; fit '
            'the adapter again'
        )
    return AdapterState(**{name: jnp.asarray(value, jnp.float32) for name, value in values.items()})


def rms(x: Float[Array, 'b ...'], axes: int) -> Float[Array, 'b']:
    """Root mean square over the last `axes` axes."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(-axes, 0))))


def all_finite(*arrays: Float[Array, 'b ...']) -> Bool[Array, 'b']:
    """True for windows whose entries are all finite."""
    flat = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in arrays]
    return jnp.stack(flat).all(axis=0)


def add_scaled(base: Array, residual: Array, scale: Float[Array, 'b']) -> Array:
    """base + scale * residual; exactly base where the scale is 0, whatever the residual."""
    scale = scale.reshape(-1, *[1] * (base.ndim - 1))
    return jnp.where(
        scale > 0, base + scale * jnp.where(jnp.isfinite(residual), residual, 0.0), base
    )
