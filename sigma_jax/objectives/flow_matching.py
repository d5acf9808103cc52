"""pi0.5's own objective: flow matching, of all weights or of LoRA factors."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.errors import UserError
from sigma_jax.objectives.bind import bind
from sigma_jax.processing.actions import action_origin, normalize_actions
from sigma_jax.types import Ablation, Batch, Frozen, PyTree


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """pi0.5's own objective: mean squared error of the velocity at a random time (openpi,
    `compute_loss`).

    Time is Beta(1.5, 1), scaled into [0.001, 1]. Steps beyond an episode's end do not count.
    """

    config: BackboneConfig
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
    def build(cls, model: BackboneConfig, *_: object) -> 'FlowMatching':
        """The objective of a policy, for which Sigma's settings do not count; see
        `objectives.kinds.Kind`.

        Args:
          model: the policy's sizes.

        Returns:
          The objective.

        Raises:
          UserError: a policy that does not act by flow matching.
        """
        if not (spec := kinds.of(model)).flows:
            raise UserError(
                f"config.objective: expected 'sigma' for a base of kind {spec.name!r}, got "
                "'flow_matching', and it acts by none; choose sigma, or another base"
            )
        return cls(model)

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
        actions)|^2 over valid steps. Windows of a sequence are independent examples.

        Args:
          trainable: `lora` or `params` or both.
          frozen: base and statistics.
          batch: [b g ...], raw units; `time` and `noise` are drawn where it has none.
          ablation: gates.
          key: seed of times, noise and dropout.
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
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        backbone = bind(self.config, trainable, frozen.params, ablation, dropout_key)
        velocity = backbone.velocity(batch.observation, x_t, time)
        error = jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)
        valid = batch.action_mask & batch.mask[:, None]
        loss = jnp.sum(error * valid) / jnp.maximum(jnp.sum(valid), 1)
        return loss, {'velocity_mse': loss}

    def _sample(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        time_key, noise_key, _ = jax.random.split(key, 3)
        time = jax.random.beta(time_key, 1.5, 1.0, shape[:1]) * 0.999 + 0.001
        return time, jax.random.normal(noise_key, shape)

    def sample_noise(self, key: Array, batch: Batch) -> Batch:
        """The batch with its times and noise drawn, so that micro-batches of it use those of the
        whole.

        Args:
          key: seed, that of the step.
          batch: [b g ...].

        Returns:
          The batch with `time` and `noise`.
        """
        lead, steps = batch.actions.shape[:2], batch.actions.shape[2]
        time, noise = self._sample(key, (lead[0] * lead[1], steps, self.config.action_dim))
        return dataclasses.replace(
            batch, time=time.reshape(lead), noise=noise.reshape(*lead, *noise.shape[1:])
        )

    def weight(self, batch: Batch) -> Float[Array, '']:
        """The number of action steps whose errors the loss is the mean of.

        Args:
          batch: a micro-batch.

        Returns:
          The count, as a float.
        """
        return jnp.sum(batch.action_mask & batch.mask[..., None], dtype=float)
