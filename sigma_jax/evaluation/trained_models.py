"""Finished trainings as evaluation takes them: a Sigma, or pi0.5 fine-tuned by flow matching."""

import json
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

from sigma_jax import xla
from sigma_jax.errors import UserError
from sigma_jax.evaluation.cost import flops
from sigma_jax.nn import quant
from sigma_jax.policies import sampling
from sigma_jax.policies.sampled_policy import Sampler
from sigma_jax.training.checkpoints import FREE, parameter_count
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.run import Parts
from sigma_jax.types import Ablation, SigmaOutput, to_batch

# settings that neither base nor data nor a forward pass without dropout depends on
PER_RUN = {
    'optimizer',
    'loss',
    'curriculum',
    'ablation',
    'trainable',
    'ema',
    'accumulate',
    'batch_size',
    'sequence_length',
    'state_noise',
    *FREE,
}


class ModelCache:
    """Base, statistics and compiled passes, opened once for all trainings that differ in seed,
    gates and weights.
    """

    def __init__(self) -> None:
        self._opened: dict[str, tuple[Parts, Callable]] = {}

    def open(self, config: RunConfig, make: Callable[[Parts], Callable]) -> tuple[Parts, Callable]:
        """The parts of a run, and a compiled function of them; both are shared among runs that
        allow it.

        Args:
          config: of the run.
          make: gives the function of its parts; weights are arguments of it.

        Returns:
          The parts and the function.
        """
        # without a base its random weights have that seed
        left_out = PER_RUN | ({'seed'} if config.base else set())
        same = {k: v for k, v in config.to_dict().items() if k not in left_out}
        key = json.dumps(same, sort_keys=True)
        if key not in self._opened:
            parts = Parts(config, Devices(jax.local_devices()[:1]))
            self._opened[key] = parts, xla.jit(make(parts))
        return self._opened[key]


class TrainedSigma:
    """A trained Sigma for evaluation: `predict(batch, ablation) -> SigmaOutput`, leaves [b g ...].

    `gates` are those it was trained with: evaluation must not bring back a part that training left
    out.

    Args:
      workdir: the training folder.
      model_cache: what is shared; None: nothing.

    Raises:
      UserError: the run trains the policy itself, or has no checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, model_cache: ModelCache | None = None):
        folder = RunFolder(workdir)
        self.config = folder.config()
        if self.config.kind.trains_policy:
            raise UserError(
                f"expected a run with objective 'sigma' in {workdir}, got {self.config.objective!r}"
            )
        step, self.trainable = folder.trainable()
        parts, self.forward = (model_cache or ModelCache()).open(
            self.config, lambda parts: parts.objective.replay
        )
        self.frozen, self.base, self.shards, self.policy_stats = (
            parts.frozen,
            parts.base,
            parts.shards,
            parts.statistics.policy,
        )
        self.sequence_length = self.config.sequence_length
        self.gates = self.config.ablation
        self.sigma_params = self.trainable['sigma']
        self.parameter_counts = parameter_count(self.trainable) | {
            'base': quant.count(parts.base.params)
        }
        self.provenance = {
            'step': step,
            'seed': self.config.seed,
            'base_digest': parts.base.digest,
        }

    def predict(self, batch: Mapping[str, np.ndarray], ablation: Ablation) -> SigmaOutput:
        """Sigma's output for windows [b g ...], memory carried along g and reset where the batch
        says.

        Args:
          batch: [b g ...].
          ablation: gates.

        Returns:
          The output.
        """
        return jax.device_get(self.forward(*self.inputs(batch, ablation))[1])

    def inputs(self, batch: Mapping[str, np.ndarray], ablation: Ablation) -> tuple:
        """What `forward` takes.

        Args:
          batch: [b g ...].
          ablation: gates.

        Returns:
          Arguments.
        """
        gates = jax.tree.map(lambda x: np.asarray(x, np.float32), ablation)
        return self.trainable, self.frozen, to_batch(batch), gates

    def flops(self, batch: Mapping[str, np.ndarray]) -> int:
        """Operations a window of the forward pass, SigLIP and both language passes included.

        Args:
          batch: windows, for their shapes.

        Returns:
          Floating-point operations of one window.
        """
        # one episode alone may stand in a loop over two
        two = {name: np.concatenate([x[:1], x[:1]]) for name, x in batch.items()}
        return flops.count(self.forward, *self.inputs(two, self.gates)) // two['mask'].size


class TrainedPolicy:
    """pi0.5 after flow matching: `sample(batch) -> [b g m t a]`, raw units, `samples` samples of
    every window.

    `statistics` normalise the states of its prompts, as they did in training.

    Args:
      workdir: the training folder.
      model_cache: what is shared.
      samples: samples of a window.
      seed: of the noise.
    """

    def __init__(self, workdir: pathlib.Path, model_cache: ModelCache, samples: int, seed: int):
        folder = RunFolder(workdir)
        self.config = folder.config()
        step, self.trainable = folder.trainable()

        def make(parts: Parts) -> Callable:
            horizon = parts.shards.meta.horizon
            return sampling.sample_finetuned(parts.objective.config, seed, samples, horizon)

        parts, run = model_cache.open(self.config, make)
        self.base, self.statistics = parts.base, parts.statistics.loader
        weights = self.trainable, parts.frozen.params
        self.sampler = Sampler(self.statistics, run, weights, parts.frozen.scaling)
        self.parameter_counts = parameter_count(self.trainable)
        self.provenance = {
            'step': step,
            'seed': self.config.seed,
            'base_digest': parts.base.digest,
        }

    def sample(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Samples of every window; the noise is that of the base's samples.

        Args:
          batch: [b g ...].

        Returns:
          [b g m t a], raw units.
        """
        return self.sampler.of_sequences(batch)
