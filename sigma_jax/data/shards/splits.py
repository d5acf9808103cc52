"""Which episodes are for training, which for choosing, which for the one last reading
(docs/design.md, "Episode splits").
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.errors import UserError


def split_episodes(
    episodes: Sequence[int],
    fractions: Sequence[float],
    seed: int,
    explicit: Mapping[str, Sequence[int]],
) -> dict[str, list[int]]:
    """Divides episodes into train, calibration and test (docs/design.md, "Episode splits").

    With any `explicit` list given, those lists are the split. Otherwise a shuffle keyed by `seed`
    is cut by `fractions`; every split with a positive fraction gets at least one episode.

    Args:
      episodes: that there are.
      fractions: of train, calibration and test.
      seed: of the shuffle.
      explicit: {split: episodes}.

    Returns:
      {split: ascending episodes}.

    Raises:
      UserError: fractions that do not add up to 1, too few episodes, unknown or repeated episodes.
    """
    if any(len(chosen) for chosen in explicit.values()):
        return _explicit(episodes, explicit)
    if (
        len(fractions) != len(SPLITS)
        or min(fractions) < 0
        or abs(sum(fractions) - 1) > 1e-6
        or fractions[0] == 0
    ):
        raise UserError(
            f'expected data.split_fractions for {", ".join(SPLITS)} that add up to 1, '
            f'got {tuple(fractions)}; correct them'
        )
    held_out = [
        max(1, round(fraction * len(episodes))) if fraction else 0 for fraction in fractions[1:]
    ]
    if sum(held_out) >= len(episodes):
        raise UserError(
            f'expected more than {sum(held_out)} episodes for the split {tuple(fractions)}, got '
            f'{len(episodes)}; record more or set a fraction to 0'
        )
    order = np.random.default_rng(seed).permutation(np.sort(np.asarray(episodes)))
    cuts = np.cumsum([len(order) - sum(held_out), held_out[0]])
    return {
        name: sorted(map(int, part))
        for name, part in zip(SPLITS, np.split(order, cuts), strict=True)
    }


def _explicit(
    episodes: Sequence[int], explicit: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    chosen = [int(index) for name in SPLITS for index in explicit.get(name, ())]
    unknown = sorted(set(chosen) - set(episodes))
    if unknown or len(set(chosen)) != len(chosen) or not explicit.get('train'):
        problem = (
            f'unknown {unknown}'
            if unknown
            else 'a repeated one'
            if explicit.get('train')
            else 'none for train'
        )
        raise UserError(
            f'expected episode lists without overlap out of {min(episodes)} to {max(episodes)}, '
            f'got {problem}; correct data.train_episodes, data.calibration_episodes and '
            'data.test_episodes'
        )
    return {name: sorted(map(int, explicit.get(name, ()))) for name in SPLITS}
