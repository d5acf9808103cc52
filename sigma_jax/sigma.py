"""Sigma: the order of the passes over one window, and the scan over consecutive windows (DESIGN 3.3, 3.4).

    pass 1, tau = 0   vision -> language -> z_sem, z_pool, m, c_*, z_intent, tau
    pass 2            FiLM by tau -> language -> r_high -> c_act -> branches + g -> actions

Token sequence of a language pass: [ text: l | vision: N_v | state: N_s ].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sigma_jax.backbones.base import Backbone
from sigma_jax.types import Ablation, Actions, Batch, Carry, Observation, SigmaOutput
from sigma_jax.workspaces.action import ActionTrajectoryWorkspace, apply_residual
from sigma_jax.workspaces.config import SigmaConfig
from sigma_jax.workspaces.language import LanguageIntentWorkspace
from sigma_jax.workspaces.layers import keep, masked_mean
from sigma_jax.workspaces.vision import CognitiveVisionWorkspace

__all__ = ['Sigma', 'SigmaConfig', 'embed_observation', 'initial_carry', 'run_sequence', 'window_keys']


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
    ) -> tuple[Carry, SigmaOutput]:
        """One window.

        Args:
          features, text_embeddings: from `embed_observation`; `features` is None with `vision_encoder='patch_embed'`.
          base: the frozen policy's own actions, raw units; `sigma_a`: raw per-joint standard deviation.
          reset: where the memory starts anew.
          key: one PRNG key a window [b]; read only with `noise_scale > 0`.

        Raises:
          ValueError: `base` is not [b horizon action_dim], or `noise_scale > 0` without keys.
        """
        c = self.config
        if base.shape[1:] != (c.horizon, c.action_dim):
            raise ValueError(
                f'base must be [b {c.horizon} {c.action_dim}], got {list(base.shape)}; '
                'cut the baseline to the horizon and the joints of the data.'
            )
        m_prev, tau_prev, fresh = self._previous(carry, reset, ablation)
        v_base, state_tokens = self.vision.perceive(features, observation)
        mask = _sequence_mask(observation.text_mask, c.num_visual + c.num_state)

        def read(tau):
            vision_tokens = self.vision.modulate(v_base, tau, ablation.film)
            hidden = backbone.encode(jnp.concatenate([text_embeddings, vision_tokens, state_tokens], axis=1), mask)
            return vision_tokens, hidden.astype(jnp.float32)

        no_tau = jnp.zeros_like(tau_prev)
        recurrent = c.feedback == 'recurrent'
        vision_tokens, hidden = read(keep(ablation.tau, tau_prev, no_tau) if recurrent else no_tau)
        telepathy = self.language.infer(hidden, mask, m_prev, ablation.tau_const)
        tau = keep(ablation.tau, telepathy.tau, no_tau)
        r_high = self.language.modulate(hidden if recurrent else read(tau)[1], tau)
        c_act, c_act0 = self.action.condition(r_high, mask, tau), self.action.condition(hidden, mask, no_tau)
        sequence, condition = (hidden, c_act0) if c.fusion == 'internal' else (r_high, c_act)
        branches = self.action.branches(sequence, mask, condition, state_tokens, self._start(key, base.shape))
        residual = jax.tree.map(jnp.add, branches, self.action.telepathic(r_high, mask, tau))
        output = SigmaOutput(
            actions=self._actions(residual, base, sigma_a, ablation),
            residual=residual,
            telepathy=telepathy,
            m_prev=m_prev,
            fresh=fresh,
            c_act=c_act,
            c_act0=c_act0,
            text_pool=masked_mean(text_embeddings.astype(jnp.float32), observation.text_mask),
            vision_pool=jnp.mean(vision_tokens, axis=1),
        )
        return Carry(memory=telepathy.memory, tau=telepathy.tau), output

    def _previous(self, carry, reset, ablation):
        """Memory and tau before this window, and where the memory is fresh."""
        m_prev = keep(ablation.memory, jnp.where(reset[:, None], 0.0, carry.memory), 0.0)
        tau_prev = self.language.constant_instead(jnp.where(reset[:, None], 0.0, carry.tau), ablation.tau_const)
        return m_prev, tau_prev, keep(ablation.memory, reset, True)

    def _actions(self, residual, base, sigma_a, ablation):
        gate = ablation.residual if self.config.fusion == 'pi05' else 0.0
        return apply_residual(residual, Actions.from_trajectory(base, self.config.chunk), sigma_a, gate)

    def _start(self, key, shape):
        """x_0 of the trajectory branch."""
        if self.config.noise_scale == 0:
            return None
        if key is None:
            raise ValueError(
                'noise_scale is above 0, so Sigma needs one key a window, got None; pass window_keys(...).'
            )
        return self.config.noise_scale * jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(key)


def _sequence_mask(text_mask: Bool[Array, 'b l'], others: int) -> Bool[Array, 'b s']:
    return jnp.concatenate([text_mask, jnp.ones((text_mask.shape[0], others), bool)], axis=1)


def embed_observation(
    backbone: Backbone, observation: Observation, config: SigmaConfig
) -> tuple[Float[Array, 'b f w'] | None, Float[Array, 'b l w']]:
    """-> (features, text_embeddings), float32: the frozen input layers, for [b ...] or [b g ...].

    They do not depend on training: evaluate them once for all windows, in one flattened call, before the scan.
    """
    lead = observation.state.shape[:-1]

    def flat(x):
        return x.reshape(-1, *x.shape[len(lead) :])

    def unflat(x):
        return x.reshape(*lead, *x.shape[1:]).astype(jnp.float32)

    from_backbone = config.vision_encoder == 'backbone'
    features = unflat(backbone.encode_images(flat(observation.images))) if from_backbone else None
    text = flat(observation.text)
    if config.text == 'one_hot':
        return features, unflat(_one_hot_projection(text, backbone.width))
    return features, unflat(backbone.embed_text(text))


def _one_hot_projection(tokens, width):
    """one_hot(tokens) R with a fixed random R [vocabulary, w], each row drawn when it is read (paper 4.2)."""
    rows = jax.vmap(lambda token: jax.random.normal(jax.random.fold_in(jax.random.key(0), token), (width,)))
    return rows(tokens.reshape(-1)).reshape(*tokens.shape, width)


def initial_carry(config: SigmaConfig, batch_size: int) -> Carry:
    """Empty memory and tau."""
    return Carry(memory=jnp.zeros((batch_size, config.d_model)), tau=jnp.zeros((batch_size, config.d_tau)))


def window_keys(key: Array, episode: Array, frame: Array) -> Array:
    """One key a window from seed key, episode and frame, so that its noise does not depend on its batch."""

    def one(episode, frame):
        return jax.random.fold_in(jax.random.fold_in(key, episode), frame)

    return jax.vmap(one)(episode.reshape(-1), frame.reshape(-1)).reshape(episode.shape)


# (observation, features, text_embeddings, base, carry, reset, keys) -> (carry, output), one window
Window = Callable[..., tuple[Carry, SigmaOutput]]


def run_sequence(
    apply_fn: Window,
    config: SigmaConfig,
    batch: Batch,
    features: Float[Array, 'b g f w'] | None,
    text_embeddings: Float[Array, 'b g l w'],
    carry: Carry | None = None,
    key: Array | None = None,
) -> tuple[Carry, SigmaOutput]:
    """Scans `apply_fn` over the g consecutive windows of a batch [b g ...]; the output's leaves are [b g ...].

    Args:
      apply_fn: `(observation, features, text_embeddings, base, carry, reset, keys) -> (carry, output)`.
      carry: state before the first window; None starts from an empty one and marks the first windows as reset.
      key: seed of the refinement noise; read only with `noise_scale > 0`.
    """
    reset = batch.reset
    if carry is None:
        carry = initial_carry(config, reset.shape[0])
        reset = jnp.asarray(reset).at[:, 0].set(True)
    keys = None if key is None or config.noise_scale == 0 else window_keys(key, batch.episode, batch.frame)
    inputs = (batch.observation, features, text_embeddings, batch.base, reset, keys)

    def step(carry, window):
        *rest, reset, keys = window
        return apply_fn(*rest, carry, reset, keys)

    last, outputs = jax.lax.scan(step, carry, _swap(inputs))
    return last, _swap(outputs)


def _swap(tree):
    """[b g ...] <-> [g b ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
