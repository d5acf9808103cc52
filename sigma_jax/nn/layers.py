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
    layout: lora.MatrixLayout,
    config: lora.LoraConfig,
    *,
    init: Callable = nn.initializers.lecun_normal(),
    dropped: Float[Array, '...'] | None = None,
) -> Any:
    """Weight `name` of `module` applied to x, plus its LoRA side path where there is one
    (docs/design.md, "LoRA").

    The side path exists where the collection `lora` holds factors for this leaf. The weight may be
    an array or codes (`nn.quant`).

    Args:
      module: the layer that owns the weight; called within its `__call__`.
      name: of the parameter.
      x: [... inputs].
      shape: of the weight, to create it.
      layout: which of the weight's axes are inputs and outputs.
      config: LoRA's strength and dropout.
      init: initialiser of the weight.
      dropped: x after a dropout that several projections share, read by the side path; None: the
        side path drops x itself.

    Returns:
      [... outputs] in x's dtype; a tuple of them, one a matrix, where the layout stacks matrices.
    """
    w = quant.read(module, name, init, shape)
    one = lora.MatrixLayout(layout.weight.removeprefix(layout.stack), layout.inputs, layout.outputs)
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
    """x with some elements set to zero and the others scaled up, where `module` has a 'dropout'
    rng.

    Args:
      module: the layer; without that rng x comes back as it is.
      x: any array.
      rate: fraction of elements that are dropped, rounded to 1/256: eight random bits an element
        cost a quarter of 32.

    Returns:
      An array of x's shape and dtype, with the same mean in expectation.
    """
    level = round(256 * rate)
    if not level or not module.has_rng('dropout'):
        return x
    bits = jax.random.bits(module.make_rng('dropout'), x.shape, jnp.uint8)
    return jnp.where(bits >= level, x * (256 / (256 - level)), 0).astype(x.dtype)


class EmulatedGpu(NamedTuple):
    """A GPU to trace for that need not be here.

    Attributes:
      capability: its compute capability, such as 9.0.
      kernel: stands for its fused attention, `(q, k, v, mask) -> output`.
    """

    capability: float
    kernel: Callable


EMULATED: ContextVar[EmulatedGpu | None] = ContextVar('emulated GPU', default=None)


@contextlib.contextmanager
def emulate_gpu(gpu: EmulatedGpu) -> Iterator[None]:
    """Within the block, attention is traced as on that GPU.

    Args:
      gpu: what to trace for.
    """
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
    """Softmax attention of n query heads over k key-value heads, softmax in float32.

    In half precision, on GPUs that have it for these sizes, cuDNN's fused kernel is taken.

    Args:
      q: queries, scaled already.
      k: keys; each of its heads serves n / k query heads.
      v: values.
      mask: true where a query may read a key; None: everywhere.

    Returns:
      What each query reads, in v's dtype. A query that may read nothing gets finite numbers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.nn.layers import attention
      >>> q, k = jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 2, 1, 1))
      >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
      >>> float(attention(q, k, v)[0, 0, 0, 0])
      2.0
      >>> float(attention(q, k, v, mask=jnp.array([[[False, True]]]))[0, 0, 0, 0])
      3.0
    """
    if uses_fused_attention(q, k):
        k, v, mask = pad_keys_to_tile(k, v, mask)
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


def uses_fused_attention(q: Float[Array, 'b t n h'], k: Float[Array, 'b s k h']) -> bool:
    """Whether cuDNN has a fused attention, and its gradient, for these sizes on this device.

    Args:
      q: queries.
      k: keys.

    Returns:
      False on devices that are no GPU; within `emulate_gpu` the answer is for that GPU.
    """
    if (emulated := EMULATED.get()) is not None:
        return can_fuse_attention(q, k, emulated.capability)
    if jax.default_backend() != 'gpu':
        return False
    return can_fuse_attention(q, k, float(jax.local_devices()[0].compute_capability))


def can_fuse_attention(
    q: Float[Array, 'b t n h'], k: Float[Array, 'b s k h'], capability: float
) -> bool:
    """Whether cuDNN has a fused attention, and its gradient, for these sizes on some GPU.

    Args:
      q: queries.
      k: keys.
      capability: compute capability of the GPU, such as 8.9.

    Returns:
      Whether dtype, head width and lengths allow it.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    largest = 256 if capability >= 9 else 128
    sizes = (
        q.shape[-1] <= largest and q.shape[-1] % 8 == 0 and q.shape[1] % 2 == k.shape[1] % 2 == 0
    )
    return sizes and q.shape[1] >= SHORTEST


def pad_keys_to_tile(
    k: Float[Array, 'b s k h'], v: Float[Array, 'b s k h'], mask: Bool[Array, 'b t s'] | None
) -> tuple[Float[Array, 'b z k h'], Float[Array, 'b z k h'], Bool[Array, 'b t z'] | None]:
    """Keys padded, and masked, to a whole number of tiles where the last tile is half full.

    There cuDNN's gradient with a mask takes the missing keys for zeros: that of a query whose
    logits are all below about -89, or all masked, comes out NaN (pytorch #196678; seen from JAX on
    an H100).

    Args:
      k: keys.
      v: values.
      mask: true where a query may read a key; None: nothing is padded.

    Returns:
      k: with 64 more keys, or as it was.
      v: likewise.
      mask: likewise, false for the new keys.
    """
    if mask is None or k.shape[1] % TILE != TILE // 2:
        return k, v, mask
    more = ((0, 0), (0, TILE // 2), (0, 0), (0, 0))
    return jnp.pad(k, more), jnp.pad(v, more), jnp.pad(mask, ((0, 0), (0, 0), (0, TILE // 2)))


def remat_policy(name: str) -> Callable:
    """What a layer keeps until its gradient is taken, by name.

    Args:
      name: a policy of `jax.checkpoint_policies`, 'save_attention' (fused attention is not computed
        twice) or 'save_products' (nor are the projections: only norms, activations and dropout are,
        for about 70 kB a token and layer at full width).

    Returns:
      A policy for `jax.checkpoint`.

    Raises:
      UserError: there is no policy of that name.
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
    """L2 norm whose gradient at zero is zero, not NaN.

    Args:
      x: any array.
      axis: the axis that is summed over.
      eps: norms up to it are 0.
      keepdims: whether the axis stays, with length 1.

    Returns:
      sqrt(sum x^2) where that is above eps, else 0.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from sigma_jax.nn.layers import safe_norm
      >>> float(safe_norm(jnp.array([3.0, 4.0])))
      5.0
      >>> jax.grad(safe_norm)(jnp.zeros(2)).tolist()
      [0.0, 0.0]
    """
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims)
    nonzero = square > eps**2
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def safe_cosine(x: Array, y: Array, axis: int = -1, eps: float = 1e-6) -> Array:
    """Cosine of the angle between x and y, with finite gradients everywhere.

    Args:
      x: vectors along `axis`.
      y: vectors of the same length.
      axis: the axis of the vectors.
      eps: vectors up to this length have no direction.

    Returns:
      The cosines; 0 where a vector has no direction.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.nn.layers import safe_cosine
      >>> x = jnp.array([[1.0, 0.0], [0.0, 0.0]])
      >>> safe_cosine(x, jnp.array([[-2.0, 0.0], [1.0, 1.0]])).tolist()
      [-1.0, 0.0]
    """
    scale = safe_norm(x, axis, eps) * safe_norm(y, axis, eps)
    valid = scale > 0
    return jnp.where(valid, jnp.sum(x * y, axis=axis) / jnp.where(valid, scale, 1.0), 0.0)
