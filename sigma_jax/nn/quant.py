"""The frozen base in fewer bytes (docs/design.md, "Quantised base"; QLoRA, arXiv 2305.14314):
bfloat16, int8 or NF4, chosen leaf by leaf.

The arithmetic is qwix's. A scale is shared by entries along one of a weight's input axes only;
along every other axis, the layer axis of a stack among them, each index has scales of its own. So a
scan over layers can slice codes and scales with the same index, and `nn.project` turns one matrix
at a time back into numbers, just before its product. NF4 codes are packed here, two in a byte: qwix
gives jnp.uint4, of which numpy keeps a byte each, as does XLA on a CPU for the layers that a scan
runs over, and which operations accept it differs by device.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import struct
from jaxtyping import Array, Float, Int8, UInt8

from sigma_jax import trees
from sigma_jax.errors import UserError
from sigma_jax.nn.lora import MatrixLayout, find_layout
from sigma_jax.types import PyTree

KINDS = ('stored', 'bfloat16', 'int8', 'nf4')
# NF4's are many: bfloat16 saves a quarter of a bit a weight
SCALES = {'int8': jnp.float32, 'nf4': jnp.bfloat16}
# what layers read in float32
FLOAT32 = re.compile(r'.*/scale|.*/(LayerNorm_\d|encoder_norm)/bias|.*/pos_embedding')
# bytes in float32 of what is quantised at once: one layer of full-size Gemma's largest leaf
CHUNK_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """How the frozen base is stored on the device.

    Attributes:
      kind: 'stored' (as in its folder), 'bfloat16' (all but what is read in float32), or 'int8' or
        'nf4' for the leaves that `patterns` select and bfloat16 for the others.
      patterns: regular expressions over whole parameter paths.
      int8: further leaves that are in int8 whatever the kind.
      tile: inputs that share one of NF4's scales (QLoRA: 64); int8 has one scale for all inputs of
        an output.

    Raises:
      UserError: an unknown kind, one that needs patterns without any, or a tile below 1.
    """

    kind: str = 'stored'
    patterns: tuple[str, ...] = ()
    int8: tuple[str, ...] = ()
    tile: int = 64

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(
                f'quant.kind: expected one of {", ".join(KINDS)}, got {self.kind!r}; choose one'
            )
        if self.kind in SCALES and not self.patterns:
            raise UserError(
                f'quant.patterns: expected patterns of leaves for {self.kind}, got '
                'none; see defaults.py'
            )
        if self.tile < 1:
            raise UserError(f'quant.tile: expected at least 1, got {self.tile}; QLoRA takes 64')

    @property
    def changes(self) -> bool:
        """Whether any leaf is stored otherwise than in its folder."""
        return self.kind != 'stored' or bool(self.int8)


@struct.dataclass
class Quantised:
    """A leaf as codes and scales.

    Only leading axes whose entries share no scale may be indexed: layers, stacked matrices, rows of
    the token table.

    Attributes:
      codes: int8, or two NF4 codes along the last axis in a uint8.
      scale: what codes are multiplied by.
      kind: 'int8' or 'nf4'.
    """

    codes: Int8[Array, '...'] | UInt8[Array, '...']
    scale: Float[Array, '...']
    kind: str = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own shape."""
        return (*self.codes.shape[:-1], self.codes.shape[-1] * (2 if self.kind == 'nf4' else 1))

    def __getitem__(self, index: Any) -> 'Quantised':
        return jax.tree.map(operator.itemgetter(index), self)


class StorageFormat(NamedTuple):
    """How one leaf is stored: one of `KINDS`, and for codes the axis along which `tile` entries
    share a scale.
    """

    kind: str
    axis: int = 0
    tile: int = 0


