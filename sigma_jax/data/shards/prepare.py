"""A data set becomes shards, statistics and meta.json; stopping it anywhere loses nothing."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sigma_jax.data.shards import tfds
from sigma_jax.data.shards.bad_episodes import find_bad_episodes
from sigma_jax.data.shards.describe import describe, task_list
from sigma_jax.data.shards.file_digests import file_digest
from sigma_jax.data.shards.meta import META, NORM_STATS, Meta, camera_names
from sigma_jax.data.shards.modalities import check_modalities, record_features, record_fields
from sigma_jax.data.shards.plan import DataConfig, WindowPlan, make_plan
from sigma_jax.data.shards.resume import (
    clean_up,
    finished_meta,
    identity_of,
    known_bad,
    write_unfinished,
)
from sigma_jax.data.shards.windows import WindowTable, first_windows
from sigma_jax.data.sources import Dataset, open_source
from sigma_jax.data.video.spare_frames import spare_notes
from sigma_jax.processing import images
from sigma_jax.processing.images import STYLES
from sigma_jax.processing.normalize import norm_stats_json

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Reports nothing.

    Args:
      done: not read.
      total: not read.
    """


def welcome(dataset: Dataset) -> None:
    """Accepts any data set.

    Args:
      dataset: not read.
    """


@dataclasses.dataclass(frozen=True)
class Result:
    """What `prepare` hands back: what meta.json says, and whether it was there already."""

    meta: Meta
    was_complete: bool


def prepare(
    config: DataConfig,
    out: str | Path,
    progress: Progress = silent,
    checking: Progress = silent,
    accept: Callable[[Dataset], None] = welcome,
) -> Result:
    """Writes the shards of a data set; a stopped run continues where its last complete shard ended.

    The files come out bitwise the same as without the stop.

    Args:
      config: settings.
      out: the folder.
      progress: called with (windows done, windows in all).
      checking: called with (episodes done, episodes in all) where `config.on_bad_episode` is 'skip'
        and every episode is tried first.
      accept: gets the opened data set before anything is written, and may raise.

    Returns:
      What was written.

    Raises:
      UserError: bad source or settings, another writer, a full disk, or a directory that holds
        something else.
    """
    out, config = Path(out), dataclasses.replace(config, resize=config.resize or STYLES[0])
    dataset = open_source(config.source, config)
    accept(dataset)
    identity = identity_of(config, dataset.root)
    with tfds.disk_full_as_user_error(out), tfds.writer_lock(out):
        finished = finished_meta(out, identity, dataset.root)
        if finished is not None:
            return Result(finished, was_complete=True)
        check_modalities(dataset, config)
        plan = make_plan(dataset, config, _bad_episodes(dataset, config, out, checking))
        spare = spare_notes(dataset, (*config.cameras, *config.depth))
        plan = dataclasses.replace(plan, notes=(*plan.notes, *spare))
        write_unfinished(out, identity, plan.bad)
        tfds.write_text(out / NORM_STATS, norm_stats_json(plan.statistics))
        files = _write_splits(dataset, config, plan, out, progress)
        meta = describe(dataset, config, plan, files, identity)
        tfds.write_text(out / META, meta.text())
        clean_up(out)
        return Result(meta, was_complete=False)


def _bad_episodes(
    dataset: Dataset, config: DataConfig, out: Path, checking: Progress
) -> dict[int, str]:
    """Episodes to leave out; what a stopped run has found is not looked for again."""
    if config.on_bad_episode == 'error':
        return {}
    known = known_bad(out)
    return find_bad_episodes(dataset, config, checking) if known is None else known


def _write_splits(
    dataset: Dataset, config: DataConfig, plan: WindowPlan, out: Path, progress: Progress
) -> dict[str, str]:
    """Writes all files but meta.json; returns their sha256."""
    cameras, widths = (
        camera_names(config.cameras),
        (len(dataset.state_names), len(dataset.action_names)),
    )
    optional = record_features(dataset, config)
    features = tfds.window_features(cameras, config.image_size, *widths, config.horizon, **optional)
    total, done = sum(map(len, plan.windows.values())), 0
    layout: dict[str, tuple[list[int], int]] = {}
    files = [NORM_STATS]
    for split, table in plan.windows.items():
        parts = plan.shards(split, config.shard_size)
        paths = [out / tfds.shard_file(split, i, len(parts)) for i in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            if not path.is_file():
                counted = _counted(_examples(dataset, config, part), done, total, progress)
                tfds.write_shard(path, features, counted)
            done += len(part)
            progress(done, total)
        index = out / f'{split}-index.npz'
        tfds.write_arrays(index, _index(table, config.stride, task_list(dataset)))
        layout[split] = ([len(part) for part in parts], sum(path.stat().st_size for path in paths))
        files += [path.name for path in paths] + [index.name]
    tfds.write_tfds_metadata(out, features, layout)
    return {name: file_digest(out / name) for name in sorted(files)}


def _counted(examples: Iterator[Any], done: int, total: int, progress: Progress) -> Iterator[Any]:
    for i, example in enumerate(examples, start=1):
        yield example
        progress(done + i, total)


def _examples(dataset: Dataset, config: DataConfig, part: WindowTable) -> Iterator[dict[str, Any]]:
    """The records of some windows; each episode's frames are decoded once, only those at window
    starts kept.
    """
    names = camera_names(config.cameras)
    for index in dict.fromkeys(part.episode.tolist()):
        table = part.take(part.episode == index)
        episode = dataset.read_episode(index)
        rows = table.frame.tolist()
        streams = zip(*[episode.frames(camera, rows) for camera in config.cameras], strict=True)
        for i, (views, optional) in enumerate(
            zip(streams, record_fields(episode, rows, config), strict=True)
        ):
            sizes = config.image_size, config.image_size, config.resize
            encoded = [images.encode_jpeg(images.resize_with_pad(view, *sizes)) for view in views]
            yield {
                'images': dict(zip(names, encoded, strict=True)),
                **_fields(table, i),
                **optional,
            }


def _fields(table: WindowTable, i: int) -> dict[str, Any]:
    same = ('state', 'actions', 'action_mask', 'avg_action_l2', 'max_action_l2', 'avg_motion')
    fields = {name: getattr(table, name)[i] for name in same}
    return {
        **fields,
        'task': str(table.task[i]),
        'episode_index': int(table.episode[i]),
        'frame_index': int(table.frame[i]),
    }


def _index(table: WindowTable, stride: int, tasks: list[str]) -> dict[str, np.ndarray]:
    return {
        'episode': table.episode,
        'frame': table.frame,
        'text_id': np.array([tasks.index(task) for task in table.task], np.int64),
        'is_first': first_windows(table, stride),
        'avg_motion': table.avg_motion,
        'max_motion': table.max_motion,
    }
