"""Which episodes cannot be read: every frame that a window needs is decoded once, before anything
is planned.
"""

from collections.abc import Callable

from sigma_jax.data.shards.plan import DataConfig, chosen_episodes
from sigma_jax.data.shards.windows import cut_windows
from sigma_jax.data.sources import Dataset
from sigma_jax.errors import UserError


def find_bad_episodes(
    dataset: Dataset, config: DataConfig, progress: Callable[[int, int], None]
) -> dict[int, str]:
    """Tries to read every episode.

    Args:
      dataset: of `sources.open_source`.
      config: settings.
      progress: called with (episodes done, episodes in all).

    Returns:
      {episode: what is wrong with it}.
    """
    indices = sorted(index for part in chosen_episodes(dataset, config).values() for index in part)
    bad = {}
    for done, index in enumerate(indices, start=1):
        try:
            _read(dataset, config, index)
        except UserError as error:
            bad[index] = str(error).replace(f'{dataset.root}/', '')
        progress(done, len(indices))
    return bad


def _read(dataset: Dataset, config: DataConfig, index: int) -> None:
    episode = dataset.read_episode(index)
    rows = cut_windows(
        episode, horizon=config.horizon, stride=config.stride, tail=config.tail
    ).frame.tolist()
    for key in (*config.cameras, *config.depth, *filter(None, [config.audio])):
        for _ in episode.frames(key, rows):
            pass
