"""SigLIP vision transformer (So400m/14 at full size), with openpi's parameter paths; layers are
scanned.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from sigma_jax.nn.layers import attention, project
from sigma_jax.nn.lora import LoraConfig, MatrixLayout

DENSE = MatrixLayout('io', 'i', 'o')
HEADS_IN = MatrixLayout('dnh', 'd', 'nh')
HEADS_OUT = MatrixLayout('nhd', 'nh', 'd')
LAYOUTS = {
    r'.*/MultiHeadDotProductAttention_0/(query|key|value)/kernel': HEADS_IN,
    r'.*/MultiHeadDotProductAttention_0/out/kernel': HEADS_OUT,
    r'.*/img/(.*/)?(Dense_[01]|head)/kernel': DENSE,
}


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Sizes of the image encoder; `image_size` px square images in `patch` px patches."""

    width: int = 1152
    depth: int = 27
    mlp_dim: int = 4304
    heads: int = 16
    patch: int = 14
    image_size: int = 224

    @property
    def tokens(self) -> int:
        """Tokens a view."""
        return (self.image_size // self.patch) ** 2


class Projection(nn.Module):
    """A kernel with bias, [... inputs] -> [... outputs]."""

    shape: tuple[int, ...]
    layout: MatrixLayout
    lora: LoraConfig

    @nn.compact
    def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
        """x W + b.

        Args:
          x: [... inputs].

        Returns:
          [... outputs].
        """
        y = project(self, 'kernel', x, self.shape, self.layout, self.lora)
        size = dict(zip(self.layout.weight, self.shape, strict=True))
        bias = self.param(
            'bias', nn.initializers.zeros, tuple(size[a] for a in self.layout.outputs)
        )
        return y + bias.astype(y.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the patches of one image: [b s w] -> [b s w]."""

    heads: int
    lora: LoraConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b s w']) -> Float[Array, 'b s w']:
        """Attention of all tokens to all.

        Args:
          x: tokens.

        Returns:
          As many tokens.
        """
        w, n = x.shape[-1], self.heads
        q, k, v = (
            Projection((w, n, w // n), HEADS_IN, self.lora, name=name)(x)
            for name in ('query', 'key', 'value')
        )
        y = attention(q * (w // n) ** -0.5, k, v)
        return Projection((n, w // n, w), HEADS_OUT, self.lora, name='out')(y)


class MlpBlock(nn.Module):
    """Two dense layers with tanh-approximated GELU: [b s w] -> [b s w]."""

    mlp_dim: int
    lora: LoraConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b s w']) -> Float[Array, 'b s w']:
        """Two layers with gelu.

        Args:
          x: tokens.

        Returns:
          As many tokens.
        """
        w = x.shape[-1]
        x = Projection((w, self.mlp_dim), DENSE, self.lora, name='Dense_0')(x)
        return Projection((self.mlp_dim, w), DENSE, self.lora, name='Dense_1')(
            nn.gelu(x, approximate=True)
        )


def layer_norm(x: Float[Array, 'b s w'], name: str) -> Float[Array, 'b s w']:
    """LayerNorm in float32, back in x's dtype; the variance is computed after the mean is taken
    off, so that it does not cancel.

    Args:
      x: tokens.
      name: of the norm.

    Returns:
      As many tokens.
    """
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, name=name)(
        x
    ).astype(x.dtype)


class EncoderBlock(nn.Module):
    """Pre-norm transformer layer, in the form that `nn.scan` wants."""

    config: SiglipConfig
    lora: LoraConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b s w'], _: None) -> tuple[Float[Array, 'b s w'], None]:
        """One layer; the None is what a scan asks for.

        Args:
          x: tokens.

        Returns:
          As many tokens, and None.
        """
        attend = SelfAttention(self.config.heads, self.lora, name='MultiHeadDotProductAttention_0')
        x = x + attend(layer_norm(x, 'LayerNorm_0'))
        x = x + MlpBlock(self.config.mlp_dim, self.lora, name='MlpBlock_0')(
            layer_norm(x, 'LayerNorm_1')
        )
        return x, None


class Encoder(nn.Module):
    """All layers and the last norm."""

    config: SiglipConfig
    lora: LoraConfig
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, 'b s w']) -> Float[Array, 'b s w']:
        """All layers and the final norm.

        Args:
          x: tokens.

        Returns:
          As many tokens.
        """
        block = nn.remat(EncoderBlock, prevent_cse=False) if self.remat else EncoderBlock
        layers = nn.scan(
            block,
            variable_axes={'params': 0, 'lora': 0},
            split_rngs={'params': True, 'dropout': True},
            length=self.config.depth,
        )
        x, _ = layers(self.config, self.lora, name='encoderblock')(x, None)
        return layer_norm(x, 'encoder_norm')


class Siglip(nn.Module):
    """Images in [-1, 1], [b h x 3] -> tokens [b f w] at the language model's width `out_width`, not
    scaled.
    """

    config: SiglipConfig
    out_width: int
    lora: LoraConfig
    dtype: str = 'float32'
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, 'b h x 3']) -> Float[Array, 'b f w']:
        """The tokens of one view.

        Args:
          images: in [-1, 1].

        Returns:
          One token a patch, at the language model's width.
        """
        c = self.config
        patches = split_patches(images.astype(self.dtype), c.patch)
        x = PatchEmbedding(c, name='embedding')(patches)
        positions = self.param(
            'pos_embedding', nn.initializers.normal(c.width**-0.5), (1, c.tokens, c.width)
        )
        x = (x.astype(jnp.float32) + positions).astype(self.dtype)
        x = Encoder(c, self.lora, self.remat, name='Transformer')(x)
        return Projection((c.width, self.out_width), DENSE, self.lora, name='head')(x)


class PatchEmbedding(nn.Module):
    """A strided convolution written as one matrix product over cut-out patches."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, patches: Float[Array, 'b f y z 3']) -> Float[Array, 'b f w']:
        """One token a patch.

        Args:
          patches: pixels of each.

        Returns:
          Tokens.
        """
        c = self.config
        kernel = self.param(
            'kernel', nn.initializers.lecun_normal((0, 1, 2)), (c.patch, c.patch, 3, c.width)
        )
        bias = self.param('bias', nn.initializers.zeros, (c.width,))
        return jnp.einsum('bfyzc,yzcw->bfw', patches, kernel.astype(patches.dtype)) + bias.astype(
            patches.dtype
        )


def split_patches(images: Float[Array, 'b h x c'], patch: int) -> Float[Array, 'b f y z c']:
    """Non-overlapping square patches in row-major order.

    Args:
      images: any.
      patch: pixels a side.

    Returns:
      The patches.
    """
    b, h, x, c = images.shape
    images = images.reshape(b, h // patch, patch, x // patch, patch, c)
    return jnp.swapaxes(images, 2, 3).reshape(b, -1, patch, patch, c)
