"""A LeRobot data set becomes shards, statistics and meta.json; stopping it anywhere loses nothing."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sigma_jax.data import images, shards
from sigma_jax.data.lerobot import Dataset, open_dataset
from sigma_jax.data.meta import META, SCHEMA, camera_names
from sigma_jax.data.normalize import norm_stats_json
from sigma_jax.data.plan import DataConfig, Plan, describe_statistics, file_digest, make_plan, source_digest
from sigma_jax.data.windows import Windows, first_windows
from sigma_jax.errors import UserError

UNFINISHED = 'unfinished.json'  # the settings of a preparation under way; gone when meta.json is there
NORM_STATS = 'norm_stats.json'
LATER = {'resize': 'openpi'}  # settings that older directories do not name, and what they were
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """What `prepare` hands back: the contents of meta.json, and whether they were there already."""

    meta: dict[str, Any]
    was_complete: bool


def prepare(config: DataConfig, out: str | Path, progress: Progress = lambda done, total: None) -> Result:
    """Writes the shards of `config.source` to `out` (the contents of meta.json list them).

    A run that was stopped continues where its last whole shard ended, and the files come out bitwise the same as
    without the stop. `progress` is called with (windows done, windows in all).

    Raises:
      UserError: bad source or settings, another writer, or a directory that holds something else.
    """
    out = Path(out)
    dataset = open_dataset(config.source)
    identity = _identity(config)
    with shards.writer_lock(out):
        finished = _existing(out, identity)
        if finished is not None:
            return Result(finished, was_complete=True)
        plan = make_plan(dataset, config)
        shards.write_text(out / UNFINISHED, _json(identity))
        shards.write_text(out / NORM_STATS, norm_stats_json(plan.statistics))
        meta = _write_splits(dataset, config, plan, out, progress)
        shards.write_text(out / META, _json(meta | identity))
        _clean_up(out)
        return Result(json.loads((out / META).read_text()), was_complete=False)


def _identity(config: DataConfig) -> dict[str, Any]:
    """What two preparations must share to have the same result."""
    digests = {'source_digest': source_digest(Path(config.source))}
    for name in ('tokenizer', 'stats_from'):
        path = Path(getattr(config, name))
        digests[f'{name}_digest'] = file_digest(path) if path.is_file() else str(getattr(config, name))
    return {'schema': SCHEMA, **digests, **config.settings()}


def _existing(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The finished meta.json, or None for a new or unfinished directory with the same settings."""
    meta_path, unfinished_path = out / META, out / UNFINISHED
    if meta_path.is_file():
        meta = json.loads(meta_path.read_text())
        _compare(meta, identity, out, 'finished')
        gone = [name for name in meta['files'] if not (out / name).is_file()]
        if gone:
            raise UserError(f'Expected {gone[0]} in {out}, got a directory without it; delete {out} and run again.')
        _clean_up(out)
        return meta
    if unfinished_path.is_file():
        _compare(json.loads(unfinished_path.read_text()), identity, out, 'unfinished')
        return None
    foreign = sorted(path.name for path in out.iterdir() if path.name not in (shards.LOCK, shards.INCOMING))
    if foreign:
        raise UserError(
            f'Expected a new or empty directory for --out, got {out} with {foreign[0]} in it; name another.'
        )
    return None


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], out: Path, state: str) -> None:
    for key in wanted:
        have = found.get(key, LATER.get(key))
        if have != wanted[key]:
            raise UserError(
                f'Expected the {state} preparation in {out} to have {key}={wanted[key]}, got {have}; '
                'name another --out, or delete this one to start over.'
            )


def _clean_up(out: Path) -> None:
    (out / UNFINISHED).unlink(missing_ok=True)
    shutil.rmtree(out / shards.INCOMING, ignore_errors=True)


