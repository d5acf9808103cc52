"""What openpi keeps in its training config: read where it is written, given by flags, else assumed
and said so.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from sigma_jax.backbones.pi05 import BoundPi05
from sigma_jax.convert import assets, checkpoint, sizes, source
from sigma_jax.convert.load_base import ModelConfig, open_base
from sigma_jax.convert.overrides import Overrides, apply_overrides
from sigma_jax.errors import UserError
from sigma_jax.processing.spec import read_policy
from sigma_jax.processing.tokenizer import NO_STATE
from tests import golden

OPENPI = golden.FIXTURE / 'openpi_jax'
STATS = golden.DATA / 'policies/openpi/assets/so101/norm_stats.json'
LIBERO = ('pi05_libero/29999', 'pi05_libero/my_run/29999', 'checkpoints/pi05_libero')


@pytest.fixture
def openpi(tmp_path):
    """A folder as openpi's training leaves it, at a place in its tree."""

    def make(place):
        shutil.copytree(OPENPI, tmp_path / place)
        (tmp_path / place / 'assets/robot').mkdir(parents=True)
        shutil.copy(STATS, tmp_path / place / 'assets/robot')
        return tmp_path / place

    return make


def convert(folder, out, layout='jax', **given):
    opened = source.open_source(folder)
    opened, policy_assets = apply_overrides(
        opened, assets.read(opened.folder, opened.format), Overrides(**given)
    )
    return checkpoint.convert(opened, out, layout, policy_assets=policy_assets)


def said(record):
    """The line that says what was assumed, '' where none does."""
    lines = [note for note in record['notes'] if note.startswith('assumed')]
    assert len(lines) <= 1
    return ''.join(lines)


def sizes_of(folder):
    config = json.loads((folder / 'sigma_config.json').read_text())
    return config['action_horizon'], config['sample_steps'], read_policy(folder).prompt_state_dim


def test_what_nothing_says_is_assumed_and_said(openpi, tmp_path):
    record = convert(openpi('mine/run/9'), tmp_path / 'out')
    line = said(record)
    assert (
        "action_horizon 50, sample_steps 10, a prompt with the robot's state (as openpi by default)"
    ) in line
    assert '--action_horizon, --sample_steps, --prompt_state' in line and '\n' not in line
    assert sizes_of(tmp_path / 'out') == (50, 10, 0)
    # the second reader is given it too
    again = convert(tmp_path / 'out', tmp_path / 'again', 'lerobot')
    assert said(again) == line and said(convert(tmp_path / 'again', tmp_path / 'third')) == line


@pytest.mark.parametrize('place', LIBERO)
def test_openpis_public_configs_are_known_by_name(openpi, tmp_path, place):
    record = convert(openpi(place), tmp_path / 'out')
    assert sizes_of(tmp_path / 'out') == (10, 10, NO_STATE)
    assert (
        "action_horizon 10, sample_steps 10, a prompt without state (as openpi's public config "
        'pi05_libero'
    ) in said(record)


@pytest.mark.parametrize(
    ('name', 'horizon'), [('pi05_droid', 15), ('pi05_full_droid_finetune', 16), ('pi05_base', 50)]
)
def test_horizons_of_other_public_configs(openpi, tmp_path, name, horizon):
    convert(openpi(name), tmp_path / 'out')
    assert sizes_of(tmp_path / 'out') == (horizon, 10, 0)


def test_a_name_too_far_up_or_only_alike_says_nothing(openpi, tmp_path):
    convert(openpi('pi05_libero/a/b/c/9'), tmp_path / 'far')
    convert(openpi('pi05_libero_mine/9'), tmp_path / 'alike')
    assert sizes_of(tmp_path / 'far') == sizes_of(tmp_path / 'alike') == (50, 10, 0)


@pytest.mark.parametrize('layout', ['jax', 'lerobot', 'openpi-pytorch'])
@pytest.mark.parametrize(('prompt', 'width'), [('none', NO_STATE), ('robot', 0), ('padded', 8)])
def test_what_is_given_reaches_every_layout_and_comes_back(openpi, tmp_path, layout, prompt, width):
    given = {'action_horizon': 7, 'sample_steps': 4, 'prompt_state': prompt}
    assert said(convert(openpi('mine'), tmp_path / 'out', layout, **given)) == ''
    assert sizes_of(tmp_path / 'out') == (7, 4, width)
    record = convert(tmp_path / 'out', tmp_path / 'back')
    assert said(record) == '' and sizes_of(tmp_path / 'back') == (7, 4, width)
    if layout == 'openpi-pytorch':
        assert json.loads((tmp_path / 'out/config.json').read_text())['action_horizon'] == 7
    if layout == 'lerobot':
        config = json.loads((tmp_path / 'out/config.json').read_text())
        assert (config['chunk_size'], config['n_action_steps'], config['num_inference_steps']) == (
            7,
            7,
            4,
        )
        (tmp_path / 'out/policy.json').unlink()  # LeRobot's own files say it too
        found = assets.read(tmp_path / 'out').policy.prompt_state_dim
        assert found == (NO_STATE if prompt == 'none' else 32 if found else 0)


def test_a_prompt_without_state_is_written_with_pi0s_step_and_said(openpi, tmp_path):
    record = convert(openpi('mine'), tmp_path / 'out', 'lerobot', prompt_state='none')
    assert any(
        'the prompt has no state' in note and 'underscores' in note for note in record['notes']
    )
    steps = json.loads((tmp_path / 'out/policy_preprocessor.json').read_text())['steps']
    names = [step.get('registry_name', step.get('class')).rpartition('.')[2] for step in steps]
    assert names[names.index('tokenizer_processor') - 1] == 'Pi0NewLineProcessor'
    assert 'pi05_prepare_state_tokenizer_processor_step' not in names


