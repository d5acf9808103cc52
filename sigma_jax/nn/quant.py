"""The frozen base in fewer bytes (docs/design.md, "Quantised base"; QLoRA, arXiv 2305.14314):
bfloat16, int8 or NF4, chosen leaf by leaf.

The arithmetic is qwix's. Scales run along one of a weight's input axes; every other index, the
layer of a stack among them, has scales of its own. So a scan over layers slices codes and scales
alike, and `nn.project` makes one matrix whole just before its product. NF4's codes are packed here,
two in a byte: of jnp.uint4, which qwix gives, numpy keeps a byte each, so does XLA on a CPU for all
layers that a scan runs over, and which operations take it differs by device.
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
from sigma_jax.nn.lora import Layout, find_layout

PyTree = Any
KINDS = ('stored', 'bfloat16', 'int8', 'nf4')
# NF4's are many: bfloat16 saves a quarter of a bit a weight
SCALES = {'int8': jnp.float32, 'nf4': jnp.bfloat16}
# what layers read in float32
FLOAT32 = re.compile(r'.*/scale|.*/(LayerNorm_\d|encoder_norm)/bias|.*/pos_embedding')
# bytes in float32 of what is quantised at once: one layer of full-size Gemma's largest leaf
PIECE = 2**28


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """How the frozen base is stored on the device.

    `kind`: 'stored' (as in its folder), 'bfloat16' (all but what is read in float32), or 'int8' or
    'nf4' for the leaves that `patterns` select and bfloat16 for the others. `int8`: further leaves
    that are in int8 whatever the kind.
    `tile`: inputs that share one of NF4's scales (QLoRA: 64); int8 has one scale for all inputs of
    an output. Raises UserError for values that make no sense.
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
    """A leaf as codes and scales; `codes` are int8, or two of NF4's along the last axis in a uint8.

    Indices reach only leading axes that share no scale: layers, stacked matrices, rows of the token
    table.
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


class Form(NamedTuple):
    """How one leaf is stored: one of `KINDS`, and for codes the axis along which `tile` entries
    share a scale.
    """

    kind: str
    axis: int = 0
    tile: int = 0


def plan(params: PyTree, layouts: Mapping[str, Layout], config: QuantConfig) -> dict[str, Form]:
    """{path: form} of every leaf of `params`, which may be abstract.

    Raises UserError for patterns that match nothing or no matrix, and where the tile does not
    divide an input axis.
    """
    matrices = config.patterns if config.kind in SCALES else ()
    chosen, int8 = (
        trees.flatten(trees.select(params, patterns)) for patterns in (matrices, config.int8)
    )
    others = 'stored' if config.kind == 'stored' else 'bfloat16'

    def form(path: str, leaf: Any) -> Form:
        kind = 'int8' if int8[path] else config.kind if chosen[path] else others
        if kind in SCALES:
            return _codes(
                path, leaf.shape, find_layout(path, layouts, 'quantisation'), kind, config.tile
            )
        return Form('stored' if kind == 'bfloat16' and FLOAT32.fullmatch(path) else kind)

    return {path: form(path, leaf) for path, leaf in trees.flatten(params).items()}


def _codes(path: str, shape: tuple[int, ...], layout: Layout, kind: str, tile: int) -> Form:
    axis = len(shape) - len(layout.weight) + layout.weight.index(layout.inputs[-1])
    if kind == 'int8':
        return Form(kind, axis, shape[axis])
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
    return Form(kind, axis, tile)


def convert(w: Float[Array, '...'], form: Form) -> Array | Quantised:
    """One leaf, or a slice of it along any axis but `form.axis`, as it is stored."""
    if form.kind not in SCALES:
        return w if form.kind == 'stored' else w.astype(jnp.bfloat16)
    q = qwix.quantize(
        w.astype(jnp.float32),
        form.kind,
        channelwise_axes=tuple(n for n in range(w.ndim) if n != form.axis),
        tiled_axes={form.axis: form.tile},
        scale_dtype=SCALES[form.kind],
    )
    return Quantised(_pack(q.qvalue) if form.kind == 'nf4' else q.qvalue, q.scale, form.kind)


def _pack(codes: Array) -> UInt8[Array, '...']:
    """Codes 0 ... 15, two neighbours of the last axis in a byte, the first in its lower half."""
    codes = codes.astype(jnp.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4


def _unpack(codes: UInt8[Array, '...']) -> UInt8[Array, '...']:
    pairs = codes[..., None] >> jnp.array([0, 4], jnp.uint8) & 15
    return pairs.reshape(*codes.shape[:-1], -1)


def store(
    params: PyTree,
    layouts: Mapping[str, Layout],
    config: QuantConfig,
    reads: Callable[[str], bool] = lambda path: True,
    put: Callable[[PyTree], PyTree] = jax.device_put,
) -> PyTree:
    """The leaves of `params` (numpy) that `reads(path)`, in their forms and handed to `put` one
    after the other.

    Codes are made on the device slice by slice: at no time is there a second float copy of more
    than one slice. Raises UserError as `plan` does.
    """
    forms = plan(params, layouts, config)
    leaves = ((path, leaf) for path, leaf in trees.flatten(params).items() if reads(path))
    return trees.unflatten({path: put(_host(leaf, forms[path])) for path, leaf in leaves})


def _host(leaf: np.ndarray, form: Form) -> np.ndarray | Quantised:
    """The leaf as it is stored, in the host's memory."""
    if form.kind not in SCALES:
        return leaf if form.kind == 'stored' else np.asarray(leaf).astype(jnp.bfloat16, copy=False)
    parts = [jax.device_get(_convert(part, form)) for part in _slices(np.asarray(leaf), form.axis)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


_convert = jax.jit(convert, static_argnames='form')


def _slices(w: np.ndarray, axis: int) -> Iterator[np.ndarray]:
    """Equal slices along the first axis (layers of a stack, rows of a table), of at most `PIECE`
    where one can be.
    """
    count = 1 if axis == 0 else min(len(w), math.ceil(4 * w.size / PIECE))
    while len(w) % count:
        count += 1
    yield from np.split(w, count)


def abstract(params: PyTree, layouts: Mapping[str, Layout], config: QuantConfig) -> PyTree:
    """Shapes and dtypes of what `store` gives for `params`, which may be abstract; computes
    nothing.
    """
    forms = plan(params, layouts, config)
    return trees.map_with_path(
        lambda p, w: jax.eval_shape(functools.partial(convert, form=forms[p]), w), params
    )


def count(params: PyTree) -> int:
    """Number of weights, however they are stored."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Quantised))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def size(params: PyTree) -> int:
    """Bytes on the device."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))


def read(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> Array | Quantised:
    """Leaf `name` of `module`, which `init` makes where there is none: an array, or codes in its
    place.
    """
    found: Any = module.get_variable('params', name)
    return found if isinstance(found, Quantised) else module.param(name, init, shape)


def rows(w: Array | Quantised) -> list:
    """A leaf's slices along its first axis, along which codes share no scale."""
    return [w[n] for n in range(w.shape[0])] if isinstance(w, Quantised) else list(w)


def dense(w: Array | Quantised, dtype: Any) -> Float[Array, '...']:
    """A leaf as an array of `dtype`; codes are multiplied by their scales in float32."""
    if not isinstance(w, Quantised):
        return w.astype(dtype)
    codes = _unpack(w.codes) if w.kind == 'nf4' else w.codes
    return qwix.dequantize(qwix.QArray(codes, w.scale.astype(jnp.float32), qtype=w.kind)).astype(
        dtype
    )


def einsum(equation: str, x: Float[Array, '...'], w: Array | Quantised) -> Float[Array, '...']:
    """The product of x and one weight in x's dtype.

    A weight made from codes is not kept for the backward pass, whatever the layer around it keeps,
    but made again.
    """
    if not isinstance(w, Quantised):
        return jnp.einsum(equation, x, w.astype(x.dtype))
    again = jax.checkpoint(
        lambda x, w: jnp.einsum(equation, x, dense(w, x.dtype)), prevent_cse=False
    )
    return again(x, w)
