"""Sigma's objective: TRAF and TSAC around the frozen policy (paper 4.2)."""

import dataclasses
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sigma_jax.backbones.pi05 import ACTION_EXPERT, Pi05Config
from sigma_jax.objectives.bind import bind
from sigma_jax.sigma import curriculum, losses
from sigma_jax.sigma.model import (
    Sigma,
    SigmaConfig,
    embed_observation,
)
from sigma_jax.types import Ablation, Batch, Carry, Frozen, Observation, PyTree, SigmaOutput


@dataclasses.dataclass(frozen=True)
class SigmaObjective:
    """TRAF and TSAC around the frozen policy (paper 4.2; docs/design.md, "Losses")."""

    config: Pi05Config
    sigma: SigmaConfig
    loss: losses.LossConfig
    curriculum: curriculum.CurriculumConfig
    groups: ClassVar = (frozenset({'sigma'}), frozenset({'sigma', 'lora'}))
    needs_base_actions: ClassVar = True
    passes: ClassVar = 2  # of the language model over a window
    weighs_terms: ClassVar = True
    trains_policy: ClassVar = False

    @staticmethod
    def horizon(model: object, sigma: SigmaConfig) -> int:
        """Actions of a window: as many as Sigma corrects."""
        return sigma.horizon

    @classmethod
    def build(cls, model: Pi05Config, sigma, loss, curriculum) -> 'SigmaObjective':
        """See `kinds.Kind`."""
        return cls(model, sigma, loss, curriculum)

    def reads(self, path: str) -> bool:
        """Whether this leaf of the base is read: not the action expert's, whose actions lie beside
        the shards.
        """
        return not ACTION_EXPERT.fullmatch(path)

    def encode_frozen(self, frozen: Frozen, observation: Observation) -> Observation:
        """The observation with what the frozen policy alone makes of its images and text.

        `forward` computes what is missing of it; what is made here and kept, it reads.
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

    def terms(self, trainable, frozen, batch, ablation, key, step):
        """({term: [b]}, {term: weight}, metrics) of one batch."""
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

    def __call__(self, trainable, frozen: Frozen, batch: Batch, ablation: Ablation, key, step):
        """See `training.step.Objective`."""
        terms, weights, metrics = self.terms(trainable, frozen, batch, ablation, key, step)
        return losses.combine(terms, weights, batch.mask, self.loss.alignment_scale), metrics

    def draw(self, key: Array, batch: Batch) -> Batch:
        """`batch` as it is: noise belongs to key, episode and frame."""
        return batch

    def weight(self, batch: Batch) -> Float[Array, '']:
        """The number of windows whose losses are averaged."""
        return jnp.sum(batch.mask, dtype=float)

    def alignment_share(self, trainable, frozen, batch, ablation, key, step) -> dict[str, Array]:
        """Gradient norm of each weighted term, and the alignment terms' share of all of them
        (docs/design.md, "Losses").
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
    """Random parameters of the three workspaces for one window of `batch` [b g]."""
    first = jax.tree.map(lambda x: x[:1, 0], batch)
    first = dataclasses.replace(
        first,
        observation=objective.encode_frozen(frozen, first.observation),
        base=first.base[..., : objective.sigma.horizon, :],
    )
    backbone = bind(objective.config, {}, frozen.params, Ablation())
    inputs = backbone, first, None, Ablation(), frozen.scaling.action_std
    return Sigma(objective.sigma).init(key, *inputs, key=key)['params']