def test_processors_without_any_prompt_step_are_named(tmp_path):
    shutil.copytree(golden.DATA / 'policies/lerobot_0_6_1', tmp_path / 'policy')
    file = tmp_path / 'policy/policy_preprocessor.json'
    body = json.loads(file.read_text())
    body['steps'] = [step for step in body['steps'] if 'prepare_state' not in step['registry_name']]
    file.write_text(json.dumps(body))
    found = assets.read(tmp_path / 'policy')
    assert found.policy.prompt_state_dim == 0 and any('neither' in note for note in found.notes)
    body['steps'].insert(3, {'registry_name': 'pi0_new_line_processor', 'config': {}})
    file.write_text(json.dumps(body))
    found = assets.read(tmp_path / 'policy')
    assert found.policy.prompt_state_dim == NO_STATE and not any(
        'neither' in note for note in found.notes
    )


def lerobot_folder(tmp_path):
    """LeRobot's files (chunk of 4) beside LeRobot's weights."""
    folder = tmp_path / 'lerobot'
    shutil.copytree(golden.DATA / 'policies/lerobot_0_6_1', folder)
    shutil.copy(golden.FIXTURE / 'lerobot.safetensors', folder / 'model.safetensors')
    config = json.loads((golden.FIXTURE / 'config.json').read_text())
    settings = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(
        json.dumps(settings | {'num_inference_steps': 6} | {'siglip': config['siglip']})
    )
    return folder


def test_what_lerobot_writes_is_read_and_what_is_given_over_it_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'sigma_jax.backbones.pi05_sizes._vision_heads',
        lambda width, hints: golden.config().vision.heads,
    )
    folder = lerobot_folder(tmp_path)
    record = convert(folder, tmp_path / 'out')
    assert said(record) == '' and sizes_of(tmp_path / 'out') == (4, 6, 0)
    record = convert(folder, tmp_path / 'given', 'lerobot', action_horizon=3, prompt_state='none')
    assert 'action_horizon 3, as given; written is 4' in record['notes']
    assert (
        "a prompt without state, as given; written is a prompt with the robot's state"
        in record['notes']
    )
    config = json.loads((tmp_path / 'given/config.json').read_text())
    assert (config['chunk_size'], config['n_action_steps'], config['num_inference_steps']) == (
        3,
        3,
        6,
    )
    kept = convert(folder, tmp_path / 'kept', 'lerobot')
    assert (tmp_path / 'kept/policy_preprocessor.json').read_bytes() == (
        folder / 'policy_preprocessor.json'
    ).read_bytes(), kept


def test_openpis_pytorch_config_says_the_horizon_alone(openpi, tmp_path):
    convert(openpi('mine'), tmp_path / 'torch', 'openpi-pytorch', action_horizon=12)
    theirs = tmp_path / 'theirs'
    theirs.mkdir()
    for name in ('model.safetensors', 'config.json'):
        shutil.copy(tmp_path / 'torch' / name, theirs)
    assert sizes.read_hints(theirs) == {'action_horizon': 12}
    found = assets.read(theirs, 'openpi-pytorch')
    assert list(found.assumed) == ['prompt_state']


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'action_horizon': 0}, 'expected --action_horizon of at least 1, got 0'),
        ({'sample_steps': -3}, 'expected --sample_steps of at least 1, got -3'),
        ({'action_horizon': True}, 'expected --action_horizon of at least 1, got True'),
        ({'prompt_state': 'some'}, "expected --prompt_state among robot, none, padded, got 'some'"),
    ],
)
def test_what_cannot_be_given(given, message):
    with pytest.raises(UserError, match=message):
        Overrides(**given)


def test_the_horizon_given_gives_openpis_actions(openpi, tmp_path):
    """Fifty noisy actions attend to each other: with the assumed horizon the first ten come out
    otherwise.
    """
    convert(openpi('mine'), tmp_path / 'given', action_horizon=10)
    convert(tmp_path / 'mine', tmp_path / 'assumed')
    noise, want = golden.inputs()['sample_noise'], golden.outputs()['sampled_actions']
    far = {}
    for name in ('given', 'assumed'):
        loaded = checkpoint.load(tmp_path / name)
        config = dataclasses.replace(loaded.config, dtype='float32')
        more = np.random.default_rng(0).normal(
            size=(len(noise), config.action_horizon - 10, noise.shape[2])
        )
        given = np.concatenate([noise, more.astype(np.float32)], axis=1)
        bound = BoundPi05(config, loaded.params)
        got = np.asarray(bound._apply('sample_actions', given, golden.observation()))[:, :10]
        far[name] = np.abs(got - want).max()
    assert far['given'] < 2e-4 and far['assumed'] > 0.1


@pytest.mark.parametrize('place', ['mine/run/9', 'pi05_libero/run/9'])
def test_a_folder_that_was_not_converted_is_described_with_what_was_assumed(openpi, place):
    described = open_base(str(openpi(place)), ModelConfig())
    (note,) = described.notes
    values = 'action_horizon 10' if 'libero' in place else 'action_horizon 50'
    assert note.startswith(f'assumed, as no file here says it: {values}, sample_steps 10')
    assert note.endswith('give convert_weights.py --action_horizon, --sample_steps, --prompt_state')


def test_a_folder_that_was_given_all_has_nothing_to_say(openpi, tmp_path):
    convert(
        openpi('mine/run/9'),
        tmp_path / 'out',
        action_horizon=10,
        sample_steps=5,
        prompt_state='none',
    )
    assert open_base(str(tmp_path / 'out'), ModelConfig()).notes == ()
