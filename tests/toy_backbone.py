"""A backbone of a few fixed matrices: fast to compile, every valid token reads every valid
token.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


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