def assign_formats(
    params: PyTree,
    layouts: Mapping[str, MatrixLayout],
    config: QuantConfig,
    float32: re.Pattern[str] = FLOAT32,
) -> dict[str, StorageFormat]:
    """How every leaf is to be stored.

    Args:
      params: the base's tree, may be abstract.
      layouts: {pattern over whole paths: layout} of the matrices.
      config: what is asked for.
      float32: leaves that are never in bfloat16.

    Returns:
      {path: form}.

    Raises:
      UserError: a pattern matches nothing or no matrix, or the tile does not divide an input axis.
    """
    matrices = config.patterns if config.kind in SCALES else ()
    chosen, int8 = (
        trees.flatten(trees.select(params, patterns)) for patterns in (matrices, config.int8)
    )
    others = 'stored' if config.kind == 'stored' else 'bfloat16'

    def storage(path: str, leaf: Any) -> StorageFormat:
        kind = 'int8' if int8[path] else config.kind if chosen[path] else others
        if kind in SCALES:
            return _codes(
                path, leaf.shape, find_layout(path, layouts, 'quantisation'), kind, config.tile
            )
        return StorageFormat('stored' if kind == 'bfloat16' and float32.fullmatch(path) else kind)

    return {path: storage(path, leaf) for path, leaf in trees.flatten(params).items()}


def _codes(
    path: str, shape: tuple[int, ...], layout: MatrixLayout, kind: str, tile: int
) -> StorageFormat:
    axis = len(shape) - len(layout.weight) + layout.weight.index(layout.inputs[-1])
    if kind == 'int8':
        return StorageFormat(kind, axis, shape[axis])
    if shape[-1] % 2:
        raise UserError(
            f'quant.patterns: NF4 expects an even last axis, got {shape} for {path}; '
            'name it in quant.int8'
        )
    if shape[axis] % tile:
        raise UserError(
            f'quant.tile: expected a divisor of the {shape[axis]} inputs of {path}, got {tile}; '
            'choose another, or name this leaf in quant.int8, which needs none'
        )
    return StorageFormat(kind, axis, tile)


def convert(w: Float[Array, '...'], storage: StorageFormat) -> Array | Quantised:
    """One leaf as it is stored.

    Args:
      w: the leaf, or a slice of it along any axis but `form.axis`.
      storage: how it is stored.

    Returns:
      An array, or codes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.nn import quant
      >>> w = jnp.linspace(-1, 1, 128).reshape(64, 2)
      >>> codes = quant.convert(w, quant.StorageFormat('nf4', axis=0, tile=64))
      >>> codes.codes.shape, codes.codes.dtype.name, codes.scale.shape
      ((64, 1), 'uint8', (1, 2))
      >>> bool(jnp.abs(quant.dense(codes, jnp.float32) - w).max() < 0.16)
      True
    """
    if storage.kind not in SCALES:
        return w if storage.kind == 'stored' else w.astype(jnp.bfloat16)
    q = qwix.quantize(
        w.astype(jnp.float32),
        storage.kind,
        channelwise_axes=tuple(n for n in range(w.ndim) if n != storage.axis),
        tiled_axes={storage.axis: storage.tile},
        scale_dtype=SCALES[storage.kind],
    )
    return Quantised(_pack(q.qvalue) if storage.kind == 'nf4' else q.qvalue, q.scale, storage.kind)


