"""One raw frame, state and task: the same model inputs and actions as LeRobot's and openpi's own
pipelines.
"""

import dataclasses
import pathlib

import numpy as np
import pytest

from sigma_jax.backbones.pi05_prompt import prompt_parts
from sigma_jax.convert import assets
from sigma_jax.errors import UserError
from sigma_jax.processing.images import unit_range
from sigma_jax.processing.normalize import Scaling
from sigma_jax.processing.processor import of_policy
from sigma_jax.processing.tokenizer import load_tokenizer
from tests.data.policies.make_reference import CAMERAS, SIDE, TASK, raw_inputs

ROOT = pathlib.Path(__file__).parents[2]
POLICIES = ROOT / 'tests' / 'data' / 'policies'
FOLDERS = sorted(file.parent.name for file in POLICIES.glob('*/reference.npz'))


@pytest.fixture(scope='module')
def tokenizer():
    return load_tokenizer(ROOT / 'assets' / 'tokenizer' / 'tokenizer.json')


def read(folder):
    """(policy, statistics) of a stored policy; openpi's files leave cameras and mode to its
    training config.
    """
    found = assets.read(POLICIES / folder)
    own = {}
    if folder.startswith('openpi'):
        mode = 'mean_std' if folder == 'openpi_mean_std' else 'quantile'
        own = {
            'cameras': CAMERAS,
            'state': Scaling(mode, 'openpi'),
            'actions': Scaling(mode, 'openpi'),
        }
    policy = dataclasses.replace(found.policy, **own)
    return policy, policy.scale(found.statistics)


def frames():
    raw = raw_inputs()
    return {name: raw[name] for name in CAMERAS}


def test_there_are_references_of_both_libraries_and_all_modes():
    assert len(FOLDERS) == 8 and {
        'lerobot_0_4_4',
        'lerobot_0_6_1',
        'lerobot_mean_std',
        'openpi',
    } <= set(FOLDERS)


def as_floats(images):
    """In the model's units, as the image encoder scales them."""
    return unit_range(images) if images.dtype == np.uint8 else images


@pytest.mark.parametrize('folder', FOLDERS)
def test_model_inputs_are_those_of_the_original(folder, tokenizer):
    policy, statistics = read(folder)
    processor = of_policy(policy, statistics, tokenizer, SIDE, prompt_parts)
    got = processor.inputs(frames(), raw_inputs()['state'], TASK)
    want = dict(np.load(POLICIES / folder / 'reference.npz'))
    for key in ('prompt', 'prompt_mask', 'image_mask'):
        assert np.array_equal(got[key], want[key]), key
    assert np.array_equal(got['state'], want['state'].astype(np.float32))
    exact = 0 if folder.startswith('openpi') else 1e-5
    np.testing.assert_allclose(as_floats(got['images']), want['images'], rtol=0, atol=exact)


@pytest.mark.parametrize('folder', FOLDERS)
def test_actions_are_those_of_the_original(folder, tokenizer):
    policy, statistics = read(folder)
    raw, want = raw_inputs(), np.load(POLICIES / folder / 'reference.npz')['actions']
    padded = np.pad(raw['model_actions'], [(0, 0), (0, 0), (0, 26)], constant_values=9.0)
    actions = of_policy(policy, statistics, tokenizer, SIDE, prompt_parts).outputs(
        padded, raw['state']
    )
    np.testing.assert_allclose(actions, want, rtol=0, atol=2e-5)  # raw units, up to 170


def test_versions_of_lerobot_differ_in_padding_and_prompt():
    old, new = (
        np.load(POLICIES / f'lerobot_{version}' / 'reference.npz') for version in ('0_4_4', '0_6_1')
    )
    assert old['images'].min() == -3 and new['images'].min() == -1
    # the padded entries, a token each
    assert old['prompt_mask'].sum() - new['prompt_mask'].sum() == 26


def test_an_absent_camera_is_black_and_masked(tokenizer):
    policy, statistics = read('lerobot_0_6_1')
    seen = {'side': frames()['side']}
    processor = of_policy(policy, statistics, tokenizer, SIDE, prompt_parts)
    got = processor.inputs(seen, raw_inputs()['state'], TASK)
    assert got['image_mask'].tolist() == [False, True] and np.all(got['images'][0] == -1)
    whole = processor.inputs(frames(), raw_inputs()['state'], TASK)
    assert np.array_equal(got['images'][1], whole['images'][1])


def test_inputs_that_do_not_fit(tokenizer):
    policy, statistics = read('lerobot_0_6_1')

    def refused(message, views=None, state=raw_inputs()['state'], policy=policy):
        with pytest.raises(UserError, match=message):
            processor = of_policy(policy, statistics, tokenizer, SIDE, prompt_parts)
            processor.inputs(frames() if views is None else views, state, TASK)

    refused(r"cameras out of \('up', 'side'\), got \['wrist'\]", {'wrist': frames()['up']})
    refused(r"cameras out of \('up', 'side'\), got none", {})
    refused('expected numbers in the normalised state', state=raw_inputs()['state'] * np.nan)
    refused(r'expected a state of 6 numbers, got shape \[5\]', state=raw_inputs()['state'][:5])
    floats = {name: view / np.float32(255) for name, view in frames().items()}
    refused(r'expected a frame of uint8 \[height width 3\], got float32 \[60, 80, 3\]', floats)
    refused(
        r'expected views of shape \[2, 28, 28, 3\], got \[2, 60, 80, 3\]',
        np.stack([frames()['up']] * 2),
    )
    refused(
        'a prompt of at most 20 tokens, as many as the policy reads, got 38; shorten the task',
        policy=dataclasses.replace(policy, max_prompt_len=20),
    )
