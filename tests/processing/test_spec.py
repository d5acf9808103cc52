"""policy.json: what it may hold, what it may not, and that today's files keep their meaning."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from sigma_jax.convert import sizes
from sigma_jax.convert.load_base import (
    ModelConfig,
    check_resize,
    open_base,
    robot_statistics,
)
from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.normalize import Scaling, compute_statistics
from sigma_jax.processing.spec import LEROBOT, OPENPI, OURS, ProcessorConfig, read_policy, to_json
from tests import golden, metas

FULL = ProcessorConfig(
    relative_joints=(True, False),
    state=Scaling('mean_std', 'lerobot', 1e-6),
    actions=Scaling('min_max', 'lerobot'),
    prompt_state_dim=32,
    max_prompt_len=180,
    resize='lerobot',
    image_padding=-3.0,
    cameras=('up', 'side'),
    action_steps=20,
    max_delay=6,
)


@pytest.mark.parametrize(
    'policy', [OURS, OPENPI, LEROBOT, FULL], ids=['ours', 'openpi', 'lerobot', 'full']
)
def test_written_and_read_back(tmp_path, policy):
    (tmp_path / 'policy.json').write_text(to_json(policy))
    assert read_policy(tmp_path) == policy


def test_a_policy_that_goes_on_from_nothing_says_nothing_of_it():
    """Its file is what it was before a policy could."""
    assert 'max_delay' not in to_json(OPENPI) and '"max_delay": 6' in to_json(FULL)


def test_absent_keys_and_an_absent_file_mean_what_they_meant_before_there_were_more(tmp_path):
    assert read_policy(tmp_path) is None
    (tmp_path / 'policy.json').write_text('{"relative_joints": [true, false]}')
    found = read_policy(tmp_path)
    assert found == ProcessorConfig(relative_joints=(True, False)) and found.state == Scaling(
        'quantile', 'sigma'
    )
    assert found.prompt_state_dim is None and found.resize == 'openpi' and found.image_padding == -1


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', r'expected {"relative_joints": \[true, ...\]} in .*policy.json, got Expecting'),
        ('[]', 'expected some of .*relative_joints.* in .*policy.json, got list'),
        ('{"relative_joint": []}', r"got unknown keys \['relative_joint'\]; mend the file"),
        (
            '{"relative_joints": [1, 0]}',
            r"true or false for each joint for 'relative_joints' in "
            r'.*, got \[1, 0\]',
        ),
        (
            '{"state": "quantile"}',
            'expected "mode" and "formula" out of .* for \'state\' in .*, got \'quantile\'',
        ),
        (
            '{"state": {"mode": "mean_std", "formula": "sigma"}}',
            "for 'state' in .*, got {'mode': 'mean_std'",
        ),
        ('{"actions": {"mode": ["x"], "formula": "openpi"}}', "for 'actions' in "),
        (
            '{"actions": {"mode": "quantile", "formula": "openpi", "epsilon": "1"}}',
            "for 'actions' in ",
        ),
        (
            '{"prompt_state_dim": true}',
            "at least 0, or -1 for a prompt without state, for 'prompt_state.*, got True",
        ),
        (
            '{"prompt_state_dim": -2}',
            "-1 for a prompt without state, for 'prompt_state_dim' in .*, got -2",
        ),
        ('{"max_prompt_len": 0}', "a number of at least 1 for 'max_prompt_len' in .*, got 0"),
        (
            '{"resize": "torch"}',
            r"expected one of \('openpi', 'lerobot'\) for 'resize' in .*, got "
            r"'torch'",
        ),
        ('{"image_padding": null}', "a number for 'image_padding' in .*, got None"),
        ('{"cameras": "up"}', "names for 'cameras' in .*, got 'up'"),
        ('{"action_steps": 1.5}', "a number of at least 1 for 'action_steps' in .*, got 1.5"),
        ('{"max_delay": -1}', "a number of at least 0 for 'max_delay' in .*, got -1"),
        ('{"max_delay": true}', "a number of at least 0 for 'max_delay' in .*, got True"),
    ],
)
def test_what_policy_json_may_not_hold(tmp_path, content, message):
    (tmp_path / 'policy.json').write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_policy(tmp_path)
    assert '\n' not in str(caught.value)


def test_a_policy_scales_its_statistics_and_leaves_others_alone():
    one = compute_statistics(np.arange(12.0).reshape(6, 2))
    scaled = OPENPI.scale({'state': one, 'actions': one, 'gaze': one})
    assert [x.scaling.formula for x in scaled.values()] == ['openpi', 'openpi', 'sigma']
    assert np.array_equal(scaled['state'].mean, one.mean)


def test_shards_must_be_resized_and_ordered_as_the_base_is_used_to():
    old = metas.meta(
        image_size=56,
        camera_names=('up', 'side'),
        cameras=('up', 'side'),
        camera_sizes={'up': (480, 640), 'side': (56, 56)},
    ).to_json()
    del old['resize']
    meta = Meta.from_json(old, '')
    check_resize(OPENPI, meta)  # shards from before there was a choice
    asked = dataclasses.replace(meta, resize='lerobot')
    check_resize(FULL, asked)
    check_resize(FULL, dataclasses.replace(meta, camera_sizes={'up': (56, 56)}))  # as they were
    with pytest.raises(
        UserError,
        match="resized as 'lerobot' does, .*got 'openpi' in the shards; prepare them again",
    ):
        check_resize(FULL, meta)
    with pytest.raises(
        UserError,
        match=r"order of the base, \('up', 'side'\), got \['side', "
        r"'up'\]",
    ):
        check_resize(
            FULL, dataclasses.replace(asked, camera_names=('side', 'up'), cameras=('side', 'up'))
        )


def test_the_embedded_base_keeps_its_meaning():
    found = open_base('assets/pi05_tiny', ModelConfig()).policy
    assert found == ProcessorConfig(relative_joints=(True,) * 5 + (False,))
    assert json.loads(to_json(found))['relative_joints'] == [True] * 5 + [False]
    with pytest.raises(UserError, match='expected a checkpoint at nowhere, got no such file'):
        open_base('nowhere', ModelConfig())


def test_a_base_in_lerobot_s_own_files_is_used_as_lerobot_does(tmp_path):
    for file in (golden.DATA / 'policies' / 'lerobot_0_4_4').glob('policy_*'):
        shutil.copy(file, tmp_path)
    shutil.copy(golden.DATA / 'policies' / 'lerobot_0_4_4' / 'config.json', tmp_path)
    shutil.copy(golden.FIXTURE / 'lerobot.safetensors', tmp_path / 'model.safetensors')
    # heads that no array gives
    (tmp_path / 'sigma_config.json').write_text(json.dumps(sizes.to_json(golden.config())))
    base = open_base(str(tmp_path), ModelConfig())
    assert (
        base.policy.resize == 'lerobot'
        and base.policy.image_padding == -3
        and base.policy.prompt_state_dim == 32
    )
    cut = robot_statistics(base, metas.meta(state_names=('a', 'b'), action_names=('a', 'b')))
    scaling = action_scaling(cut, cut, base.policy.relative_joints)
    q01, q99 = cut['actions'].q01.astype(np.float32), cut['actions'].q99.astype(np.float32)
    assert np.array_equal(scaling.low, q01) and np.array_equal(scaling.span, q99 - q01)
