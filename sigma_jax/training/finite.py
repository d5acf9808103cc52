"""Losses that are not finite: which step was the first, which terms, which windows."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.types import Batch

SHOWN = 8  # windows in a message


class Recent:
    """Metrics of the steps since the last look, still on the device: waiting for each would idle
    it.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, Mapping[str, Any], np.ndarray, np.ndarray]] = []

    def add(self, step: int, metrics: Mapping[str, Any], batch: Batch) -> None:
        """Keeps one step and the windows it saw.

        Args:
          step: its number.
          metrics: of the step.
          batch: that it saw.
        """
        self._steps.append((step, metrics, np.asarray(batch.episode), np.asarray(batch.frame)))

    def finite(self) -> dict[str, float]:
        """Metrics of the last step.

        Earlier steps are looked at only where the last one is not finite: once a state holds NaN,
        all later steps do.

        Returns:
          {name: number}.

        Raises:
          UserError: a metric is not finite; names the first step where that was so.
        """
        values = read(self._steps[-1][1])
        if not all(map(np.isfinite, values.values())):
            for step, metrics, episode, frame in self._steps:
                require_finite(read(metrics), step, episode, frame)
        self._steps.clear()
        return values


def read(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as plain numbers.

    Args:
      metrics: scalars, may be arrays.

    Returns:
      {name: number}.
    """
    return {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}


def require_finite(
    values: Mapping[str, float], step: int, episode: np.ndarray, frame: np.ndarray
) -> None:
    """Checks that all metrics are finite.

    Args:
      values: {name: number}.
      step: its number.
      episode: of each window.
      frame: of each window.

    Raises:
      UserError: one is not; names step, terms and windows.
    """
    if bad := [name for name, value in values.items() if not np.isfinite(value)]:
        windows = sorted(
            {(int(e), int(f)) for e, f in zip(episode.ravel(), frame.ravel(), strict=True)}
        )
        more = f' and {len(windows) - SHOWN} more' if len(windows) > SHOWN else ''
        raise UserError(
            f'step {step}: expected finite losses, got NaN or infinity in {bad} (episode, frame: '
            f'{windows[:SHOWN]}{more}); the last checkpoint is intact: lower optimizer rates or '
            'look at these windows, then start again'
        )
