"""Sigma: the order of the passes over one window, and the scan over consecutive windows
(docs/design.md, "The two passes").

    pass 1, tau = 0   vision -> language -> z_sem, z_pool, m, c_*, z_intent, tau
    pass 2            FiLM by tau -> language -> r_high -> c_act -> branches + g -> actions

Token sequence of a language pass: [ text: l | vision: N_v | state: N_s ].
"""

import dataclasses
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
from sigma_jax.types import Ablation, Actions, Batch, Carry, Observation, SigmaOutput

__all__ = ['Sigma', 'SigmaConfig', 'embed_observation', 'initial_carry', 'window_keys']


class Sigma(nn.Module):
    """Three workspaces around a frozen backbone; parameters `vision`, `language`, `action`.

    Both methods take a batch whose observation went through `embed_observation`, and the memory
    before it; they return the memory after it, so that it can be stepped from outside. `__call__`
    takes one window a row, `sequence` consecutive ones:

        carry = None
        while ...:
            carry, output = sigma.apply(variables, backbone, batch, carry, ablation, action_std)
    """

    config: SigmaConfig

    def setup(self):
        self.vision = CognitiveVisionWorkspace(self.config)
        self.language = LanguageIntentWorkspace(self.config)
        self.action = ActionTrajectoryWorkspace(self.config)

    def __call__(
        self,
        backbone: Backbone,
        batch: Batch,
        carry: Carry | None,
        ablation: Ablation,
        action_std: Float[Array, 'a'],
        *,
        key: Array | None = None,
    ) -> tuple[Carry, SigmaOutput]:
        """One window a row, leaves [b ...] (docs/design.md, "The two passes").

        Args:
          backbone: the bound policy, whose language model both passes run through.
          batch: windows, raw units; `base` are the frozen policy's own actions. `reset` says where
            the memory starts anew; a `tau_override` is used, and reported, in place of the inferred
            tau.
          carry: memory and tau before the windows; None starts from empty ones, whatever `reset`
            says.
          ablation: gates.
          action_std: standard deviation of each joint's training actions, the unit of the
            residuals.
          key: seed of the refinement noise, read only with `noise_scale > 0`. The noise of a window
            depends on this key, its episode and its frame, not on its batch.

        Returns:
          carry: memory and tau after the windows.
          output: actions in raw units, and all that losses, adapter and metrics read.

        Raises:
          ValueError: `base` is not [b horizon action_dim], `noise_scale > 0` without a key, or the
            observation lacks text embeddings.
        """
        batch, carry = self._begin(batch, carry)

        def remember(z_pool):
            m_prev = self._memory_before(carry.memory, batch.reset, ablation)
            return m_prev, self.language.memory(m_prev, z_pool)

        scene = self._look(backbone, batch, ablation)
        tau_prev = self._tau_before(carry.tau, batch.reset, ablation)
        output = self._two_passes(scene, batch, action_std, key, tau_prev, remember)
        return Carry(memory=output.telepathy.memory, tau=output.telepathy.tau), output

    def sequence(
        self,
        backbone: Backbone,
        batch: Batch,
        carry: Carry | None,
        ablation: Ablation,
        action_std: Float[Array, 'a'],
        *,
        key: Array | None = None,
    ) -> tuple[Carry, SigmaOutput]:
        """g consecutive windows, leaves [b g ...]: the same as `__call__` on one after the other.

        With `two_pass` nothing before the memory reads an earlier window, so that both language
        passes take all windows in one batch, and only the memory runs through them in order
        (docs/design.md, "The sequence").

        Args:
          backbone: as for `__call__`.
          batch: as for `__call__`, with an axis of consecutive windows.
          carry: memory and tau before the first windows; None starts from empty ones, whatever
            `reset` says of those.
          ablation: gates.
          action_std: standard deviation of each joint's training actions.
          key: seed of the refinement noise.

        Returns:
          carry: memory and tau after the last windows.
          output: of all windows, leaves [b g ...].

        Raises:
          ValueError: as `__call__`.
        """
        batch, carry = self._begin(batch, carry)
        if self.config.feedback == 'recurrent':
            return self._one_by_one(backbone, batch, carry, ablation, action_std, key)
        axes = _Axes(batch.reset.shape)

        def remember(z_pool):
            m_prev, memory = self._remember(carry.memory, axes.split(z_pool), batch.reset, ablation)
            return axes.flat(m_prev), axes.flat(memory)

        flat = jax.tree.map(axes.flat, batch)
        scene = self._look(backbone, flat, ablation)
        tau_prev = jnp.zeros((flat.base.shape[0], self.config.d_tau))
        output = self._two_passes(scene, flat, action_std, key, tau_prev, remember)
        output = jax.tree.map(axes.split, output)
        last = output.telepathy.memory[:, -1], output.telepathy.tau[:, -1]
        return Carry(*last), output

    def _begin(self, batch, carry):
        """(batch, carry) with an empty carry, and the first windows marked as reset, for None."""
        if batch.observation.text_embeddings is None:
            raise ValueError(
                'expected an observation with text embeddings, got None; '
                'make them with embed_observation'
            )
        if carry is not None:
            return batch, carry
        reset = jnp.asarray(batch.reset)
        first = reset.at[(slice(None), *(0,) * (reset.ndim - 1))].set(True)
        return dataclasses.replace(batch, reset=first), initial_carry(self.config, len(first))

    def _one_by_one(self, backbone, batch, carry, ablation, action_std, key):
        """`sequence` where pass 1 of a window reads tau of the one before."""

        def step(module, carry, window):
            return module(backbone, window, carry, ablation, action_std, key=key)

        loop = nn.scan(
            step, variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1
        )
        return loop(self, carry, batch)

    def _remember(self, memory, z_pool, reset, ablation):
        """(memory before, memory after) each window of [b g]."""

        def step(module, memory, window):
            z_pool, reset = window
            m_prev = module._memory_before(memory, reset, ablation)
            memory = module.language.memory(m_prev, z_pool)
            return memory, (m_prev, memory)

        loop = nn.scan(
            step, variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1
        )
        return loop(self, memory, (z_pool, reset))[1]

    def _memory_before(self, memory, reset, ablation):
        return keep(ablation.memory, jnp.where(reset[:, None], 0.0, memory), 0.0)

    def _tau_before(self, tau, reset, ablation):
        """What pass 1 reads: tau of the window before, where feedback is recurrent."""
        if self.config.feedback != 'recurrent':
            return jnp.zeros_like(tau)
        tau = jnp.where(reset[:, None], 0.0, tau)
        tau = self.language.constant_instead(tau, ablation.tau_const)
        return keep(ablation.tau, tau, 0.0)

    def _look(self, backbone, batch, ablation):
        """What both passes share."""
        c, o = self.config, batch.observation
        v_base, state_tokens = self.vision.perceive(o.features, o)
        return _Scene(
            backbone,
            ablation,
            o.text_embeddings,
            v_base,
            state_tokens,
            _sequence_mask(o.text_mask, c.num_visual + c.num_state),
            masked_mean(o.text_embeddings.astype(jnp.float32), o.text_mask),
        )

    def _read(self, scene, tau):
        """(vision tokens, hidden sequence) of a language pass with this tau."""
        vision_tokens = self.vision.modulate(scene.v_base, tau, scene.ablation.film)
        hidden = scene.backbone.encode(
            jnp.concatenate([scene.text, vision_tokens, scene.state_tokens], axis=1), scene.mask
        )
        return vision_tokens, hidden.astype(jnp.float32)

    def _two_passes(self, scene, batch, action_std, key, tau_prev, remember):
        """The output for [b] windows. `remember` maps z_pool of all to (memory before, after)."""
        ablation = scene.ablation
        vision_tokens, before = self._read(scene, tau_prev)
        summary = self.language.summarise(before, scene.mask)
        m_prev, memory = remember(summary.z_pool)
        telepathy = self.language.conclude(summary, memory, ablation.tau_const)
        if batch.tau_override is not None:
            telepathy = dataclasses.replace(telepathy, tau=batch.tau_override)
        tau = keep(ablation.tau, telepathy.tau, 0.0)
        hidden = before if self.config.feedback == 'recurrent' else self._read(scene, tau)[1]
        residual, c_act, c_act0 = self._act(scene, before, hidden, tau, self._start(batch, key))
        return SigmaOutput(
            actions=self._actions(residual, batch.base, action_std, ablation),
            residual=residual,
            telepathy=telepathy,
            m_prev=m_prev,
            fresh=keep(ablation.memory, batch.reset, True),
            c_act=c_act,
            c_act0=c_act0,
            text_pool=scene.text_pool,
            vision_pool=jnp.mean(vision_tokens, axis=1),
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

    def _actions(self, residual, base, action_std, ablation):
        gate = ablation.residual if self.config.fusion == 'pi05' else 0.0
        return apply_residual(
            residual, Actions.from_trajectory(base, self.config.chunk), action_std, gate
        )

    def _start(self, batch, key):
        """x_0 of the trajectory branch; checks `base` and `key`."""
        c, shape = self.config, batch.base.shape[1:]
        if shape != (c.horizon, c.action_dim):
            raise ValueError(
                f'base must be [b {c.horizon} {c.action_dim}], got {list(batch.base.shape)}; '
                'cut the baseline to the horizon and the joints of the data'
            )
        if c.noise_scale == 0:
            return None
        if key is None:
            raise ValueError(
                'noise_scale is above 0, so Sigma needs a key for the noise of its windows, got '
                'None; pass key=jax.random.key(seed)'
            )
        keys = window_keys(key, batch.episode, batch.frame)
        return c.noise_scale * jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


class _Scene(NamedTuple):
    """What both passes over a window share."""

    backbone: Backbone
    ablation: Ablation
    text: Array
    v_base: Array
    state_tokens: Array
    mask: Array
    text_pool: Array


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
) -> Observation:
    """The observation with `features` and `text_embeddings`, float32, for [b ...] or [b g ...].

    The frozen input layers make both, and training changes nothing in them: they are evaluated once
    for all windows, in one flattened call. What the observation already holds of the two is kept.

    Args:
      backbone: the bound policy.
      observation: images, text and their masks.
      config: `vision_encoder='patch_embed'` needs no features; `text='one_hot'` projects tokens by
        a fixed random matrix (paper 4.2) instead of the policy's embeddings.

    Returns:
      The observation that `Sigma` takes.
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
    return dataclasses.replace(
        observation,
        features=None if features is None else features.astype(jnp.float32),
        text_embeddings=embeddings.astype(jnp.float32),
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
    """Empty memory and tau.

    Args:
      config: their widths.
      batch_size: b.

    Returns:
      Zeros.
    """
    return Carry(
        memory=jnp.zeros((batch_size, config.d_model)), tau=jnp.zeros((batch_size, config.d_tau))
    )


def window_keys(key: Array, episode: Array, frame: Array) -> Array:
    """One random key a window, so that its noise does not depend on its batch.

    Args:
      key: the seed's key.
      episode: episode of each window, any shape.
      frame: first frame of each window, of the same shape.

    Returns:
      Keys, of the same shape.
    """

    def one(episode, frame):
        return jax.random.fold_in(jax.random.fold_in(key, episode), frame)

    return jax.vmap(one)(episode.reshape(-1), frame.reshape(-1)).reshape(episode.shape)
