"""What a training step will need on the device, said before anything is compiled or any weight is
read.

Base, trainable leaves, gradients, moments and batch are sums over shapes, so exact. Activations are
traced: what `jax.vjp` of the objective keeps under the remat policy, less what XLA computes again
inside its `fusion`s instead of keeping it (`kept`). The rest is a rule (`working_set`). A card
where attention is fused need not be at hand: a stand-in with the shapes of cuDNN's kernel takes its
place while tracing (`emulate`).
"""

import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core
from jaxtyping import Array, Float

from sigma_jax.nn import layers, quant
from sigma_jax.training import fusion
from sigma_jax.training.step import init_state
from sigma_jax.types import Ablation, Batch, Frozen, PyTree

# of what comes and goes: workspaces of libraries, copies of a layout, gaps of the allocator
RESERVE = 0.15


@dataclasses.dataclass(frozen=True)
class Job:
    """A training step by shapes alone: every leaf has a shape and a dtype, and no number."""

    objective: Any
    optimizer: optax.GradientTransformation
    trainable: PyTree
    frozen: Frozen
    batch: Batch  # of one micro-batch on one device
    ema: bool = False
    accumulate: int = 1


def size(tree: PyTree) -> int:
    """Bytes of all leaves on a device.

    Args:
      tree: arrays, may be abstract.

    Returns:
      Bytes.
    """
    return sum(fusion.nbytes(leaf) for leaf in jax.tree.leaves(tree))


# the name that remat policies look for
_shape_of_attention = core.Primitive('dot_product_attention_fwd_by_shape')
_shape_of_attention.multiple_results = True


@_shape_of_attention.def_abstract_eval
def _attention_shapes(q, k, v, bias):
    b, t, n, _ = q.shape
    return [q, q.update(shape=(b, n, t), dtype=jnp.dtype(jnp.float32))]


@jax.custom_vjp
def _fused(q, k, v, bias):
    return _shape_of_attention.bind(q, k, v, bias)[0]


def _fused_forward(q, k, v, bias):
    out, statistics = _shape_of_attention.bind(q, k, v, bias)
    return out, (q, k, v, bias, out, statistics)


_fused.defvjp(_fused_forward, lambda kept, g: (*kept[:3], jnp.zeros_like(kept[3])))


def emulate(capability: float) -> contextlib.AbstractContextManager[None]:
    """Within the block, attention is traced as on a GPU of this compute capability; it can be
    traced only.

    Args:
      capability: such as 9.0.

    Returns:
      A context.
    """

    def attention(q: Float[Array, 'b t n h'], k, v, mask=None) -> Float[Array, 'b t n h']:
        bias = jnp.zeros(0, q.dtype) if mask is None else jnp.where(mask, 0, -1).astype(q.dtype)
        return _fused(q, k, v, bias)

    return layers.emulate_gpu(layers.EmulatedGpu(capability, attention))


def residuals(job: Job) -> tuple[Any, list]:
    """The forward pass, traced, and what its gradient needs of it.

    Args:
      job: the step.

    Returns:
      The trace, and those of its values that `jax.vjp` keeps and that are none of its inputs.
    """
    gates = jax.tree.map(lambda _: jnp.ones(()), Ablation())

    def forward(trainable, frozen, batch):
        def loss(t):
            return job.objective(
                t, frozen, batch, gates, jax.random.key(0), jnp.zeros((), jnp.int32)
            )

        return jax.tree.leaves(jax.vjp(loss, trainable, has_aux=True)[1])

    jaxpr = jax.make_jaxpr(forward)(job.trainable, job.frozen, job.batch).jaxpr
    inputs = {*jaxpr.invars, *jaxpr.constvars}
    outs = (v for v in jaxpr.outvars if not isinstance(v, core.Literal))
    return jaxpr, list(dict.fromkeys(v for v in outs if v not in inputs))


def residual_bytes(job: Job) -> int:
    """Bytes of all values that `jax.vjp` of the objective keeps, its inputs apart.

    Args:
      job: the step.

    Returns:
      Bytes.
    """
    return sum(fusion.nbytes(v.aval) for v in residuals(job)[1])


def kept(job: Job) -> int:
    """Bytes of those residuals that XLA keeps.

    A residual made by element-wise operations alone from other values is read through these: it is
    made again inside the fusion that reads it, if its sources take no more room than it does.

    Args:
      job: the step.

    Returns:
      Bytes.
    """
    jaxpr, values = residuals(job)
    made_of = fusion.sources(jaxpr)
    tokens: dict[Any, int] = {}
    for v in sorted(
        values, key=lambda v: made_of[v] != {v: fusion.nbytes(v.aval)}
    ):  # what stands for itself comes first
        extra = {k: n for k, n in made_of[v].items() if k not in tokens}
        tokens |= (
            extra if sum(extra.values()) <= fusion.nbytes(v.aval) else {v: fusion.nbytes(v.aval)}
        )
    return sum(tokens.values())


def working_set(job: Job) -> int:
    """Bytes of the layer whose gradient is taken, without what is kept.

    The rule: the results of its matrix products, which exist again then, and as much for their
    gradients. The language model's layers are the largest, by far; one layer's products are a
    `depth`-th of what the policy 'dots_saveable' keeps more than 'nothing_saveable' does.

    Args:
      job: the step.

    Returns:
      Bytes.
    """
    more, less = (
        residual_bytes(with_remat(job, name)) for name in ('dots_saveable', 'nothing_saveable')
    )
    passes = job.objective.passes
    return 2 * max(more - less, 0) // (passes * job.objective.config.depth)


def with_remat(job: Job, remat: str | None) -> Job:
    """The same job under another policy.

    Args:
      job: the step.
      remat: name of the policy; None: none.

    Returns:
      The job.
    """
    objective = dataclasses.replace(
        job.objective, config=dataclasses.replace(job.objective.config, remat=remat)
    )
    return dataclasses.replace(job, objective=objective)


def unpacked(job: Job) -> int:
    """Bytes of the largest matrix of a quantised base, made whole for its products: twice, for two
    may overlap.

    Args:
      job: the step.

    Returns:
      Bytes.
    """
    leaves = jax.tree.leaves(job.frozen.params, is_leaf=lambda x: isinstance(x, quant.Quantised))
    # a table is read row by row
    found = [x for x in leaves if isinstance(x, quant.Quantised) and len(x.shape) > 2]
    itemsize = jnp.dtype(job.objective.config.dtype).itemsize
    return 2 * max((math.prod(x.shape[-2:]) * itemsize for x in found), default=0)


def forecast(job: Job) -> dict[str, int]:
    """The memory of a step at its peak: parts that stay for the whole run, then those that come and
    go.

    Args:
      job: the step.

    Returns:
      {part: bytes}.
    """
    state = jax.eval_shape(lambda t: init_state(0, t, job.optimizer, job.ema), job.trainable)
    gradients = size(job.trainable) * (2 if job.accumulate > 1 else 1)
    stays = {
        'frozen base': size(job.frozen),
        'trainable leaves': size(state.trainable),
        'moments': size(state.opt_state),
        'running average': size(state.ema),
        'batch': size(job.batch) * job.accumulate,
    }
    passing = {
        'gradients': gradients,
        'kept activations': kept(job),
        'largest layer': working_set(job) + unpacked(job),
    }
    return stays | passing | {'reserve': int(RESERVE * sum(passing.values()))}
