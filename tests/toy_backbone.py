"""A backbone of a few matrices, fixed ones or parameters: fast to compile, every valid token reads
every valid token.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax.backbones.base import BackboneSpec
from sigma_jax.nn.lora import LoraConfig, MatrixLayout, side_path


@dataclasses.dataclass(frozen=True)
class ToyBackbone:
    """A `backbones.base.Backbone` over images of 8 x 8 pixels, 4 tokens a view."""

    width: int = 16

    def _matrix(self, seed, rows):
        return jnp.asarray(
            np.random.default_rng(seed).standard_normal((rows, self.width)) / np.sqrt(rows),
            jnp.float32,
        )

    def encode_images(self, images):
        b, i = images.shape[:2]
        if images.dtype == jnp.uint8:
            images = images / 127.5 - 1
        return images.reshape(b, i * 4, -1) @ self._matrix(1, 48)

    def embed_text(self, tokens):
        return 4 * self._matrix(2, 16)[tokens]

    def encode(self, embeddings, mask):
        scores = jnp.einsum('bsd,btd->bst', embeddings @ self._matrix(3, self.width), embeddings)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30))
        return jnp.tanh(embeddings + 2 * weights @ embeddings @ self._matrix(4, self.width))

    def sample_actions(self, key, observation):
        return jax.vmap(lambda k: jax.random.normal(k, (4, 3)))(key)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Sizes of a toy whose matrices are parameters (`backbones.base.BackboneConfig`)."""

    width: int = 16
    vocab_size: int = 640
    image_size: int = 28
    action_dim: int = 8
    action_horizon: int = 16
    sample_steps: int = 1
    depth: int = 1
    lora: LoraConfig = LoraConfig()
    dtype: str = 'float32'
    remat: str | None = None
    train_base: bool = False


LAYOUTS = {'toy/(mix|out)': MatrixLayout('io', 'i', 'o')}
PIXELS = 7 * 7 * 3  # of a token: 16 a view of 28 x 28


def init_params(key, config):
    """{'toy': its matrices, 'head': the actions', which Sigma never reads}."""
    rows = {'images': PIXELS, 'text': config.vocab_size, 'mix': config.width, 'out': config.width}
    keys = jax.random.split(key, len(rows) + 1)
    matrix = jax.nn.initializers.lecun_normal()
    toy = {n: matrix(k, (rows[n], config.width)) for n, k in zip(rows, keys[1:], strict=True)}
    chunk = config.action_horizon * config.action_dim
    return {'toy': toy, 'head': {'kernel': matrix(keys[0], (config.width, chunk))}}


@dataclasses.dataclass(frozen=True)
class BoundToy:
    """A `backbones.base.Backbone` over weights: a `BackboneSpec`'s `bind`."""

    config: ToyConfig
    params: dict
    lora: dict | None = None
    dropout_key: jax.Array | None = None

    @property
    def width(self):
        return self.config.width

    def _product(self, name, x):
        weight = self.params['toy'][name]
        y = x @ weight.astype(x.dtype)
        if self.lora is None or name not in self.lora.get('toy', {}):
            return y
        alpha, size = self.config.lora.alpha, (weight.shape[-1],)
        return y + side_path(x, self.lora['toy'][name], LAYOUTS['toy/(mix|out)'], size, alpha)

    def encode_images(self, images):
        b, i, h = images.shape[:3]
        if images.dtype == jnp.uint8:
            images = images / 127.5 - 1
        patches = images.reshape(b, i, h // 7, 7, h // 7, 7, 3).swapaxes(3, 4)
        return patches.reshape(b, -1, PIXELS) @ self.params['toy']['images']

    def embed_text(self, tokens):
        return 4 * self.params['toy']['text'][tokens]

    def encode(self, embeddings, mask):
        scores = jnp.einsum('bsd,btd->bst', self._product('mix', embeddings), embeddings)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30))
        return jnp.tanh(embeddings + self._product('out', weights @ embeddings))

    def sample_actions(self, key, observation):
        c = self.config
        seen = self.embed_text(observation.prompt) * observation.prompt_mask[..., None]
        actions = (jnp.mean(seen, axis=1) @ self.params['head']['kernel']).reshape(
            -1, c.action_horizon, c.action_dim
        )
        return actions + jax.vmap(lambda k: jax.random.normal(k, actions.shape[1:]))(key)


def toy_prompt(task, state, width=0):
    """Its own way of writing a task."""
    return (f'{task}!',)


def from_leaves(shapes, hints):
    """Sizes from the shapes of its leaves, and from `sigma_config.json`."""
    vocab_size, width = shapes['toy/text']
    return ToyConfig(width, vocab_size, **{k: hints[k] for k in ('action_dim', 'action_horizon')})


TOY = BackboneSpec(
    name='toy',
    config=ToyConfig,
    init_params=init_params,
    bind=BoundToy,
    prompt=toy_prompt,
    layouts=LAYOUTS,
    stored=LAYOUTS,
    acting=re.compile('head/.*'),
    encoding=re.compile('toy/.*'),
    mark=re.compile('toy/mix'),
    hints=dict,
    from_leaves=from_leaves,
)
