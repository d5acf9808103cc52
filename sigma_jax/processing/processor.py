"""Observation -> the model's inputs, and its outputs -> raw actions: the same for training data and
for a robot.

The loader shows it windows of shards, a live policy camera frames. A frame of the model's size
passes as it is, so that both give the same bits. Otherwise they differ by what shards round: a
frame that was resized in LeRobot's style keeps its fractions of a grey level here and is rounded to
8 bits there (by 1/255 of the model's units at most), and shards hold JPEG.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sigma_jax.errors import UserError
from sigma_jax.processing.images import (
    BLACK,
    bilinear,
    content_box,
    padded_with,
    resize_with_pad,
    unit_range,
)
from sigma_jax.processing.normalize import Statistics, denormalize, first_joints, normalize
from sigma_jax.processing.spec import PROMPT_LENGTH, ProcessorConfig
from sigma_jax.processing.tokenizer import (
    Tokenizer,
    clean_task,
    encode_parts,
    pad_tokens,
)

TEXT_LENGTH = 48  # tokens of the task alone, where no shards say (ours)

Frame = UInt8[np.ndarray, 'h x 3']
Tokens = tuple[Int[np.ndarray, ' l'], Bool[np.ndarray, ' l']]  # ids, mask


class Prompt(Protocol):
    """How a kind of backbone writes its prompt."""

    def __call__(
        self, task: str, state: Float[np.ndarray, ' p'], width: int = 0
    ) -> tuple[str, ...]:
        """The texts of a prompt, each of which becomes ids of its own.

        Args:
          task: the instruction.
          state: normalised.
          width: numbers of a state in the prompt, zero-padded; 0: as many as there are; NO_STATE:
            none.

        Returns:
          The texts, in order.
        """


class Recorded(Protocol):
    """What shards say of their windows, as far as it counts here (`data/shards/meta.py`)."""

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Short names, in the order of the views."""

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """What the data set itself calls them."""

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""

    @property
    def prompt_state_dim(self) -> int:
        """Numbers of a state in its prompt."""

    @property
    def max_prompt_len(self) -> int:
        """Tokens of a prompt."""

    @property
    def max_text_len(self) -> int:
        """Tokens of a task alone."""


