"""meta.json says where shards came from, how they were made and what is missing; planning opens no
video.
"""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.plan import DataConfig, make_plan
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.shards.resume import identity_of
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import compute_statistics, normalize, read_norm_stats
from tests.data_pipeline import damages, recordings

LENGTHS = (40, 17, 33, 24, 12)
PATHS = {'env_file'}  # a file of secrets shapes nothing


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    return recordings.record(tmp_path_factory.mktemp('source'), LENGTHS, kind='video')


def test_every_setting_and_every_origin_is_there(source, tmp_path) -> None:
    config = recordings.config(source, stride=8)
    meta = prepare(config, tmp_path / 'out').meta.to_json()
    assert {field.name for field in dataclasses.fields(DataConfig)} - PATHS <= meta.keys()
    assert {name: meta[name] for name in config.settings()} == config.settings()
    assert (meta['source'], meta['revision'], meta['source_version']) == (str(source), '', 'v2.1')
    assert (
        meta['tokenizer_digest'] == hashlib.sha256(Path(config.tokenizer).read_bytes()).hexdigest()
    )
    assert meta['source_digest'] == identity_of(config, source)['source_digest']
    assert meta['bad_episodes'] == {}


def test_no_window_vanishes_without_a_reason(source, tmp_path) -> None:
    """Every stride-th frame is the start of a window or is counted among those left out."""
    damaged = tmp_path / 'data'
    shutil.copytree(source, damaged)
    damages.keep(recordings.video_path(3, recordings.CAMERAS[1]), 0.5)(damaged)
    meta = prepare(
        recordings.config(damaged, min_motion=2.4, on_bad_episode='skip'), tmp_path / 'out'
    ).meta.to_json()
    assert list(meta['bad_episodes']) == ['3']
    for split in SPLITS:
        dropped = dict(meta['dropped'][split])
        starts = sum(len(range(0, LENGTHS[index], 4)) for index in meta['splits'][split])
        assert dropped.pop('bad episode', 0) == (3 in recordings_of(source, split))
        assert dropped.pop('episode shorter than the horizon', 0) == (4 in meta['splits'][split])
        assert meta['windows'][split] + sum(dropped.values()) == starts
    assert meta['dropped']['train']['avg_motion below min_motion'] > 0


def recordings_of(source: Path, split: str) -> list[int]:
    """The episodes that a split has before any is left out."""
    return make_plan(open_dataset(source), recordings.config(source)).splits[split]


def test_padded_tails_are_not_dropped(source) -> None:
    plan = make_plan(open_dataset(source), recordings.config(source, tail='pad'))
    assert [plan.dropped[split]['tail shorter than the horizon'] for split in SPLITS] == [0, 0, 0]


def test_plan_and_quantiles_need_no_video(source, tmp_path, monkeypatch) -> None:
    columns = tmp_path / 'columns'
    shutil.copytree(source, columns, ignore=shutil.ignore_patterns('*.mp4'))
    monkeypatch.setattr(av, 'open', lambda *_, **__: pytest.fail('a video was opened'))
    plan = make_plan(open_dataset(columns), recordings.config(columns))
    dataset = open_dataset(source)
    for quantity, name in (('state', 'state'), ('actions', 'actions')):
        rows = np.concatenate(
            [getattr(dataset.read_episode(i), name) for i in plan.splits['train']]
        ).astype(np.float64)
        assert np.array_equal(plan.statistics[quantity].q01, np.quantile(rows, 0.01, axis=0))
        assert np.array_equal(plan.statistics[quantity].q99, np.quantile(rows, 0.99, axis=0))


def test_a_joint_that_hardly_moves_is_reported_and_clamped(source, tmp_path) -> None:
    """Divided by its own range of 1e-6, a joint that moves once would be 1e6 in the loss (openpi
    #814).
    """
    still = tmp_path / 'still'
    shutil.copytree(source, still)
    for index, length in enumerate(LENGTHS):
        actions = open_dataset(source).read_episode(index).actions.copy()
        actions[:, 2] = 7 + 1e-7 * np.arange(length)
        recordings.edit_columns(still, index, action=list(actions))
    meta = prepare(recordings.config(still), tmp_path / 'out').meta.to_json()
    assert meta['near_constant'] == {'state': [], 'actions': ['joint_2.pos']}
    statistics = read_norm_stats(tmp_path / 'out' / 'norm_stats.json')['actions']
    moved = normalize(np.full(6, 8.0, np.float32), statistics)
    assert abs(moved[2] - normalize(np.full(6, 7.0, np.float32), statistics)[2]) <= 2.0
    assert compute_statistics(np.full((9, 1), 7.0)).near_constant.all()


def test_directories_from_before_a_setting_existed_are_still_finished(source, tmp_path) -> None:
    prepare(recordings.config(source), tmp_path / 'out')
    text = (tmp_path / 'out' / 'meta.json').read_text()
    assert text.count('"on_bad_episode": "error",\n') == 1
    (tmp_path / 'out' / 'meta.json').write_text(text.replace('  "on_bad_episode": "error",\n', ''))
    assert prepare(recordings.config(source), tmp_path / 'out').was_complete
    with pytest.raises(UserError, match='on_bad_episode=skip, got error'):
        prepare(recordings.config(source, on_bad_episode='skip'), tmp_path / 'out')


@pytest.mark.parametrize('name', ['meta.json', 'unfinished.json'])
@pytest.mark.parametrize('text', ['', '{"schema"', '[1]'])
def test_settings_that_cannot_be_read_are_reported(name: str, text: str, source, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f'{name}, got .*; delete'):
        prepare(recordings.config(source), tmp_path)
    assert (tmp_path / name).read_text() == text


def test_bad_episodes_move_no_other_to_another_split(source) -> None:
    plain = make_plan(open_dataset(source), recordings.config(source))
    without = make_plan(open_dataset(source), recordings.config(source), {0: 'damaged'})
    assert {s: [i for i in plain.splits[s] if i != 0] for s in SPLITS} == without.splits
    with pytest.raises(UserError, match='expected windows to train on, got none'):
        make_plan(
            open_dataset(source), recordings.config(source), dict.fromkeys(range(5), 'damaged')
        )