def _pack(codes: Array) -> UInt8[Array, '...']:
    """Codes 0 ... 15, two neighbours of the last axis in a byte, the first in its lower half."""
    codes = codes.astype(jnp.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4


def _unpack(codes: UInt8[Array, '...']) -> UInt8[Array, '...']:
    pairs = codes[..., None] >> jnp.array([0, 4], jnp.uint8) & 15
    return pairs.reshape(*codes.shape[:-1], -1)


def store(
    params: PyTree,
    layouts: Mapping[str, MatrixLayout],
    config: QuantConfig,
    uses_param: Callable[[str], bool] = lambda path: True,
    put: Callable[[PyTree], PyTree] = jax.device_put,
    float32: re.Pattern[str] = FLOAT32,
) -> PyTree:
    """The base as it is to lie on the device.

    Codes are made on the device slice by slice: at no time is there a second float copy of more
    than one slice.

    Args:
      params: the base's tree, numpy.
      layouts: {pattern over whole paths: layout} of the matrices.
      config: how leaves are stored.
      uses_param: whether a path is read at all; other leaves are left out.
      put: takes one leaf in its final form and puts it on the device.
      float32: leaves that are never in bfloat16.

    Returns:
      The tree of what `put` returned.

    Raises:
      UserError: as `assign_formats`.
    """
    formats = assign_formats(params, layouts, config, float32)
    leaves = ((path, leaf) for path, leaf in trees.flatten(params).items() if uses_param(path))
    return trees.unflatten({path: put(_host(leaf, formats[path])) for path, leaf in leaves})


def _host(leaf: np.ndarray, storage: StorageFormat) -> np.ndarray | Quantised:
    """The leaf as it is stored, in the host's memory."""
    if storage.kind not in SCALES:
        return (
            leaf if storage.kind == 'stored' else np.asarray(leaf).astype(jnp.bfloat16, copy=False)
        )
    parts = [
        jax.device_get(_convert(part, storage)) for part in _slices(np.asarray(leaf), storage.axis)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


_convert = jax.jit(convert, static_argnames='storage')


def _slices(w: np.ndarray, axis: int) -> Iterator[np.ndarray]:
    """Equal slices along the first axis (layers of a stack, rows of a table), of at most
    `CHUNK_BYTES` where one can be.
    """
    count = 1 if axis == 0 else min(len(w), math.ceil(4 * w.size / CHUNK_BYTES))
    while len(w) % count:
        count += 1
    yield from np.split(w, count)


def abstract(
    params: PyTree,
    layouts: Mapping[str, MatrixLayout],
    config: QuantConfig,
    float32: re.Pattern[str] = FLOAT32,
) -> PyTree:
    """Shapes and dtypes of what `store` gives; computes nothing.

    Args:
      params: the base's tree, may be abstract.
      layouts: {pattern over whole paths: layout} of the matrices.
      config: how leaves are stored.
      float32: leaves that are never in bfloat16.

    Returns:
      A tree of `jax.ShapeDtypeStruct`, codes among them.

    Raises:
      UserError: as `assign_formats`.
    """
    formats = assign_formats(params, layouts, config, float32)
    return trees.map_with_path(
        lambda p, w: jax.eval_shape(functools.partial(convert, storage=formats[p]), w), params
    )


def count(params: PyTree) -> int:
    """Number of weights, however they are stored.

    Args:
      params: the base's tree.

    Returns:
      The count; a pair of NF4 codes in a byte counts as two.
    """
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Quantised))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def size(params: PyTree) -> int:
    """Bytes on the device.

    Args:
      params: the base's tree, may be abstract.

    Returns:
      The sum over all arrays, scales among them.
    """
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))


def read(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> Array | Quantised:
    """A leaf of a module, where it may be codes.

    Args:
      module: the layer that owns it.
      name: of the parameter.
      init: makes it where there is none.
      shape: to make it.

    Returns:
      An array, or codes.
    """
    found: Any = module.get_variable('params', name)
    return found if isinstance(found, Quantised) else module.param(name, init, shape)


def rows(w: Array | Quantised) -> list:
    """A leaf's slices along its first axis, whose entries share no scale.

    Args:
      w: an array, or codes.

    Returns:
      One slice an index.
    """
    return [w[n] for n in range(w.shape[0])] if isinstance(w, Quantised) else list(w)


def dense(w: Array | Quantised, dtype: Any) -> Float[Array, '...']:
    """A leaf as an array; codes are multiplied by their scales in float32.

    Args:
      w: an array, or codes.
      dtype: of the result.

    Returns:
      The weight.
    """
    if not isinstance(w, Quantised):
        return w.astype(dtype)
    codes = _unpack(w.codes) if w.kind == 'nf4' else w.codes
    return qwix.dequantize(qwix.QArray(codes, w.scale.astype(jnp.float32), qtype=w.kind)).astype(
        dtype
    )


def einsum(equation: str, x: Float[Array, '...'], w: Array | Quantised) -> Float[Array, '...']:
    """The product of x and one weight, in x's dtype.

    A weight made from codes is not kept for the backward pass, whatever the layer around it keeps,
    but made again.

    Args:
      equation: as for `jnp.einsum`.
      x: first operand.
      w: second operand, an array or codes.

    Returns:
      The product.
    """
    if not isinstance(w, Quantised):
        return jnp.einsum(equation, x, w.astype(x.dtype))
    again = jax.checkpoint(
        lambda x, w: jnp.einsum(equation, x, dense(w, x.dtype)), prevent_cse=False
    )
    return again(x, w)