@dataclasses.dataclass(frozen=True)
class Processor:
    """What lies between a robot and a model; `of_shards` and `of_policy` make one.

    Attributes:
      config: the policy's settings, with `prompt_state_dim` and `max_prompt_len` decided.
      statistics: of 'state' and 'actions', raw units, of the robot's width, scaled as the policy
        uses them. 'actions' are read by `outputs` alone.
      tokenizer: the policy's.
      image_size: side of the model's images.
      write_prompt: the texts of its prompt; a backbone's kind knows them (`backbones.base`).
      cameras: the model's views in order, under the policy's names; (): as the frames come.
      max_text_len: tokens of the task alone.
      prompt_lengths: to which prompts are padded, ascending, the first that holds one; (): all to
        `config.max_prompt_len`. What is masked costs as much as what is not.
    """

    config: ProcessorConfig
    statistics: Mapping[str, Statistics]
    tokenizer: Tokenizer
    image_size: int
    write_prompt: Prompt
    cameras: tuple[str, ...] = ()
    max_text_len: int = TEXT_LENGTH
    prompt_lengths: tuple[int, ...] = ()

    def inputs(
        self,
        frames: Mapping[str, Frame] | UInt8[np.ndarray, 'i s s 3'],
        state: Float[np.ndarray, ' p'],
        task: str,
        prompt_length: int = 0,
    ) -> dict[str, np.ndarray]:
        """The fields of an Observation without a batch axis.

        Args:
          frames: by camera, under the policy's names or those of its rename map, any size; one that
            is absent is black and masked. Or all views in order, of the model's size already.
          state: the robot's reading, raw units.
          task: the instruction.
          prompt_length: tokens to which its prompt is padded at least.

        Returns:
          `images` [i s s 3] uint8, or float32 in [-1, 1] where a view is not in whole grey levels;
            `image_mask` [i]; `prompt`, `prompt_mask` [l]; `text`, `text_mask` [l2]; `state` [p]
            float32, normalised. Tokens are not to be written to.

        Raises:
          UserError: a camera that the policy does not know, none at all, a frame that is no 8-bit
            colour image, a state of another width or with NaN, a prompt or text that is too long.
        """
        images, image_mask = self.views(frames)
        normalised = self.normalized(state)
        prompt, text = self.prompt(task, normalised, prompt_length), self.text(task)
        return {
            'images': images,
            'image_mask': image_mask,
            'prompt': prompt[0],
            'prompt_mask': prompt[1],
            'text': text[0],
            'text_mask': text[1],
            'state': normalised.astype(np.float32),
        }

    def outputs(
        self, actions: Float[np.ndarray, '... t d'], state: Float[np.ndarray, '... p']
    ) -> Float[np.ndarray, '... t a']:
        """Raw actions from the model's own: padding dropped, scaled back, counted from the state.

        Args:
          actions: normalised, of the model's width.
          state: the reading that the observation had, raw units. Relative joints count from it: its
            first entries, one an action.

        Returns:
          Actions in raw units.
        """
        statistics = self.statistics['actions']
        width = len(statistics.mean)
        raw = denormalize(np.asarray(actions)[..., :width], statistics)
        relative = self.config.relative_joints[:width]
        if not any(relative):
            return raw
        return raw + np.where(relative, first_joints(state, width), 0)[..., None, :]

    def views(
        self, frames: Mapping[str, Frame] | UInt8[np.ndarray, 'i s s 3']
    ) -> tuple[np.ndarray, Bool[np.ndarray, ' i']]:
        """The model's views of some camera frames.

        Args:
          frames: as for `inputs`.

        Returns:
          images: [i s s 3], as `inputs` says.
          image_mask: true for cameras that are there.

        Raises:
          UserError: a camera that the policy does not know, none at all, or views of another shape.
        """
        size = self.image_size
        if isinstance(frames, np.ndarray):
            if frames.shape != (expected := (len(self.cameras) or len(frames), size, size, 3)):
                raise UserError(
                    f'expected views of shape {list(expected)}, got {list(frames.shape)}; '
                    'name the cameras of frames that are to be resized'
                )
            return frames, np.ones(len(frames), bool)
        frames = {self.config.view(name): frame for name, frame in frames.items()}
        names = self.cameras or tuple(frames)
        if not frames or (unknown := sorted(set(frames) - set(names))):
            got = f'{unknown}' if frames else 'none'
            raise UserError(f'expected cameras out of {names}, got {got}; rename the views')
        black = np.zeros((size, size, 3), np.uint8)
        views = [self.view(frames[name]) if name in frames else black for name in names]
        if any(view.dtype != np.uint8 for view in views):
            views = [unit_range(view) if view.dtype == np.uint8 else view for view in views]
        return np.stack(views), np.array([name in frames for name in names])

    def view(self, frame: Frame) -> np.ndarray:
        """A frame in the model's size.

        Args:
          frame: RGB, any size.

        Returns:
          [s s 3]: uint8, or float32 in [-1, 1] as `inputs` says.

        Raises:
          UserError: the frame is no 8-bit colour image.
        """
        size, padding = self.image_size, self.config.image_padding
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise UserError(
                f'expected a frame of uint8 [height width 3], got {frame.dtype} '
                f'{list(frame.shape)}; convert it'
            )
        if frame.shape[:2] == (size, size):
            return frame
        box = content_box(frame.shape[:2], size, size)
        if self.config.resize == 'openpi':
            small = resize_with_pad(frame, size, size)
            whole = padding == BLACK or box == (0, 0, size, size)
            return small if whole else padded_with(small, box, padding)
        top, left, rows, cols = box
        canvas = np.full((size, size, 3), padding, np.float32)
        canvas[top : top + rows, left : left + cols] = unit_range(bilinear(frame, rows, cols))
        return canvas

    def normalized(self, state: Float[np.ndarray, ' p']) -> Float[np.ndarray, ' p']:
        """A raw state in normalised units.

        Args:
          state: the robot's reading, raw units.

        Returns:
          Normalised, in the precision of the policy's formula.

        Raises:
          UserError: a state of another width than the statistics.
        """
        reading, statistics = np.asarray(state, np.float32), self.statistics['state']
        if reading.shape != statistics.mean.shape:
            raise UserError(
                f'expected a state of {len(statistics.mean)} numbers, got shape '
                f'{list(reading.shape)}; pass the joints that the statistics are of'
            )
        return normalize(reading, statistics)

    def prompt(self, task: str, state: Float[np.ndarray, ' p'], length: int = 0) -> Tokens:
        """The prompt as tokens.

        Args:
          task: the instruction.
          state: normalised.
          length: to which it is padded at least.

        Returns:
          ids: padded with 0.
          mask: true for real tokens.

        Raises:
          UserError: it is too long, or the state holds NaN.
        """
        parts = self.write_prompt(task, state, self.config.prompt_state_dim or 0)
        longest = self.config.max_prompt_len or PROMPT_LENGTH
        tokens, mask = _tokens(self.tokenizer, parts, longest, 'prompt')
        needed = max(length, int(mask.sum()))
        size = next((n for n in self.prompt_lengths if n >= needed), longest)
        return tokens[:size], mask[:size]

    def text(self, task: str) -> Tokens:
        """The task alone as tokens, which Sigma reads.

        Args:
          task: the instruction.

        Returns:
          ids: padded with 0.
          mask: true for real tokens.

        Raises:
          UserError: it is too long.
        """
        return _tokens(self.tokenizer, (clean_task(task),), self.max_text_len, 'text')


