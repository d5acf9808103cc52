"""What a checkpoint was trained with decides how its inputs are normalised, whatever the data at
hand say.
"""

import json
import shutil
import types

import numpy as np
import pytest

from sigma_jax.backbones import kinds
from sigma_jax.convert.load_base import ModelConfig, open_base
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.evaluation.replay_shards import list_batches
from sigma_jax.processing.normalize import normalize, read_norm_stats
from sigma_jax.processing.spec import OURS
from sigma_jax.training.config import RunConfig
from sigma_jax.training.run import Run
from tests.data_pipeline import recordings
from tests.small_run import flow_config


def shifted(file) -> None:
    """Moves the quantiles of a norm_stats.json."""
    body = json.loads(file.read_text())
    for entry in body['norm_stats'].values():
        entry['q01'], entry['q99'] = [x - 7 for x in entry['q01']], [x + 11 for x in entry['q99']]
    file.write_text(json.dumps(body))


@pytest.fixture(scope='module')
def other_base(small_run, tmp_path_factory):
    """The small run's policy, with statistics of other data than its shards."""
    folder = tmp_path_factory.mktemp('base') / 'policy'
    shutil.copytree(small_run.base, folder)
    shifted(folder / 'norm_stats.json')
    return folder


@pytest.mark.parametrize('source', ['base', 'shards'])
def test_training_takes_those_that_the_config_asks_for(small_run, other_base, source):
    config = flow_config(small_run.shards) | {
        'base': str(other_base),
        'trainable': ('lora',),
        'stats_from': source,
    }
    run = Run(RunConfig.from_dict(config))
    folder = other_base if source == 'base' else small_run.shards
    want = read_norm_stats(folder / 'norm_stats.json')
    batch = next(iter(run.loader))
    at = int(batch['record'][0, 0])
    state = normalize(
        open_shards(small_run.shards).split('train').records()[at].state, want['state']
    )
    np.testing.assert_allclose(batch['state'][0, 0], state, atol=1e-5)
    np.testing.assert_allclose(run.frozen.scaling.low, want['actions'].low, rtol=1e-6)


def test_the_base_is_sampled_with_its_own(other_base):
    own = read_norm_stats(other_base / 'norm_stats.json')
    loaded = open_base(str(other_base), ModelConfig()).norm_stats
    assert all(np.array_equal(loaded[name].low, own[name].low) for name in ('state', 'actions'))


def test_evaluation_on_other_shards_keeps_those_of_training(small_run, tmp_path):
    shards = tmp_path / 'shards'
    shutil.copytree(small_run.shards, shards)
    shifted(shards / 'norm_stats.json')
    tokenizer = recordings.SETTINGS['tokenizer']
    config = RunConfig(shards=str(small_run.shards), tokenizer=tokenizer)
    trained = types.SimpleNamespace(
        config=config,
        shards=open_shards(small_run.shards),
        base=types.SimpleNamespace(policy=OURS, spec=kinds.USUAL),
    )
    batch = next(list_batches(trained, open_shards(shards).split('train'), 2))
    state = open_shards(shards).split('train').records()[int(batch['record'][0, 0])].state
    want, not_these = (
        read_norm_stats(folder / 'norm_stats.json')['state']
        for folder in (small_run.shards, shards)
    )
    np.testing.assert_allclose(batch['state'][0, 0], normalize(state, want), rtol=1e-5)
    assert np.abs(batch['state'][0, 0] - normalize(state, not_these)).max() > 0.01
