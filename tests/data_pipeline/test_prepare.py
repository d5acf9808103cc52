"""Shards hold what was recorded, TFDS reads them, and a finished or foreign directory is left
alone.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.shards.tfds import SPLITS, incoming, writer_lock
from sigma_jax.errors import UserError
from sigma_jax.processing.images import encode_jpeg, resize_with_pad
from sigma_jax.processing.normalize import read_norm_stats
from tests.data_pipeline import recordings

LENGTHS = (40, 17, 33, 24, 12)


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    return recordings.record(tmp_path_factory.mktemp('source'), LENGTHS)


@pytest.fixture(scope='module')
def out(source: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('shards') / 'out'
    prepare(recordings.config(source, shard_size=3), path)
    return path


def contents(path: Path) -> dict[str, str]:
    """Digests of everything a preparation leaves behind."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.iterdir()
        if file.name != '.lock'
    }


def test_tfds_reads_the_shards_without_tensorflow(out: Path, source: Path) -> None:
    dataset, count = open_dataset(source), 0
    for split in SPLITS:
        windows = tfds.builder_from_directory(str(out)).as_data_source(split)
        assert len(windows) == open_shards(out).split(split).windows
        for window in windows:
            episode, frame = dataset.read_episode(window['episode_index']), window['frame_index']
            assert np.array_equal(window['actions'], episode.actions[frame : frame + 16])
            assert np.array_equal(window['state'], episode.state[frame])
            assert window['task'].decode() == episode.tasks[frame]
            for name, camera in (('up', recordings.CAMERAS[0]), ('side', recordings.CAMERAS[1])):
                expected = resize_with_pad(
                    recordings.camera_image(episode.index, frame, camera), 32, 32
                ).astype(int)
                assert np.abs(window['images'][name] - expected).mean() < 2
            count += 1
    assert count == sum(len(range(0, length - 15, 4)) for length in LENGTHS)


def test_images_are_stored_as_encoded_by_us(out: Path) -> None:
    skip = {'images': {'up': tfds.decode.SkipDecoding(), 'side': tfds.decode.SkipDecoding()}}
    window = tfds.builder_from_directory(str(out)).as_data_source('train', decoders=skip)[0]
    image = recordings.camera_image(
        window['episode_index'], window['frame_index'], recordings.CAMERAS[0]
    )
    assert window['images']['up'] == encode_jpeg(resize_with_pad(image, 32, 32))


def test_meta_tells_settings_counts_and_digests(out: Path) -> None:
    meta = open_shards(out).meta.to_json()
    assert sorted(index for split in SPLITS for index in meta['splits'][split]) == [0, 1, 2, 3, 4]
    assert [len(meta['splits'][split]) for split in SPLITS] == [3, 1, 1]
    assert sum(meta['dropped'][split]['episode shorter than the horizon'] for split in SPLITS) == 1
    assert (meta['stride'], meta['fps'], meta['camera_names']) == (4, 30, ['up', 'side'])
    assert meta['tasks'] == list(recordings.TASKS)
    for name, digest in meta['files'].items():
        assert contents(out)[name] == digest


def test_statistics_cover_every_frame_of_train_episodes_only(out: Path, source: Path) -> None:
    dataset = open_dataset(source)
    states = np.concatenate(
        [dataset.read_episode(i).state for i in open_shards(out).split('train').episodes]
    )
    found = read_norm_stats(out / 'norm_stats.json')['state']
    np.testing.assert_allclose(
        found.q01, np.quantile(states.astype(np.float64), 0.01, axis=0), rtol=1e-12
    )
    np.testing.assert_allclose(
        found.q99, np.quantile(states.astype(np.float64), 0.99, axis=0), rtol=1e-12
    )


def test_motion_filter_touches_training_windows_only(source: Path, tmp_path) -> None:
    meta = prepare(recordings.config(source, min_motion=2.4), tmp_path / 'filtered').meta.to_json()
    plain = prepare(recordings.config(source), tmp_path / 'plain').meta.to_json()
    lost = plain['windows']['train'] - meta['windows']['train']
    assert 0 < lost == meta['dropped']['train']['avg_motion below min_motion']
    assert {s: meta['windows'][s] for s in SPLITS[1:]} == {
        s: plain['windows'][s] for s in SPLITS[1:]
    }


