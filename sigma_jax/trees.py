"""Parameter trees: paths, masks by regular expression, and errors that name what is near.

A path is the keys of a leaf joined by '/': `PaliGemma/llm/layers/attn/q_einsum/w`. Every mask of
the project is made here.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sigma_jax.errors import UserError, few

PyTree = Any


def path_string(path: tuple) -> str:
    """`jax.tree_util` key path -> 'a/b/c'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def flatten(tree: PyTree, is_leaf: Callable | None = None) -> dict[str, Any]:
    """Nested dict -> {path: leaf}, in tree order."""
    return {
        path_string(p): leaf
        for p, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    }


def unflatten(flat: Mapping[str, Any]) -> dict:
    """{path: leaf} -> nested dict."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split('/')
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def map_with_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`jax.tree.map` whose function also gets the path as a string."""
    return jax.tree_util.tree_map_with_path(lambda p, leaf: function(path_string(p), leaf), tree)


def select(tree: PyTree, patterns: Iterable[str]) -> PyTree:
    """Boolean mask over `tree`: true where a pattern matches the whole path.

    Raises UserError for a pattern that matches nothing, naming the closest path, and for one that
    does not compile.
    """
    paths = list(flatten(tree))
    compiled = [(p, _compile(p)) for p in patterns]
    for text, pattern in compiled:
        if not any(pattern.fullmatch(path) for path in paths):
            raise UserError(
                f'pattern {text!r} matches none of {len(paths)} parameter paths; closest: '
                f'{closest(text, paths)!r}; write a regular expression that matches whole paths'
            )
    return map_with_path(lambda path, _: any(p.fullmatch(path) for _, p in compiled), tree)


def _compile(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f'pattern {pattern!r} is no regular expression ({error}); correct it'
        ) from error


def closest(text: str, paths: list[str]) -> str:
    """The path most like `text`, for error messages; '' when there are none."""
    found = difflib.get_close_matches(text, paths, n=1, cutoff=0.0)
    return found[0] if found else ''


def count(tree: PyTree) -> int:
    """Number of array elements in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def check_same(expected: PyTree, got: PyTree, what: str) -> None:
    """Raises UserError for leaves of `got` that `expected` has not, lacks or shapes otherwise: some
    and a count.
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
            f'{what} does not fit the model ({count} differences): ' + '; '.join(map(few, kinds))
        )


def digest(tree: PyTree) -> str:
    """SHA-256 over paths, dtypes, shapes and bytes of all leaves: equal exactly for bitwise equal
    trees.
    """
    return combine_digests(
        {path: leaf_digest(np.asarray(leaf)) for path, leaf in flatten(tree).items()}
    )


def leaf_digest(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and bytes of one array."""
    out = start_digest(array.dtype, array.shape)
    out.update(as_bytes(array))
    return out.hexdigest()


def start_digest(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    """A running digest of one array, for `update(as_bytes(part))` in the order of its elements."""
    return hashlib.sha256(f'{dtype} {tuple(shape)}\n'.encode())


def as_bytes(array: np.ndarray) -> memoryview:
    """The elements in C order, as bytes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def combine_digests(leaves: Mapping[str, str]) -> str:
    """The digest of a tree from those of its leaves, by path."""
    return hashlib.sha256(
        ''.join(f'{path} {leaves[path]}\n' for path in sorted(leaves)).encode()
    ).hexdigest()
