"""Stress tests of the adapter (paper 4.3): what it saves when Sigma goes wrong, and what it costs
when it does not.

    residual x 10     actions = a_base + 10 (actions - a_base)
    tau as noise      tau drawn from a normal distribution, as large as the model's own and ten and
                      a hundred times that
    foreign tau       the tau of the same place in the next episode of the split

A tau from outside goes through all that is downstream of pass 1: FiLM, the second pass, r_high,
c_act. A stress shows something only where plain Sigma's error is 1.5 times the base's or more.
Wanted there: an error with the adapter of at most 1.1 times the base's; without stress: 95 % of
Sigma's gain kept.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Float

from sigma_jax.evaluation import measure, metrics
from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.predictor import Predictor
from sigma_jax.evaluation.replay import CARRIED, NumpyBatch, ReplayedWindows, replay, views
from sigma_jax.sigma.adapter import AdapterState

INFORMATIVE, MAX_RATIO, MIN_GAIN_KEPT = 1.5, 1.1, 0.95
FACTOR = 10.0  # of the residual
NOISE = (1.0, 10.0, 100.0)  # rms of the noise, in units of the model's own rms of tau (ours)


@dataclasses.dataclass(frozen=True)
class Stress:
    """A name and the windows under it."""

    name: str
    windows: ReplayedWindows


def every_stress(
    clean: ReplayedWindows,
    batches: Callable[[], Iterable[NumpyBatch]],
    trained: Predictor,
    seed: int = 0,
) -> Iterator[Stress]:
    """All stresses on some windows, one after the other.

    Args:
      clean: replayed windows.
      batches: gives the batches that they came from.
      trained: a Sigma.
      seed: of the noise.

    Returns:
      An iterator of stresses.
    """
    yield Stress(f'residual × {FACTOR:g}', scaled_residual(clean, FACTOR))
    own = float(np.sqrt(np.mean(np.square(clean.predictions[CARRIED].tau))))
    for factor in NOISE:
        name = (
            f'τ replaced by noise, {factor:g} × its own size'
            if factor > 1
            else 'τ replaced by noise of its own size'
        )
        yield Stress(name, with_tau(batches(), trained, clean, noise(clean, factor * own, seed)))
    if len(np.unique(clean.episode)) > 1:
        yield Stress(
            'τ from another episode', with_tau(batches(), trained, clean, swapped_tau(clean))
        )


def scaled_residual(windows: ReplayedWindows, factor: float) -> ReplayedWindows:
    """The same windows with a scaled residual of Sigma.

    Args:
      windows: replayed.
      factor: of the residual.

    Returns:
      The windows.
    """
    run = windows.predictions[CARRIED]
    base = views(windows.base, windows.chunk)
    actions = jax.tree.map(
        lambda a, x: np.asarray(a + factor * (x - a), np.float32), base, run.actions
    )
    return dataclasses.replace(
        windows, predictions={CARRIED: dataclasses.replace(run, actions=actions)}
    )


def noise(windows: ReplayedWindows, rms: float, seed: int) -> Float[np.ndarray, 'n e']:
    """A tau of normal noise for every window, keyed by seed, episode and frame.

    Args:
      windows: replayed.
      rms: root mean square of tau.
      seed: of the noise.

    Returns:
      Telepathy factors.
    """
    width = windows.predictions[CARRIED].tau.shape[1]
    draws = [
        np.random.default_rng([seed, 3, int(e), int(f)]).standard_normal(width)
        for e, f in zip(windows.episode, windows.frame, strict=True)
    ]
    return (rms * np.stack(draws)).astype(np.float32)


def swapped_tau(windows: ReplayedWindows) -> Float[np.ndarray, 'n e']:
    """For every window the tau of the same place in the next episode, or of that one's last window.

    Args:
      windows: replayed.

    Returns:
      Telepathy factors.
    """
    tau, starts = (
        windows.predictions[CARRIED].tau,
        np.flatnonzero(np.diff(windows.episode, prepend=-1)),
    )
    rows = np.split(np.arange(len(tau)), starts[1:])
    others = [rows[(n + 1) % len(rows)] for n in range(len(rows))]
    place = [
        o[np.minimum(np.arange(len(own)), len(o) - 1)] for own, o in zip(rows, others, strict=True)
    ]
    return tau[np.concatenate(place)]


def with_tau(
    batches: Iterable[NumpyBatch],
    trained: Predictor,
    clean: ReplayedWindows,
    tau: Float[np.ndarray, 'n e'],
) -> ReplayedWindows:
    """The windows again, with another tau in place of the inferred one.

    Args:
      batches: that the windows came from.
      trained: a Sigma.
      clean: replayed windows.
      tau: of each window.

    Returns:
      The windows.
    """
    of_window = dict(
        zip(zip(clean.episode.tolist(), clean.frame.tolist(), strict=True), tau, strict=True)
    )
    inputs = override_tau(batches, of_window, tau.shape[1])
    return replay(
        inputs, trained.predict, trained.sequence_length, gates=trained.gates, runs=(CARRIED,)
    )


def override_tau(
    batches: Iterable[NumpyBatch], of_window: Mapping[tuple[int, int], np.ndarray], width: int
) -> Iterator[NumpyBatch]:
    """Batches with a leaf `tau_override` [b g e]; zero on padding windows.

    Args:
      batches: [b g ...].
      of_window: {(episode, frame): tau}.
      width: e.

    Returns:
      An iterator of batches.
    """
    for batch in batches:
        tau = np.zeros((*batch['episode'].shape, width), np.float32)
        for at in np.argwhere(batch['mask']):
            window = int(batch['episode'][tuple(at)]), int(batch['frame'][tuple(at)])
            tau[tuple(at)] = of_window[window]
        yield batch | {'tau_override': tau}


def report(clean: ReplayedWindows, stresses: Iterable[Stress], state: AdapterState) -> dict:
    """Rows of all stresses, and what is asked of them.

    Args:
      clean: replayed windows, for what the adapter costs without a stress.
      stresses: of `every_stress`.
      state: the fitted adapter.

    Returns:
      For the report.
    """
    rows = [row(stress.name, stress.windows, state) for stress in stresses]
    calm = row('none', clean, state)
    gain = {key: (1 - calm['sigma'][key]) for key in ERRORS}
    gains = {
        key: (1 - calm['adapter'][key]) / gain[key] if gain[key] > 0 else None for key in ERRORS
    }
    return {
        'bounds': {'informative': INFORMATIVE, 'adapter': MAX_RATIO, 'gain_kept': MIN_GAIN_KEPT},
        'without_stress': calm | {'gain_kept': gains, 'holds': keeps_enough_gain(gains)},
        'rows': rows,
    }


def keeps_enough_gain(gains: Mapping[str, float | None]) -> bool | None:
    """Whether enough of every gain is kept; None where Sigma gains nothing.

    Args:
      gains: {error: fraction of the gain that the adapter keeps}; None: no gain.

    Returns:
      Whether it is; None where Sigma gains nothing.
    """
    values = [value for value in gains.values() if value is not None]
    return all(value >= MIN_GAIN_KEPT for value in values) if values else None


def row(name: str, windows: ReplayedWindows, state: AdapterState) -> dict:
    """Errors relative to the base's of plain Sigma and of Sigma with the adapter, and the verdict.

    Informative where any of the three errors of plain Sigma is `INFORMATIVE` times the base's or
    more; it holds where all three with the adapter are `MAX_RATIO` times the base's or less.

    Args:
      name: of the stress.
      windows: under it.
      state: the fitted adapter.

    Returns:
      For the report.
    """
    methods = measure.make_methods(windows, None, state)
    names = {'base': 'pi05', 'sigma': 'sigma', 'adapter': 'sigma+adapter'}
    errors = {short: measure.errors_of(methods[method], windows) for short, method in names.items()}
    means = {short: {key: metrics.mean(of[key]) for key in ERRORS} for short, of in errors.items()}
    ratios = {
        s: {key: means[s][key] / max(means['base'][key], 1e-12) for key in ERRORS}
        for s in ('sigma', 'adapter')
    }
    informative = max(ratios['sigma'].values()) >= INFORMATIVE
    scale = measure.run_adapter(windows, CARRIED, state)[1]
    return {
        'stress': name,
        'base': means['base'],
        **ratios,
        'mean_scale': metrics.mean(scale),
        'informative': informative,
        'holds': max(ratios['adapter'].values()) <= MAX_RATIO if informative else None,
    }
