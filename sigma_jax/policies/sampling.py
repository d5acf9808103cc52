"""Samples of a policy's own actions; the noise of a window is keyed by seed, episode, frame and
draw alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import Backbone, BackboneConfig, FlowBackbone
from sigma_jax.objectives.bind import bind
from sigma_jax.policies.chunking import Chunking, continuation
from sigma_jax.processing.actions import action_origin, unnormalize_actions
from sigma_jax.sigma.model import window_keys
from sigma_jax.types import Ablation, ActionScaling, Batch, PyTree, to_batch

AT_ONCE = 32  # windows sampled together


class Sample(Protocol):
    """What `make_sampler` makes, compiled or not."""

    def __call__(
        self,
        weights: PyTree,
        scaling: ActionScaling,
        batch: Batch,
        chunking: Chunking | None = None,
        /,
    ) -> Float[Array, 'b m t a']:
        """Samples of a policy.

        Args:
          weights: what `bind` takes.
          scaling: of the actions.
          batch: [b ...].
          chunking: what the chunks go on from; None: from nothing, which is another program.

        Returns:
          Actions in raw units.
        """


def make_sampler(
    bind: Callable[[PyTree], Backbone], seed: int, samples: int, horizon: int
) -> Sample:
    """A function to compile: samples of a policy in raw units.

    Args:
      bind: gives the policy of some weights.
      seed: of the noise; a window's own comes of seed, draw, episode and frame.
      samples: chunks a window.
      horizon: actions that are kept of a chunk.

    Returns:
      See `Sample`.
    """

    def sample(weights, scaling, batch, chunking=None):
        backbone, bound = bind(weights), None
        if chunking is not None and chunking.mode != 'none':
            bound = continuation(chunking, batch.observation.state, scaling)

        def sample_one(n):
            keys = window_keys(
                jax.random.fold_in(jax.random.key(seed), n), batch.episode, batch.frame
            )
            actions = (
                backbone.sample_actions(keys, batch.observation)
                if bound is None
                else cast(FlowBackbone, backbone).continue_actions(keys, batch.observation, bound)
            )
            origin = action_origin(batch.observation.state, scaling)
            return origin + unnormalize_actions(actions, scaling)[:, :horizon]

        return jax.lax.map(sample_one, jnp.arange(samples)).swapaxes(0, 1)

    return sample


def bind_frozen(config: BackboneConfig) -> Callable[[PyTree], Backbone]:
    """How a base is bound.

    Args:
      config: its sizes.

    Returns:
      A function of its weights.
    """
    spec = kinds.of(config)
    return lambda params: spec.bind(config, params)


def bind_finetuned(config: BackboneConfig) -> Callable[[PyTree], Backbone]:
    """How a base is bound with what was trained.

    Args:
      config: its sizes, LoRA settings among them.

    Returns:
      A function of (trainable, params): LoRA factors, or whole leaves, over the base's.
    """
    return lambda weights: bind(config, weights[0], weights[1], Ablation())


def in_parts(
    sample: Sample,
    weights: PyTree,
    scaling: ActionScaling,
    batch: Mapping[str, Any],
    at_once: int = AT_ONCE,
) -> Float[np.ndarray, 'b g m t a']:
    """Samples of a loader's batch, some windows at a time whatever the batch, so that the sampler
    compiles once.

    Args:
      sample: compiled.
      weights: its first argument.
      scaling: its second.
      batch: leaves [b g ...].
      at_once: windows.

    Returns:
      Actions in raw units.
    """
    lead = batch['episode'].shape
    flat = {key: x.reshape(-1, *x.shape[2:]) for key, x in batch.items()}
    count, parts = lead[0] * lead[1], []
    for start in range(0, count, at_once):
        rows = np.minimum(np.arange(start, start + at_once), count - 1)
        parts.append(
            np.asarray(sample(weights, scaling, to_batch({k: x[rows] for k, x in flat.items()})))
        )
    drawn = np.concatenate(parts)[:count]
    return drawn.reshape(*lead, *drawn.shape[1:])
