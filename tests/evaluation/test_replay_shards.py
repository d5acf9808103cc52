"""Batches that several trainings see are decoded once, and nobody can change them for the next."""

import numpy as np
import pytest

from sigma_jax.data.shards.directory import open_shards
from sigma_jax.evaluation import replay_shards
from sigma_jax.evaluation.replay_shards import BatchCache, whole_episodes
from sigma_jax.policies.base_actions import BaselineConfig
from sigma_jax.processing.normalize import read_norm_stats
from sigma_jax.processing.spec import OURS


class Source:
    """Three batches of 80 bytes, and how often they were asked for."""

    def __init__(self):
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return ({'x': np.full(10, n, float)} for n in range(3))


def values(batches):
    return [float(batch['x'][0]) for batch in batches]


def test_what_fits_is_made_once():
    batch_cache, source, other = BatchCache(budget=480), Source(), Source()
    for _ in range(3):
        assert (
            values(batch_cache(b'one', source)) == values(batch_cache(b'other', other)) == [0, 1, 2]
        )
    assert (source.asked, other.asked) == (1, 1)


def test_what_does_not_fit_is_made_again():
    batch_cache, source, other = BatchCache(budget=300), Source(), Source()
    for _ in range(2):
        assert (
            values(batch_cache(b'one', source)) == values(batch_cache(b'other', other)) == [0, 1, 2]
        )
    assert (source.asked, other.asked) == (1, 2), 'room for one of them'


def test_what_was_not_read_to_its_end_is_not_kept():
    batch_cache, source = BatchCache(), Source()
    assert float(next(iter(batch_cache(b'', source)))['x'][0]) == 0
    assert values(batch_cache(b'', source)) == values(batch_cache(b'', source)) == [0, 1, 2]
    assert source.asked == 2


def test_kept_batches_cannot_be_changed():
    batch_cache = BatchCache()
    for _ in range(2):
        for batch in batch_cache(b'', Source()):
            with pytest.raises(ValueError, match='read-only'):
                batch['x'][0] = 7


def test_episodes_are_decoded_again_only_for_other_settings(small_run, monkeypatch):
    opened = []
    make = replay_shards.make_loader
    monkeypatch.setattr(
        replay_shards, 'make_loader', lambda *a, **k: opened.append(1) or make(*a, **k)
    )
    train = open_shards(small_run.shards).split('train')
    batch_cache, statistics = BatchCache(), small_run.shards / 'norm_stats.json'
    tokenizer = BaselineConfig().tokenizer

    def read(statistics, baselines=None):
        where = (train, 1, tokenizer, statistics, OURS)
        batches = whole_episodes(*where, baselines=baselines, batch_cache=batch_cache)
        return [batch['images'].sum() for batch in batches]

    assert read(statistics) == read(statistics) and len(opened) == 1
    read(read_norm_stats(statistics)), read(read_norm_stats(statistics))
    assert len(opened) == 2, 'equal statistics, read twice, are the same'
    read(statistics, 'pi05')
    assert len(opened) == 3
