"""The loader: shards to batches of sequences, in an order that a seed fixes and a checkpoint can resume."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8

from sigma_jax.backbones.tokenizer import Tokenizer, clean_task, pad_tokens, pi05_prompt
from sigma_jax.data.images import BLACK, Box, content_box, padded_with
from sigma_jax.data.normalize import Statistics, cut_to, normalize, read_norm_stats
from sigma_jax.data.records import Records, read_baselines
from sigma_jax.data.sequences import PADDING, cut_sequences, fill_batches
from sigma_jax.errors import UserError
from sigma_jax.policy import OURS, Policy

NumpyBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ToExample(grain.transforms.Map):
    """Turns a run of record numbers [g] into the batch dictionary without its batch axis."""

    records: Records
    tokenizer: Tokenizer
    statistics: Statistics
    base: Float[np.ndarray, 'm t a'] | None
    max_prompt_len: int
    max_text_len: int
    cache: dict[int, NumpyBatch] | None
    policy: Policy = OURS
    boxes: tuple[Box, ...] | None = None  # of the pictures, where the policy's padding is not black

    def map(self, element: Int[np.ndarray, ' g']) -> NumpyBatch:
        """Loads, normalises and tokenises; padding repeats a real window, so that no value is out of range."""
        real = element != PADDING
        numbers = np.where(real, element, element[real][-1] if real.any() else 0)
        windows = [self._window(int(number)) for number in numbers]
        example = {key: np.stack([window[key] for window in windows]) for key in windows[0]}
        example['reset'] = self.records.index.is_first[numbers] & real
        example['reset'][0] = True
        example['mask'] = real
        example['record'] = element.astype(np.int32)
        return example

    def _window(self, number: int) -> NumpyBatch:
        if self.cache is None:
            return self._load(number)
        if number not in self.cache:
            self.cache[number] = self._load(number)
        return self.cache[number]

    def prompt(self, task: str, state: Float[np.ndarray, ' p']) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [l], mask [l]) of pi0.5's prompt for a normalised state."""
        known, longest = self.policy.prompt_state_dim, self.policy.max_prompt_len or self.max_prompt_len
        text = pi05_prompt(task, state, self.records.meta['prompt_state_dim'] if known is None else known)
        return pad_tokens(self.tokenizer.encode(text), min(self.max_prompt_len, longest))

    def images(self, stored: UInt8[np.ndarray, 'i h x 3']) -> np.ndarray:
        """uint8 as stored, or float32 in the model's units where the padding beside a picture is not black."""
        if self.boxes is None:
            return stored
        padding = self.policy.image_padding
        return np.stack([padded_with(view, box, padding) for view, box in zip(stored, self.boxes, strict=True)])

    def _load(self, number: int) -> NumpyBatch:
        record, index, meta = self.records[number], self.records.index, self.records.meta
        task = meta['tasks'][index.text_id[number]]
        state = normalize(record.state, self.statistics)
        prompt = self.prompt(task, state)
        text = pad_tokens(self.tokenizer.encode(clean_task(task)), self.max_text_len, 'text')
        return {
            'images': self.images(record.images),
            'image_mask': np.ones(len(record.images), bool),
            'prompt': prompt[0],
            'prompt_mask': prompt[1],
            'text': text[0],
            'text_mask': text[1],
            'state': state.astype(np.float32),
            'actions': record.actions,
            'action_mask': record.action_mask,
            'base': np.zeros_like(record.actions) if self.base is None else self.base[number],
            'text_id': np.int32(index.text_id[number]),
            'episode': np.int32(index.episode[number]),
            'frame': np.int32(index.frame[number]),
        }


