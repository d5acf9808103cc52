"""Layers that backbones and workspaces share: the LoRA-aware projection, attention, safe norms."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sigma_jax.errors import UserError
from sigma_jax.nn import lora, quant

SHORTEST = 128  # queries; below, the plain products are faster
TILE = 128  # keys that cuDNN's kernel takes together
# added nowhere, put in place of masked logits: finite, so an all-masked row stays finite
MASKED = -2.3819763e38


def project(
    module: nn.Module,
    name: str,
    x: Float[Array, '...'],
    shape: tuple[int, ...],
    layout: lora.Layout,
    config: lora.LoraConfig,
    init: Callable = nn.initializers.lecun_normal(),
    dropped: Float[Array, '...'] | None = None,
) -> Any:
    """Weight `name` of `module` applied to `x [... inputs]`, plus its LoRA side path where one is
    given.

    Returns `[... outputs]` in x's dtype, or a tuple of them, one for each matrix that the layout
    stacks. The side path exists where the collection `lora` holds this leaf; it reads `dropped`, or
    x with a dropout of its own.
    """
    w = quant.read(module, name, init, shape)
    one = lora.Layout(layout.weight.removeprefix(layout.stack), layout.inputs, layout.outputs)
    # one product each: all at once, XLA would transpose the stack
    matrices = quant.rows(w) if layout.stack else [w]
    ys = [quant.einsum(one.equation(), x, matrix) for matrix in matrices]
    if module.has_variable('lora', name):
        size = dict(zip(layout.weight, shape, strict=True))
        outputs = tuple(size[axis] for axis in layout.outputs)
        low = dropout(module, x, config.dropout) if dropped is None else dropped
        side = lora.side_path(low, module.get_variable('lora', name), layout, outputs, config.alpha)
        ys = [y + more for y, more in zip(ys, side if layout.stack else side[None], strict=True)]
    return tuple(ys) if layout.stack else ys[0]


def dropout(module: nn.Module, x: Float[Array, '...'], rate: float) -> Float[Array, '...']:
    """x with a share of its elements set to zero and the rest scaled up, where `module` has a
    'dropout' rng.

    The share is `rate` rounded to 1/256: eight random bits an element cost a quarter of what 32 do.
    """
    level = round(256 * rate)
    if not level or not module.has_rng('dropout'):
        return x
    bits = jax.random.bits(module.make_rng('dropout'), x.shape, jnp.uint8)
    return jnp.where(bits >= level, x * (256 / (256 - level)), 0).astype(x.dtype)


class EmulatedGpu(NamedTuple):
    """A GPU that is not here, for tracing only: its compute capability, and what stands for its
    kernel, `(q, k, v, mask) -> output`.
    """

    capability: float
    kernel: Callable


EMULATED: ContextVar[EmulatedGpu | None] = ContextVar('emulated GPU', default=None)


@contextlib.contextmanager
def emulate_gpu(gpu: EmulatedGpu) -> Iterator[None]:
    """Within the block, attention is traced as on that GPU."""
    token = EMULATED.set(gpu)
    try:
        yield
    finally:
        EMULATED.reset(token)


def attention(
    q: Float[Array, 'b t n h'],
    k: Float[Array, 'b s k h'],
    v: Float[Array, 'b s k h'],
    mask: Bool[Array, 'b t s'] | None = None,
) -> Float[Array, 'b t n h']:
    """Softmax attention with n query heads over k key-value heads; q comes scaled; softmax in
    float32.

    In half precision on GPUs that have it for these sizes, cuDNN's fused kernel.
    """
    if fuses(q, k):
        k, v, mask = whole_tiles(k, v, mask)
        pairs, emulated = None if mask is None else mask[:, None], EMULATED.get()
        if emulated is not None:
            return emulated.kernel(q, k, v, pairs)
        return jax.nn.dot_product_attention(q, k, v, mask=pairs, scale=1.0, implementation='cudnn')
    b, t, n, h = q.shape
    q = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
    logits = jnp.einsum('btkmh,bskh->bkmts', q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bkmts,bskh->btkmh', weights, v).reshape(b, t, n, h)


def fuses(q: Float[Array, 'b t n h'], k: Float[Array, 'b s k h']) -> bool:
    """Whether cuDNN has a fused attention, and its gradient, for these sizes on this device."""
    if (emulated := EMULATED.get()) is not None:
        return fusible(q, k, emulated.capability)
    if jax.default_backend() != 'gpu':
        return False
    return fusible(q, k, float(jax.local_devices()[0].compute_capability))


def fusible(q: Float[Array, 'b t n h'], k: Float[Array, 'b s k h'], capability: float) -> bool:
    """Whether cuDNN has a fused attention, and its gradient, for these sizes on a GPU of this
    compute capability.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    largest = 256 if capability >= 9 else 128
    sizes = (
        q.shape[-1] <= largest and q.shape[-1] % 8 == 0 and q.shape[1] % 2 == k.shape[1] % 2 == 0
    )
    return sizes and q.shape[1] >= SHORTEST


def whole_tiles(
    k: Float[Array, 'b s k h'], v: Float[Array, 'b s k h'], mask: Bool[Array, 'b t s'] | None
) -> tuple[Float[Array, 'b z k h'], Float[Array, 'b z k h'], Bool[Array, 'b t z'] | None]:
    """Masked keys appended where the last tile is half full; all else as it is.

    There cuDNN's gradient with a mask takes the missing keys for zeros: that of a query whose
    logits are all below about -89, or all masked, comes out NaN (pytorch #196678; seen from JAX on
    an H100).
    """
    if mask is None or k.shape[1] % TILE != TILE // 2:
        return k, v, mask
    more = ((0, 0), (0, TILE // 2), (0, 0), (0, 0))
    return jnp.pad(k, more), jnp.pad(v, more), jnp.pad(mask, ((0, 0), (0, 0), (0, TILE // 2)))


def remat_policy(name: str) -> Callable:
    """A policy of `jax.checkpoint_policies`, or one of ours, for what a layer keeps until its
    gradient is taken.

    'save_attention': fused attention is not computed twice. 'save_products': nor are the
    projections, so that only norms, activations and dropout are; about 70 kB a token and layer at
    full width.

    Raises UserError for other names.
    """
    policies = jax.checkpoint_policies
    ours = {
        'save_attention': _is_attention,
        'save_products': policies.save_from_both_policies(
            _is_attention, policies.dots_with_no_batch_dims_saveable
        ),
    }
    if name not in ours and not hasattr(policies, name):
        known = ', '.join(x for x in dir(policies) if not x.startswith('_'))
        raise UserError(
            f'model.remat: expected one of {", ".join(ours)}, {known}, got {name!r}; choose one'
        )
    return ours.get(name) or getattr(policies, name)


def _is_attention(primitive, *_, **__) -> bool:
    return primitive.name.startswith('dot_product_attention_fwd')


def safe_norm(x: Array, axis: int = -1, eps: float = 1e-6, keepdims: bool = False) -> Array:
    """L2 norm whose gradient at zero is zero, not NaN: sqrt(sum x^2) where that is above eps, else
    0.
    """
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims)
    nonzero = square > eps**2
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def safe_cosine(x: Array, y: Array, axis: int = -1, eps: float = 1e-6) -> Array:
    """Cosine of the angle between x and y; 0 where either is shorter than eps, with finite
    gradients.
    """
    scale = safe_norm(x, axis, eps) * safe_norm(y, axis, eps)
    valid = scale > 0
    return jnp.where(valid, jnp.sum(x * y, axis=axis) / jnp.where(valid, scale, 1.0), 0.0)
