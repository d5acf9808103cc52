"""What this project asks of XLA for its large programs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def jit(function: Callable, triton: bool = False, **arguments: Any) -> jax.stages.Wrapped:
    """`jax.jit` with `options`.

    Args:
      function: to compile.
      triton: as for `options`.
      **arguments: for `jax.jit`.

    Returns:
      The compiled function.
    """
    return jax.jit(function, compiler_options=options(triton), **arguments)


def options(triton: bool = False) -> dict[str, bool]:
    """What a large program asks of XLA on a GPU; nothing elsewhere.

    Without `triton` no products by Triton: trying them out takes half of the compile time at full
    size, for 3 % of a LoRA step and nothing of Sigma's. And no products that write into a slice of
    what layers keep for the backward pass: where the layer reads the product too, XLA computes it
    twice ('save_products' at full size: 16 % slower).

    Args:
      triton: whether products by Triton are tried.

    Returns:
      {option: value}.
    """
    if jax.default_backend() != 'gpu':
        return {}
    return {'xla_gpu_enable_triton_gemm': triton, 'xla_gpu_enable_dynamic_slice_fusion': False}


def alone() -> bool:
    """Whether rows are computed one by one here: on a CPU, which gains little from many."""
    return jax.default_backend() == 'cpu'


def zeros(like: Any) -> Any:
    """A tree of zeros.

    Args:
      like: shapes.

    Returns:
      The tree.
    """
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def row_by_row(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """On a CPU, a function of rows that computes each alone; elsewhere the function itself.

    Products of one row and of many are summed in another order. Alone, the bits of a row do not
    depend on how many there are: what a robot gets, one observation at a time, is what an
    evaluation of many windows measures. A loop over one row would be unrolled, and the row's last
    operations fused with what follows: it is one over two rows, of which the second is skipped.

    Args:
      function: of a tree with leaves [b ...], giving another.

    Returns:
      A function of the same arguments, for use within a compiled one.
    """
    if not alone():
        return function

    @jax.jit  # traced once
    def one_row(row):
        rows = jax.tree.map(lambda x: x[None], row)
        return jax.tree.map(lambda x: x[0], function(rows))

    def every(rows):
        count = len(jax.tree.leaves(rows)[0])
        rows = jax.tree.map(lambda x: jnp.concatenate([x, x]) if count == 1 else x, rows)
        like = jax.eval_shape(one_row, jax.tree.map(lambda x: x[0], rows))

        def one(numbered):
            number, row = numbered
            return jax.lax.cond(number < count, one_row, lambda _: zeros(like), row)

        found = jax.lax.map(one, (jnp.arange(max(count, 2)), rows))
        return jax.tree.map(lambda x: x[:count], found)

    return every
