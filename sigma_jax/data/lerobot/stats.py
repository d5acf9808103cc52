"""Statistics as LeRobot v3.0 stores them: min, max, mean, std, count and five quantiles.

Quantiles here are exact (LeRobot's own are histogram estimates under the same keys). Images are
summarised from 256-bin histograms per channel of evenly spaced frames, which makes their quantiles
exact for those frames too; values are scaled to 0..1, shape [3, 1, 1].
"""

from collections.abc import Mapping

import numpy as np

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}
KEYS = ('min', 'max', 'mean', 'std', 'count', *QUANTILES)
_LEVELS = 256
_IMAGE_SAMPLES = 24

Stats = dict[str, list]


def numeric_stats(values: np.ndarray) -> Stats:
    """Statistics over the frames of a vector, as LeRobot writes them.

    Args:
      values: [n, k], or [n], then k = 1.

    Returns:
      {key: list of length k}; `count` has length 1.
    """
    values = values.reshape(len(values), -1)
    real = values.astype(np.float64)
    stats = {
        'min': values.min(axis=0),
        'max': values.max(axis=0),
        'mean': real.mean(axis=0),
        'std': real.std(axis=0),
    }
    stats |= {key: np.quantile(real, level, axis=0) for key, level in QUANTILES.items()}
    return {key: [len(values)] if key == 'count' else stats[key].tolist() for key in KEYS}


def image_histogram(images: np.ndarray) -> np.ndarray:
    """Histogram of each channel over the `sampled_frames`.

    Args:
      images: uint8 [n, h, w, 3].

    Returns:
      int64 [3, 256].
    """
    chosen = images[sampled_frames(len(images))]
    return np.stack(
        [np.bincount(chosen[..., channel].reshape(-1), minlength=_LEVELS) for channel in range(3)]
    )


def sampled_frames(count: int) -> np.ndarray:
    """The frames that image statistics of an episode are taken from.

    Args:
      count: frames of the episode.

    Returns:
      Their numbers.
    """
    return np.unique(np.linspace(0, count - 1, min(count, _IMAGE_SAMPLES)).round().astype(int))


def image_stats(histogram: np.ndarray, frames: int) -> Stats:
    """Statistics of images from their histograms, values in 0..1.

    Args:
      histogram: [3, 256].
      frames: that it was taken over.

    Returns:
      {key: [3, 1, 1]}; `count` is the number of frames.
    """
    levels = np.arange(_LEVELS) / (_LEVELS - 1)
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    stats = {'mean': mean, 'std': np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))}
    stats['min'] = np.array([levels[np.flatnonzero(channel)[0]] for channel in histogram])
    stats['max'] = np.array([levels[np.flatnonzero(channel)[-1]] for channel in histogram])
    cumulative = np.cumsum(weights, axis=1)
    for key, level in QUANTILES.items():
        stats[key] = levels[(cumulative < level - 1e-12).sum(axis=1)]
    return {
        key: [frames] if key == 'count' else stats[key].reshape(3, 1, 1).tolist() for key in KEYS
    }


def flatten(stats: Mapping[str, Stats]) -> dict[str, list]:
    """The columns of meta/episodes.

    Args:
      stats: by feature.

    Returns:
      {'stats/<feature>/<key>': value}.
    """
    return {
        f'stats/{feature}/{key}': value
        for feature, entry in stats.items()
        for key, value in entry.items()
    }
