"""pi0.5: SigLIP and Gemma-2B joined with an action expert, trained and sampled by flow matching.

Token sequence of one observation (all prefix tokens see each other; actions see everything, nothing
sees them):

    [ view 1: f tokens | view 2 ... | prompt: l tokens ]  [ t noisy actions ]
      Gemma-2B, KV-cached while sampling                    action expert

Parameter paths and array layouts are those of openpi's JAX checkpoint. Time t = 1 is noise, t = 0
is data: x_t = t noise + (1 - t) actions, and the target velocity is noise - actions.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.backbones import flow, gemma, siglip
from sigma_jax.nn.lora import LoraConfig
from sigma_jax.types import Continuation, Observation, PyTree

LAYOUTS = gemma.LAYOUTS | siglip.LAYOUTS
STORED = LAYOUTS | gemma.TABLE  # what can be quantised
# fields of a config that are configs themselves
PARTS = {
    'vision': siglip.SiglipConfig,
    'language': gemma.GemmaConfig,
    'expert': gemma.GemmaConfig,
}
# paths of what only acting reads
ACTION_EXPERT = re.compile(r'PaliGemma/llm/(.*/)?\w+_1(/.*)?|(action|time)_.*')


@dataclasses.dataclass(frozen=True)
class Pi05Config:
    """Sizes of pi0.5; the defaults are the full 3.35 B model (openpi, `pi05=True`)."""

    vision: siglip.SiglipConfig = siglip.SiglipConfig()
    language: gemma.GemmaConfig = gemma.GemmaConfig()
    expert: gemma.GemmaConfig = gemma.GemmaConfig(width=1024, mlp_dim=4096, adaptive=True)
    vocab_size: int = 257152
    action_dim: int = 32
    action_horizon: int = 50
    sample_steps: int = 10
    lora: LoraConfig = LoraConfig()
    dtype: str = 'bfloat16'
    remat: str | None = None
    # base weights get gradients: all layers in one scan, unread outputs of the last included
    train_base: bool = False

    @property
    def width(self) -> int:
        """Of a token."""
        return self.language.width

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return self.language.depth

    @property
    def image_size(self) -> int:
        """Side of an image, in pixels."""
        return self.vision.image_size


def sincos_embedding(
    time: Float[Array, '...'], width: int, min_period: float = 4e-3, max_period: float = 4.0
) -> Float[Array, '... w']:
    """[sin, cos] of 2 pi t / period, with periods geometric from `min_period` to `max_period`, in
    float32.

    Args:
      time: 0 to 1.
      width: of the embedding, even.
      min_period: of the fastest wave.
      max_period: of the slowest.

    Returns:
      The embedding.
    """
    fraction = jnp.linspace(0.0, 1.0, width // 2)
    period = min_period * (max_period / min_period) ** fraction
    angle = time.astype(jnp.float32)[..., None] * (1.0 / period * 2 * jnp.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def unit_range(images: Array, dtype: str) -> Float[Array, '...']:
    """uint8 images -> [-1, 1]; float images pass as they are.

    Args:
      images: uint8 or float.
      dtype: of the result.

    Returns:
      Images in [-1, 1].
    """
    if images.dtype == jnp.uint8:
        return (images.astype(jnp.float32) / 255.0 * 2.0 - 1.0).astype(dtype)
    return images.astype(dtype)


class Seen(NamedTuple):
    """What the actions see of an observation while they are sampled.

    Attributes:
      cache: keys and values of the prefix.
      place: positions of the actions.
      pair: true where an action sees a token of the prefix, or an action.
    """

    cache: gemma.Cache | None
    place: Int[Array, 'b t']
    pair: Bool[Array, 'b t s']


class PaliGemma(nn.Module):
    """Holds the image encoder `img` and the language model with its action expert `llm`."""

    config: Pi05Config

    def setup(self):
        c = self.config
        self.img = siglip.Siglip(c.vision, c.language.width, c.lora, c.dtype, c.remat is not None)
        self.llm = gemma.Gemma((c.language, c.expert), c.vocab_size, c.lora, c.dtype, c.remat)


class Pi05(nn.Module):
    """The policy. Methods map (variables, inputs) to outputs; apply with `method=`."""

    config: Pi05Config

    def setup(self):
        c, dense = self.config, functools.partial(nn.Dense, dtype=self.config.dtype)
        self.PaliGemma = PaliGemma(c)
        self.action_in_proj = dense(c.expert.width)
        self.action_out_proj = dense(c.action_dim)
        self.time_mlp_in = dense(c.expert.width)
        self.time_mlp_out = dense(c.expert.width)

    def encode_images(self, images: Array) -> Float[Array, 'b f w']:
        """Tokens of all views, in order of views.

        Args:
          images: [b i h x 3], uint8, or float in [-1, 1].

        Returns:
          Tokens.
        """
        b, i, *size = images.shape
        tokens = self.PaliGemma.img(unit_range(images.reshape(b * i, *size), self.config.dtype))
        return tokens.reshape(b, -1, tokens.shape[-1])

    def embed_text(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l w']:
        """Token embeddings, scaled by sqrt(w).

        Args:
          tokens: ids.

        Returns:
          Embeddings.
        """
        return self.PaliGemma.llm.embed(tokens)

    def encode(
        self, embeddings: Float[Array, 'b s w'], mask: Bool[Array, 'b s']
    ) -> Float[Array, 'b s w']:
        """The language model over a sequence of embeddings, bidirectional over valid positions,
        after its final norm.

        Args:
          embeddings: one a token.
          mask: true for valid tokens.

        Returns:
          The hidden sequence.
        """
        pair = mask[:, None, :] & mask[:, :, None]
        x = embeddings.astype(self.config.dtype)
        (hidden, _), _ = self.PaliGemma.llm((x, None), positions(mask), pair, (None, None))
        return hidden

    def embed_prefix(
        self, observation: Observation
    ) -> tuple[Float[Array, 'b s w'], Bool[Array, 'b s']]:
        """[views, prompt] as embeddings.

        Args:
          observation: [b ...].

        Returns:
          embeddings: one a token.
          mask: true for valid tokens.
        """
        images = self.encode_images(observation.images)
        text = self.embed_text(observation.prompt)
        views = jnp.repeat(observation.image_mask, self.config.vision.tokens, axis=1)
        return jnp.concatenate([images, text], axis=1), jnp.concatenate(
            [views, observation.prompt_mask], axis=1
        )

    def time_condition(self, time: Float[Array, '...']) -> Float[Array, '... w']:
        """Conditioning vectors of the adaptive norms at flow-matching times.

        Args:
          time: 0 (actions) to 1 (noise); one a window [b], or one a step of its chunk [b t].

        Returns:
          The vectors.
        """
        x = sincos_embedding(time, self.config.expert.width).astype(self.config.dtype)
        return nn.silu(self.time_mlp_out(nn.silu(self.time_mlp_in(x))))

    def embed_actions(self, x_t: Float[Array, 'b t a']) -> Float[Array, 'b t w']:
        """Noisy actions at the action expert's width.

        Args:
          x_t: noisy actions, normalised.

        Returns:
          One token a step.
        """
        return self.action_in_proj(x_t.astype(self.config.dtype))

    def action_hidden(
        self, observation: Observation, x_t: Float[Array, 'b t a'], time: Float[Array, '...']
    ) -> Float[Array, 'b t w']:
        """The training pass: prefix and actions in one attention.

        Args:
          observation: [b ...].
          x_t: noisy actions, normalised.
          time: 0 (actions) to 1 (noise), as for `time_condition`.

        Returns:
          The action expert's sequence after its final norm.
        """
        prefix, mask = self.embed_prefix(observation)
        joint = jnp.concatenate([mask, jnp.ones(x_t.shape[:2], bool)], axis=1)
        is_action = jnp.arange(joint.shape[1]) >= mask.shape[1]
        pair = joint[:, None, :] & joint[:, :, None] & (is_action[:, None] | ~is_action[None, :])
        conds = (None, self.time_condition(time))
        tokens, output_experts = (
            (prefix, self.embed_actions(x_t)),
            None if self.config.train_base else (False, True),
        )
        (_, hidden), _ = self.PaliGemma.llm(
            tokens, positions(joint), pair, conds, output_experts=output_experts
        )
        return hidden

    def velocity(
        self, observation: Observation, x_t: Float[Array, 'b t a'], time: Float[Array, '...']
    ) -> Float[Array, 'b t a']:
        """The velocity of the training pass, in float32.

        Args:
          observation: [b ...].
          x_t: noisy actions, normalised.
          time: 0 (actions) to 1 (noise), as for `time_condition`.

        Returns:
          d x_t / d time.
        """
        return self.action_out_proj(self.action_hidden(observation, x_t, time)).astype(jnp.float32)

    def read_prefix(self, observation: Observation, steps: int) -> Seen:
        """The language model over [views, prompt], once for all steps of the sampler.

        Args:
          observation: [b ...].
          steps: t, actions of a chunk.

        Returns:
          All that the actions see of it.
        """
        llm = self.PaliGemma.llm
        prefix, mask = self.embed_prefix(observation)
        b, t = mask.shape[0], steps
        pair = mask[:, None, :] & mask[:, :, None]
        _, cache = llm(
            (prefix, None), positions(mask), pair, (None, None), llm.empty_cache(b), (False, False)
        )
        suffix_mask = jnp.concatenate([mask, jnp.ones((b, t), bool)], axis=1)
        pair = jnp.broadcast_to(suffix_mask[:, None, :], (b, t, suffix_mask.shape[1]))
        return Seen(cache, positions(suffix_mask)[:, mask.shape[1] :], pair)

    def denoise(
        self, x: Float[Array, 'b t a'], time: Float[Array, '...'], seen: Seen
    ) -> Float[Array, 'b t a']:
        """The velocity of a sampler's step, through the action expert alone, in float32.

        Args:
          x: noisy actions, normalised.
          time: 0 (actions) to 1 (noise), as for `time_condition`.
          seen: the prefix, of `read_prefix`.

        Returns:
          d x / d time.
        """
        cond = self.time_condition(time)
        actions = self.embed_actions(x)
        (_, hidden), _ = self.PaliGemma.llm(
            (None, actions), seen.place, seen.pair, (None, cond), seen.cache
        )
        return self.action_out_proj(hidden).astype(jnp.float32)

    def sample_actions(
        self, noise: Float[Array, 'b t a'], observation: Observation
    ) -> Float[Array, 'b t a']:
        """Euler steps from noise at time 1 to actions at time 0, with cached prefix.

        Args:
          noise: standard normal.
          observation: [b ...].

        Returns:
          Normalised actions.
        """
        steps = self.config.sample_steps
        seen = self.read_prefix(observation, noise.shape[1])

        def step(module, x, time):
            return x - module.denoise(x, jnp.full(x.shape[:1], time), seen) / steps, None

        times = 1.0 - jnp.arange(steps, dtype=jnp.float32) / steps
        loop = nn.scan(step, variable_broadcast=('params', 'lora'), split_rngs={'params': False})
        return loop(self, noise.astype(jnp.float32), times)[0]

    def init_all(
        self, observation: Observation, x_t: Float[Array, 'b t a'], time: Float[Array, 'b']
    ):
        """Touches every parameter once, for `init`.

        Args:
          observation: [b ...].
          x_t: noisy actions.
          time: of each.
        """
        return self.velocity(observation, x_t, time)


def positions(mask: Bool[Array, 'b s']) -> Int[Array, 'b s']:
    """Positions of tokens, of which masked ones do not count: cumsum(mask) - 1.

    Args:
      mask: true for valid tokens.

    Returns:
      The positions.
    """
    return jnp.cumsum(mask, axis=1) - 1


def example_observation(
    config: Pi05Config, batch: int = 1, views: int = 2, prompt: int = 8
) -> Observation:
    """Zeros of the right shapes, for `init` and `eval_shape`.

    Args:
      config: sizes.
      batch: b.
      views: i.
      prompt: l.

    Returns:
      The observation.
    """
    size = config.vision.image_size
    tokens, mask = jnp.zeros((batch, prompt), jnp.int32), jnp.ones((batch, prompt), bool)
    return Observation(
        images=jnp.zeros((batch, views, size, size, 3), jnp.uint8),
        image_mask=jnp.ones((batch, views), bool),
        prompt=tokens,
        prompt_mask=mask,
        text=tokens,
        text_mask=mask,
        state=jnp.zeros((batch, config.action_dim)),
    )


def init_params(key: Array, config: Pi05Config) -> PyTree:
    """Random parameters, float32, in openpi's tree.

    Args:
      key: seed.
      config: sizes.

    Returns:
      The tree.
    """
    x_t = jnp.zeros((1, config.action_horizon, config.action_dim))
    return Pi05(config).init(
        key, example_observation(config), x_t, jnp.zeros((1,)), method='init_all'
    )['params']


def abstract_params(config: Pi05Config) -> PyTree:
    """Shapes and dtypes of the parameters, without allocating them.

    Args:
      config: sizes.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.
    """
    return jax.eval_shape(functools.partial(init_params, config=config), jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class BoundPi05:
    """A `backbones.base.Backbone`: pi0.5 with its frozen weights and LoRA factors bound, as pure
    functions.
    """

    config: Pi05Config
    params: PyTree
    lora: PyTree | None = None
    dropout_key: Array | None = None

    @property
    def width(self) -> int:
        return self.config.language.width

    def _apply(self, method: str, *inputs):
        variables = {'params': self.params} | ({'lora': self.lora} if self.lora else {})
        rngs = {} if self.dropout_key is None else {'dropout': self.dropout_key}
        return Pi05(self.config, parent=None).apply(variables, *inputs, method=method, rngs=rngs)

    def encode_images(self, images: Array) -> Float[Array, 'b f w']:
        """See `Pi05.encode_images`.

        Args:
          images: [b i h x 3].

        Returns:
          Tokens.
        """
        return self._apply('encode_images', images)

    def embed_text(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l w']:
        """See `Pi05.embed_text`.

        Args:
          tokens: ids.

        Returns:
          Embeddings.
        """
        return self._apply('embed_text', tokens)

    def encode(
        self, embeddings: Float[Array, 'b s w'], mask: Bool[Array, 'b s']
    ) -> Float[Array, 'b s w']:
        """See `Pi05.encode`.

        Args:
          embeddings: one a token.
          mask: true for valid tokens.

        Returns:
          The hidden sequence.
        """
        return self._apply('encode', embeddings, mask)

    def velocity(
        self, observation: Observation, x_t: Float[Array, 'b t a'], time: Float[Array, '...']
    ) -> Float[Array, 'b t a']:
        """See `Pi05.velocity`.

        Args:
          observation: [b ...].
          x_t: noisy actions, normalised.
          time: 0 (actions) to 1 (noise), [b] or [b t].

        Returns:
          d x_t / d time.
        """
        return self._apply('velocity', observation, x_t, time)

    def sample_actions(self, key: Array, observation: Observation) -> Float[Array, 'b t a']:
        """The policy's own action chunk, normalised.

        Args:
          key: one a window [b], so that its sample does not depend on its batch.
          observation: [b ...].

        Returns:
          Normalised actions.
        """
        return self._apply('sample_actions', self.draw_noise(key), observation)

    def draw_noise(self, key: Array) -> Float[Array, 'b t a']:
        """Where `sample_actions` begins.

        Args:
          key: one a window [b].

        Returns:
          Standard normal numbers.
        """
        shape = (self.config.action_horizon, self.config.action_dim)
        return jax.vmap(lambda k: jax.random.normal(k, shape))(key)

    def flow_from(
        self,
        noise: Float[Array, 'b t a'],
        observation: Observation,
        bound: Continuation | None = None,
    ) -> Float[Array, 'b t a']:
        """As `sample_actions` from this noise, bound to the chunk before. What is differentiated is
        the action expert: the prefix is read once, and is a constant.

        Args:
          noise: standard normal.
          observation: [b ...].
          bound: to what; None: to nothing.

        Returns:
          Normalised actions.
        """
        if bound is None:
            return self._apply('sample_actions', noise, observation)
        seen = self._apply('read_prefix', observation, noise.shape[1])

        def velocity(x, time):
            return self._apply('denoise', x, time, seen)

        return flow.integrate(velocity, noise, self.config.sample_steps, bound)
