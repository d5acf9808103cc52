"""The loader: contents, order, sequences and resets, and exact resume."""

import dataclasses
import itertools
from pathlib import Path

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from sigma_jax.backbones.pi05_prompt import pi05_prompt
from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.loader.augment import AugmentConfig
from sigma_jax.data.loader.loader import batched, dataset
from sigma_jax.data.loader.sequences import Order, cut_sequences, fill_batches
from sigma_jax.data.loader.windows import Contents, shards_processor
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.shards.records import Index
from sigma_jax.errors import UserError
from sigma_jax.processing.images import decode_image
from sigma_jax.processing.normalize import normalize, read_norm_stats
from sigma_jax.processing.tokenizer import Tokenizer, load_tokenizer
from tests.data_pipeline import recordings
from tests.data_pipeline.spy import Spy
from tests.loading import make_loader

LENGTHS = (40, 44, 36, 52, 60, 30)
TRAIN = {'train_episodes': (0, 1, 3, 4), 'calibration_episodes': (2,), 'test_episodes': (5,)}


@pytest.fixture(scope='module')
def tokenizer() -> Tokenizer:
    return load_tokenizer(recordings.SETTINGS['tokenizer'])


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    return recordings.record(tmp_path_factory.mktemp('source'), LENGTHS)


@pytest.fixture(scope='module')
def shards(source: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('shards') / 'out'
    prepare(recordings.config(source, **TRAIN), out)
    return out


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_default_walks_every_window_once_in_record_order(
    shards: Path, tokenizer: Tokenizer
) -> None:
    index = open_shards(shards).split('train').index
    batches = list(
        make_loader(open_shards(shards).split('train'), batch_size=7, tokenizer=tokenizer)
    )
    record, mask = (
        np.concatenate([batch[key][:, 0] for batch in batches]) for key in ('record', 'mask')
    )
    assert record[mask].tolist() == list(range(len(index)))
    assert len(record) % 7 == 0 and np.all(record[~mask] == -1)
    frames = np.concatenate([batch['frame'][:, 0] for batch in batches])
    assert np.array_equal(frames[mask], index.frame)
    assert all(batch['reset'].all() for batch in batches)


def test_contents_are_those_of_the_recording(
    shards: Path, source: Path, tokenizer: Tokenizer
) -> None:
    statistics = read_norm_stats(shards / 'norm_stats.json')['state']
    dataset, meta = open_dataset(source), open_shards(shards).meta.to_json()
    for batch in make_loader(
        open_shards(shards).split('train'), batch_size=4, sequence_length=3, tokenizer=tokenizer
    ):
        for at in zip(*np.nonzero(batch['mask']), strict=True):
            episode, frame = (
                dataset.read_episode(int(batch['episode'][at])),
                int(batch['frame'][at]),
            )
            assert np.array_equal(batch['actions'][at], episode.actions[frame : frame + 16])
            state = normalize(episode.state[frame], statistics)
            np.testing.assert_allclose(batch['state'][at], state, rtol=1e-6)
            prompt = batch['prompt'][at][batch['prompt_mask'][at]]
            assert tokenizer.decode(prompt) == pi05_prompt(episode.tasks[frame], state)
            assert (
                tokenizer.decode(batch['text'][at][batch['text_mask'][at]]) == episode.tasks[frame]
            )
            assert meta['tasks'][batch['text_id'][at]] == episode.tasks[frame]
            assert not batch['prompt'][at][~batch['prompt_mask'][at]].any()
            assert (
                np.abs(
                    batch['images'][at][0, 16, 16].astype(int) - camera_image(episode.index, frame)
                ).max()
                < 8
            )
        assert batch['image_mask'].all() and batch['action_mask'][batch['mask']].all()
        assert not batch['base'].any()


def camera_image(episode: int, frame: int) -> np.ndarray:
    return recordings.camera_image(episode, frame, recordings.CAMERAS[0])[0, 0].astype(int)


def test_sequences_are_consecutive_and_reset_where_they_start(
    shards: Path, tokenizer: Tokenizer
) -> None:
    seen = []
    for batch in make_loader(
        open_shards(shards).split('train'), batch_size=2, sequence_length=4, tokenizer=tokenizer
    ):
        for row in range(2):
            real = batch['mask'][row]
            seen += batch['record'][row][real].tolist()
            assert batch['reset'][row].tolist() == [True, False, False, False]
            assert len(set(batch['episode'][row])) == 1
            assert np.all(np.diff(batch['frame'][row][real]) == 4)
            assert not np.any(np.diff(real.astype(int)) > 0)  # padding only at the end
    assert sorted(seen) == list(range(len(open_shards(shards).split('train').index)))


def test_whole_episodes_reset_once(shards: Path, tokenizer: Tokenizer) -> None:
    batches = list(
        make_loader(
            open_shards(shards).split('train'),
            batch_size=4,
            sequence_length=None,
            tokenizer=tokenizer,
        )
    )
    assert len(batches) == 1
    batch = batches[0]
    assert batch['episode'][:, 0].tolist() == [0, 1, 3, 4]
    assert batch['reset'].sum(1).tolist() == [1, 1, 1, 1] and batch['reset'][:, 0].all()
    assert batch['mask'].sum(1).tolist() == [
        len(range(0, LENGTHS[i] - 15, 4)) for i in (0, 1, 3, 4)
    ]


def test_dropped_windows_reset_the_memory(source: Path, tokenizer: Tokenizer, tmp_path) -> None:
    prepare(recordings.config(source, min_motion=2.35, **TRAIN), tmp_path / 'out')
    index = open_shards(tmp_path / 'out').split('train').index
    gaps = (np.diff(index.frame) != 4) & (np.diff(index.episode) == 0)
    assert gaps.any()
    for batch in make_loader(
        open_shards(tmp_path / 'out').split('train'),
        batch_size=1,
        sequence_length=None,
        tokenizer=tokenizer,
    ):
        real = batch['mask'][0]
        jumps = np.diff(batch['frame'][0][real], prepend=-100) != 4
        assert np.array_equal(batch['reset'][0][real], jumps)


def test_cut_sequences_keeps_each_window_once() -> None:
    episode = np.array([2, 2, 2, 2, 2, 5, 5, 9])
    nothing = np.zeros(8)
    index = Index(episode, nothing, nothing, nothing.astype(bool), nothing, nothing)
    assert cut_sequences(index, 2).tolist() == [[0, 1], [2, 3], [4, -1], [5, 6], [7, -1]]
    assert cut_sequences(index, None).tolist() == [
        [0, 1, 2, 3, 4],
        [5, 6, -1, -1, -1],
        [7, -1, -1, -1, -1],
    ]
    assert fill_batches(cut_sequences(index, 2), 3).tolist()[-1] == [-1, -1]


def training_loader(shards: Path, tokenizer: Tokenizer, **options):
    settings = {
        'batch_size': 3,
        'sequence_length': 2,
        'seed': 7,
        'shuffle': True,
        'num_epochs': None,
    }
    return make_loader(
        open_shards(shards).split('train'),
        tokenizer=tokenizer,
        drop_remainder=True,
        **(settings | options),
    )


@pytest.mark.parametrize('stop', [0, 1, 5, 13])
@pytest.mark.parametrize('cache', [False, True])
def test_resume_is_bitwise_at_any_step(
    stop: int, cache: bool, shards: Path, tokenizer: Tokenizer
) -> None:
    first = training_loader(shards, tokenizer, cache=cache)
    for _ in range(stop):
        next(first)
    state = first.get_state()
    expected = [next(first) for _ in range(6)]
    second = training_loader(shards, tokenizer)
    second.set_state(state)
    assert all(equal(a, next(second)) for a in expected)


def test_seed_fixes_the_order_and_epochs_differ(shards: Path, tokenizer: Tokenizer) -> None:
    def order(seed: int) -> list[int]:
        batches = itertools.islice(training_loader(shards, tokenizer, seed=seed, batch_size=2), 40)
        return [int(number) for batch in batches for number in batch['record'][:, 0]]

    runs = len(cut_sequences(open_shards(shards).split('train').index, 2))
    first = order(1)
    assert first == order(1) != order(2)
    assert sorted(first[:runs]) == sorted(first[runs : 2 * runs])
    assert first[:runs] != first[runs : 2 * runs]


def test_worker_processes_give_the_same_batches_resume_and_start_no_client(
    shards: Path, tokenizer: Tokenizer
) -> None:
    spying = dataclasses.replace(tokenizer, codec=Spy(tokenizer.codec))
    options = {'state_noise': 0.2, 'augment': AugmentConfig()}
    here, there = (
        training_loader(shards, tokenizer, **options),
        training_loader(shards, spying, num_workers=1, **options),
    )
    for _ in range(3):
        assert equal(next(here), next(there))
    with pytest.raises(RuntimeError, match='expected a worker without an accelerator'):
        spying.encode('here')
    state = there.get_state()
    expected = [next(there) for _ in range(3)]
    again = training_loader(shards, spying, num_workers=1, **options)
    again.set_state(state)
    assert all(equal(batch, next(again)) for batch in expected)


def test_records_are_those_that_tfds_reads(shards: Path) -> None:
    skipped = {'images': {name: tfds.decode.SkipDecoding() for name in ('up', 'side')}}
    source = tfds.builder_from_directory(shards).as_data_source('train', decoders=skipped)
    records = open_shards(shards).split('train').records()
    for number in range(0, len(records), 5):
        got, want = records[number], source[number]
        views = [decode_image(want['images'][name]) for name in ('up', 'side')]
        assert np.array_equal(got.images, views) and got.actions.dtype == np.float32
        for name in ('state', 'actions', 'action_mask'):
            assert np.array_equal(getattr(got, name), want[name])


def test_statistics_of_a_checkpoint_win_over_those_of_the_shards(
    shards: Path, tokenizer: Tokenizer
) -> None:
    own = read_norm_stats(shards / 'norm_stats.json')
    other = {
        key: dataclasses.replace(one, q01=one.q01 - 5, q99=one.q99 + 9) for key, one in own.items()
    }
    batch = next(
        make_loader(
            open_shards(shards).split('train'), batch_size=4, tokenizer=tokenizer, norm_stats=other
        )
    )
    state = open_shards(shards).split('train').records()[0].state
    np.testing.assert_allclose(batch['state'][0, 0], normalize(state, other['state']), rtol=1e-6)
    text = tokenizer.decode(batch['prompt'][0, 0][batch['prompt_mask'][0, 0]])
    task = open_shards(shards).meta.tasks[batch['text_id'][0, 0]]
    assert (
        text
        == pi05_prompt(task, normalize(state, other['state']))
        != pi05_prompt(task, normalize(state, own['state']))
    )


def test_baselines_lie_beside_their_windows(shards: Path, tokenizer: Tokenizer) -> None:
    count = open_shards(shards).split('test').windows
    with pytest.raises(UserError, match=r'run prepare_data\.py'):
        make_loader(
            open_shards(shards).split('test'), batch_size=1, tokenizer=tokenizer, baselines='pi05'
        )
    base = np.random.default_rng(0).normal(size=(count, 2, 16, 6)).astype(np.float32)
    np.savez(shards / 'baselines-test.npz', base=base)
    options = {'batch_size': count, 'tokenizer': tokenizer, 'baselines': 'pi05'}
    assert np.array_equal(
        next(make_loader(open_shards(shards).split('test'), **options))['base'][:, 0], base[:, 0]
    )
    assert np.array_equal(
        next(make_loader(open_shards(shards).split('test'), baseline_sample=1, **options))['base'][
            :, 0
        ],
        base[:, 1],
    )
    mean = next(make_loader(open_shards(shards).split('test'), baseline_sample=None, **options))[
        'base'
    ][:, 0]
    np.testing.assert_allclose(mean, base.mean(1), atol=1e-6)
    with pytest.raises(UserError, match='sample below 2'):
        make_loader(open_shards(shards).split('test'), baseline_sample=2, **options)
    np.savez(shards / 'baselines-test.npz', base=base[1:])
    with pytest.raises(UserError, match='other shards'):
        make_loader(open_shards(shards).split('test'), **options)


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({'split': 'validation'}, "got 'validation'"),
        ({'batch_size': 0}, 'got 0'),
        ({'batch_size': 999, 'drop_remainder': True}, 'at least 999 sequences'),
        ({'max_text_len': 2}, 'at most 2 tokens'),
        ({'baselines': 'octo'}, "got 'octo'"),
        ({'norm_stats': 'nowhere.json'}, 'nowhere.json'),
    ],
)
def test_wrong_options(options: dict, expected: str, shards: Path, tokenizer: Tokenizer) -> None:
    settings = {'split': 'train', 'batch_size': 2, 'tokenizer': tokenizer} | options
    with pytest.raises(UserError) as caught:
        next(make_loader(open_shards(shards).split(settings.pop('split')), **settings))
    assert expected in str(caught.value)


