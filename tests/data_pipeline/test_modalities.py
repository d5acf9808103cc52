"""Depth and audio from a LeRobot data set to the gradients of the vision workspace; absent ones
leave no trace.
"""

import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.policies import base_actions
from sigma_jax.processing.images import content_box, decode_depth, encode_depth, resize_depth
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from tests import quick
from tests.data_pipeline import recordings
from tests.loading import make_loader
from tests.moments import moments
from tests.sigma import test_model

DEPTH, AUDIO, SAMPLES = 'observation.images.up_depth', 'observation.audio', 24
LENGTHS = (40, 36, 30)
BOTH = {'depth': (DEPTH,), 'audio': AUDIO}


def depth_map(episode: int, frame: int) -> np.ndarray:
    """16-bit readings that use all bits and name episode and frame; some are missing."""
    readings = (
        np.random.default_rng((episode, frame)).integers(0, 2**16, (24, 32)).astype(np.uint16)
    )
    readings[:3] = 0
    return readings


def samples(episode: int, kind: str) -> np.ndarray:
    """A waveform a frame."""
    wave = np.random.default_rng(episode).normal(scale=0.2, size=(LENGTHS[episode], SAMPLES))
    return wave.astype(np.float32) if kind == 'float32' else np.rint(wave * 8000).astype(np.int16)


def add_modalities(root: Path, kind: str = 'float32') -> Path:
    """Gives a recording a depth camera and a microphone."""
    for index, length in enumerate(LENGTHS):
        path = root / f'data/chunk-000/episode_{index:06d}.parquet'
        table = pq.read_table(path)
        cells = [
            {'bytes': encode_depth(depth_map(index, frame)), 'path': None}
            for frame in range(length)
        ]
        table = table.append_column(DEPTH, pa.array(cells))
        pq.write_table(table.append_column(AUDIO, pa.array(list(samples(index, kind)))), path)
    features = json.loads((root / 'meta/info.json').read_text())['features']
    features[DEPTH] = {
        'dtype': 'image',
        'shape': [24, 32, 1],
        'names': ['height', 'width', 'channels'],
    }
    features[AUDIO] = {'dtype': kind, 'shape': [SAMPLES], 'names': None}
    recordings.edit_info(root, features=features)
    return root


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    return add_modalities(recordings.record(tmp_path_factory.mktemp('source'), LENGTHS))


