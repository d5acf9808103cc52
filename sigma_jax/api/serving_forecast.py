"""What serving a policy will take of a card, told before a weight is read or a program compiled."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sigma_jax.api.serving import MAX_BATCH
from sigma_jax.convert.load_base import Base, ModelConfig, open_base
from sigma_jax.errors import UserError
from sigma_jax.evaluation.cost import flops, live
from sigma_jax.hub.download import is_hub_id, local_path
from sigma_jax.policies import sampling
from sigma_jax.policies.sampled_policy import check_acts
from sigma_jax.processing.processor import TEXT_LENGTH
from sigma_jax.processing.spec import PROMPT_LENGTH
from sigma_jax.training.acting import MERGED, base_of, is_weights
from sigma_jax.training.acting_record import RECORD
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.memory import size
from sigma_jax.training.memory_check import GIB, USABLE
from sigma_jax.types import ActionScaling, Batch, Observation

VIEWS = 2  # where a policy takes any
OVERHEAD = 0.5  # GiB: what XLA's programs and libraries take beside arrays (ours)


@dataclasses.dataclass(frozen=True)
class CardSpec:
    """A card as its maker describes it.

    Attributes:
      gib: of memory.
      tflops: dense products in bfloat16, 10^12 operations a second.
      gb_s: of memory traffic, 10^9 bytes a second.
    """

    gib: float
    tflops: float
    gb_s: float


CARDS = {
    'a100': CardSpec(80, 312, 2039),
    'h100': CardSpec(80, 989, 3350),
    'h200': CardSpec(141, 989, 4800),
    'l4': CardSpec(24, 121, 300),
    'l40s': CardSpec(48, 362, 864),
    'rtx4090': CardSpec(24, 165, 1008),
    'rtx5090': CardSpec(32, 210, 1792),
}


@dataclasses.dataclass(frozen=True)
class ServingForecast:
    """What serving will take.

    Attributes:
      card: its name.
      parts: bytes of each thing on the device.
      usable: bytes that JAX may take of the card.
      least_ms: {batch size: milliseconds that a card at its peak needs for it}; what is measured is
        two to five times as much at batch 1.
      notes: what was assumed.
    """

    card: str
    parts: Mapping[str, int]
    usable: int
    least_ms: Mapping[int, float]
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether JAX may take as much of the card."""
        return self.total <= self.usable

    @property
    def verdict(self) -> str:
        """The same in a sentence."""
        room = f'{self.usable / GIB:.1f} GiB that JAX may take of a card like {self.card}'
        if self.fits:
            return f'fits: about {self.total / GIB:.1f} GiB of the {room}'
        return (
            f'does not fit: about {self.total / GIB:.1f} GiB, expected at most the {room}; lower '
            '--max_batch, or convert the weights to bfloat16'
        )


def forecast_serving(
    source: str | pathlib.Path,
    *,
    card: str,
    base: str | pathlib.Path = '',
    dtype: str = 'float32',
    max_batch: int = 0,
    views: int = 0,
) -> ServingForecast:
    """Says what serving a policy takes, from shapes alone.

    Args:
      source: as for `load_policy`. Of a training or its export the base is counted; what was
        learned beside it takes a few percent more.
      card: of `CARDS`.
      base: of a training: its base, as for `load_policy`.
      dtype: of matrix products; a training says it itself.
      max_batch: requests computed together, at most; 0: 8.
      views: cameras; 0: as many as the policy names, or 2.

    Returns:
      Bytes of each part, whether they fit, and the least time of a batch.

    Raises:
      UserError: an unknown card, or nothing there that acts.

    Examples:
      >>> import sigma_jax as sj
      >>> sj.forecast_serving('assets/pi05_tiny', card='l4').fits
      True
    """
    if card not in CARDS:
        raise UserError(f'expected a card out of {", ".join(CARDS)}, got {card!r}; name one')
    where, model, notes = named_base(source, ModelConfig(dtype), str(base))
    opened, known = open_base(where, model), CARDS[card]
    if not notes:  # a training has its statistics elsewhere
        check_acts(opened)
    count = views or len(opened.policy.cameras) or VIEWS
    most = max_batch or MAX_BATCH
    call = _sampler(opened), opened.shapes, _scaling(opened), _one(opened, count)
    parts = {
        'weights': size(opened.shapes),
        'a batch': most * size(call[-1]),
        'while it is computed': most * live.peak(*call),
        'programs and libraries': int(OVERHEAD * GIB),
    }
    peak = known.tflops * 1e12 / (1 if jnp.dtype(dtype).itemsize == 2 else 2)
    read = parts['weights'] / (known.gb_s * 1e9)
    work = flops.count(*call) / peak
    least = {b: 1e3 * max(b * work, read) for b in sorted({1, most})}
    dtype = opened.config.dtype
    note = f'{count} views, a prompt of {_prompt(opened)} tokens, products in {dtype}'
    told = *opened.notes, *notes, note
    return ServingForecast(card, parts, int(USABLE * known.gib * GIB), least, told)


def named_base(
    source: str | pathlib.Path, model: ModelConfig, base: str = ''
) -> tuple[str, ModelConfig, tuple[str, ...]]:
    """The base that acts in a policy.

    Args:
      source: as for `load_policy`.
      model: of weights: sizes and products; a training says them itself.
      base: of a training: its base; '': where the training had it.

    Returns:
      Its folder, its sizes, and what is left out with it.

    Raises:
      UserError: nothing there, a damaged config or record, or no base.
    """
    folder = local_path(source) if is_hub_id(source) else pathlib.Path(source)
    if is_weights(folder):
        return str(folder / MERGED), model, ()
    if not RunFolder(folder).config_file.is_file() and not (folder / RECORD).is_file():
        return str(folder), model, ()
    _, config, where = base_of(folder, base)
    return where, config.model, ('what was learned beside the base is left out',)


def _sampler(base: Base) -> sampling.Sample:
    return sampling.make_sampler(
        sampling.bind_frozen(base.config), 0, 1, base.config.action_horizon
    )


def _prompt(base: Base) -> int:
    return base.policy.max_prompt_len or PROMPT_LENGTH


def _scaling(base: Base) -> ActionScaling:
    """By shapes, of a robot as wide as the model."""
    x: Any = jax.ShapeDtypeStruct((base.config.action_dim,), jnp.float32)
    return ActionScaling(*[x] * len(dataclasses.fields(ActionScaling)))


def _one(base: Base, views: int) -> Batch:
    """One observation, by shapes; a batch takes as many times as much, as a rule."""
    config = base.config

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    def tokens(length: int) -> tuple[Any, Any]:
        return array(length, dtype=jnp.int32), array(length, dtype=bool)

    side, prompt, text = config.image_size, tokens(_prompt(base)), tokens(TEXT_LENGTH)
    seen = Observation(
        images=array(views, side, side, 3, dtype=jnp.uint8),
        image_mask=array(views, dtype=bool),
        prompt=prompt[0],
        prompt_mask=prompt[1],
        text=text[0],
        text_mask=text[1],
        state=array(config.action_dim),
    )
    chunk, number = array(config.action_horizon, config.action_dim), array(dtype=jnp.int32)
    mask, yes = array(config.action_horizon, dtype=bool), array(dtype=bool)
    return Batch(seen, chunk, mask, chunk, yes, yes, number, number, number)
