"""Shapes of a batch as the loader gives it, from the shards' meta.json or from what is usual."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sigma_jax.data.shards.meta import Meta
from sigma_jax.training.config import RunConfig
from sigma_jax.types import ActionScaling, Batch, Observation


@dataclasses.dataclass(frozen=True)
class Usual:
    """What shapes depend on, of data that is not there yet."""

    horizon: int
    camera_names: tuple[str, ...] = ('up', 'side')
    depth_names: tuple[str, ...] = ()
    audio_samples: int = 0
    state_names: tuple[str, ...] = ('joint',) * 6
    action_names: tuple[str, ...] = ('joint',) * 6
    max_prompt_len: int = 200
    max_text_len: int = 48


def batch_shapes(
    config: RunConfig, side: int, sequences: int, horizon: int, meta: Meta | None = None
) -> Batch:
    """A batch [sequences windows ...] by shapes.

    Args:
      config: of the run.
      side: of an image, in pixels.
      sequences: how many.
      horizon: actions of a window where there are no shards.
      meta: what the shards hold; None: what is usual stands for it.

    Returns:
      A `Batch` of `jax.ShapeDtypeStruct`.
    """
    data = meta or Usual(horizon)
    lead, views = (sequences, config.sequence_length), len(data.camera_names)
    optional: dict[str, Any] = {}

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), dtype)

    def tokens(length: int) -> tuple[Any, Any]:
        return array(length, dtype=jnp.int32), array(length, dtype=bool)

    if config.sigma.use_depth:
        optional['depth'] = array(len(data.depth_names) or views, side, side, 1)
    if config.sigma.use_audio:
        optional['audio'] = array(data.audio_samples or 16000)
    observation = Observation(
        array(views, side, side, 3, dtype=jnp.uint8),
        array(views, dtype=bool),
        *tokens(data.max_prompt_len),
        *tokens(data.max_text_len),
        array(len(data.state_names)),
        **optional,
    )
    actions = array(data.horizon, len(data.action_names))
    mask, flag = array(data.horizon, dtype=bool), array(dtype=bool)
    number = array(dtype=jnp.int32)
    return Batch(observation, actions, mask, actions, flag, flag, number, number, number)


def scaling_shapes(width: int) -> ActionScaling:
    """Shapes of `actions.action_scaling` for so many actions.

    Args:
      width: number of actions.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.
    """
    a_joint: Any = jax.ShapeDtypeStruct((width,), jnp.float32)
    return ActionScaling(*[a_joint] * len(dataclasses.fields(ActionScaling)))
