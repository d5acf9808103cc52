"""The loader: shards to batches of sequences, in an order that a seed fixes and a checkpoint can
resume.

    processor = shards_processor(shards, tokenizer)
    loader = make_loader(shards.split('train'), processor, Order(batch_size=4, sequence_length=4))

`dataset` gives the sequences of one split, `batched` makes batches of any: of several that Grain
has mixed, too.
"""

import functools

import grain
from absl import flags

from sigma_jax.data.loader.batches import Batches
from sigma_jax.data.loader.examples import NumpyBatch
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import Contents, changes_of, to_example
from sigma_jax.data.loader.workers import end_with_parent
from sigma_jax.data.shards.directory import Split
from sigma_jax.errors import UserError
from sigma_jax.processing.processor import Processor

READS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
# Grain's own 16 threads fight for one core
WORKER_READS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def make_loader(
    split: Split,
    processor: Processor,
    order: Order,
    contents: Contents = Contents(),
    num_workers: int = 0,
) -> Batches:
    """Returns an iterator of a split's batches, with leaves [b g ...]; `get_state` and `set_state`
    resume it exactly, also with another `num_workers`.

    Keys: images uint8 [b g i h x 3] (float32 for a policy whose padding is not black), image_mask,
    prompt, prompt_mask, text, text_mask, state (normalised), actions (raw), action_mask, base (raw;
    zeros without `baselines`), reset, mask, text_id, episode, frame, and record (the number in the
    split, -1 on padding). Where the shards hold them: depth float32 [b g j h x 1] in metres, 0
    without a reading, depth_mask, and audio float32 [b g samples].

    Args:
      split: of prepared shards.
      processor: how the base sees a window; see `shards_processor`.
      order: which windows come when, and how many at a time.
      contents: what a window holds beside what the processor makes of it.
      num_workers: processes that decode; 0 decodes in threads of this one.

    Returns:
      The batches; their state is plain JSON.

    Raises:
      UserError: a split without windows, missing baselines, a text that is too long, or fewer
        sequences than a batch.
    """
    sequences = dataset(split, processor, order, contents)
    return batched(sequences, order.batch_size, num_workers)


def dataset(
    split: Split, processor: Processor, order: Order, contents: Contents = Contents()
) -> grain.MapDataset:
    """The sequences of one split in their order, leaves [g ...], with the keys of `make_loader`.

    Args:
      split: of prepared shards.
      processor: how the base sees a window.
      order: which windows come when.
      contents: what a window holds beside what the processor makes of it.

    Returns:
      The sequences, read when they are asked for.

    Raises:
      UserError: a split without windows, missing baselines, or fewer sequences than a batch.
    """
    records = split.records()
    sequences = order.sequences(records.index)
    if order.drops_all(len(sequences)):
        raise UserError(
            f'expected at least {order.batch_size} sequences for one batch of {split.name}, got '
            f'{len(sequences)}; lower batch_size or sequence_length'
        )
    example = to_example(split, records, processor, contents)
    found = grain.MapDataset.source(list(sequences))
    if order.shuffle:
        found = found.shuffle(seed=order.seed)
    found = found.repeat(order.num_epochs).map(example)
    for n, change in enumerate(changes_of(example, contents)):
        # what is random in one depends on seed, its place in the row and position alone
        random = isinstance(change, grain.transforms.RandomMap)
        found = found.random_map(change, seed=order.seed + n) if random else found.map(change)
    return found


def batched(sequences: grain.MapDataset, batch_size: int, num_workers: int = 0) -> Batches:
    """Batches of sequences; a last short one is left out.

    Args:
      sequences: as `dataset` gives them, or several such that Grain has mixed.
      batch_size: sequences a batch.
      num_workers: processes that decode; 0 decodes in threads of this one.

    Returns:
      The batches; their state is plain JSON.
    """
    return Batches(
        sequences.batch(batch_size, drop_remainder=True),
        functools.partial(_started, num_workers=num_workers),
    )


def _started(batches: grain.MapDataset, num_workers: int) -> grain.IterDataset[NumpyBatch]:
    """Decodes ahead, in threads or processes."""
    if num_workers:
        # Grain's workers read their settings from absl; outside of absl take defaults
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        return batches.to_iter_dataset(WORKER_READS).mp_prefetch(options, end_with_parent)
    return batches.to_iter_dataset(READS)
