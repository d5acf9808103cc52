"""One camera frame and joint reading as the base sees them: what its own library would hand to the
model.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from sigma_jax.errors import UserError
from sigma_jax.processing.images import bilinear, content_box, resize_with_pad, unit_range
from sigma_jax.processing.normalize import Statistics, normalize
from sigma_jax.processing.spec import PROMPT_LENGTH, ProcessorConfig
from sigma_jax.processing.tokenizer import Tokenizer, encode_parts, pad_tokens, prompt_parts


def model_inputs(
    frames: Mapping[str, UInt8[np.ndarray, 'h x 3']],
    state: Float[np.ndarray, ' p'],
    task: str,
    policy: ProcessorConfig,
    statistics: Mapping[str, Statistics],
    tokenizer: Tokenizer,
    image_size: int,
) -> dict[str, np.ndarray]:
    """`images` [i s s 3] in the model's units, `image_mask` [i], `prompt` [l], `prompt_mask` [l],
    `state` [p].

    Views come in the policy's order, under its names or those of its rename map; one that is absent
    from `frames` is black and masked. Where the policy names no cameras they come as in `frames`.
    `statistics` are in raw units, of the robot's width.

    Raises:
      UserError: a camera that the policy does not know, none at all, a prompt that is too long, or
        a state with NaN.
    """
    frames = {policy.view(name): frame for name, frame in frames.items()}
    names = policy.cameras or tuple(frames)
    if not frames or (unknown := sorted(set(frames) - set(names))):
        got = f'{unknown}' if frames else 'none'
        raise UserError(f'expected cameras out of {names}, got {got}; rename the views')
    black = np.full((image_size, image_size, 3), -1, np.float32)
    views = [
        model_view(frames[name], policy, image_size) if name in frames else black for name in names
    ]
    normalised = normalize(state, statistics['state'])
    parts = prompt_parts(task, normalised, policy.prompt_state_dim or 0)
    prompt, mask = pad_tokens(
        encode_parts(tokenizer, parts), policy.max_prompt_len or PROMPT_LENGTH
    )
    return {
        'images': np.stack(views),
        'image_mask': np.array([name in frames for name in names]),
        'prompt': prompt,
        'prompt_mask': mask,
        'state': np.asarray(normalised, np.float32),
    }


def model_view(
    frame: UInt8[np.ndarray, 'h x 3'], policy: ProcessorConfig, image_size: int
) -> Float[np.ndarray, 'image_size image_size 3']:
    """A frame resized in the policy's style, in the model's units; LeRobot's keeps its fractions of
    a grey level.
    """
    if frame.shape[:2] == (image_size, image_size):
        return unit_range(frame)
    top, left, rows, cols = content_box(frame.shape[:2], image_size, image_size)
    inside = (slice(top, top + rows), slice(left, left + cols))
    canvas = np.full((image_size, image_size, 3), policy.image_padding, np.float32)
    if policy.resize == 'lerobot':
        canvas[inside] = unit_range(bilinear(frame, rows, cols))
    else:
        canvas[inside] = unit_range(resize_with_pad(frame, image_size, image_size)[inside])
    return canvas
