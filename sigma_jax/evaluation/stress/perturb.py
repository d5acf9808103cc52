"""What goes wrong with a robot's senses: camera noise, dropped frames, delayed state, at three
levels each.

Pure numpy on batches of whole episodes, leaves [b g ...]. What happens to a window is keyed by
seed, episode and frame, so it depends neither on the batch nor on the order; a higher level makes
the same noise larger and drops a superset of the same frames.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

NumpyBatch = dict[str, np.ndarray]

STATE = ('state', 'prompt', 'prompt_mask')  # the prompt spells the state out


def camera_noise(batch: NumpyBatch, level: float, seed: int) -> NumpyBatch:
    """Normal noise on every pixel, clipped to what an image can hold.

    Args:
      batch: [b g ...].
      level: standard deviation, grey levels of 255.
      seed: of the noise.

    Returns:
      The batch.
    """
    images = batch['images']
    whole = images.dtype == np.uint8
    unit, low, high = (1.0, 0, 255) if whole else (2 / 255, -1, 1)
    noisy = np.empty_like(images)
    for at in np.ndindex(batch['episode'].shape):
        noise = generator(batch, at, seed, 1).standard_normal(images.shape[2:], np.float32)
        changed = images[at] + level * unit * noise
        noisy[at] = np.clip(np.rint(changed) if whole else changed, low, high)
    return batch | {'images': noisy}


def dropped_frames(batch: NumpyBatch, level: float, seed: int) -> NumpyBatch:
    """Black images, not masked: the policy does not know.

    Args:
      batch: [b g ...].
      level: probability of each camera's image, 0 to 1.
      seed: of the choice.

    Returns:
      The batch.
    """
    images = batch['images'].copy()
    for at in np.ndindex(batch['episode'].shape):
        lost = generator(batch, at, seed, 2).random(images.shape[2]) < level
        images[at][lost] = 0 if images.dtype == np.uint8 else -1
    return batch | {'images': images}


def delayed_state(batch: NumpyBatch, level: float, seed: int = 0) -> NumpyBatch:
    """State and prompt of an earlier window; at the beginning of an episode those of its first.

    Args:
      batch: [b g ...].
      level: windows that they are late.
      seed: not read.

    Returns:
      The batch.
    """
    index = np.arange(batch['reset'].shape[1])
    start = np.maximum.accumulate(np.where(batch['reset'], index, 0), axis=1)
    source = np.maximum(index - int(level), start)
    return batch | {
        key: np.stack([x[row] for x, row in zip(batch[key], source, strict=True)]) for key in STATE
    }


def generator(batch: NumpyBatch, at: tuple[int, ...], seed: int, kind: int) -> np.random.Generator:
    """The window's own random numbers.

    Args:
      batch: [b g ...].
      at: index of the window.
      seed: of all.
      kind: number of the perturbation.

    Returns:
      numpy's generator.
    """
    return np.random.default_rng([seed, kind, int(batch['episode'][at]), int(batch['frame'][at])])


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One kind at one level; call it with a batch."""

    kind: str
    level: float
    seed: int = 0

    def __call__(self, batch: NumpyBatch) -> NumpyBatch:
        """The perturbed batch.

        Args:
          batch: [b g ...].

        Returns:
          The batch.
        """
        return KINDS[self.kind](batch, self.level, self.seed)

    def name(self, stride: int) -> str:
        """The level in words.

        Args:
          stride: frames from one window to the next.

        Returns:
          Such as '30 %'.
        """
        return {
            'camera_noise': f'{self.level:g} grey levels',
            'dropped_frames': f'{100 * self.level:g} % of frames black',
            'delayed_state': f'{stride * self.level:g} frames old',
        }[self.kind]


KINDS: dict[str, Callable[[NumpyBatch, float, int], NumpyBatch]] = {
    'camera_noise': camera_noise,
    'dropped_frames': dropped_frames,
    'delayed_state': delayed_state,
}
# (ours)
LEVELS = {
    'camera_noise': (10, 25, 50),
    'dropped_frames': (0.1, 0.3, 0.6),
    'delayed_state': (1, 2, 4),
}


def every_level(seed: int = 0) -> list[Perturbation]:
    """Nine: three levels of three kinds.

    Args:
      seed: of all.

    Returns:
      The perturbations.
    """
    return [Perturbation(kind, level, seed) for kind, levels in LEVELS.items() for level in levels]
