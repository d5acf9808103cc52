"""Sigma's objective: TRAF and TSAC around the frozen policy (paper 4.2)."""

import dataclasses

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
    initial_carry,
    run_sequence,
    window_keys,
)
from sigma_jax.types import Ablation, Batch, Frozen, Observation, PyTree, SigmaOutput


@dataclasses.dataclass(frozen=True)
class SigmaObjective:
    """TRAF and TSAC around the frozen policy (paper 4.2; docs/design.md, "Losses")."""

    config: Pi05Config
    sigma: SigmaConfig
    loss: losses.LossConfig
    curriculum: curriculum.CurriculumConfig

    def reads(self, path: str) -> bool:
        """Whether this leaf of the base is read: not the action expert's, whose actions lie beside
        the shards.
        """
        return not ACTION_EXPERT.fullmatch(path)

    def see(self, frozen: Frozen, observation: Observation) -> Observation:
        """The observation with all that the frozen policy alone makes of it, so that `forward` need
        not compute it.
        """
        features, text = embed_observation(
            bind(self.config, {}, frozen, Ablation()), observation, self.sigma
        )
        return dataclasses.replace(observation, features=features, text_embeddings=text)

    def forward(
        self, trainable, frozen: Frozen, batch: Batch, ablation: Ablation, key=None
    ) -> SigmaOutput:
        """One pass over [b g] windows; `key` turns LoRA dropout on and draws the refinement noise
        anew.

        Without a key the pass is deterministic: no dropout, and noise that belongs to episode and
        frame alone.
        """
        frozen_backbone = bind(self.config, {}, frozen, ablation)
        backbone = bind(self.config, trainable, frozen, ablation, key)
        features, text = embed_observation(frozen_backbone, batch.observation, self.sigma)

        def apply(observation, features, text, base, carry, reset, keys, method, given=None):
            inputs = (
                backbone,
                observation,
                features,
                text,
                base,
                frozen.stats['sigma_a'],
                carry,
                reset,
                ablation,
                keys,
                given,
            )
            return Sigma(self.sigma).apply({'params': trainable['sigma']}, *inputs, method=method)

        base = dataclasses.replace(batch, base=batch.base[..., : self.sigma.horizon, :])
        noise_key = jax.random.key(0) if key is None else key
        return run_sequence(apply, self.sigma, base, features, text, key=noise_key)[1]

    def terms(self, trainable, frozen, batch, ablation, key, step):
        """({term: [b]}, {term: weight}, metrics) of one batch."""
        output = self.forward(trainable, frozen, batch, ablation, key)
        horizon = self.sigma.horizon
        batch = dataclasses.replace(
            batch,
            actions=batch.actions[..., :horizon, :],
            action_mask=batch.action_mask[..., :horizon],
        )
        terms, metrics = losses.sigma_terms(
            output, batch, self.loss, frozen.stats['sigma_a'], ablation
        )
        weights = curriculum.evaluate(
            curriculum.make_schedules(self.curriculum), step, ablation.ramp_speed
        )
        return terms, weights, metrics | curriculum.columns(weights)

    def __call__(self, trainable, frozen: Frozen, batch: Batch, ablation: Ablation, key, step):
        """See `train_step.Objective`."""
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
    backbone = bind(objective.config, {}, frozen, Ablation())
    features, text = embed_observation(backbone, first.observation, objective.sigma)
    carry = initial_carry(objective.sigma, 1)
    base = first.base[..., : objective.sigma.horizon, :]
    keys = window_keys(key, first.episode, first.frame) if objective.sigma.noise_scale else None
    start = (
        backbone,
        first.observation,
        features,
        text,
        base,
        frozen.stats['sigma_a'],
        carry,
        first.reset,
        Ablation(),
    )
    return Sigma(objective.sigma).init(key, *start, keys)['params']
