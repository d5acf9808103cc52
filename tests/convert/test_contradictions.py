"""Files beside one another that say different things: one note says which counts, and both say it
afterwards.
"""

import dataclasses
import json
import pathlib
import shutil

import pytest

from sigma_jax.convert import assets, checkpoint, source
from sigma_jax.convert.overrides import Overrides, apply_overrides
from sigma_jax.errors import UserError
from sigma_jax.processing.tokenizer import NO_STATE
from tests import golden
from tests.convert.test_assets import LAYOUTS, edit, write

POLICIES = golden.DATA / 'policies'


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('chunk', 'steps'), [(4, 10), (50, 3), (10, 10)])
def test_lerobots_config_is_written_with_the_horizon_that_counts(tmp_path, chunk, steps, layout):
    policy = pathlib.Path(shutil.copytree(POLICIES / 'lerobot_0_6_1', tmp_path / 'policy'))
    edit(policy / 'config.json', lambda x: x.update(chunk_size=chunk, num_inference_steps=steps))
    opened = source.open_source(golden.FIXTURE / 'lerobot.safetensors')
    checkpoint.convert(opened, tmp_path / 'out', layout, policy_assets=assets.read(policy))
    place = tmp_path / 'out' if layout == 'lerobot' else tmp_path / 'out' / 'lerobot'
    settings = json.loads((place / 'config.json').read_text())
    assert (settings['chunk_size'], settings['num_inference_steps']) == (10, 10)
    notes = ' '.join(json.loads((tmp_path / 'out' / 'source.json').read_text())['notes'])
    assert (
        f"chunk_size is {chunk} in LeRobot's config.json; sigma_config.json's 10 is used" in notes
    ) == (chunk != 10)
    assert ('num_inference_steps is 3' in notes) == (steps == 3)


@pytest.mark.parametrize(
    ('name', 'change', 'said'),
    [
        (
            'rename_observations_processor',
            {'rename_map': {'observation.images.top': 'observation.images.up'}},
            'rename map',
        ),
        ('relative_actions_processor', {'enabled': False}, 'relative joints'),
        ('relative_actions_processor', {'exclude_joints': []}, 'relative joints'),
        (
            'normalizer_processor',
            {'norm_map': {'STATE': 'MEAN_STD', 'ACTION': 'QUANTILES'}},
            'normalisation of the state',
        ),
    ],
)
def test_processors_edited_beside_policy_json_are_noted(tmp_path, name, change, said):
    write(assets.read(POLICIES / 'lerobot_0_6_1'), tmp_path / 'out', 'lerobot')
    before = assets.read(tmp_path / 'out')
    assert not any('differs from' in note for note in before.notes)

    def edited(body):
        for step in body['steps']:
            if step['registry_name'] == name:
                step['config'].update(change)

    edit(tmp_path / 'out' / 'policy_preprocessor.json', edited)
    after = assets.read(tmp_path / 'out')
    assert (
        f"policy.json differs from LeRobot's processors beside it in {said}; policy.json is used"
    ) in after.notes
    assert after.policy == before.policy


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    'name', ['openpi', 'lerobot_0_4_4', 'lerobot_0_6_1', 'lerobot_mean_std', 'lerobot_min_max']
)
def test_a_folder_of_ours_never_differs_from_itself(tmp_path, name, layout):
    write(assets.read(POLICIES / name), tmp_path / 'out', layout)
    assert not any('differs from' in note for note in assets.read(tmp_path / 'out').notes)


@pytest.mark.parametrize(
    ('name', 'width', 'said'),
    [
        ('lerobot_0_6_1', 32, 'from 0.5 on'),
        ('lerobot_0_4_4', 0, 'before 0.5 pads'),
        ('lerobot_0_6_1', 0, ''),
        ('lerobot_0_4_4', 32, ''),
        ('lerobot_0_6_1', NO_STATE, 'has no state'),
    ],
)
def test_a_prompt_that_carried_processors_cannot_say_is_noted(tmp_path, name, width, said):
    found = assets.read(POLICIES / name)
    other = dataclasses.replace(found.policy, prompt_state_dim=width)
    notes = write(dataclasses.replace(found, policy=other, notes=()), tmp_path / 'out', 'lerobot')
    about = [note for note in notes if 'prompt' in note]
    assert len(about) == bool(said) and all(said in note for note in about)


@pytest.mark.parametrize('name', ['action_horizon', 'sample_steps'])
@pytest.mark.parametrize('value', [1001, 10**9])
def test_more_than_anybody_means_is_refused(name, value):
    with pytest.raises(UserError, match=f'expected --{name} of up to 1000, got {value}; give'):
        Overrides(**{name: value})
    opened = source.open_source(golden.FIXTURE / 'lerobot.safetensors')
    found, _ = apply_overrides(opened, assets.read(POLICIES / 'openpi'), Overrides(**{name: 1000}))
    assert getattr(found.config, name) == 1000
