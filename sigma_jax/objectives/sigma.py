"""Sigma's objective: TRAF and TSAC around the frozen policy (paper 4.2)."""

import dataclasses
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sigma_jax import xla
from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.errors import UserError
from sigma_jax.objectives.bind import bind
from sigma_jax.objectives.flow_matching import RtcConfig
from sigma_jax.sigma import curriculum, losses
from sigma_jax.sigma.curriculum import CurriculumConfig
from sigma_jax.sigma.model import (
    Sigma,
    SigmaConfig,
    embed_observation,
    initial_carry,
)
from sigma_jax.types import Ablation, Batch, Carry, Frozen, Observation, PyTree, SigmaOutput


@dataclasses.dataclass(frozen=True)
class SigmaObjective:
    """TRAF and TSAC around the frozen policy (paper 4.2; docs/design.md, "Losses")."""

    config: BackboneConfig
    sigma: SigmaConfig
    loss: losses.LossConfig
    curriculum: CurriculumConfig
    groups: ClassVar = (frozenset({'sigma'}), frozenset({'sigma', 'lora'}))
    needs_base_actions: ClassVar = True
    passes: ClassVar = 2  # of the language model over a window
    weighs_terms: ClassVar = True
    trains_policy: ClassVar = False

    @staticmethod
    def horizon(model: object, sigma: SigmaConfig) -> int:
        """Actions of a window: as many as Sigma corrects.

        Args:
          model: the policy's sizes, which do not count here.
          sigma: Sigma's sizes.

        Returns:
          The number of steps.
        """
        return sigma.horizon

    @classmethod
    def build(
        cls,
        model: BackboneConfig,
        sigma: SigmaConfig,
        loss: losses.LossConfig,
        curriculum: CurriculumConfig,
        rtc: RtcConfig = RtcConfig(),
    ) -> 'SigmaObjective':
        """The objective of a policy; see `objectives.kinds.Kind`.

        Args:
          model: the policy's sizes.
          sigma: Sigma's sizes.
          loss: constants of TRAF and TSAC.
          curriculum: ends and length of the ramps.
          rtc: of the policy's own training, which is none here.

        Returns:
          The objective.

        Raises:
          UserError: actions at a chunk's start are to be given: the policy does not learn.
        """
        if rtc != RtcConfig():
            raise UserError(
                f"config.rtc.max_delay: expected 0 for objective 'sigma', got {rtc.max_delay!r}; "
                "the policy learns to go on from a chunk by objective 'flow_matching'"
            )
        return cls(model, sigma, loss, curriculum)

    def uses_param(self, path: str) -> bool:
        """Whether a leaf of the base is read: all but what only acting reads, whose actions are
        stored with the shards.

        Args:
          path: of the leaf.

        Returns:
          Whether it is read.
        """
        return not kinds.of(self.config).acting.fullmatch(path)

    def encode_frozen(self, frozen: Frozen, observation: Observation) -> Observation:
        """The observation with image features and text embeddings, which only frozen weights
        compute.

        `forward` computes them where they are missing, and reads those that are there.

        Args:
          frozen: base and statistics.
          observation: [b ...] or [b g ...].

        Returns:
          The observation with `features` and `text_embeddings`, float32.
        """
        backbone = bind(self.config, {}, frozen.params, Ablation())
        return embed_observation(backbone, observation, self.sigma)

    def forward(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        key: Array | None = None,
        carry: Carry | None = None,
    ) -> tuple[Carry, SigmaOutput]:
        """One pass over consecutive windows [b g ...].

        Args:
          trainable: `sigma`, and `lora` or `params` where the base is trained too.
          frozen: base and statistics.
          batch: raw units; baselines longer than the horizon are cut to it.
          ablation: gates.
          key: turns LoRA dropout on and draws the refinement noise anew. Without one the pass is
            deterministic: no dropout, and noise that belongs to episode and frame alone.
          carry: memory and tau before the first window, from the call for the windows before; None
            starts anew.

        Returns:
          Memory and tau after the last window, and the output [b g ...].
        """
        backbone = bind(self.config, trainable, frozen.params, ablation, key)
        batch = dataclasses.replace(
            batch,
            observation=self.encode_frozen(frozen, batch.observation),
            base=batch.base[..., : self.sigma.horizon, :],
        )
        found = Sigma(self.sigma).apply(
            {'params': trainable['sigma']},
            backbone,
            batch,
            carry,
            ablation,
            frozen.scaling.action_std,
            key=jax.random.key(0) if key is None else key,
            method='sequence',
        )
        return cast(tuple[Carry, SigmaOutput], found)

    def window(
        self, trainable: PyTree, frozen: Frozen, batch: Batch, ablation: Ablation, carry: Carry
    ) -> tuple[Carry, SigmaOutput]:
        """`forward` of the next window of each episode: all that a robot has of it.

        Args:
          trainable: as for `forward`.
          frozen: as for `forward`.
          batch: leaves [b ...].
          ablation: as for `forward`.
          carry: memory and tau before the window.

        Returns:
          Memory and tau after it, and the output [b ...].
        """
        sequence = jax.tree.map(lambda x: x[:, None], batch)
        carry, output = self.forward(trainable, frozen, sequence, ablation, carry=carry)
        return carry, jax.tree.map(lambda x: x[:, 0], output)

    def replay(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        carry: Carry | None = None,
    ) -> tuple[Carry, SigmaOutput]:
        """`window` after `window`, as a robot has them.

        On a CPU every window is computed alone and has the same bits whatever batch it comes in;
        elsewhere it is `forward`.

        Args:
          trainable: as for `forward`.
          frozen: as for `forward`.
          batch: as for `forward`, leaves [b g ...].
          ablation: as for `forward`.
          carry: as for `forward`.

        Returns:
          As `forward`.
        """
        if carry is None:
            first = jnp.asarray(batch.reset).at[:, 0].set(True)
            batch = dataclasses.replace(batch, reset=first)
            carry = initial_carry(self.sigma, len(first))

        if not xla.alone():
            return self.forward(trainable, frozen, batch, ablation, carry=carry)

        def step(carry, windows):
            def robots(rows):
                return self.window(trainable, frozen, rows[0], ablation, rows[1])

            return xla.row_by_row(robots)((windows, carry))

        in_order = jax.tree.map(lambda x: x.swapaxes(0, 1), batch)
        last, output = jax.lax.scan(step, carry, in_order)
        return last, jax.tree.map(lambda x: x.swapaxes(0, 1), output)

    def terms(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        key: Array,
        step: Array,
    ) -> tuple[losses.Terms, dict[str, Array], dict[str, Array]]:
        """The terms of the loss and their weights.

        Args:
          trainable: `sigma`, and `lora` where it is trained.
          frozen: base and statistics.
          batch: [b g ...], raw units.
          ablation: gates.
          key: seed of dropout and refinement noise.
          step: optimiser step, for the curriculum.

        Returns:
          terms: {term: [b]}, one number a window.
          weights: {term: weight}.
          metrics: as `losses.sigma_terms`, and the weights under the names of Table 1.
        """
        _, output = self.forward(trainable, frozen, batch, ablation, key)
        horizon = self.sigma.horizon
        batch = dataclasses.replace(
            batch,
            actions=batch.actions[..., :horizon, :],
            action_mask=batch.action_mask[..., :horizon],
        )
        terms, metrics = losses.sigma_terms(
            output, batch, self.loss, frozen.scaling.action_std, ablation
        )
        weights = curriculum.evaluate(
            curriculum.make_schedules(self.curriculum), step, ablation.ramp_speed
        )
        return terms, weights, metrics | curriculum.columns(weights)

    def __call__(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        key: Array,
        step: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """Loss and metrics of one batch; see `training.step.Objective` and `losses`.

        Args:
          trainable: `sigma`, and `lora` where it is trained.
          frozen: base and statistics.
          batch: [b g ...], raw units.
          ablation: gates.
          key: seed of dropout and refinement noise.
          step: optimiser step, for the curriculum.

        Returns:
          loss: L_total.
          metrics: as `terms`.
        """
        terms, weights, metrics = self.terms(trainable, frozen, batch, ablation, key, step)
        return losses.combine(terms, weights, batch.mask, self.loss.alignment_scale), metrics

    def sample_noise(self, key: Array, batch: Batch) -> Batch:
        """The batch as it is: noise is drawn from key, episode and frame, not for a batch.

        Args:
          key: seed, which does not count here.
          batch: [b g ...].

        Returns:
          The batch.
        """
        return batch

    def weight(self, batch: Batch) -> Float[Array, '']:
        """The number of windows whose losses are averaged.

        Args:
          batch: a micro-batch.

        Returns:
          The count, as a float.
        """
        return jnp.sum(batch.mask, dtype=float)

    def gradient_norms(
        self,
        trainable: PyTree,
        frozen: Frozen,
        batch: Batch,
        ablation: Ablation,
        key: Array,
        step: Array,
    ) -> dict[str, Array]:
        """Gradient norm of each weighted term alone (docs/design.md, "Losses").

        Args:
          trainable: `sigma`, and `lora` where it is trained.
          frozen: base and statistics.
          batch: [b g ...], raw units.
          ablation: gates.
          key: seed of dropout and refinement noise.
          step: optimiser step, for the curriculum.

        Returns:
          {'grad_act', 'grad_sem', 'grad_intent', 'grad_tau'}, and as 'grad_share' the alignment
            terms' part of the sum, 0 to 1.
        """

        names = tuple(curriculum.make_schedules(self.curriculum))

        def one_term(chosen):
            def loss(trainable):
                terms, weights, _ = self.terms(trainable, frozen, batch, ablation, key, step)
                alone = {k: weights[k] * chosen[n] for n, k in enumerate(names)}
                return losses.combine(terms, alone, batch.mask, self.loss.alignment_scale)

            return optax.tree.norm(jax.grad(loss)(trainable))

        norms = dict(zip(names, jax.lax.map(one_term, jnp.eye(len(names))), strict=True))
        everything = sum(norms.values())
        return {f'grad_{k}': v for k, v in norms.items()} | {
            'grad_share': 1 - norms['act'] / everything
        }


def init_sigma(key: Array, objective: SigmaObjective, frozen: Frozen, batch: Batch) -> PyTree:
    """Random parameters of the three workspaces.

    Args:
      key: seed.
      objective: sizes.
      frozen: base and statistics.
      batch: [b g ...]; its first window gives the shapes.

    Returns:
      {'vision', 'language', 'action'}, float32.
    """
    first = jax.tree.map(lambda x: x[:1, 0], batch)
    first = dataclasses.replace(
        first,
        observation=objective.encode_frozen(frozen, first.observation),
        base=first.base[..., : objective.sigma.horizon, :],
    )
    backbone = bind(objective.config, {}, frozen.params, Ablation())
    inputs = backbone, first, None, Ablation(), frozen.scaling.action_std
    return Sigma(objective.sigma).init(key, *inputs, key=key)['params']
