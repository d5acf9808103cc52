"""`.pt` shards as a data set of episodes, so that they can be prepared like any other.

A shard knows states and images only at the first frame of each window. Windows of one episode
that overlap or touch, one stride apart, become one episode here; between their starts the last
state stands. Cut again with the horizon and stride of the shards, exactly the same windows come
out; at any other frame there is no image, and reading one raises UserError. Where windows were
dropped an episode ends and a new one begins, and windows that name no episode are one each. A split
by episodes may then part neighbours, even overlapping ones: name the episodes of each split
explicitly (`origins` says which of these episodes were one).
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sigma_jax.data.episode import Episode, check_episode
from sigma_jax.data.lerobot.joints import MAX_WIDTH
from sigma_jax.data.pt import shards
from sigma_jax.data.pt.shards import TorchSettings, TorchWindow
from sigma_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Known:
    """A window without its images, and where they are: shard and place in it."""

    window: TorchWindow
    shard: Path
    place: int


@dataclasses.dataclass(frozen=True)
class TorchDataset:
    """An opened folder of shards; images are read when they are asked for, a shard at a time."""

    root: Path
    version: str
    fps: float
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    tasks: Mapping[int, str]
    episodes: Mapping[int, tuple[Known, ...]]
    settings: TorchSettings

    @property
    def origins(self) -> dict[int, int]:
        """The episode that each of these came from, as the shards number it; -1 where they do not
        say.
        """
        return {index: run[0].window.episode for index, run in self.episodes.items()}

    def read_episode(self, index: int) -> Episode:
        """Joins the windows of an episode.

        Args:
          index: one of `episodes`.

        Returns:
          The episode.

        Raises:
          UserError: no such episode, or numbers that are not finite.
        """
        if index not in self.episodes:
            raise UserError(
                f'expected an episode of {self.root} (0 to {len(self.episodes) - 1}), got {index}; '
                'correct the episode lists'
            )
        run = self.episodes[index]
        starts = [known.window.frame - run[0].window.frame for known in run]
        length = max(start + _real(known) for start, known in zip(starts, run, strict=True))
        state = np.zeros((length, len(self.state_names)), np.float32)
        actions = np.zeros((length, len(self.action_names)), np.float32)
        for start, known in zip(starts, run, strict=True):
            state[start:] = known.window.state
            actions[start : start + _real(known)] = known.window.actions[: _real(known)]
        tasks = [
            run[int(np.searchsorted(starts, row, side='right')) - 1].window.text
            for row in range(length)
        ]
        places = dict(zip(starts, run, strict=True))
        readers = {
            name: functools.partial(self._frames, index, n, places)
            for n, name in enumerate(self.cameras)
        }
        times, rows = np.arange(length) / self.fps, np.arange(length)
        episode = Episode(index, state, actions, times, rows, tuple(tasks), readers)
        check_episode(episode, self.fps)
        return episode

    def _frames(
        self, index: int, camera: int, places: Mapping[int, Known], rows: Sequence[int]
    ) -> Iterator[np.ndarray]:
        for row in rows:
            if int(row) not in places:
                raise UserError(
                    f'expected a frame of episode {index} where a window of {self.root} starts '
                    f'({sorted(places)[:6]}), got {row}; set data.horizon and data.stride to '
                    "those of the shards, and data.tail to 'drop'"
                )
            known = places[int(row)]
            shard = _shard(
                known.shard, self.settings.channels_first, tuple(self.settings.keys.items())
            )
            yield shard[known.place].images[camera]


@functools.lru_cache(maxsize=1)
def _shard(
    path: Path, channels_first: bool, keys: tuple[tuple[str, str], ...]
) -> list[TorchWindow]:
    """The shard in use; rows of an episode follow each other, so one is enough."""
    return shards.read_shard(path, TorchSettings(keys=dict(keys), channels_first=channels_first))


def open_torch_shards(
    folder: str | Path, settings: TorchSettings = TorchSettings()
) -> TorchDataset:
    """Reads all windows of a folder of `.pt` shards, and keeps all but their images.

    Args:
      folder: of `shard_*.pt`.
      settings: names and units.

    Returns:
      The data set.

    Raises:
      UserError: as `shards.read_windows`; no frame rate; windows of different shapes, or too wide.
    """
    root = Path(folder)
    about = shards.read_about(root)
    of = None if about is None else about.shards
    known, views = _read(root, settings)
    runs = _runs(known, of.stride if of else 0)
    fps = float((of and of.fps) or settings.fps)
    if not (np.isfinite(fps) and fps > 0):
        raise UserError(
            f'expected frames a second in data.torch_shards.fps, got {fps:g}; {root} '
            'does not say them'
        )
    first = known[0].window
    widths = {'state': len(first.state), 'action': len(first.actions[0])}
    if max(widths.values()) > MAX_WIDTH:
        raise UserError(
            f'expected states and actions of 1 to {MAX_WIDTH} numbers, got {widths}; '
            'pi0.5 takes no more'
        )
    texts = list(dict.fromkeys([*(of.tasks if of else ()), *(one.window.text for one in known)]))
    return TorchDataset(
        root=root,
        version=f'.pt shards of layout {shards.LAYOUT}' if of else '.pt shards',
        fps=fps,
        cameras=tuple((of and of.cameras) or (f'observation.images.{n}' for n in range(views))),
        state_names=tuple(
            (of and of.state_names) or (f'state.{n}' for n in range(widths['state']))
        ),
        action_names=tuple(
            (of and of.action_names) or (f'action.{n}' for n in range(widths['action']))
        ),
        tasks=dict(enumerate(texts)),
        episodes=dict(enumerate(runs)),
        settings=settings,
    )


def _read(root: Path, settings: TorchSettings) -> tuple[list[Known], int]:
    """All windows without images, and how many views they have."""
    known, shapes = [], {}
    for path in shards.list_shards(root):
        for place, window in enumerate(shards.read_shard(path, settings)):
            shapes[len(window.images), window.state.shape, window.actions.shape] = (
                f'sample {place} of {path}'
            )
            bare = dataclasses.replace(window, images=np.zeros((0, 0, 0, 3), np.uint8), base=None)
            known.append(Known(bare, path, place))
    if len(shapes) != 1:
        raise UserError(
            f'expected windows of one shape (views, state, actions) in {root}, got '
            f'{shapes or "none"}; save them apart'
        )
    return known, next(iter(shapes))[0]


def _runs(known: list[Known], stride: int) -> list[tuple[Known, ...]]:
    """Windows `stride` frames apart (0: the smallest step), by episode and frame; those of no
    episode alone.
    """
    named = sorted(
        (one for one in known if one.window.episode >= 0),
        key=lambda k: (k.window.episode, k.window.frame),
    )
    pairs = [(a, b) for a, b in itertools.pairwise(named) if a.window.episode == b.window.episode]
    stride = stride or min((b.window.frame - a.window.frame for a, b in pairs), default=1)
    joined = {id(b) for a, b in pairs if b.window.frame - a.window.frame == stride <= _real(a)}
    runs: list[list[Known]] = []
    for one in named:
        if id(one) in joined:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [tuple(run) for run in runs] + [(one,) for one in known if one.window.episode < 0]


def _real(known: Known) -> int:
    """How many actions of a window are no padding."""
    return int(known.window.action_mask.sum())
