"""Cognitive vision workspace (paper 3.1): features -> v_base -> FiLM by tau -> vision tokens, and
state tokens.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from sigma_jax.errors import UserError
from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.sigma.layers import (
    Linear,
    Mlp,
    Norm,
    TransformerBlock,
    attend,
    keep,
    lecun_normal,
    linear,
)
from sigma_jax.types import Observation


class VisionProjector(nn.Module):
    """Two-layer MLP from feature width to d_model, on normalised features (paper 3.1)."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, features: Float[Array, 'b f w']) -> Float[Array, 'b f d']:
        # SigLIP tokens come unnormalised and with outlier channels.
        """Feature tokens at the model's width.

        Args:
          features: image, depth and audio tokens, float32.

        Returns:
          As many tokens, float32.
        """
        return Mlp(self.features, self.features, self.dtype, name='mlp')(
            Norm(name='norm')(features)
        )


class PerceiverResampler(nn.Module):
    """A = softmax(Q W_Q (F W_K)^T / sqrt(d)); v_base = FFN(LN(Q + A F W_V)) (paper 3.1)."""

    num_visual: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(
        self, features: Float[Array, 'b f d'], mask: Bool[Array, 'b f']
    ) -> Float[Array, 'b v d']:
        """`num_visual` tokens that read all features of a window.

        Args:
          features: F, projected.
          mask: true for valid tokens; those of an absent camera are not.

        Returns:
          v_base, float32.
        """
        d = features.shape[-1]
        query = self.param('query', nn.initializers.normal(1.0), (self.num_visual, d))
        w_q, w_k, w_v = (self.param(name, lecun_normal, (d, d)) for name in ('w_q', 'w_k', 'w_v'))
        q = jnp.broadcast_to(
            linear(query, w_q, None, self.dtype), (features.shape[0], *query.shape)
        )
        k, v = linear(features, w_k, None, self.dtype), linear(features, w_v, None, self.dtype)
        read = attend(q[..., None, :], k[..., None, :], v[..., None, :], mask, self.dtype)[
            ..., 0, :
        ]
        return Mlp(self.hidden, d, self.dtype, name='ffn')(Norm(name='norm')(query + read))


class StateEncoder(nn.Module):
    """state_tokens = token_expander(MLP(robot_state)): N_s tokens at d_model (paper 3.1)."""

    num_state: int
    features: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, state: Float[Array, 'b p']) -> Float[Array, 'b n d']:
        """The robot's state as tokens.

        Args:
          state: normalised, about [-1, 1].

        Returns:
          `num_state` tokens, float32.
        """
        h = Mlp(self.hidden, self.hidden, self.dtype, name='mlp')(state)
        tokens = Linear(self.num_state * self.features, self.dtype, name='token_expander')(h)
        return tokens.reshape(*state.shape[:-1], self.num_state, self.features)


class VisionModulator(nn.Module):
    """FiLM by the telepathy factor, behind two log gates (paper 3.1).

    h = gelu(exp(theta_t) tau W_1 + b_1); [gamma, beta] = h W_2 + b_2;
    v_film = v_base (1 + gamma) + beta; v_mod = v_base + exp(theta_mod) (v_film - v_base).
    """

    theta_t: float
    theta_mod: float
    dtype: str

    @nn.compact
    def __call__(
        self, v_base: Float[Array, 'b v d'], tau: Float[Array, 'b e']
    ) -> Float[Array, 'b v d']:
        """v_mod for one telepathy factor a window.

        Args:
          v_base: visual tokens.
          tau: telepathy factor.

        Returns:
          v_mod, float32.
        """
        d = v_base.shape[-1]
        theta_t = self.param('theta_t', nn.initializers.constant(self.theta_t), ())
        theta_mod = self.param('theta_mod', nn.initializers.constant(self.theta_mod), ())
        w_1, b_1 = (
            self.param('w_1', lecun_normal, (tau.shape[-1], d)),
            self.param('b_1', nn.initializers.zeros, (d,)),
        )
        w_2, b_2 = (
            self.param('w_2', lecun_normal, (d, 2 * d)),
            self.param('b_2', nn.initializers.zeros, (2 * d,)),
        )
        h = nn.gelu(linear(jnp.exp(theta_t) * tau, w_1, b_1, self.dtype))
        gamma, beta = jnp.split(linear(h, w_2, b_2, self.dtype)[..., None, :], 2, axis=-1)
        v_film = v_base * (1.0 + gamma) + beta
        return v_base + jnp.exp(theta_mod) * (v_film - v_base)


class ModulatedVisionBlock(TransformerBlock):
    """Self-attention and FFN over v_mod: refines local relations of the modulated tokens (paper
    3.1).
    """


class PatchEmbed(nn.Module):
    """Square patches of every view -> tokens with a learned position (paper 3.1); RGB or depth."""

    patch_size: int
    features: int
    dtype: str

    @nn.compact
    def __call__(
        self, images: UInt8[Array, 'b i h x z'] | Float[Array, 'b i h x z']
    ) -> Float[Array, 'b f w']:
        """The patches of all views, one view after the other.

        Args:
          images: uint8, which is scaled to [-1, 1], or float as it is (depth in metres).

        Returns:
          One token a patch, float32.

        Raises:
          UserError: the image is not a whole number of patches.
        """
        b, i, height, width, channels = images.shape
        size = self.patch_size
        if height % size or width % size:
            raise UserError(
                f'sigma.patch_size: expected a divisor of the image size {height} x {width}, got '
                f'{size}; change it'
            )
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1.0
        patches = images.reshape(b, i, height // size, size, width // size, size, channels)
        patches = patches.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, i, -1, size * size * channels)
        tokens = Linear(self.features, self.dtype, name='patch')(patches)
        position = self.param(
            'position', nn.initializers.normal(0.02), (i, tokens.shape[2], self.features)
        )
        return (tokens + position).reshape(b, -1, self.features)


