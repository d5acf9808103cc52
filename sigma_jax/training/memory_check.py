"""`train.py --check`: will this config fit the card? Reads a config and shapes; no weight, no
image, no compiler.
"""

import dataclasses
from collections.abc import Mapping

import jax

from sigma_jax.errors import UserError
from sigma_jax.training import memory
from sigma_jax.training.build import build
from sigma_jax.training.config import RunConfig

GIB = 2**30
USABLE = 0.92  # of a card's memory; the rest is the driver's, the context's and a display's


@dataclasses.dataclass(frozen=True)
class Card:
    """Bytes that a run may take, of how many, and the compute capability (0: no GPU)."""

    usable: int
    name: str
    capability: float


def find_card(card_gib: float | None) -> Card:
    """The card the user names, or the GPU here.

    A card that is not here is taken for one of the data centre from 40 GiB on (capability 9, fused
    attention), below for a consumer's (8.9, where cuDNN fuses no heads as wide as Gemma's).

    Args:
      card_gib: its memory, GiB; None: the GPU here.

    Returns:
      The card.

    Raises:
      UserError: there is neither.
    """
    device = jax.local_devices()[0]
    here = device.platform == 'gpu'
    if card_gib is not None:
        if card_gib <= 0:
            raise UserError(
                f'--card_gib: expected GiB of memory above 0, got {card_gib}; 24 is an RTX 4090'
            )
        capability = float(device.compute_capability) if here else 9.0 if card_gib >= 40 else 8.9
        return Card(int(USABLE * card_gib * GIB), f'a card of {card_gib:g} GiB', capability)
    if not here:
        raise UserError(
            f'expected a GPU to check for, got {device.device_kind}; name its memory: --check '
            '--card_gib=24'
        )
    return Card(
        device.memory_stats()['bytes_limit'], device.device_kind, float(device.compute_capability)
    )


def make_job(config: RunConfig, devices: int = 1) -> tuple[memory.Job, tuple[str, ...]]:
    """The step that a config describes, by shapes.

    Args:
      config: of the run.
      devices: that share it.

    Returns:
      job: on one of them.
      assumed: what was assumed, in words.
    """
    plan = build(config, devices, assume=True)
    parts = plan.objective, plan.optimizer, plan.trainable, plan.frozen, plan.batch
    return memory.Job(*parts, config.ema is not None, config.accumulate), plan.notes


def advice(config: RunConfig, job: memory.Job, parts: Mapping[str, int]) -> list[str]:
    """What would make a step smaller, each with what it saves, the largest first.

    Args:
      config: of the run.
      job: its step.
      parts: of `memory.forecast`.

    Returns:
      Sentences.
    """
    moving = parts['kept activations'] + parts['largest layer']
    found: list[tuple[int, str]] = []
    micro = config.batch_size // job.accumulate
    if micro > 1:
        how = (
            f'config.accumulate={2 * job.accumulate}'
            if micro % 2 == 0
            else f'a config.batch_size below {micro}'
        )
        found.append((moving // 2, how))
    if job.objective.config.remat not in ('save_attention', 'nothing_saveable'):
        less = memory.with_remat(job, 'save_attention')
        saved = parts['kept activations'] - memory.kept(less)
        found.append((saved, 'config.model.remat=save_attention'))
    if 'params' not in config.trainable:
        for kind in ('bfloat16', 'nf4'):
            other = dataclasses.replace(config, quant=dataclasses.replace(config.quant, kind=kind))
            smaller = memory.size(build(other, assume=True).frozen.params)
            found.append((parts['frozen base'] - smaller, f'config.quant.kind={kind}'))
    return [
        f'{how} (saves about {saved / GIB:.1f} GiB)'
        for saved, how in sorted(found, reverse=True)
        if saved > 0
    ]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a step will need of a card.

    Attributes:
      parts: bytes of each thing on the device, by its name.
      card: what there is.
      notes: what was assumed, as where there are no shards yet.
      suggestions: what would make a step smaller, where it does not fit.
    """

    parts: Mapping[str, int]
    card: Card
    notes: tuple[str, ...]
    suggestions: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether JAX may take as much of the card."""
        return self.total <= self.card.usable

    @property
    def verdict(self) -> str:
        """The same in a sentence, with what to change where it does not fit."""
        total, card = self.total, self.card
        room = f'{card.usable / GIB:.1f} GiB that JAX may take of {card.name}'
        if self.fits:
            return f'fits: about {total / GIB:.1f} GiB of the {room}'
        ways = '; '.join(self.suggestions) or 'a larger card'
        return f'does not fit: about {total / GIB:.1f} GiB, expected at most the {room}; try {ways}'


def forecast(config: RunConfig, card_gib: float | None = None, members: int = 1) -> Forecast:
    """What a step of this config will need of the card named, or of the GPU here.

    Of `members` trainings side by side, the states of all are there, old and new, and at least one
    step.

    Args:
      config: every setting of the run.
      card_gib: memory of the card in GiB; None is the GPU here.
      members: how many are trained side by side.

    Returns:
      Bytes by part, whether they fit the card, and what would make them.

    Raises:
      UserError: no GPU here and none named, or anything wrong with the config.
    """
    card = find_card(card_gib)
    here = jax.local_devices()
    with memory.emulate(card.capability):
        job, notes = make_job(config, len(here) if here[0].platform == 'gpu' else 1)
        parts = memory.forecast(job)
        if members > 1:
            state = parts['trainable leaves'] + parts['moments'] + parts['running average']
            parts[f'states of {members} trainings'] = (2 * members - 1) * state
        fits = sum(parts.values()) <= card.usable
        suggestions = () if fits else tuple(advice(config, job, parts))
    return Forecast(parts, card, tuple(notes), suggestions)
