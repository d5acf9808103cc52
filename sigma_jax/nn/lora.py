"""LoRA as parameter-tree masks: a mask over the base tree chooses, a side path computes
(docs/design.md, "LoRA").

Factors live in their own tree, `{leaf path: {'a': [.. r d_in], 'b': [.. d_out r]}}`, one pair where
the mask is true, in PEFT's shapes over the flattened heads. A layout names the axes of a weight, so
that the same pair serves `[n d h]` projections, stacked k/v pairs and plain kernels.
"""

import dataclasses
import re
from collections.abc import Mapping
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sigma_jax import trees
from sigma_jax.errors import UserError
from sigma_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which leaves of the base get factors, and how strong they are (paper 4.2: r 16, dropout, q k
    v o).

    Attributes:
      patterns: regular expressions over whole parameter paths.
      rank: r, columns of A and rows of B.
      alpha: the side path is alpha / r * B A x.
      dropout: fraction of the side path's inputs that is dropped, [0, 1).

    Raises:
      UserError: a rank below 1, or a dropout outside [0, 1).
    """

    patterns: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(
                f'lora.rank: expected at least 1, got {self.rank}; take lora out of '
                'config.trainable instead'
            )
        if not 0 <= self.dropout < 1:
            raise UserError(
                f'lora.dropout: expected a share in [0, 1), got {self.dropout}; correct it'
            )


@dataclasses.dataclass(frozen=True)
class MatrixLayout:
    """Axes of one weight by letter: `MatrixLayout('ndh', 'd', 'nh')` maps d inputs to n*h outputs.

    Letters of `weight` on neither side stack separate matrices (k and v, gate and up); they come
    first.

    Examples:
      >>> from sigma_jax.nn.lora import MatrixLayout
      >>> MatrixLayout('kndh', 'd', 'nh').equation()
      '...d,kndh->k...nh'
      >>> MatrixLayout('kndh', 'd', 'nh').sizes((18, 2, 1, 2048, 256))  # 18 layers, keys and values
      ((18, 2), 2048, 256)
    """

    weight: str
    inputs: str
    outputs: str

    @property
    def stack(self) -> str:
        """The letters that number separate matrices."""
        return ''.join(x for x in self.weight if x not in self.inputs + self.outputs)

    def equation(self) -> str:
        """The einsum of an input [... inputs] with the weight; it gives [stack ... outputs]."""
        return f'...{self.inputs},{self.weight}->{self.stack}...{self.outputs}'

    def sizes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
        """What a weight of this layout is made of.

        Args:
          shape: of the weight, possibly with more leading (scanned) axes.

        Returns:
          leading: leading and stack axes.
          d_in: number of inputs.
          d_out: number of outputs.
        """
        extra = len(shape) - len(self.weight)
        size = dict(zip(self.weight, shape[extra:], strict=True))
        leading = tuple(shape[:extra]) + tuple(size[x] for x in self.stack)
        return leading, prod(size[x] for x in self.inputs), prod(size[x] for x in self.outputs)


def find_layout(path: str, layouts: Mapping[str, MatrixLayout], what: str = 'LoRA') -> MatrixLayout:
    """The layout of a leaf.

    Args:
      path: of the leaf.
      layouts: {pattern over whole paths: layout}.
      what: who asks, for the message.

    Returns:
      The first whose pattern matches.

    Raises:
      UserError: none does, since the leaf is no matrix.
    """
    for pattern, layout in layouts.items():
        if re.fullmatch(pattern, path):
            return layout
    raise UserError(
        f'{what}: expected the path of a matrix, got {path!r}; choose among {", ".join(layouts)}'
    )


def init_factors(
    key: Array, base: PyTree, layouts: Mapping[str, MatrixLayout], config: LoraConfig
) -> PyTree:
    """Factors for every leaf that a pattern selects (docs/design.md, "LoRA").

    A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)) as in PEFT, B = 0: the model is unchanged, bit for bit.

    Args:
      key: seed; the n-th selected leaf uses `fold_in(key, n)`.
      base: the base's tree, may be abstract.
      layouts: {pattern over whole paths: layout}.
      config: patterns and rank.

    Returns:
      {leaf path: {'a': [.. r d_in], 'b': [.. d_out r]}} as a nested dictionary, float32.

    Raises:
      UserError: a pattern matches nothing or no matrix.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from sigma_jax.nn import lora
      >>> base = {'attn': {'q': jnp.ones((4, 6))}, 'norm': jnp.ones(4)}
      >>> layouts = {r'attn/.*': lora.MatrixLayout('dh', 'd', 'h')}
      >>> config = lora.LoraConfig(patterns=('attn/q',), rank=2)
      >>> factors = lora.init_factors(jax.random.key(0), base, layouts, config)
      >>> jax.tree.map(jnp.shape, factors)
      {'attn': {'q': {'a': (2, 4), 'b': (6, 2)}}}
    """
    mask = trees.flatten(trees.select(base, config.patterns))
    shapes = {path: leaf.shape for path, leaf in trees.flatten(base).items() if mask[path]}
    factors = {}
    for n, (path, shape) in enumerate(shapes.items()):
        leading, d_in, d_out = find_layout(path, layouts).sizes(shape)
        bound = d_in**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, n), (*leading, config.rank, d_in), jnp.float32, -bound, bound
        )
        factors[f'{path}/a'], factors[f'{path}/b'] = (
            a,
            jnp.zeros((*leading, d_out, config.rank), jnp.float32),
        )
    return trees.unflatten(factors)


def side_path(
    x: Float[Array, '...'],
    factors: Mapping[str, Array],
    layout: MatrixLayout,
    output_sizes: tuple[int, ...],
    alpha: float,
) -> Float[Array, '...']:
    """alpha / r * B A x.

    Args:
      x: [... inputs].
      factors: {'a', 'b'} of one leaf.
      layout: of that leaf.
      output_sizes: length of each output axis.
      alpha: strength.

    Returns:
      [stack ... outputs] as `layout.equation()` gives it, in x's dtype.
    """
    a, b = (factors[name].astype(x.dtype) for name in 'ab')
    s = layout.stack
    x = x.reshape(*x.shape[: x.ndim - len(layout.inputs)], -1)
    low = jnp.einsum(f'...y,{s}zy->{s}...z', x, a)
    high = jnp.einsum(f'{s}...z,{s}yz->{s}...y', low, b)
    return (high * (alpha / a.shape[-2])).reshape(*high.shape[:-1], *output_sizes)
