"""What is minimised: flow matching (pi0.5, all weights or LoRA) and Sigma's TRAF + TSAC.

An objective maps (trainable, frozen, batch, ablation, key, step) to (loss, metrics) and is pure.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sigma_jax.backbones.pi05 import ACTION_EXPERT, BoundPi05, Pi05Config
from sigma_jax.sigma import curriculum, losses
from sigma_jax.sigma.model import (
    Sigma,
    SigmaConfig,
    embed_observation,
    initial_carry,
    run_sequence,
    window_keys,
)
from sigma_jax.types import Ablation, Batch, Frozen, Observation, SigmaOutput

PyTree = Any


def overlay(base: PyTree, top: PyTree) -> PyTree:
    """`base` with the leaves of `top` in place of its own; either may be partial."""
    if not isinstance(top, Mapping):
        return top
    return {**base, **{k: overlay(base.get(k, {}), v) for k, v in top.items()}}


def bind(
    config: Pi05Config,
    trainable: PyTree,
    frozen: Frozen,
    ablation: Ablation,
    dropout_key: Array | None = None,
) -> BoundPi05:
    """The base policy with trainable leaves laid over the frozen ones, and the gated LoRA
    factors.
    """
    gate = jnp.asarray(ablation.lora)
    factors = trainable.get('lora')
    gated = (
        None
        if factors is None
        else jax.tree.map(lambda x: jnp.where(gate > 0, x, jnp.zeros_like(x)), factors)
    )
    config = dataclasses.replace(config, train_base='params' in trainable)
    return BoundPi05(
        config, overlay(frozen.params, trainable.get('params', {})), gated, dropout_key
    )


def normalize_actions(
    actions: Float[Array, '... a'], stats: Mapping[str, Array], width: int
) -> Float[Array, '... d']:
    """Raw actions -> pi0.5's quantile-normalised units, padded with zeros to the policy's action
    width.
    """
    scaled = (actions - stats['action_low']) / stats['action_span'] * 2 - 1
    return jnp.pad(scaled, [(0, 0)] * (actions.ndim - 1) + [(0, width - actions.shape[-1])])


def unnormalize_actions(
    actions: Float[Array, '... d'], stats: Mapping[str, Array]
) -> Float[Array, '... a']:
    """The inverse of `normalize_actions`, padding dropped."""
    low, span = stats['action_low'], stats['action_span']
    return (actions[..., : low.shape[-1]] + 1) / 2 * span + low


def action_origin(
    state: Float[Array, '... p'], stats: Mapping[str, Array]
) -> Float[Array, '... 1 a']:
    """What the policy's actions count from: the robot's raw state in its relative joints, zero in
    the others.

    `state` is normalised by the policy's own statistics (openpi calls the transform DeltaActions).
    A state may be
    wider than the actions: the first entries count. Where it is narrower, no action beyond it is
    relative.
    """
    width = stats['relative'].shape[-1]
    first = state[..., :width]
    first = jnp.pad(first, [(0, 0)] * (first.ndim - 1) + [(0, width - first.shape[-1])])
    raw = (first + 1) / 2 * stats['state_span'] + stats['state_low']
    return jnp.where(stats['relative'] > 0, raw, 0.0)[..., None, :]


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """pi0.5's own objective: mean squared error of the velocity at a random time (openpi,
    `compute_loss`).

    Time is Beta(1.5, 1), scaled into [0.001, 1]. Steps beyond an episode's end do not count.
    """

    config: Pi05Config

    def reads(self, path: str) -> bool:
        """Whether this leaf of the base is read: all are."""
        return True

    def __call__(self, trainable, frozen: Frozen, batch: Batch, ablation: Ablation, key, step):
        """See `train_step.Objective`; windows of a sequence are independent examples."""
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        dropout_key = jax.random.split(key, 3)[2]
        relative = batch.actions - action_origin(batch.observation.state, frozen.stats)
        actions = normalize_actions(relative, frozen.stats, self.config.action_dim)
        time, noise = batch.time, batch.noise
        if time is None or noise is None:
            time, noise = self._draws(key, actions.shape)
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        backbone = bind(self.config, trainable, frozen, ablation, dropout_key)
        velocity = backbone.velocity(batch.observation, x_t, time)
        error = jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)
        valid = batch.action_mask & batch.mask[:, None]
        loss = jnp.sum(error * valid) / jnp.maximum(jnp.sum(valid), 1)
        return loss, {'velocity_mse': loss}

    def _draws(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        time_key, noise_key, _ = jax.random.split(key, 3)
        time = jax.random.beta(time_key, 1.5, 1.0, shape[:1]) * 0.999 + 0.001
        return time, jax.random.normal(noise_key, shape)

    def draw(self, key: Array, batch: Batch) -> Batch:
        """`batch` [b g] with the times and the noise that this objective would draw for it, for
        micro-batches of it.
        """
        lead, steps = batch.actions.shape[:2], batch.actions.shape[2]
        time, noise = self._draws(key, (lead[0] * lead[1], steps, self.config.action_dim))
        return dataclasses.replace(
            batch, time=time.reshape(lead), noise=noise.reshape(*lead, *noise.shape[1:])
        )

    def weight(self, batch: Batch) -> Float[Array, '']:
        """The number of action steps whose errors the loss is the mean of."""
        return jnp.sum(batch.action_mask & batch.mask[..., None], dtype=float)


@dataclasses.dataclass(frozen=True)
class SigmaObjective:
    """TRAF and TSAC around the frozen policy (paper 4.2; DESIGN 3.5)."""

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
        (DESIGN 3.5).
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
