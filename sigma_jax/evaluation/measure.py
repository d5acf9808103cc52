"""From replayed windows to `sigma_eval_report.json`: methods x splits, intervals, CHECK A and B
(paper 5-6; docs/design.md, "Evaluation protocol").

Choices are made on calibration windows (the adapter) and train windows (mean action, bias fit);
test windows are only measured. Nothing here touches a file; `runner` does.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax import xla
from sigma_jax.evaluation import adapter_sweep, checks, metrics, simple_baselines
from sigma_jax.evaluation.checks import ADAPTED, BASE
from sigma_jax.evaluation.metrics import ERRORS, Thresholds
from sigma_jax.evaluation.replay import CARRIED, RESET, TAU_OFF, Prediction, ReplayedWindows, views
from sigma_jax.sigma import adapter
from sigma_jax.sigma.adapter import AdapterConfig, AdapterState
from sigma_jax.types import Actions, PyTree

SCHEMA, SCHEMA_VERSION = 'sigma_jax.evaluation', 2


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Thresholds and table sizes of the paper, and ours."""

    success: Thresholds = dataclasses.field(default_factory=Thresholds)  # (paper 6)
    hard: Thresholds = dataclasses.field(default_factory=Thresholds)  # (paper 6)
    batch_size: int = 4  # CHECK B (paper: 723 windows in 181 batches)
    # CHECK B prints one batch in twenty (paper, Tables 2 and 3); fewer batches, more often
    every: int = 20
    seed: int = 0  # of the bootstrap
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)


@dataclasses.dataclass
class Method:
    """Actions of one method on one split; tau and semantic alignment where the method has them."""

    actions: Actions
    prediction: Prediction | None = None


