"""A whole meta.json for tests that need only some of it."""

import dataclasses
from pathlib import Path
from typing import Any

from sigma_jax.data.shards.directory import Shards
from sigma_jax.data.shards.meta import META, Meta

SPLITS = ('train', 'calibration', 'test')


def meta(**changes: Any) -> Meta:
    """One window of one episode in the train split, of a robot with one joint and one camera."""
    plain = Meta(
        source='data',
        tokenizer='',
        source_version='v3.0',
        fps=30.0,
        camera_names=('up',),
        state_names=('pan',),
        action_names=('pan',),
        tasks=('lift',),
        near_constant={'state': (), 'actions': ()},
        splits={'train': (0,), 'calibration': (), 'test': ()},
        windows={'train': 1, 'calibration': 0, 'test': 0},
        dropped={name: {} for name in SPLITS},
        files={},
        versions={},
        source_digest='of the data',
        tokenizer_digest='',
        cameras=('observation.images.up',),
        image_size=28,
        horizon=16,
        chunk=8,
        stride=2,
        min_motion=0.0,
        min_action_norm=0.0,
        tail='drop',
        shard_size=512,
        split_fractions=(1.0, 0.0, 0.0),
        split_seed=0,
        train_episodes=(),
        calibration_episodes=(),
        test_episodes=(),
        max_prompt_len=48,
        max_text_len=16,
        state_dim=0,
        prompt_state_dim=0,
    )
    return dataclasses.replace(plain, **changes)


def write(folder: Path, **changes: Any) -> Shards:
    """The same as a folder that holds no more than meta.json."""
    folder.mkdir(exist_ok=True)
    shards = Shards(folder, meta(**changes))
    (folder / META).write_text(shards.meta.text())
    return shards
