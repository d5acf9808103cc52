"""Record numbers to the loader's dictionaries: pictures, prompt, state and what else a window
holds.
"""

import dataclasses
import functools

import grain
import numpy as np
from jaxtyping import Float, Int

from sigma_jax.data.loader.sequences import PADDING
from sigma_jax.data.shards.records import Record, Records
from sigma_jax.processing.images import Box, padded_with
from sigma_jax.processing.normalize import Statistics, normalize
from sigma_jax.processing.spec import OURS, ProcessorConfig
from sigma_jax.processing.tokenizer import (
    Tokenizer,
    clean_task,
    encode_parts,
    pad_tokens,
    prompt_parts,
)

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
    policy: ProcessorConfig = OURS

    def map(self, element: Int[np.ndarray, ' g']) -> NumpyBatch:
        """Loads, normalises and tokenises; padding repeats a real window, so that no value is out
        of range.
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

    def prompt(self, task: str, state: Float[np.ndarray, ' p']) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [l], mask [l]) of pi0.5's prompt for a normalised state."""
        known, longest = (
            self.policy.prompt_state_dim,
            self.policy.max_prompt_len or self.max_prompt_len,
        )
        parts = prompt_parts(
            task, state, self.records.meta['prompt_state_dim'] if known is None else known
        )
        return _tokens(self.tokenizer, parts, min(self.max_prompt_len, longest))

    @functools.cached_property
    def texts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(tokens [l], mask [l]) of every task on its own."""
        tasks = [clean_task(task) for task in self.records.meta['tasks']]
        return [
            pad_tokens(self.tokenizer.encode(task), self.max_text_len, 'text') for task in tasks
        ]

    def _load(self, number: int) -> NumpyBatch:
        record, index, meta = self.records[number], self.records.index, self.records.meta
        text_id = index.text_id[number]
        state = normalize(record.state, self.statistics)
        prompt, text = self.prompt(meta['tasks'][text_id], state), self.texts[text_id]
        return {
            'images': record.images,
            'image_mask': np.ones(len(record.images), bool),
            'prompt': prompt[0],
            'prompt_mask': prompt[1],
            'text': text[0],
            'text_mask': text[1],
            'state': state.astype(np.float32),
            'actions': record.actions,
            'action_mask': record.action_mask,
            'base': np.zeros_like(record.actions) if self.base is None else self.base[number],
            'text_id': np.int32(text_id),
            'episode': np.int32(index.episode[number]),
            'frame': np.int32(index.frame[number]),
            **self._optional(record),
        }

    def _optional(self, record: Record) -> NumpyBatch:
        """What only some data sets have: `depth` in metres and its mask (off where a map has no
        reading), `audio`.
        """
        found: NumpyBatch = {}
        if record.depth is not None:
            found['depth'] = record.depth * np.float32(self.records.meta['depth_scale'])
            found['depth_mask'] = np.array([reading.any() for reading in record.depth])
        if record.audio is not None:
            found['audio'] = record.audio
        return found


@functools.lru_cache(maxsize=2**16)  # at most 65 MB a process; windows come back every epoch
def _tokens(
    tokenizer: Tokenizer, parts: tuple[str, ...], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [l], mask [l]) of a prompt, not to be written to."""
    tokens, mask = pad_tokens(encode_parts(tokenizer, parts), length)
    tokens.flags.writeable = mask.flags.writeable = False
    return tokens, mask


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    """np.stack, but without a copy of a single part: runs of one window are the rule for flow
    matching.
    """
    return (
        parts[0][None] if len(parts) == 1 and isinstance(parts[0], np.ndarray) else np.stack(parts)
    )


@dataclasses.dataclass(frozen=True)
class Pad(grain.transforms.Map):
    """Turns uint8 pictures into float32 in the model's units, with `padding` beside each one's
    box.
    """

    boxes: tuple[Box, ...]
    padding: float

    def map(self, element: NumpyBatch) -> NumpyBatch:
        """Replaces `images` [g i h x 3]; everything else stays."""
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
        """Replaces `prompt` and `prompt_mask` [g l]; everything else stays."""
        states = element['state'] + rng.normal(0, self.noise, element['state'].shape)
        tasks = self.example.records.meta['tasks']
        pairs = [
            self.example.prompt(tasks[n], state)
            for n, state in zip(element['text_id'], states, strict=True)
        ]
        tokens, mask = (np.stack(part) for part in zip(*pairs, strict=True))
        return {**element, 'prompt': tokens, 'prompt_mask': mask}