def _write_splits(dataset: Dataset, config: DataConfig, plan: Plan, out: Path, progress: Progress) -> dict[str, Any]:
    cameras = camera_names(config.cameras)
    features = shards.window_features(
        cameras, config.image_size, len(dataset.state_names), len(dataset.action_names), config.horizon
    )
    total, done = sum(map(len, plan.windows.values())), 0
    layout: dict[str, tuple[list[int], int]] = {}
    files = [NORM_STATS]
    for split, table in plan.windows.items():
        parts = plan.shards(split, config.shard_size)
        paths = [out / shards.shard_file(split, i, len(parts)) for i in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            if not path.is_file():
                counted = _counted(_examples(dataset, config, part), done, total, progress)
                shards.write_shard(path, features, counted)
            done += len(part)
            progress(done, total)
        index = out / f'{split}-index.npz'
        shards.write_arrays(index, _index(table, config.stride, _task_list(dataset)))
        layout[split] = ([len(part) for part in parts], sum(path.stat().st_size for path in paths))
        files += [path.name for path in paths] + [index.name]
    shards.write_tfds_metadata(out, features, layout)
    return _meta(dataset, config, plan, {name: file_digest(out / name) for name in sorted(files)})


def _counted(examples: Iterator[Any], done: int, total: int, progress: Progress) -> Iterator[Any]:
    for i, example in enumerate(examples, start=1):
        yield example
        progress(done + i, total)


def _examples(dataset: Dataset, config: DataConfig, part: Windows) -> Iterator[dict[str, Any]]:
    """The records of some windows; each episode's frames are decoded once, only those at window starts kept."""
    names = camera_names(config.cameras)
    for index in dict.fromkeys(part.episode.tolist()):
        table = part.take(part.episode == index)
        episode = dataset.read_episode(index)
        streams = [episode.frames(camera, table.frame.tolist()) for camera in config.cameras]
        for i, views in enumerate(zip(*streams, strict=True)):
            sizes = config.image_size, config.image_size, config.resize
            encoded = [images.encode_jpeg(images.resize_with_pad(view, *sizes)) for view in views]
            yield {'images': dict(zip(names, encoded, strict=True)), **_fields(table, i)}


def _fields(table: Windows, i: int) -> dict[str, Any]:
    same = ('state', 'actions', 'action_mask', 'avg_action_l2', 'max_action_l2', 'avg_motion')
    fields = {name: getattr(table, name)[i] for name in same}
    return {
        **fields,
        'task': str(table.task[i]),
        'episode_index': int(table.episode[i]),
        'frame_index': int(table.frame[i]),
    }


def _camera_sizes(dataset: Dataset, config: DataConfig) -> dict[str, list[int]]:
    """{camera: [height, width]} of the source's pictures, as the first of them have it."""
    episode = dataset.read_episode(min(dataset.episodes))
    first = [next(iter(episode.frames(camera, [0]))) for camera in config.cameras]
    return {name: list(view.shape[:2]) for name, view in zip(camera_names(config.cameras), first, strict=True)}


def _index(table: Windows, stride: int, tasks: list[str]) -> dict[str, np.ndarray]:
    return {
        'episode': table.episode,
        'frame': table.frame,
        'text_id': np.array([tasks.index(task) for task in table.task], np.int64),
        'is_first': first_windows(table, stride),
        'avg_motion': table.avg_motion,
        'max_motion': table.max_motion,
    }


def _task_list(dataset: Dataset) -> list[str]:
    """Distinct instructions in the order of their task_index; the position is the text_id."""
    return list(dict.fromkeys(dataset.tasks[key] for key in sorted(dataset.tasks)))


def _meta(dataset: Dataset, config: DataConfig, plan: Plan, files: dict[str, str]) -> dict[str, Any]:
    joints = {'state': dataset.state_names, 'actions': dataset.action_names}
    return {
        'source': config.source,
        'tokenizer': config.tokenizer,
        'stats_from': config.stats_from,
        'source_version': dataset.version,
        'fps': dataset.fps,
        'camera_names': camera_names(config.cameras),
        'camera_sizes': _camera_sizes(dataset, config),
        'state_names': dataset.state_names,
        'action_names': dataset.action_names,
        'tasks': _task_list(dataset),
        'norm_stats': NORM_STATS,
        'near_constant': describe_statistics(plan.statistics, joints),
        'splits': plan.splits,
        'windows': {split: len(table) for split, table in plan.windows.items()},
        'dropped': plan.dropped,
        'files': files,
        'versions': {'tensorflow_datasets': tfds.__version__, 'numpy': np.__version__},
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + '\n'
