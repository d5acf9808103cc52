"""Inference adapter: how far to trust Sigma's residual, window by window (paper 4.3;
docs/design.md, "Inference adapter").

    residual = actions - a_base
    ratio = |S^-1 residual|
    drift = |rms(tau) - tau_target| / tau_target
    mis   = 1 - cos(tau, c_act0)
    risk  = k_ratio relu(ratio - ratio_ok) + k_tau relu(drift - drift_ok) + k_mis relu(mis - mis_ok)
    scale = min_scale + (max_scale - min_scale) exp(-risk), below 1e-3 exactly 0
    adapted = a_base + scale * residual

`S` describes how calibration residuals vary, all three branches in one vector: the standard
deviation of every entry, and the `rank` directions in which entries vary together. The mean of
`ratio` squared is 1 on calibration windows. Directions are needed because a small residual that is
scaled up ten times is no larger than a large true one; it is only large in directions in which true
ones are small, and a standard deviation for each joint alone does not see that. All functions are
pure and treat each window by itself.
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
MIN_VARIANCE = 0.1  # floor of the variance along a direction, in units of the mean variance (ours)
# floor of sigma_res (raw units) and tau_target, for a residual or tau that is 0 throughout
EPS = 1e-6


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
    """Why a window got its scale: the three signals, what each adds to the risk, and whether it was
    not finite.
    """

    ratio: Float[Array, 'b']
    drift: Float[Array, 'b']
    mis: Float[Array, 'b']
    risk_ratio: Float[Array, 'b']
    risk_tau: Float[Array, 'b']
    risk_mis: Float[Array, 'b']
    non_finite: Bool[Array, 'b']


def preset(name: str) -> AdapterConfig:
    """The settings of a named preset.

    Args:
      name: 'default' (`max_scale` is chosen on calibration episodes) or 'paper' (min 0 and max 1.25
        as they are, paper 4.3).

    Returns:
      Settings for `fit`.

    Raises:
      UserError: there is no preset of that name.
    """
    presets = {'default': AdapterConfig(), 'paper': AdapterConfig(choose_max_scale=False)}
    if name not in presets:
        raise UserError(
            f'adapter preset: expected one of {sorted(presets)}, got {name!r}; choose one'
        )
    return presets[name]


def adapt(
    base: Actions,
    actions: Actions,
    tau: Float[Array, 'b e'],
    c_act0: Float[Array, 'b e'],
    state: AdapterState,
) -> tuple[Actions, Float[Array, 'b'], Float[Array, 'b'], Reasons]:
    """The residual scaled by how far it is trusted (paper 4.3; formulas in the module's first
    lines).

    Where residual, tau or c_act0 is not finite, the scale is 0 and the risk infinite: the base
    action comes back.

    Args:
      base: the frozen policy's actions, raw units.
      actions: Sigma's actions, raw units.
      tau: telepathy factor.
      c_act0: action condition of pass 1, which never saw tau.
      state: levels and scales found by `fit`.

    Returns:
      adapted: actions in raw units; exactly `base` where the scale is 0.
      scale: factor of each window's residual, 0 or between 1e-3 and `max_scale`.
      risk: of each window, 0 or more.
      reasons: the signals and their shares of the risk.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from sigma_jax.sigma import adapter
      >>> from sigma_jax.types import Actions
      >>> r = jax.random.normal(jax.random.key(0), (64, 4, 2))
      >>> base = Actions.from_trajectory(jnp.zeros((64, 4, 2)), chunk=2)
      >>> actions = Actions.from_trajectory(r, chunk=2)
      >>> tau = jnp.ones((64, 3))
      >>> state = adapter.fit(base, actions, actions, tau, tau, adapter.preset('paper'))
      >>> adapter.adapt(base, actions, tau, tau, state)[1][:3].tolist()
      [1.25, 1.25, 1.25]
      >>> far = Actions.from_trajectory(10 * r, chunk=2)
      >>> adapter.adapt(base, far, tau, tau, state)[1][:3].tolist()
      [0.0, 0.0, 0.0]
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
    """Fits the adapter on calibration windows; all actions are in raw units.

    The levels are quantiles of the signals times `ok_margin`. `max_scale`, where it is to be
    chosen, minimises the mean over the three branches of adapted error relative to the base's
    error. Windows with a residual, tau or c_act0 that is not finite are left out.

    Args:
      base: the frozen policy's actions.
      actions: Sigma's actions.
      target: the recorded actions.
      tau: telepathy factor.
      c_act0: action condition of pass 1, which never saw tau.
      config: settings, such as `preset('default')`.

    Returns:
      The state that `adapt` takes.

    Raises:
      UserError: no window is left.
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
    sigma_res = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(residual.traj), axis=(0, 1))), EPS)
    tau_target = jnp.maximum(jnp.median(rms(tau, 1)), EPS)
    constants = (config.min_scale, config.max_scale, config.k_ratio, config.k_tau, config.k_mis)
    limits = [jnp.zeros(())] * 3 + [jnp.asarray(x, jnp.float32) for x in constants]
    state: Any = AdapterState(
        sigma_res, *fit_covariance(concat_branches(residual), config.rank), tau_target, *limits
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
    """`relative_error` of the same windows at every candidate for max_scale.

    Args:
      candidates: values of `max_scale`.
      *windows_and_state: base, actions, target, tau, c_act0 and state, as `relative_error` takes
        them.

    Returns:
      One error for each candidate.
    """
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
    """Mean over the three branches of adapted squared error / base squared error.

    Args:
      base: the frozen policy's actions, raw units.
      actions: Sigma's actions, raw units.
      target: the recorded actions, raw units.
      tau: telepathy factor.
      c_act0: action condition of pass 1.
      state: the adapter.

    Returns:
      A number without units; 1 is the base's own error.
    """
    adapted = adapt(base, actions, tau, c_act0, state)[0]
    ratios = jax.tree.map(
        lambda x, a, y: jnp.sum(jnp.square(x - y)) / jnp.maximum(jnp.sum(jnp.square(a - y)), EPS),
        adapted,
        base,
        target,
    )
    return jnp.mean(jnp.stack(jax.tree.leaves(ratios)))


def signals(
    residual: Actions, tau: Float[Array, 'b e'], c_act0: Float[Array, 'b e'], state: AdapterState
) -> tuple[Float[Array, 'b'], Float[Array, 'b'], Float[Array, 'b']]:
    """What the risk is made of: ratio, drift and mis (formulas in the module's first lines).

    Args:
      residual: actions less base actions, raw units.
      tau: telepathy factor.
      c_act0: action condition of pass 1.
      state: the adapter.

    Returns:
      ratio: length of the residual, measured by S.
      drift: relative distance of rms(tau) from its calibration median.
      mis: 1 - cos(tau, c_act0), 0 to 2.
    """
    scaled = concat_branches(residual) / state.spread
    along = scaled @ state.directions.T
    across = scaled - along @ state.directions
    square = jnp.sum(jnp.square(along) * state.weights[:-1], axis=1)
    ratio = jnp.sqrt(square + jnp.sum(jnp.square(across), axis=1) * state.weights[-1])
    drift = jnp.abs(rms(tau, 1) - state.tau_target) / state.tau_target
    return ratio, drift, 1.0 - safe_cosine(tau, c_act0)


def concat_branches(residual: Actions) -> Float[Array, 'b m']:
    """The three branches as one vector [vec chk traj].

    Args:
      residual: one number for each step and joint.

    Returns:
      m = (1 + c + t) a entries a window.
    """
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(residual)], axis=1)


def fit_covariance(
    residual: Float[Array, 'b m'], rank: int
) -> tuple[Float[Array, 'm'], Float[Array, 'k m'], Float[Array, 'k+1']]:
    """S of the module's first lines, by probabilistic principal components.

    The mean squared ratio is 1. No direction counts as narrower than a tenth of the mean variance:
    a few hundred windows say nothing about narrower ones.

    Args:
      residual: residuals of the calibration windows as vectors, raw units.
      rank: how many directions are kept.

    Returns:
      spread: root mean square of every entry, raw units.
      directions: orthonormal, of residuals divided by `spread`.
      weights: inverse variance along each direction, and one across them all.
    """
    values = np.asarray(residual, np.float64)
    spread = np.maximum(np.sqrt(np.mean(np.square(values), axis=0)), EPS)
    scaled = values / spread
    variance, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    variance, directions = np.maximum(variance[::-1], 0), vectors[:, ::-1][:, :rank].T
    rest = np.mean(variance[rank:]) if len(variance) > rank else 0.0
    weights = 1 / np.maximum(np.append(variance[:rank], rest), MIN_VARIANCE)
    total = np.sum(variance[:rank] * weights[:-1]) + np.sum(variance[rank:]) * weights[-1]
    arrays = spread, directions, weights / max(total, EPS)
    return (
        jnp.asarray(arrays[0], jnp.float32),
        jnp.asarray(arrays[1], jnp.float32),
        jnp.asarray(arrays[2], jnp.float32),
    )


def to_dict(state: AdapterState) -> dict[str, Any]:
    """An adapter as plain numbers and lists, as the JSON file of a checkpoint holds it.

    Args:
      state: the adapter.

    Returns:
      {field: number or nested list}.
    """
    return {name: np.asarray(value, np.float64).tolist() for name, value in vars(state).items()}


def from_dict(values: Mapping[str, Any]) -> AdapterState:
    """Inverse of `to_dict`.

    Args:
      values: {field: number or nested list}.

    Returns:
      The adapter, float32.

    Raises:
      UserError: the fields are not those of `AdapterState`.
    """
    expected = set(AdapterState.__dataclass_fields__)
    if set(values) != expected:
        raise UserError(
            f'adapter state: expected the fields {sorted(expected)}, got {sorted(values)}; fit '
            'the adapter again'
        )
    return AdapterState(**{name: jnp.asarray(value, jnp.float32) for name, value in values.items()})


def rms(x: Float[Array, 'b ...'], axes: int) -> Float[Array, 'b']:
    """Root mean square over the last axes.

    Args:
      x: any numbers.
      axes: how many of the last axes.

    Returns:
      One number a window.
    """
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(-axes, 0))))


def all_finite(*arrays: Float[Array, 'b ...']) -> Bool[Array, 'b']:
    """True for windows whose entries are all finite.

    Args:
      *arrays: first axis: windows.

    Returns:
      One flag a window.
    """
    flat = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in arrays]
    return jnp.stack(flat).all(axis=0)


def add_scaled(base: Array, residual: Array, scale: Float[Array, 'b']) -> Array:
    """base + scale * residual; exactly base where the scale is 0, whatever the residual.

    Args:
      base: any shape, first axis: windows.
      residual: of the same shape.
      scale: one factor a window.

    Returns:
      The sum, finite where base is.
    """
    scale = scale.reshape(-1, *[1] * (base.ndim - 1))
    return jnp.where(
        scale > 0, base + scale * jnp.where(jnp.isfinite(residual), residual, 0.0), base
    )
