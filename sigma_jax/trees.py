"""Parameter trees: paths, masks by regular expression, and errors that name what is near.

A path is the keys of a leaf joined by '/': `PaliGemma/llm/layers/attn/q_einsum/w`. Every mask of
the project is made here.
"""

import difflib
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from sigma_jax.errors import UserError, few
from sigma_jax.types import PyTree

_joined = functools.partial(jax.tree_util.keystr, simple=True, separator='/')


def flatten(tree: PyTree, is_leaf: Callable | None = None) -> dict[str, Any]:
    """Nested dict -> {path: leaf}, in tree order.

    Args:
      tree: any pytree.
      is_leaf: where to stop; as for `jax.tree.leaves`.

    Returns:
      The leaves by path.

    Examples:
      >>> from sigma_jax import trees
      >>> trees.flatten({'b': {'x': 1}, 'a': 2})
      {'a': 2, 'b/x': 1}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {_joined(path): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict:
    """{path: leaf} -> nested dict: the inverse of `flatten`.

    Args:
      flat: leaves by path.

    Returns:
      The nested dictionary.
    """
    return traverse_util.unflatten_dict(dict(flat), sep='/')


def map_with_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`jax.tree.map` whose function also gets the path.

    Args:
      function: (path, leaf) -> new leaf.
      tree: any pytree.

    Returns:
      The tree of new leaves.
    """
    return jax.tree_util.tree_map_with_path(lambda p, leaf: function(_joined(p), leaf), tree)


def select(tree: PyTree, patterns: Iterable[str]) -> PyTree:
    """Boolean mask over a tree: true where a pattern matches the whole path.

    Args:
      tree: any pytree.
      patterns: regular expressions.

    Returns:
      A tree of the same structure.

    Raises:
      UserError: a pattern matches nothing, naming the closest path, or does not compile.

    Examples:
      >>> from sigma_jax import trees
      >>> tree = {'attn': {'q': 0, 'k': 0}, 'norm': 0}
      >>> trees.select(tree, ['attn/.*'])
      {'attn': {'k': True, 'q': True}, 'norm': False}
      >>> trees.select(tree, ['attn/v'])
      Traceback (most recent call last):
      ...
      sigma_jax.errors.UserError: expected a regular expression of whole parameter paths, got
      pattern 'attn/v', which matches none of 3; closest: 'attn/q'
    """
    paths = list(flatten(tree))
    compiled = [(p, _compile(p)) for p in patterns]
    for text, pattern in compiled:
        if not any(pattern.fullmatch(path) for path in paths):
            raise UserError(
                f'expected a regular expression of whole parameter paths, got pattern {text!r}, '
                f'which matches none of {len(paths)}; closest: {closest(text, paths)!r}'
            )
    return map_with_path(lambda path, _: any(p.fullmatch(path) for _, p in compiled), tree)


def _compile(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f'expected a regular expression, got pattern {pattern!r} ({error}); correct it'
        ) from error


def closest(text: str, paths: list[str]) -> str:
    """The path most like a text, for error messages.

    Args:
      text: what was written.
      paths: what there is.

    Returns:
      One of `paths`; '' when there are none.
    """
    found = difflib.get_close_matches(text, paths, n=1, cutoff=0.0)
    return found[0] if found else ''


def count(tree: PyTree) -> int:
    """Number of array elements in all leaves.

    Args:
      tree: arrays, may be abstract.

    Returns:
      The count.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def check_same(expected: PyTree, got: PyTree, what: str) -> None:
    """Checks that two trees have the same paths and shapes.

    Args:
      expected: the model's, may be abstract.
      got: what came.
      what: name of what came, for the message.

    Raises:
      UserError: leaves are missing, unexpected or of another shape; names some and says how many.
    """
    want, have = flatten(expected), flatten(got)
    missing = [f'missing {p} {tuple(want[p].shape)}' for p in want if p not in have]
    unexpected = [f'unexpected {p} {tuple(have[p].shape)}' for p in have if p not in want]
    misshaped = [
        f'{p}: expected shape {tuple(want[p].shape)}, got {tuple(have[p].shape)}'
        for p in want
        if p in have and tuple(want[p].shape) != tuple(have[p].shape)
    ]
    if kinds := [kind for kind in (missing, unexpected, misshaped) if kind]:
        count = sum(map(len, kinds))
        raise UserError(
            f'{what}: expected the leaves of the model, got {count} differences: '
            + '; '.join(map(few, kinds))
        )


def digest(tree: PyTree) -> str:
    """SHA-256 over paths, dtypes, shapes and bytes of all leaves: equal exactly for bitwise equal
    trees.

    Args:
      tree: arrays.

    Returns:
      64 hexadecimal digits.
    """
    return combine_digests(
        {path: leaf_digest(np.asarray(leaf)) for path, leaf in flatten(tree).items()}
    )


def leaf_digest(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and bytes of one array.

    Args:
      array: the array.

    Returns:
      64 hexadecimal digits.
    """
    out = start_digest(array.dtype, array.shape)
    out.update(as_bytes(array))
    return out.hexdigest()


def start_digest(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    """A running digest of one array, for `update(as_bytes(part))` in the order of its elements.

    Args:
      dtype: of the array.
      shape: of the whole array.

    Returns:
      A `hashlib` object.
    """
    return hashlib.sha256(f'{dtype} {tuple(shape)}\n'.encode())


def as_bytes(array: np.ndarray) -> memoryview:
    """The elements in C order, as bytes.

    Args:
      array: the array.

    Returns:
      A view, or a copy where the elements lie in another order.
    """
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def combine_digests(leaves: Mapping[str, str]) -> str:
    """The digest of a tree from those of its leaves.

    Args:
      leaves: {path: digest}.

    Returns:
      64 hexadecimal digits.
    """
    return hashlib.sha256(
        ''.join(f'{path} {leaves[path]}\n' for path in sorted(leaves)).encode()
    ).hexdigest()
