"""Perturbations: keyed by seed, episode and frame alone, larger at higher levels, nothing else
touched.
"""

import numpy as np
import pytest

from sigma_jax.evaluation.stress import perturb
from sigma_jax.evaluation.stress.perturb import Perturbation


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    reset = np.zeros((2, 6), bool)
    reset[:, 0], reset[1, 3] = True, True
    return {
        'images': rng.integers(0, 256, (2, 6, 2, 8, 8, 3)).astype(np.uint8),
        'state': np.arange(12.0).reshape(2, 6, 1),
        'prompt': np.arange(12).reshape(2, 6, 1),
        'prompt_mask': np.ones((2, 6, 1), bool),
        'actions': rng.normal(size=(2, 6, 4, 3)),
        'episode': np.repeat([[4], [9]], 6, axis=1),
        'frame': np.tile(np.arange(6) * 4, (2, 1)),
        'reset': reset,
    }


TOUCHED = {
    'camera_noise': {'images'},
    'dropped_frames': {'images'},
    'delayed_state': set(perturb.STATE),
}


@pytest.mark.parametrize('change', perturb.every_level(), ids=lambda c: f'{c.kind}-{c.level}')
def test_only_what_is_named_changes_and_always_alike(batch, change):
    before = {key: x.copy() for key, x in batch.items()}
    changed = change(batch)
    assert all(np.array_equal(batch[key], before[key]) for key in batch), 'the batch itself stays'
    assert {key for key in batch if not np.array_equal(changed[key], batch[key])} == TOUCHED[
        change.kind
    ] - {'prompt_mask'}
    alone = change({key: x[1:] for key, x in batch.items()})
    assert all(np.array_equal(alone[key], changed[key][1:]) for key in batch), (
        'the rest of a batch does not matter'
    )


@pytest.mark.parametrize('kind', perturb.KINDS)
def test_level_zero_is_the_recording(batch, kind):
    changed = Perturbation(kind, 0)(batch)
    assert all(np.array_equal(changed[key], batch[key]) for key in batch)


def test_noise_is_as_wide_as_it_says(batch):
    grey = batch | {'images': np.full((2, 6, 2, 32, 32, 3), 128, np.uint8)}
    noisy = Perturbation('camera_noise', 10)(grey)['images'].astype(float)
    assert np.std(noisy - 128) == pytest.approx(10, rel=0.02)
    unit = Perturbation('camera_noise', 10)(
        grey | {'images': np.zeros((2, 6, 2, 32, 32, 3), np.float32)}
    )['images']
    assert unit.dtype == np.float32 and np.std(unit) == pytest.approx(20 / 255, rel=0.02)
    assert not np.array_equal(noisy[0, 0], noisy[0, 1]) and not np.array_equal(
        noisy[0, 0], noisy[1, 0]
    )
    other = Perturbation('camera_noise', 10, seed=1)(grey)['images']
    assert not np.array_equal(noisy, other)


def test_higher_levels_drop_the_same_images_and_more(batch):
    many = {key: np.tile(x, (40, *[1] * (x.ndim - 1))) for key, x in batch.items()}
    many['images'] = np.maximum(many['images'], 1)
    many['episode'] = np.arange(80)[:, None].repeat(6, axis=1)
    few, more = (
        Perturbation('dropped_frames', level)(many)['images'].max(axis=(3, 4, 5)) == 0
        for level in (0.1, 0.6)
    )
    assert np.mean(few) == pytest.approx(0.1, abs=0.03) and np.mean(more) == pytest.approx(
        0.6, abs=0.05
    )
    assert (more | ~few).all()


def test_state_and_prompt_come_late_but_never_from_another_episode(batch):
    late = Perturbation('delayed_state', 2)(batch)
    assert late['state'][0, :, 0].tolist() == [0, 0, 0, 1, 2, 3]
    assert late['prompt'][1, :, 0].tolist() == [6, 6, 6, 9, 9, 9]
    assert Perturbation('delayed_state', 2).name(stride=4) == '8 frames old'
