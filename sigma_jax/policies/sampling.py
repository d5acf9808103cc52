"""Samples of a policy's own actions; the noise of a window is keyed by seed, episode, frame and
draw alone.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sigma_jax import xla
from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import Backbone, BackboneConfig, FlowBackbone
from sigma_jax.objectives.bind import bind
from sigma_jax.policies.chunking import Chunking, continuation
from sigma_jax.policies.draws import Draws
from sigma_jax.processing.actions import action_origin, unnormalize_actions
from sigma_jax.sigma.model import window_keys
from sigma_jax.types import (
    Ablation,
    ActionScaling,
    Batch,
    Continuation,
    Observation,
    PyTree,
    to_batch,
)

AT_ONCE = 32  # windows sampled together


class Sample(Protocol):
    """What `make_sampler` makes, compiled or not."""

    def __call__(
        self,
        weights: PyTree,
        scaling: ActionScaling,
        batch: Batch,
        chunking: Chunking | None = None,
        draws: Draws | None = None,
        /,
    ) -> Float[Array, 'b m t a']:
        """Samples of a policy.

        Args:
          weights: what `bind` takes.
          scaling: of the actions.
          batch: [b ...].
          chunking: what the chunks go on from; None: from nothing, which is another program.
          draws: where those begin that do not begin where seed, draw, episode and frame say; None:
            none, which is another program too.

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

    def sample(weights, scaling, batch, chunking=None, draws=None):
        backbone = bind(weights)

        def sample_one(n, batch, chunking, draws):
            keys = window_keys(
                jax.random.fold_in(jax.random.key(seed), n), batch.episode, batch.frame
            )
            observation, bound = batch.observation, None
            if chunking is not None:
                bound = continuation(chunking, observation.state, scaling)
            actions = (
                backbone.sample_actions(keys, observation)
                if bound is None and draws is None
                else _flow(cast(FlowBackbone, backbone), keys, observation, bound, draws)
            )
            origin = action_origin(observation.state, scaling)
            return origin + unnormalize_actions(actions, scaling)[:, :horizon]

        def all_samples(rows):
            batch, chunking, draws = rows
            one = functools.partial(sample_one, batch=batch, chunking=chunking, draws=draws)
            return jax.lax.map(one, jnp.arange(samples)).swapaxes(0, 1)

        return xla.row_by_row(all_samples)((batch, chunking, draws))

    return sample


def _flow(
    backbone: FlowBackbone,
    keys: Array,
    observation: Observation,
    bound: Continuation | None,
    draws: Draws | None,
) -> Float[Array, 'b t a']:
    """A chunk that is bound, or begins elsewhere than its key says."""
    noise = backbone.draw_noise(keys)
    if draws is not None:
        noise = jnp.where(draws.given[:, None, None], draws.noise, noise)
    return backbone.flow_from(noise, observation, bound)


def bind_frozen(config: BackboneConfig) -> Callable[[PyTree], Backbone]:
    """How a base is bound.

    Args:
      config: its sizes.

    Returns:
      A function of its weights.
    """
    spec = kinds.of(config)
    return lambda params: spec.bind(config, params)


def sample_finetuned(config: BackboneConfig, seed: int, samples: int, horizon: int) -> Sample:
    """`make_sampler` of a base with what flow matching trained.

    Args:
      config: the base's sizes, LoRA settings among them.
      seed: of the noise.
      samples: chunks a window.
      horizon: actions that are kept of a chunk.

    Returns:
      See `Sample`; its weights are (trainable, params): LoRA factors, or whole leaves, over the
      base's.
    """
    return make_sampler(
        lambda weights: bind(config, weights[0], weights[1], Ablation()), seed, samples, horizon
    )


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