def evaluate(
    splits: Mapping[str, ReplayedWindows],
    config: EvaluationConfig,
    sigma_params: PyTree | None = None,
    provenance: Mapping[str, Any] | None = None,
    joints: list[str] | None = None,
    *,
    state: AdapterState | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict:
    """The whole report as JSON-ready values.

    Args:
      splits: replayed windows of any of 'train', 'calibration', 'test'. Without train there is no
        `mean` and no `pi05_bias` method, without calibration no adapter.
      config: thresholds and settings of the adapter.
      sigma_params: the trained 'sigma' leaves, for CHECK A.
      provenance: anything that says where the numbers come from; stored as it is.
      joints: names of the action dimensions.
      state: the adapter where it has been fitted already; None fits it.
      more: further sections ('comparison', 'stress', 'robustness', 'compute').

    Returns:
      JSON-ready values.
    """
    if state is None and 'calibration' in splits:
        state = fit_adapter(splits['calibration'], config.adapter)
    table = {
        name: make_methods(windows, splits.get('train'), state) for name, windows in splits.items()
    }
    errors = {
        name: {method: errors_of(x, splits[name]) for method, x in table[name].items()}
        for name in splits
    }
    report: dict[str, Any] = {'schema': SCHEMA, 'schema_version': SCHEMA_VERSION}
    report |= checks.paper_report(splits, errors, config.success, config.hard, config.batch_size)
    report['check_a'] = {group: checks.head_statistics(sigma_params) for group, _ in checks.GROUPS}
    report['check_b'] = checks.check_b(splits, errors, config.batch_size, config.every)
    report['splits'] = {
        name: split_report(splits[name], table[name], errors[name], config) for name in splits
    }
    report['telepathy_by_adapter'] = {
        name: checks.two_by_two(report['splits'][name]['arms']) for name in splits
    }
    report['adapter'] = adapter_report(splits, state)
    report['example'] = example(splits, table, errors, joints)
    report['provenance'] = dict(provenance or {})
    return jsonable(report | dict(more or {}))


def fit_adapter(windows: ReplayedWindows, config: AdapterConfig) -> AdapterState:
    """The adapter fitted on calibration windows, telepathy on (docs/design.md, "Inference
    adapter"); cut-off windows only where all are.

    Args:
      windows: of the calibration split.
      config: settings.

    Returns:
      The adapter.
    """
    whole = windows.action_mask.all(axis=1)
    windows = windows.select(whole) if whole.any() else windows
    run = windows.predictions[CARRIED]
    base, target = (views(x, windows.chunk) for x in (windows.base, windows.actions))
    return adapter.fit(
        base, run.actions, target, jnp.asarray(run.tau), jnp.asarray(run.c_act0), config
    )


def make_methods(
    windows: ReplayedWindows, train: ReplayedWindows | None, state: AdapterState | None
) -> dict[str, Method]:
    """All methods of one split by name, in the order of the report.

    Args:
      windows: replayed.
      train: those of the train split; None: no methods that are fitted on it.
      state: the fitted adapter; None: none.

    Returns:
      {name: method}.
    """
    horizon, joints = windows.actions.shape[1:]
    trajectories = {}
    if windows.state.shape[1] == joints:
        trajectories['hold'] = simple_baselines.hold(windows.state, horizon, joints)
    if train is not None:
        mean = simple_baselines.mean_action(train.actions, train.action_mask)
        trajectories['mean'] = np.broadcast_to(mean, windows.actions.shape)
    trajectories[BASE] = windows.base
    if windows.samples is not None:
        trajectories[f'{BASE}_mean{windows.samples.shape[1]}'] = windows.samples.mean(axis=1)
    if train is not None:
        fitted = simple_baselines.fit_bias(train.base, train.actions, train.action_mask)
        trajectories[f'{BASE}_bias'] = simple_baselines.apply_bias(windows.base, fitted)
    result = {name: Method(views(x, windows.chunk)) for name, x in trajectories.items()}
    for name in (name for name in (CARRIED, RESET, TAU_OFF) if name in windows.predictions):
        run = windows.predictions[name]
        result[name] = Method(run.actions, run)
        if state is not None and name != RESET:
            result[name + ADAPTED] = Method(run_adapter(windows, name, state)[0], run)
    return result


def run_adapter(windows: ReplayedWindows, name: str, state: AdapterState) -> tuple:
    """`adapter.adapt` on the run `name`, as numpy.

    Args:
      windows: replayed.
      name: 'sigma', 'sigma_tau_off' or 'sigma_reset'.
      state: the adapter.

    Returns:
      As `adapter.adapt`.
    """
    run = windows.predictions[name]
    base = views(np.asarray(windows.base, np.float32), windows.chunk)
    return jax.device_get(_adapt((base, run.actions, run.tau, run.c_act0), state))


@jax.jit
def _adapt(windows: tuple, state: AdapterState) -> tuple:
    def rows(some: tuple) -> tuple:
        base, actions, tau, c_act0 = some
        return adapter.adapt(base, actions, tau, c_act0, state)

    return xla.row_by_row(rows)(windows)


def errors_of(method: Method, windows: ReplayedWindows) -> dict[str, np.ndarray]:
    """mse_vec, mse_chk and mse_trj of a method.

    Args:
      method: the method.
      windows: replayed.

    Returns:
      {error: [n]}, squared raw units.
    """
    return metrics.window_errors(method.actions, windows.actions, windows.action_mask)


def split_report(
    windows: ReplayedWindows,
    table: Mapping[str, Method],
    errors: Mapping[str, metrics.Errors],
    config: EvaluationConfig,
) -> dict:
    """Every method of one split: errors with intervals, change against the base, rates, by episode
    and by step.

    Args:
      windows: replayed.
      table: methods by name.
      errors: of each.
      config: thresholds.

    Returns:
      For the report.
    """
    reports = {
        name: method_report(method, windows, errors[name], errors[BASE], config)
        for name, method in table.items()
    }
    return {
        'num_windows': len(windows.episode),
        'num_episodes': len(np.unique(windows.episode)),
        'arms': reports,
    }


def method_report(
    method: Method,
    windows: ReplayedWindows,
    errors: metrics.Errors,
    reference: metrics.Errors,
    config: EvaluationConfig,
) -> dict:
    """One method on one split; `change` is relative to the base on the same windows, paired over
    episodes.

    Args:
      method: the method.
      windows: replayed.
      errors: of the method.
      reference: errors of the base.
      config: thresholds.

    Returns:
      For the report.
    """
    report: dict[str, Any] = {}
    for name in ERRORS:
        interval = metrics.mean_interval(errors[name], windows.episode, config.seed)
        change = metrics.relative_change(
            errors[name], reference[name], windows.episode, config.seed
        )
        report[name] = interval._asdict() | {'change': change._asdict()}
    report['success_rate'] = metrics.mean(metrics.is_success(errors, config.success))
    report['hard_sample_fraction'] = metrics.mean(metrics.is_hard(errors, config.hard))
    if method.prediction is not None:
        report['tau_l2'] = metrics.mean(metrics.tau_l2(method.prediction.tau))
        report['sem_align'] = metrics.mean(method.prediction.sem_align)
    report['by_step'] = metrics.error_by_step(
        np.asarray(method.actions.traj), windows.actions, windows.action_mask
    )
    return report | {'by_episode': by_episode(errors, windows.episode)}


def by_episode(errors: metrics.Errors, episode: np.ndarray) -> dict:
    """Means over each episode's windows.

    Args:
      errors: of a method.
      episode: of each window.

    Returns:
      {'episode': [...], 'num_windows': [...], 'mse_vec': [...], ...}.
    """
    episodes, _, counts = metrics.sum_by_episode(errors[ERRORS[0]], episode)
    means = {name: metrics.sum_by_episode(errors[name], episode)[1] / counts for name in ERRORS}
    return {'episode': episodes, 'num_windows': counts} | means


def adapter_report(
    splits: Mapping[str, ReplayedWindows], state: AdapterState | None
) -> dict | None:
    """The fitted state and, for every window outside train, scale, risk and reasons.

    Args:
      splits: replayed windows.
      state: the fitted adapter; None: none.

    Returns:
      For the report; None without an adapter.
    """
    if state is None:
        return None
    report: dict[str, Any] = {
        'state': adapter.to_dict(state),
        'fitted_on': 'calibration',
        'windows': {},
    }
    for name, windows in splits.items():
        _, scale, risk, reasons = run_adapter(windows, CARRIED, state)
        values = {
            'episode': windows.episode,
            'frame': windows.frame,
            'scale': scale,
            'risk': risk,
        } | vars(reasons)
        report['mean_scale'] = report.get('mean_scale', {}) | {name: metrics.mean(scale)}
        if name != 'train':
            report['windows'][name] = values
    held_out = {name: windows for name, windows in splits.items() if name != 'train'}
    return report | {'sweep': adapter_sweep.sweep(held_out, state)}


def example(
    splits: Mapping[str, ReplayedWindows],
    table: Mapping[str, Mapping[str, Method]],
    errors: checks.ErrorTable,
    joints: list[str] | None,
) -> dict:
    """One episode for the figures: that of median Sigma error, in the last split, so that it
    flatters nobody.

    Args:
      splits: replayed windows.
      table: {split: {name: method}}.
      errors: {split: {name: errors}}.
      joints: names of the action dimensions.

    Returns:
      For the report.
    """
    split = list(splits)[-1]
    windows = splits[split]
    episodes, sums, counts = metrics.sum_by_episode(
        errors[split][CARRIED]['mse_trj'], windows.episode
    )
    chosen = episodes[np.argsort(sums / counts, kind='stable')[(len(episodes) - 1) // 2]]
    rows = np.flatnonzero(windows.episode == chosen)
    arms_shown = [name for name in (BASE, CARRIED, CARRIED + ADAPTED) if name in table[split]]
    names = joints or [f'joint {i}' for i in range(windows.actions.shape[2])]
    return {
        'split': split,
        'episode': chosen,
        'frame': windows.frame[rows],
        'joints': names,
        'truth': windows.actions[rows],
        'action_mask': windows.action_mask[rows],
        'arms': {name: table[split][name].actions.traj[rows] for name in arms_shown},
        'tau_l2': metrics.tau_l2(windows.predictions[CARRIED].tau[rows]),
        'tau_l2_reset': metrics.tau_l2(windows.predictions[RESET].tau[rows]),
    }


def jsonable(x: Any) -> Any:
    """Arrays to lists, numpy scalars to Python's, non-finite numbers to None; floats to seven
    digits.

    Args:
      x: nested values.

    Returns:
      What JSON has.
    """
    if isinstance(x, Mapping):
        return {str(key): jsonable(value) for key, value in x.items()}
    if isinstance(x, np.ndarray | list | tuple) or hasattr(x, 'tolist'):
        values = x.tolist() if hasattr(x, 'tolist') else x
        return (
            [jsonable(value) for value in values]
            if isinstance(values, list | tuple)
            else jsonable(values)
        )
    if isinstance(x, float):
        return float(f'{x:.7g}') if math.isfinite(x) else None
    return x