def test_later_frames_change_nothing_in_the_observation(source: Path, tmp_path) -> None:
    """Causality (docs/design.md, "Causality"): images and states of frames 1 to 15 are replaced;
    the window must not notice.
    """
    changed = recordings.record(tmp_path / 'changed', (16,), seed=5)
    original = recordings.record(tmp_path / 'original', (16,), seed=5)
    states = open_dataset(original).read_episode(0).state.copy()
    states[1:] += 100
    columns = {'observation.state': list(states)}
    for camera in recordings.CAMERAS:
        frames = [
            recordings.camera_image(0, 0, camera),
            *(recordings.camera_image(9, 60 + i, camera) for i in range(15)),
        ]
        columns[camera] = [{'bytes': recordings.png(frame), 'path': None} for frame in frames]
    recordings.edit_columns(
        changed, 0, **{name.replace('.', '__'): value for name, value in columns.items()}
    )
    settings = {'train_episodes': (0,), 'tokenizer': ''}
    found = []
    for root in (original, changed):
        prepare(recordings.config(root, **settings), tmp_path / f'out_{root.name}')
        found.append(open_shards(tmp_path / f'out_{root.name}').split('train').records()[0])
    assert np.array_equal(found[0].images, found[1].images)
    assert np.array_equal(found[0].state, found[1].state)
    assert np.array_equal(found[0].actions, found[1].actions)


def test_finished_directory_is_left_as_it_is(out: Path, source: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in out.iterdir() if file.name != '.lock'}
    result = prepare(recordings.config(source, shard_size=3), out)
    assert result.was_complete and result.meta == open_shards(out).meta
    assert before == {
        file: file.stat().st_mtime_ns for file in out.iterdir() if file.name != '.lock'
    }


def test_other_settings_are_refused(out: Path, source: Path) -> None:
    with pytest.raises(UserError, match=r'stride=2, got 4; name another --out'):
        prepare(recordings.config(source, shard_size=3, stride=2), out)
    assert open_shards(out).meta.stride == 4


def test_other_data_are_refused(out: Path, tmp_path) -> None:
    other = recordings.record(tmp_path / 'other', LENGTHS, seed=1)
    with pytest.raises(UserError, match='source_digest'):
        prepare(recordings.config(other, shard_size=3), out)
    assert (out / 'meta.json').is_file()


def test_foreign_directory_is_refused(source: Path, tmp_path) -> None:
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(UserError, match=r'thesis\.tex'):
        prepare(recordings.config(source), tmp_path)
    assert (tmp_path / 'thesis.tex').read_text() == 'precious'


def test_second_writer_is_refused(source: Path, tmp_path) -> None:
    with (
        writer_lock(tmp_path / 'out'),
        pytest.raises(UserError, match='another running preparation'),
    ):
        prepare(recordings.config(source), tmp_path / 'out')
    assert not prepare(recordings.config(source), tmp_path / 'out').was_complete


def test_lost_shard_is_noticed(source: Path, tmp_path) -> None:
    prepare(recordings.config(source), tmp_path / 'out')
    next((tmp_path / 'out').glob('sigma-train*')).unlink()
    with pytest.raises(UserError, match='sigma-train'):
        prepare(recordings.config(source), tmp_path / 'out')
    with pytest.raises(UserError, match='sigma-train'):
        open_shards(tmp_path / 'out').split('train').records()
    assert json.loads((tmp_path / 'out' / 'meta.json').read_text())['schema'] == 1


@pytest.mark.parametrize(
    'error',
    [
        OSError(28, 'No space left on device'),
        RuntimeError('write() failed: No space left on device; at byte 9'),
    ],
)
def test_full_disk_is_reported_and_leaves_no_part(error: Exception, tmp_path) -> None:
    target = tmp_path / 'file'
    with pytest.raises(UserError, match='full disk'), incoming(target) as temporary:
        temporary.write_text('half')
        raise error
    assert not target.exists() and not temporary.exists()


def test_statistics_of_a_checkpoint_can_be_used(out: Path, source: Path, tmp_path) -> None:
    config = recordings.config(
        source, stats_from=str(out / 'norm_stats.json'), train_episodes=(1,), tokenizer=''
    )
    prepare(config, tmp_path / 'out')
    assert (tmp_path / 'out' / 'norm_stats.json').read_bytes() == (
        out / 'norm_stats.json'
    ).read_bytes()


@pytest.mark.parametrize(('factor', 'said'), [(1.0, 0), (0.5, 2), (1.5, 0)])
def test_named_statistics_that_most_rows_lie_outside_are_reported(
    out: Path, source: Path, tmp_path, factor, said
) -> None:
    body = json.loads((out / 'norm_stats.json').read_text())
    for entry in body['norm_stats'].values():
        low, high = np.array(entry['q01']), np.array(entry['q99'])
        middle, half = (low + high) / 2, factor * (high - low) / 2
        entry['q01'], entry['q99'] = (middle - half).tolist(), (middle + half).tolist()
    named = tmp_path / 'norm_stats.json'
    named.write_text(json.dumps(body))
    notes = prepare(recordings.config(source, stats_from=str(named)), tmp_path / 'out').meta.notes
    assert [name in note for name, note in zip(('state', 'actions'), notes, strict=False)] == [
        True
    ] * said
    assert len(notes) == said and all(str(named) in note for note in notes)
