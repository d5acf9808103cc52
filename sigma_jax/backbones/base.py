"""What Sigma asks of a backbone, and nothing else (docs/design.md, "Backbone")."""

from typing import Protocol

from jaxtyping import Array, Bool, Float, Int

from sigma_jax.types import Observation


class Backbone(Protocol):
    """A frozen policy with its weights bound: pure functions of arrays."""

    @property
    def width(self) -> int:
        """Width of its tokens, w."""
        ...

    def encode_images(self, images: Array) -> Float[Array, 'b f w']:
        """Tokens of all views of one observation, `[b i h x 3] -> [b f w]`."""
        ...

    def embed_text(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l w']:
        """The language model's own token embeddings."""
        ...

    def encode(
        self, embeddings: Float[Array, 'b s w'], mask: Bool[Array, 'b s']
    ) -> Float[Array, 'b s w']:
        """The language model over a sequence of embeddings, every valid one attending to every
        valid one.
        """
        ...

    def sample_actions(self, key: Array, observation: Observation) -> Float[Array, 'b t a']:
        """The policy's own action chunk, in normalised units."""
        ...
