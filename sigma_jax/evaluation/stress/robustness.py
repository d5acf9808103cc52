"""The table of robustness: the base, Sigma and Sigma with its adapter on observations that are not
what they were.

The frozen policy is sampled anew on every perturbed window, as the method `pi05` and as what Sigma
corrects; the adapter stays as it was fitted on clean calibration windows. The cost is one sampling
of the base a window, kind and level.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from sigma_jax.convert.load_base import Base
from sigma_jax.data.shards.directory import Shards, Split
from sigma_jax.evaluation import measure, metrics
from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.predictor import Predictor
from sigma_jax.evaluation.replay import CARRIED, NumpyBatch, ReplayedWindows, replay
from sigma_jax.evaluation.replay_shards import BatchCache, whole_episodes
from sigma_jax.evaluation.stress.perturb import Perturbation, every_level
from sigma_jax.policies import base_actions
from sigma_jax.policies.robot import RobotSpec
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.types import PyTree

METHODS = ('pi05', 'sigma', 'sigma+adapter')


class BasePolicy:
    """The policy behind the base's actions beside some shards; `sample(batch)` gives what lies
    there, on clean windows.

    `statistics`, `policy`, `prompt` and `tokenizer` say how its own prompts are written, which need
    not be how Sigma's are.

    Args:
      shards: with the base's actions.
      base: of a run, with its weights.
      weights: those on the device, as a run stores them; None: put there as they are. In another
        form the actions differ from those beside the shards by what it rounds away.

    Raises:
      UserError: no such actions, those of another base, or a base that cannot be sampled.
    """

    def __init__(self, shards: Shards, base: Base, weights: PyTree | None = None):
        record = base_actions.check_baselines(shards, base.digest)
        robot = RobotSpec.of(shards.meta)
        self._sampler = base_actions.sampler_of(robot, base, record, samples=1, weights=weights)
        self.tokenizer, self.statistics = record.tokenizer, self._sampler.statistics
        self.policy, self.prompt = base.policy, base.spec.prompt

    def batches(
        self, split: Split, episodes_at_once: int, batch_cache: BatchCache | None = None
    ) -> Iterator[NumpyBatch]:
        """Batches of whole episodes as the policy itself sees them.

        Args:
          split: of the shards.
          episodes_at_once: in a batch.
          batch_cache: keeps them for who asks again.

        Returns:
          An iterator over them, leaves [b g ...].
        """
        return whole_episodes(
            split,
            episodes_at_once,
            self.tokenizer,
            self.statistics,
            self.policy,
            batch_cache=batch_cache,
            prompt=self.prompt,
        )

    def sample(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first sample of every window.

        Args:
          batch: of `batches`, perturbed or not.

        Returns:
          Actions [b g t a], raw units.
        """
        return self._sampler.of_sequences(batch)[:, :, 0]


def perturbed(
    pairs: Iterable[tuple[NumpyBatch, NumpyBatch]],
    change: Callable[[NumpyBatch], NumpyBatch],
    sample: Callable[[NumpyBatch], np.ndarray],
) -> Iterator[NumpyBatch]:
    """Sigma's batches, changed, each with the base sampled on the same change of the base's own
    batch.

    Args:
      pairs: (Sigma's batch, the base's batch) of the same windows.
      change: the perturbation.
      sample: of the base.

    Returns:
      An iterator of Sigma's batches.
    """
    for ours, bases in pairs:
        base = sample(change(bases))
        yield change(ours) | {'base': base.astype(np.float32)}


def replayed(batches: Iterable[NumpyBatch], trained: Predictor) -> ReplayedWindows:
    """What a Sigma makes of whole episodes.

    Args:
      batches: of `perturbed`.
      trained: the Sigma.

    Returns:
      Its windows.
    """
    return replay(
        batches, trained.predict, trained.sequence_length, gates=trained.gates, runs=(CARRIED,)
    )


def table(
    clean: ReplayedWindows,
    pairs: Callable[[], Iterable[tuple[NumpyBatch, NumpyBatch]]],
    trained: Predictor,
    sample: Callable[[NumpyBatch], np.ndarray],
    state: AdapterState | None,
    stride: int,
    *,
    on_level: Callable[[], None] = lambda: None,
    changes: Iterable[Perturbation] | None = None,
) -> list[dict]:
    """A row for the clean windows and for each perturbation: errors of the methods, with their
    change against the base there.

    Args:
      clean: replayed windows.
      pairs: gives (Sigma's batch, the base's batch).
      trained: a Sigma.
      sample: of the base.
      state: the fitted adapter; None: none.
      stride: frames from one window to the next.
      on_level: called after each row.
      changes: perturbations; None: `every_level`.

    Returns:
      For the report.
    """
    rows = [
        {'kind': 'none', 'level': 0, 'name': 'as recorded', 'arms': method_errors(clean, state)}
    ]
    for change in changes or every_level():
        windows = replayed(perturbed(pairs(), change, sample), trained)
        name, methods = change.name(stride), method_errors(windows, state)
        rows.append({'kind': change.kind, 'level': change.level, 'name': name, 'arms': methods})
        on_level()
    return rows


def method_errors(windows: ReplayedWindows, state: AdapterState | None) -> dict[str, dict]:
    """mse_vec, mse_chk, mse_trj of each method: mean, and change against pi05 on the same windows,
    paired.

    Args:
      windows: replayed.
      state: the fitted adapter; None: none.

    Returns:
      {method: {error: value and change}}.
    """
    methods = measure.make_methods(windows, None, state)
    errors = {
        name: measure.errors_of(methods[name], windows) for name in METHODS if name in methods
    }
    return {
        name: {
            key: {
                'value': metrics.mean(of[key]),
                'change': metrics.relative_change(
                    of[key], errors['pi05'][key], windows.episode
                )._asdict(),
            }
            for key in ERRORS
        }
        for name, of in errors.items()
    }
