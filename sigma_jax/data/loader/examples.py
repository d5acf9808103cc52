"""Record numbers to the loader's dictionaries: images, prompt, state and what else a window
holds.
"""

import dataclasses

import grain
import numpy as np
from jaxtyping import Float, Int

from sigma_jax.data.loader.sequences import PADDING
from sigma_jax.data.shards.records import Record, Records
from sigma_jax.processing.images import Box, padded_with
from sigma_jax.processing.processor import Processor

NumpyBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ToExample(grain.transforms.Map):
    """Turns a run of record numbers [g] into the batch dictionary without its batch axis."""

    records: Records
    processor: Processor
    base: Float[np.ndarray, 'm t a'] | None
    cache: dict[int, NumpyBatch] | None

    def map(self, element: Int[np.ndarray, ' g']) -> NumpyBatch:
        """Loads, normalises and tokenises; padding repeats a real window, so that no value is out
        of range.

        Args:
          element: record numbers of a sequence; -1 is padding.

        Returns:
          Fields of `Batch` and `Observation`, [g ...].
        """
        real = element != PADDING
        numbers = np.where(real, element, element[real][-1] if real.any() else 0)
        windows = [self._window(int(number)) for number in numbers]
        example = {key: _stack([window[key] for window in windows]) for key in windows[0]}
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

    def _load(self, number: int) -> NumpyBatch:
        record, index, meta = self.records[number], self.records.index, self.records.meta
        text_id = index.text_id[number]
        return {
            **self.processor.inputs(record.images, record.state, meta.tasks[text_id]),
            'actions': record.actions,
            'action_mask': record.action_mask,
            'base': np.zeros_like(record.actions) if self.base is None else self.base[number],
            'text_id': np.asarray(text_id, np.int32),
            'episode': np.asarray(index.episode[number], np.int32),
            'frame': np.asarray(index.frame[number], np.int32),
            **self._optional(record),
        }

    def _optional(self, record: Record) -> NumpyBatch:
        """What only some data sets have: `depth` in metres and its mask (off where a map has no
        reading), `audio`.
        """
        found: NumpyBatch = {}
        if record.depth is not None:
            found['depth'] = record.depth * np.float32(self.records.meta.depth_scale)
            found['depth_mask'] = np.array([reading.any() for reading in record.depth])
        if record.audio is not None:
            found['audio'] = record.audio
        return found


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    """np.stack, but without a copy of a single part: runs of one window are the rule for flow
    matching.
    """
    return (
        parts[0][None] if len(parts) == 1 and isinstance(parts[0], np.ndarray) else np.stack(parts)
    )


@dataclasses.dataclass(frozen=True)
class Pad(grain.transforms.Map):
    """Turns uint8 images into float32 in the model's units, with `padding` beside each one's
    box.
    """

    boxes: tuple[Box, ...]
    padding: float

    def map(self, element: NumpyBatch) -> NumpyBatch:
        """Replaces `images` [g i h x 3]; everything else stays.

        Args:
          element: windows of a sequence.

        Returns:
          The element.
        """
        views = [
            [
                padded_with(view, box, self.padding)
                for view, box in zip(window, self.boxes, strict=True)
            ]
            for window in element['images']
        ]
        return {**element, 'images': np.array(views)}


@dataclasses.dataclass(frozen=True)
class JitterPromptState(grain.transforms.RandomMap):
    """Writes the prompt of every window anew from its state plus noise of spread `noise`
    (normalised units).
    """

    example: ToExample
    noise: float

    def random_map(self, element: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
        """Replaces `prompt` and `prompt_mask` [g l]; everything else stays.

        Args:
          element: windows of a sequence.
          rng: of this element.

        Returns:
          The element.
        """
        states = element['state'] + rng.normal(0, self.noise, element['state'].shape)
        tasks = self.example.records.meta.tasks
        pairs = [
            self.example.processor.prompt(tasks[n], state)
            for n, state in zip(element['text_id'], states, strict=True)
        ]
        tokens, mask = (np.stack(part) for part in zip(*pairs, strict=True))
        return {**element, 'prompt': tokens, 'prompt_mask': mask}
