"""Sigma: the order of the passes over one window, and the scan over consecutive windows
(docs/design.md, "The two passes").

    pass 1, tau = 0   vision -> language -> z_sem, z_pool, m, c_*, z_intent, tau
    pass 2            FiLM by tau -> language -> r_high -> c_act -> branches + g -> actions

Token sequence of a language pass: [ text: l | vision: N_v | state: N_s ].
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sigma_jax.backbones.base import Backbone
from sigma_jax.sigma.action import ActionTrajectoryWorkspace, apply_residual
from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.sigma.language import LanguageIntentWorkspace
from sigma_jax.sigma.layers import keep, masked_mean
from sigma_jax.sigma.vision import CognitiveVisionWorkspace
from sigma_jax.types import Ablation, Actions, Batch, Carry, Observation, SigmaOutput, Telepathy

__all__ = [
    'Sigma',
    'SigmaConfig',
    'embed_observation',
    'initial_carry',
    'run_sequence',
    'window_keys',
]


class Sigma(nn.Module):
    """Three workspaces around a frozen backbone; parameters `vision`, `language`, `action`."""

    config: SigmaConfig

    def setup(self):
        self.vision = CognitiveVisionWorkspace(self.config)
        self.language = LanguageIntentWorkspace(self.config)
        self.action = ActionTrajectoryWorkspace(self.config)

    def __call__(
        self,
        backbone: Backbone,
        observation: Observation,
        features: Float[Array, 'b f w'] | None,
        text_embeddings: Float[Array, 'b l w'],
        base: Float[Array, 'b t a'],
        sigma_a: Float[Array, 'a'],
        carry: Carry,
        reset: Bool[Array, 'b'],
        ablation: Ablation,
        key: Array | None = None,
        given: Float[Array, 'b e'] | None = None,
    ) -> tuple[Carry, SigmaOutput]:
        """One window.

        Args:
          features, text_embeddings: from `embed_observation`; `features` is None with
            `vision_encoder='patch_embed'`.
          base: the frozen policy's own actions, raw units; `sigma_a`: raw per-joint standard
            deviation.
          reset: where the memory starts anew.
          key: one PRNG key a window [b]; read only with `noise_scale > 0`.
          given: a tau to use, and to report, in place of the inferred one; None infers it.

        Raises:
          ValueError: `base` is not [b horizon action_dim], or `noise_scale > 0` without keys.
        """
        m_prev, tau_prev, fresh = self._previous(carry, reset, ablation)
        scene = self._look(backbone, observation, features, text_embeddings, ablation)
        recurrent = self.config.feedback == 'recurrent'
        first = scene.read(
            keep(ablation.tau, tau_prev, 0.0) if recurrent else jnp.zeros_like(tau_prev)
        )
        telepathy = _with_tau(
            self.language.infer(first[1], scene.mask, m_prev, ablation.tau_const), given
        )
        tau = keep(ablation.tau, telepathy.tau, 0.0)
        hidden = first[1] if recurrent else scene.read(tau)[1]
        residual, c_act, c_act0 = self._act(scene, first[1], hidden, tau, self._start(key, base))
        actions = self._actions(residual, base, sigma_a, ablation)
        pools = scene.text_pool, jnp.mean(first[0], axis=1)
        output = SigmaOutput(actions, residual, telepathy, m_prev, fresh, c_act, c_act0, *pools)
        return Carry(memory=telepathy.memory, tau=telepathy.tau), output

    def sequence(
        self,
        backbone: Backbone,
        observation: Observation,
        features: Float[Array, 'b g f w'] | None,
        text_embeddings: Float[Array, 'b g l w'],
        base: Float[Array, 'b g t a'],
        sigma_a: Float[Array, 'a'],
        carry: Carry,
        reset: Bool[Array, 'b g'],
        ablation: Ablation,
        key: Array | None = None,
        given: Float[Array, 'b g e'] | None = None,
    ) -> tuple[Carry, SigmaOutput]:
        """g consecutive windows at once, leaves [b g ...]: the same as one after the other, for
        `two_pass`.

        Nothing before the memory reads an earlier window, so that both language passes take all
        windows in one batch, and only the memory runs through them in order.
        """
        axes = _Axes(reset.shape)
        observation, features, text_embeddings, base, key, given = jax.tree.map(
            axes.flat, (observation, features, text_embeddings, base, key, given)
        )
        scene = self._look(backbone, observation, features, text_embeddings, ablation)
        first = scene.read(jnp.zeros((*base.shape[:1], self.config.d_tau)))
        summary = self.language.summarise(first[1], scene.mask)
        m_prev, memory = self._remember(carry.memory, axes.split(summary.z_pool), reset, ablation)
        telepathy = _with_tau(
            self.language.conclude(summary, axes.flat(memory), ablation.tau_const), given
        )
        tau = keep(ablation.tau, telepathy.tau, 0.0)
        residual, c_act, c_act0 = self._act(
            scene, first[1], scene.read(tau)[1], tau, self._start(key, base)
        )
        actions = self._actions(residual, base, sigma_a, ablation)
        before = axes.flat(m_prev), axes.flat(keep(ablation.memory, reset, True))
        pools = scene.text_pool, jnp.mean(first[0], axis=1)
        output = SigmaOutput(actions, residual, telepathy, *before, c_act, c_act0, *pools)
        output = jax.tree.map(axes.split, output)
        return Carry(memory=memory[:, -1], tau=output.telepathy.tau[:, -1]), output

    def _remember(self, memory, z_pool, reset, ablation):
        """(memory before, memory after) each window of [b g]."""

        def step(module, memory, window):
            z_pool, reset = window
            m_prev = keep(ablation.memory, jnp.where(reset[:, None], 0.0, memory), 0.0)
            memory = module.language.memory(m_prev, z_pool)
            return memory, (m_prev, memory)

        loop = nn.scan(
            step, variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1
        )
        return loop(self, memory, (z_pool, reset))[1]

    def _look(self, backbone, observation, features, text_embeddings, ablation):
        """What both passes share."""
        c = self.config
        v_base, state_tokens = self.vision.perceive(features, observation)
        mask = _sequence_mask(observation.text_mask, c.num_visual + c.num_state)

        def read(tau):
            vision_tokens = self.vision.modulate(v_base, tau, ablation.film)
            hidden = backbone.encode(
                jnp.concatenate([text_embeddings, vision_tokens, state_tokens], axis=1), mask
            )
            return vision_tokens, hidden.astype(jnp.float32)

        return _Scene(
            read,
            mask,
            state_tokens,
            masked_mean(text_embeddings.astype(jnp.float32), observation.text_mask),
        )

    def _act(self, scene, before, hidden, tau, start):
        """(residual, c_act, c_act0) from the hidden sequences of pass 1 (`before`) and pass 2 and
        from tau.
        """
        r_high = self.language.modulate(hidden, tau)
        c_act = self.action.condition(r_high, scene.mask, tau)
        c_act0 = self.action.condition(before, scene.mask, jnp.zeros_like(tau))
        sequence, condition = (
            (before, c_act0) if self.config.fusion == 'internal' else (r_high, c_act)
        )
        branches = self.action.branches(sequence, scene.mask, condition, scene.state_tokens, start)
        telepathic = self.action.telepathic(r_high, scene.mask, tau)
        return jax.tree.map(jnp.add, branches, telepathic), c_act, c_act0

    def _previous(self, carry, reset, ablation):
        """Memory and tau before this window, and where the memory is fresh."""
        m_prev = keep(ablation.memory, jnp.where(reset[:, None], 0.0, carry.memory), 0.0)
        tau_prev = self.language.constant_instead(
            jnp.where(reset[:, None], 0.0, carry.tau), ablation.tau_const
        )
        return m_prev, tau_prev, keep(ablation.memory, reset, True)

    def _actions(self, residual, base, sigma_a, ablation):
        gate = ablation.residual if self.config.fusion == 'pi05' else 0.0
        return apply_residual(
            residual, Actions.from_trajectory(base, self.config.chunk), sigma_a, gate
        )

    def _start(self, key, base):
        """x_0 of the trajectory branch; checks `base` and `key`."""
        c = self.config
        if base.shape[1:] != (c.horizon, c.action_dim):
            raise ValueError(
                f'base must be [b {c.horizon} {c.action_dim}], got {list(base.shape)}; '
                'cut the baseline to the horizon and the joints of the data.'
            )
        if c.noise_scale == 0:
            return None
        if key is None:
            raise ValueError(
                'noise_scale is above 0, so Sigma needs one key a window, got None; pass '
                'window_keys(...).'
            )
        return c.noise_scale * jax.vmap(lambda k: jax.random.normal(k, base.shape[1:]))(key)


class _Scene(NamedTuple):
    """What both passes over a window share; `read` maps tau to (vision tokens, hidden sequence)."""

    read: Callable[[Array], tuple[Array, Array]]
    mask: Array
    state_tokens: Array
    text_pool: Array


def _with_tau(telepathy: Telepathy, given: Float[Array, 'b e'] | None) -> Telepathy:
    return telepathy if given is None else dataclasses.replace(telepathy, tau=given)


class _Axes:
    """[b g ...] <-> [b*g ...]."""

    def __init__(self, lead: tuple[int, ...]):
        self.lead = lead

    def flat(self, x):
        return x.reshape(-1, *x.shape[len(self.lead) :])

    def split(self, x):
        return x.reshape(*self.lead, *x.shape[1:])


def _sequence_mask(text_mask: Bool[Array, 'b l'], others: int) -> Bool[Array, 'b s']:
    return jnp.concatenate([text_mask, jnp.ones((text_mask.shape[0], others), bool)], axis=1)


def embed_observation(
    backbone: Backbone, observation: Observation, config: SigmaConfig
) -> tuple[Float[Array, 'b f w'] | None, Float[Array, 'b l w']]:
    """-> (features, text_embeddings), float32: the frozen input layers, for [b ...] or [b g ...].

    They do not depend on training: evaluate them once for all windows, in one flattened call,
    before the scan. What the observation holds of them already is taken from there.
    """
    axes = _Axes(observation.state.shape[:-1])
    features, embeddings = observation.features, observation.text_embeddings
    if features is None and config.vision_encoder == 'backbone':
        features = axes.split(backbone.encode_images(axes.flat(observation.images)))
    if embeddings is None:
        text = axes.flat(observation.text)
        one_hot = config.text == 'one_hot'
        embeddings = axes.split(
            _one_hot_projection(text, backbone.width) if one_hot else backbone.embed_text(text)
        )
    return None if features is None else features.astype(jnp.float32), embeddings.astype(
        jnp.float32
    )


def _one_hot_projection(tokens, width):
    """one_hot(tokens) R with a fixed random R [vocabulary, w], each row drawn when it is read
    (paper 4.2).
    """
    rows = jax.vmap(
        lambda token: jax.random.normal(jax.random.fold_in(jax.random.key(0), token), (width,))
    )
    return rows(tokens.reshape(-1)).reshape(*tokens.shape, width)


def initial_carry(config: SigmaConfig, batch_size: int) -> Carry:
    """Empty memory and tau."""
    return Carry(
        memory=jnp.zeros((batch_size, config.d_model)), tau=jnp.zeros((batch_size, config.d_tau))
    )


def window_keys(key: Array, episode: Array, frame: Array) -> Array:
    """One key a window from seed key, episode and frame, so that its noise does not depend on its
    batch.
    """

    def one(episode, frame):
        return jax.random.fold_in(jax.random.fold_in(key, episode), frame)

    return jax.vmap(one)(episode.reshape(-1), frame.reshape(-1)).reshape(episode.shape)


# (observation, features, text_embeddings, base, carry, reset, keys, method) -> (carry, output) of
# `Sigma`'s method
Apply = Callable[..., tuple[Carry, SigmaOutput]]


def run_sequence(
    apply_fn: Apply,
    config: SigmaConfig,
    batch: Batch,
    features: Float[Array, 'b g f w'] | None,
    text_embeddings: Float[Array, 'b g l w'],
    carry: Carry | None = None,
    key: Array | None = None,
    one_by_one: bool = False,
) -> tuple[Carry, SigmaOutput]:
    """The g consecutive windows of a batch [b g ...]; the output's leaves are [b g ...].

    Args:
      apply_fn: `(observation, features, text_embeddings, base, carry, reset, keys, method) ->
        (carry, output)`; also takes `given` where the batch brings a tau.
      carry: state before the first window; None starts from an empty one and marks the first
        windows as reset.
      key: seed of the refinement noise; read only with `noise_scale > 0`.
      one_by_one: scan over the windows, as `feedback='recurrent'` must, instead of taking them at
        once.
    """
    reset = batch.reset
    if carry is None:
        carry = initial_carry(config, reset.shape[0])
        reset = jnp.asarray(reset).at[:, 0].set(True)
    keys = (
        None
        if key is None or config.noise_scale == 0
        else window_keys(key, batch.episode, batch.frame)
    )
    inputs = (batch.observation, features, text_embeddings, batch.base)

    def given(tau):
        return {} if tau is None else {'given': tau}

    if config.feedback != 'recurrent' and not one_by_one:
        return apply_fn(*inputs, carry, reset, keys, method='sequence', **given(batch.tau))

    def step(carry, window):
        *rest, reset, keys, tau = window
        return apply_fn(*rest, carry, reset, keys, method='__call__', **given(tau))

    last, outputs = jax.lax.scan(step, carry, _swap((*inputs, reset, keys, batch.tau)))
    return last, _swap(outputs)


def _swap(tree):
    """[b g ...] <-> [g b ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