@pytest.fixture(scope='module')
def shards(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('shards') / 'out'
    settings = {
        'image_size': 28,
        'train_episodes': (0, 1),
        'calibration_episodes': (2,),
        'depth_scale': 0.002,
    }
    prepare(recordings.config(source, **settings, **BOTH), out)
    return out


def first_batch(shards: Path, **options):
    tokenizer = load_tokenizer(recordings.SETTINGS['tokenizer'])
    return next(
        make_loader(
            open_shards(shards).split('train'),
            batch_size=2,
            sequence_length=2,
            tokenizer=tokenizer,
            **options,
        )
    )


def test_every_reading_and_every_sample_arrives(shards):
    batch, meta = first_batch(shards), open_shards(shards).meta.to_json()
    top, left, rows, cols = content_box((24, 32), 28, 28)
    known = {
        key: meta[key]
        for key in ('depth_names', 'depth', 'depth_scale', 'audio', 'audio_samples', 'audio_dtype')
    }
    assert known == {
        'depth_names': ['up_depth'], 'depth': [DEPTH], 'depth_scale': 0.002, 'audio': AUDIO,
        'audio_samples': SAMPLES, 'audio_dtype': 'float32',
    }  # fmt: skip
    assert (
        batch['depth'].shape == (2, 2, 1, 28, 28, 1)
        and batch['depth_mask'].all()
        and batch['audio'].dtype == np.float32
    )
    for at in np.ndindex(2, 2):
        episode, frame = int(batch['episode'][at]), int(batch['frame'][at])
        assert np.array_equal(batch['audio'][at], samples(episode, 'float32')[frame])
        metres, readings = (
            batch['depth'][at][0, ..., 0],
            depth_map(episode, frame) * np.float32(0.002),
        )
        inside = metres[top : top + rows, left : left + cols]
        want = readings[((np.arange(rows) + 0.5) * 24 / rows).astype(int)][
            :, ((np.arange(cols) + 0.5) * 32 / cols).astype(int)
        ]
        assert np.array_equal(inside, want)
        assert not metres[:top].any() and not metres[top + rows :].any()


def test_depth_keeps_its_sixteen_bits_and_mixes_nothing():
    readings = depth_map(0, 0)
    assert np.array_equal(decode_depth(encode_depth(readings))[..., 0], readings)
    for size in (16, 28, 96):
        assert set(np.unique(resize_depth(readings, size))) <= set(np.unique(readings)) | {0}
    square = depth_map(1, 1)[:, :24]
    assert np.array_equal(resize_depth(square, 24), square)


def test_int16_samples_come_as_fractions(tmp_path):
    source = add_modalities(recordings.record(tmp_path / 'source', LENGTHS), 'int16')
    prepare(recordings.config(source, audio=AUDIO), tmp_path / 'out')
    record, index = (
        open_shards(tmp_path / 'out').split('train').records()[3],
        open_shards(tmp_path / 'out').split('train').records().index,
    )
    want = samples(int(index.episode[3]), 'int16')[index.frame[3]] / np.float32(2**15)
    assert (
        record.depth is None
        and np.array_equal(record.audio, want)
        and record.audio.dtype == np.float32
    )
    assert set(first_batch(tmp_path / 'out')) & {'depth', 'depth_mask', 'audio'} == {'audio'}


def test_data_without_them_is_as_before(source, tmp_path):
    prepare(recordings.config(source), tmp_path / 'out')
    meta = open_shards(tmp_path / 'out').meta.to_json()
    assert (
        not {'depth_names', 'audio_samples', 'audio_dtype'} & set(meta)
        and meta['depth'] == []
        and meta['audio'] == ''
    )
    assert not set(first_batch(tmp_path / 'out')) & {'depth', 'depth_mask', 'audio'}
    assert open_dataset(source).cameras == recordings.CAMERAS and open_dataset(source).depths == (
        DEPTH,
    )


def eight_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'depth': ('observation.images.up',)},
            r"expected data.depth out of .*up_depth.*, got \['observation.images.up'\]",
        ),
        ({'audio': 'action'}, "expected data.audio out of .*observation.audio.*, got 'action'"),
        ({'depth': (DEPTH,), 'depth_scale': 0.0}, 'expected data.depth_scale above 0, got 0.0'),
        ({'audio': AUDIO, 'audio_rate': -1}, 'expected data.audio_rate above 0, got -1'),
    ],
)
def test_settings_that_fit_no_feature(source, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        prepare(recordings.config(source, **settings), tmp_path / 'out')


@pytest.mark.parametrize(
    ('cell', 'message'),
    [
        (
            eight_bits(),
            'expected 16-bit depth in .*up_depth, episode 0, frame 0, got an image of mode L',
        ),
        (
            encode_depth(np.zeros((5, 7), np.uint16)),
            'expected depth of 24 x 32 pixels in .*, got 5 x 7',
        ),
        (encode_depth(depth_map(0, 0))[:200], 'expected a depth image as PNG in'),
        (None, 'expected a depth image as PNG in'),
    ],
)
def test_depth_that_is_none(tmp_path, cell, message):
    source = add_modalities(recordings.record(tmp_path / 'source', LENGTHS))
    cells = [{'bytes': cell, 'path': None}] * LENGTHS[0]
    recordings.edit_columns(
        source,
        0,
        **{
            DEPTH.replace('.', '__'): pa.array(
                cells, pa.struct({'bytes': pa.binary(), 'path': pa.string()})
            )
        },
    )
    with pytest.raises(UserError, match=message):
        list(open_dataset(source).read_episode(0).frames(DEPTH, [0]))


def test_samples_that_are_no_numbers(tmp_path):
    source = add_modalities(recordings.record(tmp_path / 'source', LENGTHS))
    wave = samples(0, 'float32')
    wave[7, 3] = np.nan
    recordings.edit_columns(source, 0, **{AUDIO.replace('.', '__'): pa.array(list(wave))})
    with pytest.raises(
        UserError, match='expected finite samples .*episode 0, got NaN or infinity at frame 7'
    ):
        list(open_dataset(source).read_episode(0).frames(AUDIO))


def test_without_them_sigma_is_bitwise_one_that_never_had_them():
    never = dataclasses.replace(test_model.CONFIG, use_depth=False, use_audio=False)
    batch = test_model.make_batch(g=1)
    params = quick.jit(lambda b: test_model.init(jax.random.key(0), b))(batch)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape).astype(np.float32), params
    )
    fewer = {
        k: v
        for k, v in params['vision'].items()
        if k not in ('depth_patch_embed', 'audio_patch_embed')
    }
    assert len(params['vision']) - len(fewer) == 2

    def run(params, config, **inputs):
        given = dataclasses.replace(batch, observation=batch.observation.replace(**inputs))
        forward = quick.jit(
            lambda p, b: test_model.sequence(p, b, test_model.Ablation(), config=config)[1]
        )
        return jax.tree.leaves(forward(params, given))

    got = run(params, test_model.CONFIG, depth=None, audio=None)
    want = run(params | {'vision': fewer}, never)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    present = run(params, test_model.CONFIG)
    assert not any(np.array_equal(a, b) for a, b in zip(present[:3], got[:3], strict=True))


def test_a_training_step_reaches_both(small_run, shards, tmp_path):
    base_actions.write_baselines(open_shards(shards), small_run.baseline_config(samples=1))
    config = small_run.config(shards=str(shards), steps=1)
    config['sigma'] |= {'use_depth': True, 'use_audio': True, 'patch_size': 14, 'audio_patch': 8}
    state = trainer.train(RunConfig.from_dict(config), tmp_path / 'run').state
    embeds = state.trainable['sigma']['vision']
    assert embeds['depth_patch_embed']['patch']['kernel'].shape[0] == 14 * 14
    assert embeds['audio_patch_embed']['position'].shape[0] == SAMPLES // 8
    for name in ('depth_patch_embed', 'audio_patch_embed'):
        seen = [np.abs(x).max() for path, x in moments(state).items() if f'/{name}/' in path]
        assert len(seen) == 3 and all(x > 0 for x in seen), f'{name} got no gradient'


def test_sigma_that_wants_depth_says_so_where_the_shards_have_none(small_run, tmp_path):
    config = small_run.config(steps=1)
    config['sigma'] |= {'use_depth': True, 'patch_size': 14}
    with pytest.raises(UserError, match='expected depth in the first observation, got None'):
        trainer.train(RunConfig.from_dict(config), tmp_path / 'run')