class AudioPatchEmbed(nn.Module):
    """Consecutive pieces of the waveform -> tokens with a learned position; the last piece is
    padded with zeros.
    """

    patch: int
    features: int
    dtype: str

    @nn.compact
    def __call__(self, audio: Float[Array, 'b samples']) -> Float[Array, 'b f w']:
        """The waveform as tokens.

        Args:
          audio: samples in [-1, 1].

        Returns:
          One token for every `patch` samples, float32.
        """
        audio = jnp.pad(audio, ((0, 0), (0, -audio.shape[-1] % self.patch)))
        tokens = Linear(self.features, self.dtype, name='patch')(
            audio.reshape(audio.shape[0], -1, self.patch)
        )
        return tokens + self.param('position', nn.initializers.normal(0.02), tokens.shape[1:])


class CognitiveVisionWorkspace(nn.Module):
    """The parts above in the paper's order (docs/design.md, "Vision workspace"): `perceive` runs
    once a window, `modulate` once a pass.
    """

    config: SigmaConfig

    def setup(self):
        c = self.config
        self.projector = VisionProjector(c.d_model, c.dtype)
        self.resampler = PerceiverResampler(c.num_visual, c.ffn_multiplier * c.d_model, c.dtype)
        self.state_encoder = StateEncoder(c.num_state, c.d_model, c.state_hidden, c.dtype)
        self.modulator = VisionModulator(c.theta_t, c.theta_mod, c.dtype)
        hidden = c.ffn_multiplier * c.d_model
        self.blocks = [
            ModulatedVisionBlock(c.d_model, c.heads, hidden, c.dtype)
            for _ in range(c.vision_blocks)
        ]
        if c.vision_encoder == 'patch_embed':
            self.patch_embed = PatchEmbed(c.patch_size, c.d_model, c.dtype)
        if c.use_depth:
            self.depth_patch_embed = PatchEmbed(c.patch_size, c.d_model, c.dtype)
        if c.use_audio:
            self.audio_patch_embed = AudioPatchEmbed(c.audio_patch, c.d_model, c.dtype)

    def perceive(
        self, features: Float[Array, 'b f w'] | None, observation: Observation
    ) -> tuple[Float[Array, 'b v d'], Float[Array, 'b n d']]:
        """What a window shows, before any modulation.

        Args:
          features: the backbone's image tokens, all views along f; None with the encoder
            'patch_embed'.
          observation: masks, state, and depth and audio where the config asks for them.

        Returns:
          v_base: visual tokens, float32.
          state_tokens: from the robot's state, float32.

        Raises:
          UserError: parameters are created from an observation that lacks an input the config asks
            for.
        """
        tokens, mask = self._feature_tokens(features, observation)
        v_base = self.resampler(self.projector(tokens), mask)
        return v_base, self.state_encoder(observation.state)

    def modulate(
        self,
        v_base: Float[Array, 'b v d'],
        tau: Float[Array, 'b e'],
        film: float | Float[Array, ''],
    ) -> Float[Array, 'b v d']:
        """vision_tokens = blocks(v_mod).

        Args:
          v_base: visual tokens.
          tau: telepathy factor.
          film: an ablation gate; at 0 v_mod = v_base.

        Returns:
          As many tokens, float32.
        """
        x = keep(film, self.modulator(v_base, tau), v_base)
        for block in self.blocks:
            x = block(x)
        return x

    def _feature_tokens(self, features, observation):
        """[RGB | depth | audio] tokens and their mask: a token of an absent camera weighs
        nothing.
        """
        c, image_mask = self.config, observation.image_mask
        if c.vision_encoder == 'patch_embed':
            features = self.patch_embed(observation.images)
        parts, masks = [features], [_per_token(image_mask, features)]
        self._require(c.use_depth, observation.depth, 'depth')
        self._require(c.use_audio, observation.audio, 'audio')
        if c.use_depth and observation.depth is not None:
            parts.append(self.depth_patch_embed(observation.depth))
            depth_mask = image_mask if observation.depth_mask is None else observation.depth_mask
            masks.append(_per_token(depth_mask, parts[-1]))
        if c.use_audio and observation.audio is not None:
            parts.append(self.audio_patch_embed(observation.audio))
            masks.append(jnp.ones(parts[-1].shape[:2], bool))
        return jnp.concatenate([x.astype(jnp.float32) for x in parts], 1), jnp.concatenate(masks, 1)

    def _require(self, used, value, name):
        if used and value is None and self.is_initializing():
            raise UserError(
                f'sigma.use_{name}: expected {name} in the first observation, got None; give it or '
                f'set sigma.use_{name} to False'
            )


def _per_token(image_mask: Bool[Array, 'b i'], tokens: Float[Array, 'b f w']) -> Bool[Array, 'b f']:
    return jnp.repeat(image_mask, tokens.shape[1] // image_mask.shape[1], axis=1)
