"""The loader: shards to batches of sequences, in an order that a seed fixes and a checkpoint can
resume.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import grain
import numpy as np
from absl import flags
from jaxtyping import Float

from sigma_jax.data.loader.augment import Augment, AugmentConfig
from sigma_jax.data.loader.batches import Batches
from sigma_jax.data.loader.examples import JitterPromptState, NumpyBatch, Pad, ToExample
from sigma_jax.data.loader.feature_cache import AddFeatures, Features
from sigma_jax.data.loader.sequences import cut_sequences, fill_batches
from sigma_jax.data.loader.workers import end_with_parent
from sigma_jax.data.shards.directory import Split
from sigma_jax.data.shards.records import Records
from sigma_jax.errors import UserError
from sigma_jax.processing.images import BLACK, Box, content_box
from sigma_jax.processing.normalize import Statistics, cut_to, read_norm_stats
from sigma_jax.processing.processor import of_shards
from sigma_jax.processing.spec import OURS, ProcessorConfig
from sigma_jax.processing.tokenizer import Tokenizer

READS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
# Grain's own 16 threads fight for one core
WORKER_READS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def make_loader(
    split: Split,
    *,
    batch_size: int,
    tokenizer: Tokenizer,
    sequence_length: int | None = 1,
    seed: int = 0,
    shuffle: bool = False,
    num_epochs: int | None = 1,
    baselines: str | None = None,
    baseline_sample: int | None = 0,
    drop_remainder: bool = False,
    num_workers: int = 0,
    cache: bool = False,
    norm_stats: str | Path | Mapping[str, Statistics] | None = None,
    max_prompt_len: int | None = None,
    max_text_len: int | None = None,
    state_noise: float = 0.0,
    policy: ProcessorConfig = OURS,
    augment: AugmentConfig | None = None,
    features: Features | None = None,
) -> Batches:
    """Returns an iterator of a split's batches, with leaves [b g ...]; `get_state` and `set_state`
    resume it exactly, also with another `num_workers`.

    Keys: images uint8 [b g i h x 3] (float32 for a policy whose padding is not black), image_mask,
    prompt, prompt_mask, text, text_mask, state (normalised), actions (raw), action_mask, base (raw;
    zeros without `baselines`), reset, mask, text_id, episode, frame, and record (the number in the
    split, -1 on padding). Where the shards hold them: depth float32 [b g j h x 1] in metres, 0
    without a reading, depth_mask, and audio float32 [b g samples].

    Training: `shuffle=True, num_epochs=None, drop_remainder=True`; runs are shuffled anew each
    epoch.
    Every window in record order: the defaults. Whole episodes for evaluation:
    `sequence_length=None`, one run an episode, with `reset` only at its start and after dropped
    windows.

    Args:
      sequence_length: windows a run (g); None for whole episodes.
      num_epochs: None repeats without end.
      baselines: 'pi05' adds the frozen policy's actions (baselines-<split>.npz), None leaves zeros.
      baseline_sample: which of its samples; None takes their mean.
      drop_remainder: leaves out the last short batch instead of filling it with masked windows.
      num_workers: processes that decode; 0 decodes in threads of this one.
      cache: keeps decoded windows in memory; for data that fit.
      norm_stats: statistics to normalise states by, such as a checkpoint's; default: those beside
        the shards.
      policy: how the base builds its prompt and pads its pictures; default: as the shards were
        prepared.
      augment: how far pictures may change, keyed by `seed` and position; None leaves them as they
        are.
      features: adds what the frozen policy made of pictures and texts, `features` [b g f w] and
        `text_embeddings` [b g l w]; None leaves them out.
      state_noise: spread of a jitter on the state in the prompt, normalised units, keyed by `seed`
        and position.
      max_prompt_len, max_text_len: token lengths; default: those of the preparation.

    Raises:
      UserError: a split without windows, missing baselines, a text that is too long, or fewer runs
        than a batch.
    """
    if batch_size < 1 or (sequence_length is not None and sequence_length < 1):
        raise UserError(
            f'expected batch_size and sequence_length of at least 1, got {batch_size} and '
            f'{sequence_length}; correct them'
        )
    records = split.records()
    sequences = cut_sequences(records.index, sequence_length)
    if not drop_remainder:
        sequences = fill_batches(sequences, batch_size)
    elif num_epochs is not None and len(sequences) * num_epochs < batch_size:
        raise UserError(
            f'expected at least {batch_size} sequences for one batch of {split.name}, got '
            f'{len(sequences)}; lower batch_size or sequence_length'
        )
    cut = dataclasses.replace(
        records.meta,
        max_prompt_len=max_prompt_len or records.meta.max_prompt_len,
        max_text_len=max_text_len or records.meta.max_text_len,
    )
    to_example = ToExample(
        records=records,
        processor=of_shards(policy, _statistics(split, norm_stats), tokenizer, cut),
        base=_base(split, baselines, baseline_sample),
        cache={} if cache else None,
    )
    changes: list[grain.transforms.Map | grain.transforms.RandomMap] = []
    if state_noise:
        changes.append(JitterPromptState(to_example, state_noise))
    if augment is not None:
        changes.append(Augment(augment, records.meta.camera_names, records.meta.depth_names))
    if boxes := _boxes(records, policy):
        changes.append(Pad(boxes, policy.image_padding))
    if features is not None:
        changes.append(AddFeatures(features))
    dataset = grain.MapDataset.source(list(sequences))
    if shuffle:
        dataset = dataset.shuffle(seed=seed)
    dataset = _changed(dataset.repeat(num_epochs).map(to_example), changes, seed)
    return Batches(
        dataset.batch(batch_size, drop_remainder=True),
        functools.partial(_started, num_workers=num_workers),
    )


def _changed(
    dataset: grain.MapDataset,
    changes: Sequence[grain.transforms.Map | grain.transforms.RandomMap],
    seed: int,
) -> grain.MapDataset:
    """Applies `changes` in order; what is random in one depends on seed, its place in the row and
    position alone.
    """
    for n, change in enumerate(changes):
        random = isinstance(change, grain.transforms.RandomMap)
        dataset = dataset.random_map(change, seed=seed + n) if random else dataset.map(change)
    return dataset


def _started(dataset: grain.MapDataset, num_workers: int) -> grain.IterDataset[NumpyBatch]:
    """Decodes ahead, in threads or processes."""
    if num_workers:
        # Grain's workers read their settings from absl; outside of absl take defaults
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        return dataset.to_iter_dataset(WORKER_READS).mp_prefetch(options, end_with_parent)
    return dataset.to_iter_dataset(READS)


def _statistics(
    split: Split, given: str | Path | Mapping[str, Statistics] | None
) -> Mapping[str, Statistics]:
    shards, widths = split.shards, {'state': split.shards.meta.widths['state']}
    if given is None:
        return cut_to(shards.statistics, widths, f'the statistics of {shards.path}')
    if isinstance(given, Mapping):
        return cut_to(given, widths, 'the statistics of the policy')
    return read_norm_stats(given, widths)


def _boxes(records: Records, policy: ProcessorConfig) -> tuple[Box, ...] | None:
    """Where the pictures lie on their canvas, for a policy that pads with something else than
    black.
    """
    if policy.image_padding == BLACK:
        return None
    sizes, side = records.meta.camera_sizes, records.meta.image_size
    if sizes is None:
        raise UserError(
            f'expected camera_sizes in the meta.json of {records.directory}, got none, and this '
            f'policy pads pictures with {policy.image_padding:g}; prepare the shards again'
        )
    boxes = tuple(content_box(sizes[name], side, side) for name in records.meta.camera_names)
    return None if all(box == (0, 0, side, side) for box in boxes) else boxes


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
