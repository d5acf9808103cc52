"""What is read of every window of a split: as the base sees it, and what training adds to that."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import grain
import numpy as np
from jaxtyping import Float

from sigma_jax.backbones import prompts
from sigma_jax.data.loader.augment import Augment, AugmentConfig
from sigma_jax.data.loader.cached_features import AddFeatures, Features
from sigma_jax.data.loader.examples import JitterPromptState, Pad, ToExample
from sigma_jax.data.shards.directory import Shards, Split
from sigma_jax.data.shards.records import Records
from sigma_jax.errors import UserError
from sigma_jax.processing.images import BLACK, Box, content_box
from sigma_jax.processing.normalize import Statistics, cut_to, read_norm_stats
from sigma_jax.processing.processor import Processor, Prompt, of_shards
from sigma_jax.processing.spec import OURS, ProcessorConfig
from sigma_jax.processing.tokenizer import Tokenizer

Change: TypeAlias = grain.transforms.Map | grain.transforms.RandomMap


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a window holds beside what the processor makes of it.

    Attributes:
      baselines: 'pi05' adds the frozen policy's actions (baselines-<split>.npz), None leaves zeros.
      baseline_sample: which of its samples; None takes their mean.
      cache: keeps decoded windows in memory; for data that fit.
      state_noise: spread of a jitter on the state in the prompt, normalised units, keyed by the
        order's seed and position.
      augment: how far images may change, keyed by seed and position; None leaves them as they
        are.
      features: adds what the frozen policy made of images and texts, `features` [b g f w] and
        `text_embeddings` [b g l w]; None leaves them out.
    """

    baselines: str | None = None
    baseline_sample: int | None = 0
    cache: bool = False
    state_noise: float = 0.0
    augment: AugmentConfig | None = None
    features: Features | None = None


def shards_processor(
    shards: Shards,
    tokenizer: Tokenizer,
    norm_stats: str | Path | Mapping[str, Statistics] | None = None,
    policy: ProcessorConfig = OURS,
    prompt: Prompt = prompts.USUAL,
) -> Processor:
    """How a base sees the windows of some shards.

    Args:
      shards: they say views, image size and token lengths.
      tokenizer: of the base.
      norm_stats: statistics to normalise states by, such as a checkpoint's; default: those beside
        the shards.
      policy: what the base's prompt holds and how it pads its images; default: as the shards
        were prepared.
      prompt: how the base's kind writes a prompt.

    Returns:
      The processor, for `make_loader`.

    Raises:
      UserError: statistics that are not there or do not fit the robot's joints.
    """
    return of_shards(policy, _statistics(shards, norm_stats), tokenizer, shards.meta, prompt)


def _statistics(
    shards: Shards, stats: str | Path | Mapping[str, Statistics] | None
) -> Mapping[str, Statistics]:
    widths = {'state': shards.meta.widths['state']}
    if stats is None:
        return cut_to(shards.statistics, widths, f'the statistics of {shards.path}')
    if isinstance(stats, Mapping):
        return cut_to(stats, widths, 'the statistics of the policy')
    return read_norm_stats(stats, widths)


def to_example(
    split: Split, records: Records, processor: Processor, contents: Contents
) -> ToExample:
    """What reads the windows, the base's actions with them.

    Args:
      split: which they are of.
      records: its windows.
      processor: how the base sees one.
      contents: whether with the base's actions, and kept in memory.

    Returns:
      A map from a sequence of numbers to its windows.

    Raises:
      UserError: the base's actions are not there.
    """
    return ToExample(
        records=records,
        processor=processor,
        base=_base(split, contents.baselines, contents.baseline_sample),
        cache={} if contents.cache else None,
    )


def _base(split: Split, kind: str | None, sample: int | None) -> Float[np.ndarray, 'm t a'] | None:
    if kind is None:
        return None
    if kind != 'pi05':
        raise UserError(f"expected baselines 'pi05' or None, got {kind!r}; choose one of them")
    samples = split.base_actions()
    if sample is not None and not 0 <= sample < samples.shape[1]:
        raise UserError(
            f'expected a baseline sample below {samples.shape[1]}, got {sample}; run '
            'prepare_data.py with more samples'
        )
    return samples.mean(1) if sample is None else samples[:, sample]


def changes_of(example: ToExample, contents: Contents) -> list[Change]:
    """What is done to a sequence once it is read, in order.

    Args:
      example: what reads it.
      contents: which changes were asked for.

    Returns:
      Maps from a sequence to a sequence.

    Raises:
      UserError: the shards are too old for the policy's padding.
    """
    records, policy = example.records, example.processor.config
    changes: list[Change] = []
    if contents.state_noise:
        changes.append(JitterPromptState(example, contents.state_noise))
    if contents.augment is not None:
        meta = records.meta
        changes.append(Augment(contents.augment, meta.camera_names, meta.depth_names))
    if boxes := _boxes(records, policy):
        changes.append(Pad(boxes, policy.image_padding))
    if contents.features is not None:
        changes.append(AddFeatures(contents.features))
    return changes


def _boxes(records: Records, policy: ProcessorConfig) -> tuple[Box, ...] | None:
    """Where the images lie on their canvas, for a policy that pads with something else than
    black.
    """
    if policy.image_padding == BLACK:
        return None
    sizes, side = records.meta.camera_sizes, records.meta.image_size
    if sizes is None:
        raise UserError(
            f'expected camera_sizes in the meta.json of {records.directory}, got none, and this '
            f'policy pads images with {policy.image_padding:g}; prepare the shards again'
        )
    boxes = tuple(content_box(sizes[name], side, side) for name in records.meta.camera_names)
    return None if all(box == (0, 0, side, side) for box in boxes) else boxes
