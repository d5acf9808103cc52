"""The table of robustness: the base, Sigma and Sigma with its adapter on observations that are not
what they were.

The frozen policy is sampled anew on every perturbed window, as the arm `pi05` and as what Sigma
corrects; the adapter stays as it was fitted on clean calibration windows. The cost is one sampling
of the base a window, kind and level.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sigma_jax import xla
from sigma_jax.convert.base_policy import robot_statistics
from sigma_jax.data.shards.directory import Shards
from sigma_jax.evaluation import measure, metrics
from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.replay import CARRIED, NumpyBatch, Windows, replay
from sigma_jax.evaluation.stress.perturb import Perturbation, every_level
from sigma_jax.policies import base_actions, sampling
from sigma_jax.processing import fitting
from sigma_jax.processing.actions import action_scaling
from sigma_jax.sigma.adapter import AdapterState

ARMS = ('pi05', 'sigma', 'sigma+adapter')


class BasePolicy:
    """The policy behind the baselines of some shards; `sample(batch)` gives what lies beside them,
    on clean windows.

    `statistics` and `policy` say how its own prompts are written, which need not be how Sigma's
    are.
    """

    def __init__(self, shards: Shards, base: str):
        record, meta = base_actions.check_baselines(shards, ''), shards.meta
        self.config = base_actions.BaselineConfig(
            base=base,
            tokenizer=record.tokenizer,
            samples=record.samples,
            seed=record.seed,
            dtype=record.dtype,
        )
        loaded = base_actions.load_policy(self.config)
        self.policy = loaded.policy
        own: Any = robot_statistics(loaded, meta)
        self.statistics = own
        relative = fitting.of_shards((), loaded.policy, meta, loaded.config.action_dim)
        self.scaling = action_scaling(own, own, relative)
        self.params = jax.device_put(loaded.params)
        self.run = xla.jit(
            sampling.make_sampler(
                sampling.bind_frozen(loaded.config), self.config.seed, 1, meta.horizon
            )
        )

    def sample(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first sample of every window, [b g t a] in raw units."""
        return sampling.in_parts(self.run, self.params, self.scaling, batch)[:, :, 0]


def perturbed(
    pairs: Iterable[tuple[NumpyBatch, NumpyBatch]],
    change: Perturbation,
    sample: Callable[[NumpyBatch], np.ndarray],
) -> Iterator[NumpyBatch]:
    """Sigma's batches, changed, each with the base sampled on the same change of the base's own
    batch.
    """
    for ours, bases in pairs:
        base = sample(change(bases))
        yield change(ours) | {'base': base.astype(np.float32)}


def table(
    clean: Windows,
    pairs: Callable[[], Iterable[tuple[NumpyBatch, NumpyBatch]]],
    trained: Any,
    sample: Callable[[NumpyBatch], np.ndarray],
    state: AdapterState | None,
    stride: int,
    on_level: Callable[[], None] = lambda: None,
    changes: Iterable[Perturbation] | None = None,
) -> list[dict]:
    """A row for the clean windows and for each change: errors of the arms, with their change
    against pi05 there.
    """
    rows = [{'kind': 'none', 'level': 0, 'name': 'as recorded', 'arms': arm_errors(clean, state)}]
    for change in changes or every_level():
        batches = perturbed(pairs(), change, sample)
        windows = replay(
            batches, trained.predict, trained.sequence_length, gates=trained.gates, runs=(CARRIED,)
        )
        name, arms = change.name(stride), arm_errors(windows, state)
        rows.append({'kind': change.kind, 'level': change.level, 'name': name, 'arms': arms})
        on_level()
    return rows


def arm_errors(windows: Windows, state: AdapterState | None) -> dict[str, dict]:
    """mse_vec, mse_chk, mse_trj of each arm: mean, and change against pi05 on the same windows,
    paired.
    """
    arms = measure.make_arms(windows, None, state)
    errors = {name: measure.errors_of(arms[name], windows) for name in ARMS if name in arms}
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
