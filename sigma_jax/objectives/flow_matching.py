"""pi0.5's own objective: flow matching, of all weights or of LoRA factors."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.errors import UserError
from sigma_jax.objectives.bind import bind
from sigma_jax.processing.actions import action_origin, normalize_actions
from sigma_jax.settings import is_a
from sigma_jax.types import Ablation, Batch, Frozen, PyTree


@dataclasses.dataclass(frozen=True)
class RtcConfig:
    """Chunks that go on from the one before, learned in training (arXiv 2512.05964).

    Attributes:
      max_delay: most actions at a chunk's start that are given clean, and not asked for; 0: none.
    """

    max_delay: int = 0


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """pi0.5's own objective: mean squared error of the velocity at a random time (openpi,
    `compute_loss`).

    Time is Beta(1.5, 1), scaled into [0.001, 1]. Steps beyond an episode's end do not count. With
    `max_delay` a number of 0 to `max_delay` is drawn for each window: so many actions at its start
    are clean, at time 0, and do not count either (docs/design.md, "Chunks without a seam").
    """

    config: BackboneConfig
    max_delay: int = 0
    groups: ClassVar = (frozenset({'lora'}), frozenset({'params'}), frozenset({'lora', 'params'}))
    needs_base_actions: ClassVar = False
    passes: ClassVar = 1  # of the language model over a window
    weighs_terms: ClassVar = False
    trains_policy: ClassVar = True

    @staticmethod
    def horizon(model: BackboneConfig, sigma: object) -> int:
        """Actions of a window: as many as the policy gives.

        Args:
          model: the policy's sizes.
          sigma: Sigma's, which do not count here.

        Returns:
          The number of steps.
        """
        return model.action_horizon

    @classmethod
    def build(
        cls,
        model: BackboneConfig,
        sigma: object,
        loss: object,
        curriculum: object,
        rtc: RtcConfig = RtcConfig(),
    ) -> 'FlowMatching':
        """The objective of a policy; see `objectives.kinds.Kind`.

        Args:
          model: the policy's sizes.
          sigma: Sigma's, which do not count here.
          loss: of Sigma, likewise.
          curriculum: of Sigma, likewise.
          rtc: how many actions at a chunk's start are given.

        Returns:
          The objective.

        Raises:
          UserError: a policy that does not act by flow matching, or a delay as long as its chunk.
        """
        if not (spec := kinds.of(model)).flows:
            raise UserError(
                f"config.objective: expected 'sigma' for a base of kind {spec.name!r}, got "
                "'flow_matching', and it acts by none; choose sigma, or another base"
            )
        if not is_a(int, most := rtc.max_delay) or not 0 <= most < model.action_horizon:
            raise UserError(
                f'config.rtc.max_delay: expected a whole number from 0 to '
                f'{model.action_horizon - 1}, one less than the actions of a chunk, got {most!r}; '
                'correct it'
            )
        return cls(model, most)

    def uses_param(self, path: str) -> bool:
        """Whether a leaf of the base is read: all are.

        Args:
          path: of the leaf.

        Returns:
          True.
        """
        return True

    def __call__(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        key: Array,
        step: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """Loss and metrics of one batch; see `training.step.Objective`.

        x_t = t noise + (1 - t) actions, and the loss is the mean of |velocity(x_t, t) - (noise -
        actions)|^2 over valid steps; t is 0 for the steps that are given, which are not valid.
        Windows of a sequence are independent examples.

        Args:
          trainable: `lora` or `params` or both.
          frozen: base and statistics.
          batch: [b g ...], raw units; `time`, `noise` and `delay` are drawn where it has none.
          ablation: gates.
          key: seed of times, noise, delays and dropout.
          step: optimiser step, which does not count here.

        Returns:
          loss: a number without units.
          metrics: {'velocity_mse'}.
        """
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        dropout_key = jax.random.split(key, 3)[2]
        relative = batch.actions - action_origin(batch.observation.state, frozen.scaling)
        actions = normalize_actions(relative, frozen.scaling, self.config.action_dim)
        time, noise = batch.time, batch.noise
        if time is None or noise is None:
            time, noise = self._sample(key, actions.shape)
        if self.max_delay and batch.delay is None:
            batch = dataclasses.replace(batch, delay=self._delays(key, len(actions)))
        if batch.delay is not None:
            time = jnp.where(_given(batch), 0.0, time[:, None])
        x_t = _of_steps(time) * noise + (1 - _of_steps(time)) * actions
        backbone = bind(self.config, trainable, frozen.params, ablation, dropout_key)
        velocity = backbone.velocity(batch.observation, x_t, time)
        error = jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)
        valid = _counted(batch)
        loss = jnp.sum(error * valid) / jnp.maximum(jnp.sum(valid), 1)
        return loss, {'velocity_mse': loss}

    def _sample(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        time_key, noise_key, _ = jax.random.split(key, 3)
        time = jax.random.beta(time_key, 1.5, 1.0, shape[:1]) * 0.999 + 0.001
        return time, jax.random.normal(noise_key, shape)

    def _delays(self, key: Array, count: int) -> Int[Array, 'b']:
        """0 to `max_delay`, of a key of their own: times and noise stay what they are without."""
        own = jax.random.fold_in(jax.random.split(key, 3)[0], 1)
        return jax.random.randint(own, (count,), 0, self.max_delay + 1)

    def sample_noise(self, key: Array, batch: Batch) -> Batch:
        """The batch with its times, noise and delays drawn, so that micro-batches of it use those
        of the whole.

        Args:
          key: seed, that of the step.
          batch: [b g ...].

        Returns:
          The batch with `time` and `noise`, and `delay` where some are drawn.
        """
        lead, steps = batch.actions.shape[:2], batch.actions.shape[2]
        time, noise = self._sample(key, (lead[0] * lead[1], steps, self.config.action_dim))
        delay = self._delays(key, time.size).reshape(lead) if self.max_delay else None
        return dataclasses.replace(
            batch,
            time=time.reshape(lead),
            noise=noise.reshape(*lead, *noise.shape[1:]),
            delay=delay,
        )

    def weight(self, batch: Batch) -> Float[Array, '']:
        """The number of action steps whose errors the loss is the mean of.

        Args:
          batch: a micro-batch.

        Returns:
          The count, as a float.
        """
        return jnp.sum(_counted(batch), dtype=float)


def _given(batch: Batch) -> Bool[Array, '... t']:
    """Steps at a window's start that are given clean."""
    return jnp.arange(batch.action_mask.shape[-1]) < jnp.asarray(batch.delay)[..., None]


def _counted(batch: Batch) -> Bool[Array, '... t']:
    """Steps whose errors count: of real windows, within the episode, and not given."""
    valid = batch.action_mask & batch.mask[..., None]
    return valid if batch.delay is None else valid & ~_given(batch)


def _of_steps(time: Array) -> Float[Array, 'b t 1']:
    """Times of windows [b], or of their steps [b t], beside their actions."""
    return time[:, None, None] if time.ndim == 1 else time[..., None]
