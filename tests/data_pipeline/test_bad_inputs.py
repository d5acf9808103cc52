"""Every bad input ends in one sentence that names the place, or in a skip that meta.json counts."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sigma_jax.data.lerobot import safe_read
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.errors import UserError
from tests.data_pipeline import damages as d
from tests.data_pipeline import recordings
from tests.data_pipeline.bad_inputs import (
    CELLS,
    EPISODE,
    IMAGES,
    INFO,
    LISTS,
    NEW,
    OLD,
    ROWS,
    WHOLE,
)


@pytest.fixture(scope='module')
def intact(tmp_path_factory) -> dict[str, Path]:
    """The data sets by name, every one of episodes of 20, 25 and 30 frames."""
    images = recordings.record(tmp_path_factory.mktemp('images'), (20, d.LENGTH, 30))
    return {OLD: recordings.GOLDEN / OLD, NEW: recordings.GOLDEN / NEW, IMAGES: images}


@pytest.fixture(scope='module')
def expected(intact, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The shards of the data sets as they should be."""
    outs = {kind: tmp_path_factory.mktemp('out') / 'out' for kind in intact}
    for kind, root in intact.items():
        prepare(recordings.config(root, shard_size=2), outs[kind])
    return {
        kind: {path.name: path.read_bytes() for path in out.glob('sigma-*')}
        for kind, out in outs.items()
    }


def damaged(kind: str, damage: d.Damage, intact: dict[str, Path], folder: Path, **settings: str):
    """Settings for a damaged copy."""
    root = folder / 'data'
    shutil.copytree(intact[kind], root)
    damage(root)
    return recordings.config(root, shard_size=2, **settings)


def is_one_sentence(text: str) -> bool:
    return (
        text.startswith('expected')
        and ', got ' in text
        and not text.endswith('.')
        and '\n' not in text
    )


def test_the_table_is_long_enough() -> None:
    assert len(WHOLE) >= 60 and len(EPISODE) >= 60
    assert len(INFO) + len(LISTS) + len(ROWS) + len(CELLS) == len(WHOLE | EPISODE)


@pytest.mark.parametrize('name', WHOLE | EPISODE)
def test_damage_is_reported_in_one_sentence(
    name: str, intact, expected, tmp_path, monkeypatch
) -> None:
    kind, damage, words = (WHOLE | EPISODE)[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare(damaged(kind, damage, intact, tmp_path), tmp_path / 'out')
    assert words in str(caught.value)
    assert is_one_sentence(str(caught.value)), caught.value
    assert not (tmp_path / 'out' / 'meta.json').exists() and not (tmp_path / d.MARK).exists()
    for shard in (tmp_path / 'out').glob('sigma-*'):
        assert shard.read_bytes() == expected[kind][shard.name]  # what is there is whole


@pytest.mark.parametrize('name', EPISODE)
def test_a_bad_episode_can_be_left_out(name: str, intact, expected, tmp_path, monkeypatch) -> None:
    kind, damage, words = EPISODE[name]
    monkeypatch.chdir(tmp_path)
    config = damaged(kind, damage, intact, tmp_path, on_bad_episode='skip')
    meta = prepare(config, tmp_path / 'out').meta.to_json()
    assert list(meta['bad_episodes']) == ['1'] and words in meta['bad_episodes']['1']
    assert sum(meta['dropped'][split].get('bad episode', 0) for split in SPLITS) == 1
    assert sorted(index for split in SPLITS for index in meta['splits'][split]) == [0, 2]
    assert 1 not in np.concatenate(
        [open_shards(tmp_path / 'out').split(split).index.episode for split in SPLITS]
    )
    assert not (tmp_path / d.MARK).exists()


def test_a_parquet_file_that_claims_too_much_is_not_read(intact, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(safe_read, 'FREE_GROWTH', 2**20)
    config = damaged(
        OLD, d.table(d.PARQUET, {'action': ['0' * 2**23]}, compression='zstd'), intact, tmp_path
    )
    with pytest.raises(UserError, match='got a claim of 1 rows and 83886'):
        safe_read.read_parquet(Path(config.source) / d.PARQUET)
    assert safe_read.read_schema(Path(config.source) / d.PARQUET).names == ['action']
