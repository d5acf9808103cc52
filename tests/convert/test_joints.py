"""Statistics, relative joints and the model agree on one number of actions, in every layout."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from sigma_jax.convert import assets, checkpoint, source
from sigma_jax.convert.lerobot import read as lerobot_policy
from sigma_jax.convert.stats_source import find_statistics
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import compute_statistics, norm_stats_json
from sigma_jax.processing.spec import OPENPI, OURS, to_json
from tests import golden
from tests.convert.test_assets import LAYOUTS, edit

POLICIES = golden.DATA / 'policies'
WEIGHTS = golden.FIXTURE / 'lerobot.safetensors'


def stats(width=6):
    values = np.random.default_rng(2).normal(3, 5, (300, width))
    return {'state': compute_statistics(values), 'actions': compute_statistics(values * 2)}


def converted(out, policy_assets, layout='jax'):
    checkpoint.convert(source.open_source(WEIGHTS), out, layout, policy_assets=policy_assets)
    return assets.read(out)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    ('flags', 'width', 'want'),
    [
        ((True, False, True), 6, (True, False, True, False, False, False)),
        ((True,) * 6, 7, (True,) * 6 + (False,)),
        ((True,) * 8, 6, (True,) * 6),  # as many as the model is wide
        ((True, False), 2, (True, False)),
        ((False,) * 9, 6, (False,) * 9),
    ],
)
def test_every_reader_finds_one_flag_an_action(tmp_path, flags, width, want, layout):
    policy_assets = assets.PolicyAssets(
        dataclasses.replace(OURS, relative_joints=flags), stats(width)
    )
    found = converted(tmp_path / 'out', policy_assets, layout)
    assert found.policy.relative_joints == want
    notes = json.loads((tmp_path / 'out' / 'source.json').read_text())['notes']
    assert any('the others are absolute' in note for note in notes) == (
        any(flags) and len(flags) < width
    )
    if layout == 'lerobot':
        theirs = lerobot_policy.read(tmp_path / 'out').policy.relative_joints
        assert theirs == (want if any(want) else ())


@pytest.mark.parametrize(('flags', 'width'), [((True,) * 7, 6), ((True, False, False), 2)])
def test_more_flags_than_actions_are_refused(tmp_path, flags, width):
    policy_assets = assets.PolicyAssets(
        dataclasses.replace(OURS, relative_joints=flags), stats(width)
    )
    with pytest.raises(
        UserError,
        match=f'expected relative_joints of the {width} actions .*, got {len(flags)}; mend',
    ):
        converted(tmp_path / 'out', policy_assets)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('width', [9, 18, 32])
def test_more_actions_than_the_model_has_are_refused(tmp_path, width):
    with pytest.raises(
        UserError, match=f'expected statistics of up to 8 actions, .* got {width}; take'
    ):
        converted(tmp_path / 'out', assets.PolicyAssets(OURS, stats(width)))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('absent', ['state', 'actions'])
def test_statistics_of_one_quantity_alone_are_refused(tmp_path, absent):
    file = tmp_path / 'norm_stats.json'
    file.write_text(norm_stats_json({name: one for name, one in stats().items() if name != absent}))
    (tmp_path / 'policy.json').write_text(to_json(OPENPI))
    for read in (lambda: find_statistics(file, OPENPI.scalings()), lambda: assets.read(tmp_path)):
        with pytest.raises(
            UserError, match=f'statistics of state and actions in .*; take a file that has {absent}'
        ):
            read()


@pytest.mark.parametrize(
    ('name', 'column', 'value', 'said'),
    [
        ('state', 'std', -1.0, 'std of at least 0: 3 has -1'),
        ('actions', 'std', -1e-9, 'std of at least 0: 3 has -1e-09'),
        ('actions', 'q01', 900.0, 'q01 up to q99: 3 has 900 and'),
        ('state', 'q99', -900.0, 'q01 up to q99: 3 has .* and -900'),
        ('state', 'q10', 900.0, 'q10 up to q90: 3 has 900 and'),
        ('actions', 'max', -900.0, 'min up to max: 3 has .* and -900'),
    ],
)
def test_numbers_that_no_data_have_are_refused(tmp_path, name, column, value, said):
    shutil.copy(POLICIES / 'dataset_stats.json', tmp_path)
    theirs = json.loads((tmp_path / 'dataset_stats.json').read_text())
    file = tmp_path / 'norm_stats.json'
    file.write_text(json.dumps({'norm_stats': theirs}))
    find_statistics(pathlib.Path(file), OPENPI.scalings())
    edit(file, lambda x: x['norm_stats'][name][column].__setitem__(3, value))
    with pytest.raises(UserError, match=said):
        find_statistics(file, OPENPI.scalings())