@dataclasses.dataclass(frozen=True)
class JitterPromptState(grain.transforms.RandomMap):
    """Writes the prompt of every window anew from its state plus noise of spread `noise` (normalised units)."""

    example: ToExample
    noise: float

    def random_map(self, element: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
        """Replaces `prompt` and `prompt_mask` [g l]; everything else stays."""
        states = element['state'] + rng.normal(0, self.noise, element['state'].shape)
        tasks = self.example.records.meta['tasks']
        pairs = [self.example.prompt(tasks[n], state) for n, state in zip(element['text_id'], states, strict=True)]
        tokens, mask = (np.stack(part) for part in zip(*pairs, strict=True))
        return {**element, 'prompt': tokens, 'prompt_mask': mask}


def make_loader(
    shards_dir: str | Path,
    split: str,
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
    policy: Policy = OURS,
) -> grain.DatasetIterator[NumpyBatch]:
    """Returns a Grain iterator of batches with leaves [b g ...]; `get_state` and `set_state` resume it exactly.

    Keys: images uint8 [b g i h x 3] (float32 for a policy whose padding is not black), image_mask, prompt, prompt_mask,
    text, text_mask, state (normalised), actions (raw), action_mask, base (raw; zeros without `baselines`), reset, mask,
    text_id, episode, frame, and record (the number in the split, -1 on padding).

    Training: `shuffle=True, num_epochs=None, drop_remainder=True`; runs are shuffled anew each epoch.
    Every window in record order: the defaults. Whole episodes for evaluation: `sequence_length=None`, one run an
    episode, with `reset` only at its start and after dropped windows.

    Args:
      sequence_length: windows a run (g); None for whole episodes.
      num_epochs: None repeats without end.
      baselines: 'pi05' adds the frozen policy's actions (baselines-<split>.npz), None leaves zeros.
      baseline_sample: which of its samples; None takes their mean.
      drop_remainder: leaves out the last short batch instead of filling it with masked windows.
      num_workers: processes that decode; 0 decodes in threads of this one.
      cache: keeps decoded windows in memory; for data that fit.
      norm_stats: statistics to normalise states by, such as a checkpoint's; default: those beside the shards.
      policy: how the base builds its prompt and pads its pictures; default: as the shards were prepared.
      state_noise: spread of a jitter on the state in the prompt, normalised units, keyed by `seed` and position.
      max_prompt_len, max_text_len: token lengths; default: those of the preparation.

    Raises:
      UserError: no finished shards, missing baselines, a text that is too long, or fewer runs than a batch.
    """
    if batch_size < 1 or (sequence_length is not None and sequence_length < 1):
        raise UserError(
            f'Expected batch_size and sequence_length of at least 1, got {batch_size} and {sequence_length}; '
            'correct them.'
        )
    records = Records(shards_dir, split)
    sequences = cut_sequences(records.index, sequence_length)
    if not drop_remainder:
        sequences = fill_batches(sequences, batch_size)
    elif num_epochs is not None and len(sequences) * num_epochs < batch_size:
        raise UserError(
            f'Expected at least {batch_size} sequences for one batch of {split}, got {len(sequences)}; '
            'lower batch_size or sequence_length.'
        )
    to_example = ToExample(
        records=records,
        tokenizer=tokenizer,
        statistics=_statistics(records, norm_stats)['state'],
        base=_base(records, baselines, baseline_sample),
        max_prompt_len=max_prompt_len or records.meta['max_prompt_len'],
        max_text_len=max_text_len or records.meta['max_text_len'],
        cache={} if cache else None,
        policy=policy,
        boxes=_boxes(records, policy),
    )
    jitter = JitterPromptState(to_example, state_noise) if state_noise else None
    order = seed if shuffle else None
    return iter(_dataset(sequences, to_example, jitter, batch_size, order, num_epochs, num_workers))


def _dataset(
    sequences: Int[np.ndarray, 'n g'],
    to_example: ToExample,
    jitter: JitterPromptState | None,
    batch_size: int,
    seed: int | None,
    num_epochs: int | None,
    num_workers: int,
) -> grain.IterDataset[NumpyBatch]:
    dataset = grain.MapDataset.source(list(sequences))
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    dataset = dataset.repeat(num_epochs).map(to_example)
    if jitter is not None:
        dataset = dataset.random_map(jitter, seed=seed or 0)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read their settings from absl; outside of absl take defaults
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        return dataset.to_iter_dataset().mp_prefetch(options)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))


def _statistics(records: Records, given: str | Path | Mapping[str, Statistics] | None) -> Mapping[str, Statistics]:
    widths = {'state': len(records.meta['state_names'])}
    if isinstance(given, Mapping):
        return cut_to(given, widths, 'the statistics of the policy')
    return read_norm_stats(given or records.directory / 'norm_stats.json', widths)


def _boxes(records: Records, policy: Policy) -> tuple[Box, ...] | None:
    """Where the pictures lie on their canvas, for a policy that pads with something else than black."""
    if policy.image_padding == BLACK:
        return None
    sizes, side = records.meta.get('camera_sizes'), records.meta['image_size']
    if sizes is None:
        raise UserError(
            f'Expected camera_sizes in the meta.json of {records.directory}, got none, and this policy pads pictures '
            f'with {policy.image_padding:g}; prepare the shards again.'
        )
    boxes = tuple(content_box(sizes[name], side, side) for name in records.meta['camera_names'])
    return None if all(box == (0, 0, side, side) for box in boxes) else boxes


def _base(records: Records, kind: str | None, sample: int | None) -> Float[np.ndarray, 'm t a'] | None:
    if kind is None:
        return None
    if kind != 'pi05':
        raise UserError(f"Expected baselines 'pi05' or None, got {kind!r}; choose one of them.")
    shape = (len(records), records.meta['horizon'], len(records.meta['action_names']))
    samples = read_baselines(records.directory, records.split, shape)
    if sample is not None and not 0 <= sample < samples.shape[1]:
        raise UserError(
            f'Expected a baseline sample below {samples.shape[1]}, got {sample}; run prepare_data.py with more samples.'
        )
    return samples.mean(1) if sample is None else samples[:, sample]
