"""What meta.json says about a preparation: where the data came from, what was kept, what was
dropped and why.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sigma_jax.data.shards.meta import NORM_STATS, Meta, camera_names, typed
from sigma_jax.data.shards.modalities import describe_modalities
from sigma_jax.data.shards.plan import DataConfig, WindowPlan, describe_statistics
from sigma_jax.data.sources import Dataset


def describe(
    dataset: Dataset,
    config: DataConfig,
    plan: WindowPlan,
    files: dict[str, str],
    identity: Mapping[str, Any],
) -> Meta:
    """What becomes meta.json; `files` maps names to sha256, `identity` is `resume.identity_of`.

    Args:
      dataset: that was prepared.
      config: settings.
      plan: what was written.
      files: {name: sha256}.
      identity: of `resume.identity_of`.

    Returns:
      The contents of meta.json.
    """
    joints = {'state': dataset.state_names, 'actions': dataset.action_names}
    return Meta(
        source=config.source,
        tokenizer=config.tokenizer,
        stats_from=config.stats_from,
        revision=getattr(dataset, 'revision', ''),
        source_version=dataset.version,
        fps=dataset.fps,
        camera_names=tuple(camera_names(config.cameras)),
        camera_sizes=_camera_sizes(dataset, config, plan),
        state_names=tuple(dataset.state_names),
        action_names=tuple(dataset.action_names),
        tasks=tuple(task_list(dataset)),
        norm_stats=NORM_STATS,
        near_constant=describe_statistics(plan.statistics, joints),
        splits={split: tuple(episodes) for split, episodes in plan.splits.items()},
        episode_digests=dict(sorted(plan.digests.items())),
        windows={split: len(table) for split, table in plan.windows.items()},
        dropped=plan.dropped,
        bad_episodes=plan.bad,
        notes=tuple(plan.notes),
        files=files,
        versions={'tensorflow_datasets': tfds.__version__, 'numpy': np.__version__},
        **describe_modalities(dataset, config),
        **typed(identity),
    )


def task_list(dataset: Dataset) -> list[str]:
    """Distinct instructions in the order of their task_index; the position is the text_id.

    Args:
      dataset: of `sources.open_source`.

    Returns:
      The instructions.
    """
    return list(dict.fromkeys(dataset.tasks[key] for key in sorted(dataset.tasks)))


def _camera_sizes(
    dataset: Dataset, config: DataConfig, plan: WindowPlan
) -> dict[str, tuple[int, int]]:
    """{camera: [height, width]} of the source's images, as the first of them have it."""
    episode = dataset.read_episode(
        min(int(table.episode.min()) for table in plan.windows.values() if len(table))
    )
    first = [next(iter(episode.frames(camera, [0]))) for camera in config.cameras]
    return {
        name: (view.shape[0], view.shape[1])
        for name, view in zip(camera_names(config.cameras), first, strict=True)
    }
