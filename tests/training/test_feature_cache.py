"""Frozen features on disk: the numbers that a step would compute, made once, made anew where they
are stale.
"""

import json
import pathlib

import chex
import jax
import numpy as np
import pytest

from sigma_jax.data.loader.cached_features import FILE, Features
from sigma_jax.data.shards.directory import Shards
from sigma_jax.errors import UserError
from sigma_jax.files import writer_lock
from sigma_jax.training import feature_cache
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.run import Run
from sigma_jax.types import to_batch
from tests.small_run import flow_config

SPLIT = 'train'


@pytest.fixture(scope='module')
def run(small_run):
    return Run(RunConfig.from_dict(small_run.config()), Devices(jax.devices()[:1]))


def prepared(run, shards, fingerprint=None, see=None):
    """(features, how often the policy was asked)."""
    asked = []

    def counted(observation):
        asked.append(observation)
        return compiled(run.frozen, observation)

    compiled = run.objective.encode_frozen if see is None else see
    fingerprint = fingerprint or feature_cache.identity(run.config, run.base, run.shards)
    split = Shards(shards, run.shards.meta).split(SPLIT)
    return feature_cache.prepare(fingerprint, split, counted, run.in_order), len(asked)


@pytest.fixture(scope='module')
def see(run):
    return jax.jit(run.objective.encode_frozen)


def test_cached_features_are_those_that_a_step_computes(run, see):
    """To rounding: which products XLA takes depends on the number of windows in a batch. The file
    itself is exact.
    """
    plain = next(iter(run.make_loader(0)))
    run.add_features(lambda done, total: None)
    cached = next(iter(run.loader))
    assert set(cached) - set(plain) == {'features', 'text_embeddings'}
    seen = see(run.frozen, to_batch(plain).observation)
    # what a sum is rounded by goes with its summands, not with itself
    largest = np.abs(cached['features']).max()
    np.testing.assert_allclose(seen.features, cached['features'], rtol=1e-6, atol=1e-6 * largest)
    assert np.array_equal(seen.text_embeddings, cached['text_embeddings'])
    loss = jax.jit(run.objective)
    inputs = run.state.trainable, run.frozen
    one, other = (
        loss(*inputs, to_batch(b), run.ablation, jax.random.key(0), 3) for b in (plain, cached)
    )
    chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-7)


def test_every_window_has_its_own(run, see):
    """Through shuffled sequences: the features of a window are those of its images."""
    run.add_features(lambda done, total: None)
    windows = {int(batch['record'][0, 0]): batch for batch in run.in_order(1)}
    batch = next(iter(run.loader))
    for where, n in np.ndenumerate(batch['record']):
        alone = see(run.frozen, to_batch(windows[int(n)]).observation).features[0, 0]
        np.testing.assert_allclose(batch['features'][where], alone, rtol=1e-5, atol=1e-5)


def test_what_is_there_is_not_made_again_and_what_is_missing_is(run, see, tmp_path):
    made, asked = prepared(run, tmp_path, see=see)
    assert asked > 1 and prepared(run, tmp_path, see=see)[1] == 0
    first = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    made.texts.unlink()
    assert prepared(run, tmp_path, see=see)[1] == len(run.shards.meta.tasks), (
        'the images were there'
    )
    made.part(0).unlink()
    prepared(run, tmp_path, see=see)
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == first


def test_those_of_another_base_are_made_anew(run, see, tmp_path):
    made, _ = prepared(run, tmp_path, see=see)
    before = made.window(0).copy()
    np.save(made.part(0), np.zeros_like(np.load(made.part(0))))
    mine = feature_cache.identity(run.config, run.base, run.shards)
    made.record.write_text(json.dumps(mine | {'base_digest': 'another'}))
    again, asked = prepared(run, tmp_path, see=see)
    assert asked > 1 and np.array_equal(again.window(0), before) and again.fingerprint() == mine


def test_only_one_process_makes_them(run, see, tmp_path):
    with (
        writer_lock(tmp_path / 'features', 'training'),
        pytest.raises(UserError, match='expected to be the only writer'),
    ):
        prepared(run, tmp_path, see=see)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_numbers_survive_a_file_exactly(tmp_path, dtype):
    kept = Features(tmp_path / 'features', SPLIT, dtype)
    kept.folder.mkdir()
    numbers = np.asarray(np.random.default_rng(0).normal(size=(3, 2, 4)), jax.numpy.dtype(dtype))
    np.save(kept.part(1), kept.encode(numbers))
    assert kept.window(FILE + 2).dtype == numbers.dtype and np.array_equal(
        kept.window(FILE + 2), numbers[2]
    )
    kept.part(1).write_bytes(b'no array')
    with pytest.raises(UserError, match='expected frozen features in .*; delete'):
        kept.window(FILE)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'features': 'disk'}, "config.features: expected '' or 'cache', got 'disk'"),
        ({'loader': {'augment': True}}, 'expected_images'),
        ({'objective': 'flow_matching'}, "expects objective 'sigma'"),
        ({'sigma': {'vision_encoder': 'patch_embed'}}, "with sigma.vision_encoder 'backbone'"),
    ],
)
def test_configs_whose_features_are_not_frozen(changes, message):
    config = flow_config(pathlib.Path('nowhere')) | {'objective': 'sigma', 'features': 'cache'}
    config |= {k: config[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
    with pytest.raises(
        UserError,
        match=message.replace('expected_images', 'expects images that stay as they are'),
    ):
        feature_cache.check(RunConfig.from_dict(config))