def of_policy(
    config: ProcessorConfig,
    statistics: Mapping[str, Statistics],
    tokenizer: Tokenizer,
    image_size: int,
    prompt: Prompt,
    *,
    prompt_lengths: tuple[int, ...] = (),
) -> Processor:
    """The processor of a policy that comes without shards.

    What its settings leave open is decided as pi0.5 has it: a prompt of 200 tokens with the robot's
    own joints.

    Args:
      config: the policy's settings.
      statistics: of 'state' and 'actions', raw units.
      tokenizer: the policy's.
      image_size: side of the model's images, pixels.
      prompt: how its kind writes one.
      prompt_lengths: to which prompts are padded, as far as they are shorter than the longest.

    Returns:
      The processor.
    """
    longest = config.max_prompt_len or PROMPT_LENGTH
    state_dim = config.prompt_state_dim or 0
    config = dataclasses.replace(config, prompt_state_dim=state_dim, max_prompt_len=longest)
    shorter = tuple(n for n in sorted(prompt_lengths) if n < longest)
    return Processor(
        config,
        statistics,
        tokenizer,
        image_size,
        prompt,
        config.cameras,
        longest,  # nothing of it reads a task alone: the prompt bounds it
        prompt_lengths=(*shorter, longest) if shorter else (),
    )


def of_shards(
    config: ProcessorConfig,
    statistics: Mapping[str, Statistics],
    tokenizer: Tokenizer,
    meta: Recorded,
    prompt: Prompt,
    *,
    reads_text: bool = True,
) -> Processor:
    """The processor of a policy on the robot that some shards were recorded with.

    Views, image size and token lengths are those of the shards; see `cut_with` for the prompt.

    Args:
      config: the policy's settings.
      statistics: of 'state' and 'actions', raw units.
      tokenizer: the policy's.
      meta: what the shards say.
      prompt: how its kind writes one.
      reads_text: whether a task alone is read, as a Sigma does; else the prompt alone bounds it.

    Returns:
      The processor.
    """
    pairs = zip(meta.camera_names, meta.camera_keys, strict=True)
    cut = cut_with(config, meta)
    return Processor(
        cut,
        statistics,
        tokenizer,
        meta.image_size,
        prompt,
        tuple(config.view(name, key) for name, key in pairs),
        meta.max_text_len if reads_text else cut.max_prompt_len or PROMPT_LENGTH,
    )


def cut_with(config: ProcessorConfig, meta: Recorded) -> ProcessorConfig:
    """The policy's settings with the prompt that it has on shards.

    What the policy leaves open is as the shards were prepared, and no prompt is padded beyond
    theirs.

    Args:
      config: the policy's settings.
      meta: what the shards say.

    Returns:
      Settings with `prompt_state_dim` and `max_prompt_len` decided.
    """
    known, longest = config.prompt_state_dim, config.max_prompt_len
    length = meta.max_prompt_len
    return dataclasses.replace(
        config,
        prompt_state_dim=meta.prompt_state_dim if known is None else known,
        max_prompt_len=length if longest is None else min(length, longest),
    )


@functools.lru_cache(maxsize=2**16)  # at most 65 MB a process; windows come back every epoch
def _tokens(tokenizer: Tokenizer, parts: tuple[str, ...], length: int, what: str) -> Tokens:
    """Padded ids of a prompt or text, not to be written to."""
    ids = encode_parts(tokenizer, parts)
    if len(ids) > length:
        raise UserError(
            f'expected a {what} of at most {length} tokens, as many as the policy reads, got '
            f'{len(ids)}; shorten the task'
        )
    tokens, mask = pad_tokens(ids, length)
    tokens.flags.writeable = mask.flags.writeable = False
    return tokens, mask
