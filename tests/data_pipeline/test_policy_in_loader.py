"""The loader and the preparation follow a policy: its prompt, its padding, its normalisation, its
resize.
"""

import dataclasses

import numpy as np
import pytest

from configs import data_so101
from sigma_jax.api.preparation import follow_base
from sigma_jax.backbones.pi05_prompt import pi05_prompt
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.processing.images import BLACK, content_box, resize_with_pad, unit_range
from sigma_jax.processing.normalize import normalize, read_norm_stats
from sigma_jax.processing.spec import LEROBOT, OPENPI, OURS
from sigma_jax.processing.tokenizer import load_tokenizer
from tests.data_pipeline import recordings
from tests.loading import make_loader

OLD = dataclasses.replace(LEROBOT, prompt_state_dim=32, image_padding=-3.0)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return recordings.record(tmp_path_factory.mktemp('source'), (40, 36, 30))


@pytest.fixture(scope='module')
def shards(source, tmp_path_factory):
    out = tmp_path_factory.mktemp('shards') / 'out'
    prepare(recordings.config(source, resize='lerobot', max_prompt_len=120), out)
    return out


@pytest.fixture(scope='module')
def tokenizer():
    return load_tokenizer(recordings.SETTINGS['tokenizer'])


def first_batch(shards, tokenizer, **options):
    return next(
        make_loader(
            open_shards(shards).split('train'), batch_size=2, tokenizer=tokenizer, **options
        )
    )


def noise(episode: int, frame: int, camera: str) -> np.ndarray:
    """An image whose shrunken pixels show how they were shrunk."""
    seed = (episode, frame, recordings.CAMERAS.index(camera))
    return np.random.default_rng(seed).integers(0, 256, (96, 160, 3), dtype=np.uint8)


def test_images_are_resized_in_the_style_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, 'camera_image', noise)
    source = recordings.record(tmp_path / 'source', (20, 20, 20))
    for style, other in (('lerobot', 'openpi'), ('openpi', 'lerobot')):
        prepare(recordings.config(source, resize=style), tmp_path / style)
        meta = open_shards(tmp_path / style).meta.to_json()
        assert meta['resize'] == style and meta['camera_sizes'] == {
            'up': [96, 160],
            'side': [96, 160],
        }
        frame = noise(meta['splits']['train'][0], 0, recordings.CAMERAS[0])
        stored = open_shards(tmp_path / style).split('train').records()[0].images[0].astype(int)
        off, far = (
            np.abs(stored - resize_with_pad(frame, 32, 32, name)).mean() for name in (style, other)
        )
        assert off < 3 < 10 < far


def test_without_a_policy_nothing_changes(shards, tokenizer):
    plain, ours = first_batch(shards, tokenizer), first_batch(shards, tokenizer, policy=OURS)
    assert (
        all(np.array_equal(plain[key], ours[key]) for key in plain)
        and plain['images'].dtype == np.uint8
    )


def test_the_prompt_is_the_policy_s(shards, tokenizer):
    statistics = OLD.scale(read_norm_stats(shards / 'norm_stats.json'))
    batch = first_batch(shards, tokenizer, policy=OLD, norm_stats=statistics)
    record, task = (
        open_shards(shards).split('train').records()[0],
        open_shards(shards).meta.tasks[batch['text_id'][0, 0]],
    )
    want = tokenizer.encode(pi05_prompt(task, normalize(record.state, statistics['state']), 32))
    assert batch['prompt'][0, 0][batch['prompt_mask'][0, 0]].tolist() == want
    assert len(want) - first_batch(shards, tokenizer)['prompt_mask'][0, 0].sum() == 26
    short = dataclasses.replace(OLD, max_prompt_len=30)
    with pytest.raises(UserError, match='at most 30 tokens'):
        first_batch(shards, tokenizer, policy=short, norm_stats=statistics)


def test_states_are_normalised_by_the_policy_s_formula(shards, tokenizer):
    statistics = OPENPI.scale(read_norm_stats(shards / 'norm_stats.json'))
    batch = first_batch(shards, tokenizer, policy=OPENPI, norm_stats=statistics)
    exact = normalize(open_shards(shards).split('train').records()[0].state, statistics['state'])
    assert exact.dtype == np.float64 and batch['state'].dtype == np.float32
    assert np.array_equal(batch['state'][0, 0], exact.astype(np.float32))


def test_padding_that_is_not_black_comes_as_floats(shards, tokenizer):
    batch, plain = first_batch(shards, tokenizer, policy=OLD), first_batch(shards, tokenizer)
    top, left, rows, cols = content_box(open_shards(shards).meta.camera_sizes['up'], 32, 32)
    inside = np.zeros((32, 32), bool)
    inside[top : top + rows, left : left + cols] = True
    assert batch['images'].dtype == np.float32 and not inside.all()
    assert np.all(batch['images'][..., ~inside, :] == -3)
    assert np.array_equal(
        batch['images'][..., inside, :], unit_range(plain['images'])[..., inside, :]
    )
    (shards / 'meta.json').write_text(
        (shards / 'meta.json').read_text().replace('"camera_sizes"', '"others"')
    )
    with pytest.raises(
        UserError, match='expected camera_sizes in the meta.json .*; prepare the shards again'
    ):
        first_batch(shards, tokenizer, policy=OLD)
    (shards / 'meta.json').write_text(
        (shards / 'meta.json').read_text().replace('"others"', '"camera_sizes"')
    )


def test_preparing_follows_the_base_where_the_config_leaves_it_open():
    fresh = DataConfig.from_settings(data_so101.get_config().data.to_dict())
    settings = follow_base(fresh, OLD)
    assert settings.resize == 'lerobot' and settings.prompt_state_dim == 32
    settings = follow_base(settings, OPENPI)
    assert settings.resize == 'lerobot'  # what the config says stays
    fresh = follow_base(fresh, OURS)
    assert fresh.resize == 'openpi' and fresh.prompt_state_dim == 0 and OURS.image_padding == BLACK


def test_an_unknown_style_and_directories_from_before_there_was_a_choice(source, tmp_path):
    with pytest.raises(UserError, match='expected data.resize out of .*, got .torch.'):
        prepare(recordings.config(source, resize='torch'), tmp_path / 'new')
    out = tmp_path / 'old'
    prepare(recordings.config(source), out)
    text = (out / 'meta.json').read_text().replace('  "resize": "openpi",\n', '')
    (out / 'meta.json').write_text(text)
    assert '"resize"' not in text and prepare(recordings.config(source), out).was_complete
    with pytest.raises(UserError, match='to have resize=lerobot, got openpi'):
        prepare(recordings.config(source, resize='lerobot'), out)
