"""The optimiser: AdamW per group of trainable leaves, clipped, with warm-up and cosine decay."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sigma_jax import trees

# of the base: scanned over layers, they have two axes and are no matrices
VECTORS = ('bias', 'scale')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Peak learning rate of each group of trainable leaves, and what they share.

    Attributes:
      sigma_rate: peak of Sigma's heads.
      lora_rate: peak of the LoRA factors.
      params_rate: peak of the base's own weights.
      warmup_steps: of the linear rise to the peak.
      total_steps: at which the cosine decay ends; a run's own number.
      final_fraction: of the peak, at the last step.
      weight_decay: of AdamW.
      b1: of AdamW.
      b2: of AdamW.
      clip_norm: of all gradients together.
    """

    sigma_rate: float = 1e-3
    lora_rate: float = 3e-4
    params_rate: float = 3e-4
    warmup_steps: int = 50
    total_steps: int = 1000
    final_fraction: float = 0.1
    weight_decay: float = 1e-4
    b1: float = 0.9
    b2: float = 0.95
    clip_norm: float = 1.0


def rate_schedule(peak: float, config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up to `peak`, cosine decay to `final_fraction` of it at `total_steps`.

    Args:
      peak: learning rate after the warm-up.
      config: steps and fraction.

    Returns:
      A schedule of the optimiser step.

    Examples:
      >>> from sigma_jax.training.optimizer import OptimizerConfig, rate_schedule
      >>> rate = rate_schedule(1e-3, OptimizerConfig(warmup_steps=50, total_steps=1000))
      >>> [round(float(rate(step)), 6) for step in (50, 1000)]
      [0.001, 0.0001]
    """
    warmup = min(config.warmup_steps, max(config.total_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        peak / (warmup + 1),
        peak,
        warmup,
        max(config.total_steps, warmup + 1),
        peak * config.final_fraction,
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """One clipped AdamW for each top-level group of the trainable tree: `sigma`, `lora`, `params`
    (docs/design.md, "Training step").

    The tree holds trainable leaves only, so no moment of a frozen weight ever exists. Matrices
    decay, vectors and scalars do not.

    Args:
      config: rates, decay and clipping.

    Returns:
      An optax transformation over {group: tree}.
    """

    def group(peak, together):
        clip, adam = (
            optax.clip_by_global_norm(config.clip_norm),
            optax.scale_by_adam(config.b1, config.b2),
        )
        decay = optax.add_decayed_weights(
            config.weight_decay, lambda tree: trees.map_with_path(decays, tree)
        )
        rate = optax.scale_by_learning_rate(rate_schedule(peak, config))
        if together:
            return optax.chain(as_one_vector(optax.chain(clip, adam)), decay, rate)
        return optax.chain(clip, optax.chain(adam, decay, rate))

    groups = {'sigma': config.sigma_rate, 'lora': config.lora_rate, 'params': config.params_rate}
    return optax.partition(
        {name: group(peak, name != 'params') for name, peak in groups.items()}, label_groups
    )


def as_one_vector(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser that treats no leaf by itself, run on all leaves as one vector.

    Sigma's heads have two hundred leaves: one vector of moments is one kernel instead of hundreds
    to compile and to start. The price is a copy of the gradients, which is too high for whole
    backbones ('params'). Unlike `optax.flatten` it takes trees without leaves.

    Args:
      inner: the optimiser, whose state is that of one vector.

    Returns:
      An optimiser of trees.
    """

    def flat(tree) -> Float[Array, 'n'] | tuple[()]:
        leaves = [jnp.ravel(x) for x in jax.tree.leaves(tree)]
        return jnp.concatenate(leaves) if leaves else ()

    def init(params):
        return inner.init(flat(params))

    def update(gradients, state, params=None):
        del params  # weight decay, which looks at every leaf, comes after
        leaves, structure = jax.tree.flatten(gradients)
        vector, state = inner.update(flat(gradients), state)
        ends = list(itertools.accumulate(x.size for x in leaves))
        parts = [
            vector[end - x.size : end].reshape(x.shape) for x, end in zip(leaves, ends, strict=True)
        ]
        return jax.tree.unflatten(structure, parts), state

    return optax.GradientTransformation(init, update)


def decays(path: str, leaf: jax.Array) -> bool:
    """Whether weight decay applies to a leaf: to matrices and tables, not to vectors, one a layer
    or one in all.

    Args:
      path: of the leaf.
      leaf: of the trainable tree.

    Returns:
      Whether it decays.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.training.optimizer import decays
      >>> decays('mlp/w_1', jnp.ones((2, 2))), decays('layers/bias', jnp.ones((18, 2)))
      (True, False)
    """
    return leaf.ndim > 1 and path.rsplit('/', 1)[-1] not in VECTORS


def label_groups(trainable: dict) -> dict:
    """Every leaf labelled with the top-level key that it is under.

    Args:
      trainable: {group: tree}.

    Returns:
      The same structure of names.
    """
    return {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in trainable.items()}
