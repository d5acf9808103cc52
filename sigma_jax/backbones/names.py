"""Between the tensors of a public PyTorch checkpoint and a backbone's own leaves: one table,
readable both ways.

A rule says which tensor fills which slice of a leaf, and in which form. `{n}` in a name runs over
the layers stacked on axis 0; `stack` is the index within a leaf that holds two matrices (k and v,
gate and up).
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

BLOCK = 64  # rows transposed at once: what a cache holds; 4 to 6 times as fast as numpy's own order


def transpose(x: np.ndarray) -> np.ndarray:
    """A transposed copy of a matrix, of any dtype.

    Args:
      x: [rows columns].

    Returns:
      [columns rows].
    """
    # numpy copies extension types such as bfloat16 one by one
    bits = x.view(f'u{x.dtype.itemsize}')
    out = np.empty(x.shape[::-1], bits.dtype)
    for n in range(0, len(x), BLOCK):
        out[:, n : n + BLOCK] = bits[n : n + BLOCK].T
    return out.view(x.dtype)


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """How a tensor becomes a slice of ours (`to_jax(tensor, slice shape)`) and back
    (`to_torch(slice)`).
    """

    to_jax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = TensorMap(lambda x, shape: x, lambda x: x)
# biases of several heads
RESHAPED = TensorMap(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
ADDED_AXIS = TensorMap(lambda x, shape: x[None], lambda x: x[0])
TRANSPOSED = TensorMap(lambda x, shape: transpose(x), transpose)
CONVOLUTION = TensorMap(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# (heads * head_dim, width) -> (heads, width, head_dim), (width, heads, head_dim); (width, heads *
# head_dim) -> ...
HEADS_FIRST = TensorMap(
    lambda x, shape: x.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1),
    lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1]),
)
HEADS_SECOND = TensorMap(
    lambda x, shape: transpose(x).reshape(shape), lambda x: transpose(x.reshape(x.shape[0], -1))
)
HEADS_OUT = TensorMap(
    lambda x, shape: transpose(x).reshape(shape), lambda x: transpose(x.reshape(-1, x.shape[-1]))
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """`path` (ours) <- tensors `name` (theirs); `axes` names its sizes, for who reads them."""

    path: str
    name: str
    tensor_map: TensorMap
    axes: str = ''
    stack: int | None = None

    def names(self, layers: int) -> Iterator[tuple[tuple[int, ...], str]]:
        """Every tensor that this rule covers.

        Args:
          layers: how many are stacked in the leaf; one where the name has no `{n}`.

        Returns:
          Pairs of an index into our leaf and a tensor's name.
        """
        tail = () if self.stack is None else (self.stack,)
        if '{n}' not in self.name:
            yield tail, self.name
        else:
            yield from (((n, *tail), self.name.format(n=n)) for n in range(layers))


@dataclasses.dataclass(frozen=True)
class NameTable:
    """A public checkpoint's tensors, and where each is in our tree.

    Attributes:
      rules: all of them, in the order in which they are read and written.
      tops: first parts of tensors' names; what stands before them is a training's wrapper.
      spellings: (pattern, replacement) of names that others spell otherwise, applied in order.
      table: the tensor of the token table.
      tied: the output layer's name, which is the token table once more; '' for none.
      unused: a tensor that the originals keep and nobody reads; '' for none.
      unused_width: a tensor whose last axis is as wide as `unused`'s.
      groups: pattern of leaves that share one dtype, by the group's name; the first that fits.
      half: groups that the originals keep in bfloat16; the others are float32.
    """

    rules: tuple[Rule, ...] = ()
    tops: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    table: str = ''
    tied: str = ''
    unused: str = ''
    unused_width: str = ''
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    half: tuple[str, ...] = ()

    def group(self, path: str) -> str:
        """The group of leaves that a leaf shares its dtype with.

        Args:
          path: of the leaf.

        Returns:
          The group's name; '' for a leaf in none.
        """
        fits = (name for name, pattern in self.groups.items() if re.fullmatch(pattern, path))
        return next(fits, '')

    def canonical(self, name: str) -> str:
        """A tensor's name as the table has it.

        Args:
          name: in any spelling, without a training's wrappers.

        Returns:
          The name in the table's.
        """
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name
