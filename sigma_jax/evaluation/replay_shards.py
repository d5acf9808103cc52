"""Prepared shards through a trained model, whole episodes at a time."""

import pathlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from sigma_jax.backbones import prompts
from sigma_jax.data.loader.loader import make_loader
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import Contents, shards_processor
from sigma_jax.data.shards.directory import Split
from sigma_jax.evaluation.predictor import Predictor
from sigma_jax.evaluation.replay import RUNS, NumpyBatch, ReplayedWindows, pad_windows, replay
from sigma_jax.processing.normalize import Statistics, denormalize
from sigma_jax.processing.processor import Prompt
from sigma_jax.processing.spec import ProcessorConfig
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.training.progress import Bars

SPLITS = ('train', 'calibration', 'test')
CACHE_BYTES = 2 * 2**30  # bytes of decoded batches that an evaluation keeps


class BatchCache:
    """Batches decoded once and kept, read-only, while there is room; those of a split that does not
    fit, every time.

    Trainings of one comparison see the same images and prompts, and decoding them takes longer
    than a small model.

    Args:
      budget: bytes that are kept at most.
    """

    def __init__(self, budget: int = CACHE_BYTES):
        self._budget = budget
        self._kept: dict[bytes, list[NumpyBatch]] = {}

    def __call__(
        self, key: bytes, make: Callable[[], Iterable[NumpyBatch]]
    ) -> Iterator[NumpyBatch]:
        """Batches, decoded at most once while there is room.

        Args:
          key: what they depend on.
          make: decodes them.

        Returns:
          An iterator over them.
        """
        if key in self._kept:
            yield from self._kept[key]
            return
        found, size = [], 0
        for batch in make():
            size += sum(x.nbytes for x in batch.values())
            if size <= self._budget:
                found.append(read_only(batch))
            else:
                found.clear()
            yield batch
        if size <= self._budget:
            self._budget -= size
            self._kept[key] = found


def read_only(batch: NumpyBatch) -> NumpyBatch:
    """The same arrays, not to be changed in place.

    Args:
      batch: decoded.

    Returns:
      The batch.
    """
    for x in batch.values():
        x.flags.writeable = False
    return batch


def replay_split(
    trained: Predictor,
    split: Split,
    episodes_at_once: int,
    bars: Bars,
    *,
    runs: Sequence[str] = RUNS,
    name: str = '',
    batch_cache: BatchCache | None = None,
) -> ReplayedWindows:
    """Every window of one split through Sigma, whole episodes at a time.

    Args:
      trained: a Sigma.
      split: of the shards.
      episodes_at_once: in a batch.
      bars: for progress.
      runs: of `replay`.
      name: that the bar shows.
      batch_cache: keeps batches; None: nothing is kept.

    Returns:
      All windows.
    """
    statistics = trained.shards.statistics['state']
    batches = list_batches(trained, split, episodes_at_once, batch_cache)
    bar = bars.add(name or split.name, total=count_batches(split, episodes_at_once))
    return replay(
        batches,
        trained.predict,
        trained.sequence_length,
        raw_state=lambda state: denormalize(state, statistics),
        samples=base_samples(split),
        on_batch=bar.advance,
        gates=trained.gates,
        runs=runs,
    )


def list_batches(
    trained: Predictor,
    split: Split,
    episodes_at_once: int,
    batch_cache: BatchCache | None = None,
) -> Iterator[NumpyBatch]:
    """Batches of whole episodes as Sigma sees them, states normalised as in its training.

    Args:
      trained: a Sigma.
      split: of the shards.
      episodes_at_once: in a batch.
      batch_cache: keeps batches; None: nothing is kept.

    Returns:
      An iterator of batches.
    """
    return whole_episodes(
        split,
        episodes_at_once,
        trained.config.tokenizer,
        trained.shards.statistics,
        trained.base.policy,
        baselines='pi05',
        batch_cache=batch_cache,
        prompt=trained.base.spec.prompt,
    )


def whole_episodes(
    split: Split,
    episodes_at_once: int,
    tokenizer: str,
    statistics: pathlib.Path | Mapping[str, Statistics],
    policy: ProcessorConfig,
    *,
    baselines: str | None = None,
    batch_cache: BatchCache | None = None,
    prompt: Prompt = prompts.USUAL,
) -> Iterator[NumpyBatch]:
    """Batches of whole episodes, all splits with the same number of windows, so that a model
    compiles once.

    Args:
      split: of the shards.
      episodes_at_once: in a batch.
      tokenizer: its path.
      statistics: by which states are normalised.
      policy: settings of the processor.
      baselines: digest of the base whose actions are read; None: none are.
      batch_cache: keeps batches for the next who asks for the same; None: nothing is kept.
      prompt: how state and task become text.

    Returns:
      An iterator of batches.
    """

    def make() -> Iterator[NumpyBatch]:
        every = [split.shards.split(name).index for name in SPLITS]
        length = max(int(np.bincount(index.episode).max(initial=0)) for index in every)
        words = load_tokenizer(tokenizer)
        processor = shards_processor(split.shards, words, statistics, policy, prompt)
        order = Order(episodes_at_once, sequence_length=None)
        loader = make_loader(split, processor, order, Contents(baselines))
        return (pad_windows(batch, length) for batch in loader)

    where = split.shards.path, split.name
    settings = (where, episodes_at_once, tokenizer, statistics, policy, baselines, prompt)
    return make() if batch_cache is None else batch_cache(pickle.dumps(settings), make)


def count_batches(split: Split, episodes_at_once: int) -> int:
    """How many batches of whole episodes a split has.

    Args:
      split: of the shards.
      episodes_at_once: in a batch.

    Returns:
      The count.
    """
    return -(-len(np.unique(split.index.episode)) // episodes_at_once)


def base_samples(split: Split) -> np.ndarray | None:
    """All samples of the base [r m t a] where several were drawn.

    Args:
      split: of the shards.

    Returns:
      Raw units; None where one was drawn.
    """
    samples = split.base_actions()
    return samples if samples.shape[1] > 1 else None


def in_order(
    batches: Iterable[tuple[NumpyBatch, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of the valid windows, sorted by episode and frame.

    Args:
      batches: pairs (batch, values [b g ...]).

    Returns:
      values: [n ...].
      episode: [n].
      frame: [n].
    """
    parts = [
        (values[b['mask']], b['episode'][b['mask']], b['frame'][b['mask']]) for b, values in batches
    ]
    values, episode, frame = (np.concatenate(x) for x in zip(*parts, strict=True))
    rows = np.lexsort((frame, episode))
    return values[rows], episode[rows], frame[rows]