def test_unfinished_shards_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r'run prepare_data\.py'):
        open_shards(tmp_path).split('train').records()
    assert not list(tmp_path.iterdir())


def test_empty_split_is_refused(source: Path, tokenizer: Tokenizer, tmp_path) -> None:
    prepare(recordings.config(source, train_episodes=(0,)), tmp_path / 'out')
    with pytest.raises(UserError, match='split test'):
        make_loader(open_shards(tmp_path / 'out').split('test'), batch_size=1, tokenizer=tokenizer)
    assert open_shards(tmp_path / 'out').split('test').windows == 0


def test_jitter_touches_the_prompt_alone_and_is_fixed_by_the_seed(
    shards: Path, tokenizer: Tokenizer
) -> None:
    plain, noisy, again = (
        next(training_loader(shards, tokenizer, state_noise=noise)) for noise in (0.0, 0.5, 0.5)
    )
    assert equal(noisy, again) and not np.array_equal(noisy['prompt'], plain['prompt'])
    rest = [key for key in plain if key not in ('prompt', 'prompt_mask')]
    assert equal({key: noisy[key] for key in rest}, {key: plain[key] for key in rest})


def test_relative_statistics_subtract_the_state_in_relative_joints(shards: Path) -> None:
    prepared = open_shards(shards)
    records, own = (
        prepared.split('train').records(),
        prepared.statistics,
    )
    joints = np.arange(len(own['actions'].low)) < 2
    pairs = [(records[n].state, records[n].actions) for n in range(len(records))]
    values = np.concatenate(
        [actions - np.where(joints, state, 0) for state, actions in pairs]
    ).astype(np.float64)
    got = prepared.relative_statistics(tuple(joints))
    np.testing.assert_allclose(
        got['actions'].q99, np.quantile(values, 0.99, axis=0), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(got['actions'].mean, values.mean(0), rtol=1e-6, atol=1e-6)
    assert got['state'] is own['state'] and prepared.relative_statistics(()) == own


def test_sequences_of_several_splits_mix_into_batches(shards: Path, tokenizer: Tokenizer) -> None:
    """Each is as in its own split, in that one's order; a batch holds both, and a place goes on."""
    opened = open_shards(shards)
    processor, contents = shards_processor(opened, tokenizer), Contents(state_noise=0.2)
    order = Order(3, sequence_length=2, seed=7, shuffle=True, num_epochs=None, drop_remainder=True)
    parts = [
        dataset(opened.split(name), processor, order, contents) for name in ('train', 'calibration')
    ]
    mixed = batched(grain.MapDataset.mix(parts, weights=[2, 1]), order.batch_size)
    batches = [next(mixed) for _ in range(4)]
    state = mixed.get_state()
    rows = [
        {key: values[row] for key, values in batch.items()} for batch in batches for row in range(3)
    ]
    train, calibration = (
        [row for row in rows if set(row['episode']) <= set(opened.split(name).episodes)]
        for name in ('train', 'calibration')
    )
    assert (len(train), len(calibration)) == (8, 4)
    for part, found in zip(parts, (train, calibration), strict=True):
        assert all(equal(row, part[n]) for n, row in enumerate(found))
    expected = next(mixed)
    mixed.set_state(state)
    assert equal(next(mixed), expected)
