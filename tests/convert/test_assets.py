"""What lies beside weights: read from each library's own files, written for each, and said where it
is not known.
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax.convert import assets
from sigma_jax.convert.lerobot import read
from sigma_jax.convert.stats_source import find_statistics
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import (
    Scaling,
    Statistics,
    compute_statistics,
    norm_stats_json,
    normalize,
)
from sigma_jax.processing.spec import LEROBOT, OPENPI, OURS
from tests import golden

POLICIES = golden.DATA / 'policies'
LAYOUTS = ('jax', 'openpi-pytorch', 'lerobot')
SOURCES = ('lerobot_0_4_4', 'lerobot_0_6_1', 'lerobot_mean_std', 'openpi')
NORMALIZER = 'policy_preprocessor_step_2_normalizer_processor.safetensors'


@pytest.fixture
def copied(tmp_path):
    """A copy of stored files to be damaged."""
    return pathlib.Path(shutil.copytree(POLICIES / 'lerobot_0_4_4', tmp_path / 'policy'))


def write(found, out, layout='jax', dtype='float32'):
    out.mkdir()
    return assets.write(out, layout, found, golden.config(), dtype)


def same_statistics(one, other):
    return all(
        one[name].scaling == other[name].scaling
        and one[name].columns().keys() == other[name].columns().keys()
        and all(
            np.array_equal(x, other[name].columns()[key]) for key, x in one[name].columns().items()
        )
        for name in ('state', 'actions')
    )


def stats_json(mode='quantile', formula='sigma'):
    rng = np.random.default_rng(0)
    values = rng.normal(0, [5, 0, 3], (200, 3)) + [1, 7, -2]
    return {
        k: dataclasses.replace(compute_statistics(values), scaling=Scaling(mode, formula))
        for k in ('state', 'actions')
    }


def test_what_lerobot_s_files_say():
    old, new = (assets.read(POLICIES / name) for name in ('lerobot_0_4_4', 'lerobot_0_6_1'))
    assert (old.policy.prompt_state_dim, old.policy.image_padding) == (32, -3)
    assert (new.policy.prompt_state_dim, new.policy.image_padding) == (0, -1)
    assert old.policy.relative_joints == () and new.policy.relative_joints == (True,) * 5 + (False,)
    assert (
        new.policy.cameras == ('up', 'side')
        and new.policy.max_prompt_len == 200
        and new.policy.action_steps == 4
    )
    (note,) = old.notes
    assert (
        'saved by LeRobot before 0.5.1' in note
        and '"prompt_state_dim": 0' in note
        and new.notes == ()
    )
    stored = load_file(POLICIES / 'lerobot_0_4_4' / NORMALIZER)
    assert np.array_equal(
        old.statistics['state'].q99.astype(np.float32), stored['observation.state.q99']
    )
    assert assets.read(POLICIES / 'lerobot_mean_std').policy.state == Scaling('mean_std', 'lerobot')


def test_what_openpi_s_files_say(tmp_path):
    found = assets.read(POLICIES / 'openpi' / 'params', 'openpi-jax')
    given = json.loads((POLICIES / 'dataset_stats.json').read_text())
    assert (
        found.policy == OPENPI and found.statistics['state'].q01.tolist() == given['state']['q01']
    )
    assert list(found.files) == ['assets/so101/norm_stats.json']
    assert 'relative_joints' in found.notes[0]
    shutil.copytree(POLICIES / 'openpi' / 'assets' / 'so101', tmp_path / 'assets' / 'droid')
    shutil.copytree(POLICIES / 'openpi' / 'assets' / 'so101', tmp_path / 'assets' / 'trossen')
    several = assets.read(tmp_path)
    assert several.statistics is None and '(droid, trossen): name their source' in several.notes[1]
    chosen = assets.read(tmp_path, stats=tmp_path / 'assets' / 'droid')
    assert same_statistics(chosen.statistics, found.statistics) and len(chosen.notes) == 1
    bare = assets.read(golden.FIXTURE / 'lerobot.safetensors', 'lerobot')
    assert (
        bare.policy == LEROBOT and bare.statistics is None and 'name their source' in bare.notes[0]
    )


def test_our_own_folders_keep_their_meaning(tmp_path):
    (tmp_path / 'norm_stats.json').write_text(norm_stats_json(stats_json()))
    (tmp_path / 'sigma_config.json').write_text('{}')
    found = assets.read(tmp_path, 'openpi-jax')
    assert (
        found.policy == OURS
        and same_statistics(found.statistics, stats_json())
        and found.notes == ()
    )


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('source', SOURCES)
def test_every_layout_computes_as_its_source_did_and_back(tmp_path, source, layout):
    first = assets.read(POLICIES / source)
    write(first, tmp_path / 'there', layout)
    there = assets.read(tmp_path / 'there', layout)
    assert there.policy == first.policy and same_statistics(there.statistics, first.statistics)
    assert there.files.keys() == first.files.keys() or source == 'openpi' or layout != 'lerobot'
    back = 'openpi-pytorch' if source == 'openpi' else 'lerobot'
    write(there, tmp_path / 'back', back)
    for file in (POLICIES / source).rglob('*'):
        # every file of the source is there again
        if file.is_file() and file.name != 'reference.npz':
            assert (
                tmp_path / 'back' / file.relative_to(POLICIES / source)
            ).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize('source', ['openpi', 'lerobot_0_6_1'])
def test_files_written_for_lerobot_say_the_same_to_its_reader(tmp_path, source):
    first = assets.read(POLICIES / source)
    bare = dataclasses.replace(first, files={})
    notes = write(bare, tmp_path / 'out', 'lerobot', 'bfloat16')
    found = read.read(tmp_path / 'out')
    assert found.policy.relative_joints == first.policy.relative_joints
    assert found.policy.cameras == first.policy.cameras and found.policy.state.mode == 'quantile'
    for name, one in found.statistics.items():
        for key, column in one.columns().items():
            assert np.array_equal(
                column, first.statistics[name].columns()[key].astype(np.float32)
            ), key
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert (
        config['dtype'] == 'bfloat16'
        and config['chunk_size'] == 10
        and config['image_resolution'] == [56, 56]
    )
    assert ('use_relative_actions' in config) == (
        source == 'lerobot_0_6_1'
    )  # older versions refuse what they do not know
    assert any("cannot say this model's sizes" in note for note in notes)
    assert any('resizes without smoothing' in note for note in notes) == (source == 'openpi')


def test_files_written_for_openpi_normalise_alike(tmp_path):
    first = assets.read(POLICIES / 'lerobot_mean_std')
    notes = write(first, tmp_path / 'out', 'openpi-pytorch', 'bfloat16')
    assert any('rename assets/robot' in note for note in notes) and any(
        'as quantiles' in note for note in notes
    )
    theirs = find_statistics(tmp_path / 'out' / 'assets' / 'robot', OPENPI.scalings())
    x = np.random.default_rng(1).normal(10, 40, (50, 6)).astype(np.float32)
    for name in ('state', 'actions'):
        moved = first.statistics[name].std > 0
        want = normalize(x, first.statistics[name])[:, moved]
        np.testing.assert_allclose(normalize(x, theirs[name])[:, moved], want, atol=2e-5)
    assert json.loads((tmp_path / 'out' / 'config.json').read_text()) == {
        'action_dim': 8,
        'action_horizon': 10,
        'paligemma_variant': 'gemma_2b',
        'action_expert_variant': 'gemma_300m',
        'precision': 'bfloat16',
    }


def test_our_guard_of_still_joints_is_written_as_a_range_to_others(tmp_path):
    ours = assets.PolicyAssets(OURS, stats_json())
    assert ours.statistics['state'].near_constant.tolist() == [False, True, False]
    notes = write(ours, tmp_path / 'lerobot', 'lerobot')
    assert any('state 1 hardly move: q99 is written' in note for note in notes)
    write(ours, tmp_path / 'openpi', 'openpi-pytorch')
    x = np.array([[1, 7.3, -2.5]], np.float32)
    want = normalize(x, ours.statistics['state'])
    for found in (
        read.read(tmp_path / 'lerobot').statistics,
        find_statistics(tmp_path / 'openpi' / 'assets' / 'robot', OPENPI.scalings()),
    ):
        np.testing.assert_allclose(normalize(x, found['state']), want, atol=2e-6)
    assert same_statistics(assets.read(tmp_path / 'lerobot').statistics, ours.statistics)


def test_changed_settings_replace_the_source_s_own_files(tmp_path):
    first = assets.read(POLICIES / 'lerobot_0_6_1')
    absolute = dataclasses.replace(
        first, policy=dataclasses.replace(first.policy, relative_joints=())
    )
    write(absolute, tmp_path / 'out', 'lerobot')
    assert read.read(tmp_path / 'out').policy.relative_joints == ()
    other = dataclasses.replace(first.statistics['state'], q99=first.statistics['state'].q99 + 1)
    moved = dataclasses.replace(first, statistics=first.statistics | {'state': other})
    write(moved, tmp_path / 'moved', 'lerobot')
    assert np.array_equal(
        read.read(tmp_path / 'moved').statistics['state'].q99, np.float32(other.q99)
    )


def test_files_that_contradict_each_other_are_named(tmp_path):
    write(assets.PolicyAssets(OURS, stats_json()), tmp_path / 'out', 'lerobot')
    assert assets.read(tmp_path / 'out').notes == ()
    changed = {
        name: dataclasses.replace(one, q99=one.q99 + 1) for name, one in stats_json().items()
    }
    (tmp_path / 'out' / 'norm_stats.json').write_text(norm_stats_json(changed))
    found = assets.read(tmp_path / 'out')
    assert same_statistics(found.statistics, changed)
    assert found.notes == (
        "norm_stats.json differs from LeRobot's processors beside it; norm_stats.json is used",
    )


def test_sizes_beside_lerobot_s_files_do_not_make_them_ours(copied):
    (copied / 'sigma_config.json').write_text('{}')
    assert assets.read(copied).policy == assets.read(POLICIES / 'lerobot_0_4_4').policy


def test_the_dtype_of_the_weights_is_reported_in_lerobot_s_own_config(tmp_path):
    write(assets.read(POLICIES / 'lerobot_0_4_4'), tmp_path / 'out', 'lerobot', 'bfloat16')
    before, after = (
        json.loads((p / 'config.json').read_text())
        for p in (POLICIES / 'lerobot_0_4_4', tmp_path / 'out')
    )
    assert after == before | {'dtype': 'bfloat16'}


def test_what_is_not_known_is_said(tmp_path):
    notes = write(assets.PolicyAssets(OURS), tmp_path / 'out', 'lerobot')
    assert any('cameras of this policy are not known' in note for note in notes)
    assert any('statistics of state and actions are not known' in note for note in notes)
    assert (
        not list((tmp_path / 'out').glob('*.safetensors'))
        and not (tmp_path / 'out' / 'norm_stats.json').exists()
    )
    assert read.read(tmp_path / 'out').statistics is None


def test_steps_and_renames_that_are_not_carried_out_are_named(copied):
    file = copied / 'policy_preprocessor.json'
    body = json.loads(file.read_text())
    body['steps'][0]['config']['rename_map'] = {'observation.images.front': 'observation.images.up'}
    body['steps'].append({'class': 'mine.Blur', 'config': {}})
    file.write_text(json.dumps(body))
    notes = assets.read(copied).notes
    assert 'processor step mine.Blur is not carried out here' in notes
    assert any('LeRobot renames its inputs' in note and 'images.front' in note for note in notes)


def edit(file, change):
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    'renames', [{'observation.images.a': 'observation.images.up'}, {'front': 'side', 'b': 'up'}]
)
def test_a_rename_map_goes_into_every_layout_and_back(tmp_path, layout, renames):
    shutil.copytree(POLICIES / 'lerobot_0_6_1', tmp_path / 'policy')
    edit(
        tmp_path / 'policy' / 'policy_preprocessor.json',
        lambda x: x['steps'][0]['config'].update(rename_map=renames),
    )
    first = assets.read(tmp_path / 'policy')
    assert dict(first.policy.rename_map) == renames
    write(dataclasses.replace(first, files={}), tmp_path / 'out', layout)
    assert assets.read(tmp_path / 'out', layout).policy == first.policy
    if layout == 'lerobot':
        assert dict(read.read(tmp_path / 'out').policy.rename_map) == renames


@pytest.mark.parametrize('names', [None, ['j0', 'j1', 'j2', 'j3', 'j4', 'gripper.pos']])
def test_relative_flags_are_as_many_as_the_statistics_have_numbers(tmp_path, names):
    """A policy fine-tuned from one of 32 actions keeps 32 in its output_features."""
    folder = pathlib.Path(shutil.copytree(POLICIES / 'lerobot_0_6_1', tmp_path / 'policy'))
    edit(folder / 'config.json', lambda x: x['output_features']['action'].update(shape=[32]))
    edit(
        folder / 'policy_preprocessor.json',
        lambda x: x['steps'][2]['config'].update(action_names=names),
    )
    assert read.read(folder).policy.relative_joints == (True,) * 5 + (names is None,)


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        (
            'config.json',
            lambda x: x.update(type='pi0'),
            "expected a pi05 policy in .*config.json, got 'pi0'",
        ),
        (
            'config.json',
            lambda x: x.update(use_visual_memory=True),
            'without memory in .*, got use_visual_memory',
        ),
        (
            'config.json',
            lambda x: x.update(input_features=3),
            "LeRobot's processors in .*copy its files again",
        ),
        (
            'policy_preprocessor.json',
            lambda x: x.pop('steps'),
            "expected LeRobot's processors in .*'steps'",
        ),
        (
            'policy_preprocessor.json',
            lambda x: x['steps'][2]['config']['norm_map'].update(STATE='ROBUST'),
            "normalisation out of .*QUANTILES.* for STATE, got 'ROBUST'",
        ),
        (
            'policy_preprocessor.json',
            lambda x: x['steps'][2].update(state_file='../elsewhere.safetensors'),
            "expected statistics beside the processors in .*, got '../elsewhere.safetensors'",
        ),
        (
            'policy_postprocessor.json',
            lambda x: x.update(steps=[3]),
            "expected LeRobot's processors in",
        ),
    ],
)
def test_lerobot_files_that_cannot_be_used(copied, name, change, message):
    body = json.loads((copied / name).read_text())
    change(body)
    (copied / name).write_text(json.dumps(body))
    with pytest.raises(UserError, match=message) as caught:
        assets.read(copied)
    assert '\n' not in str(caught.value)


def test_damaged_files(copied):
    def refused(message):
        with pytest.raises(UserError, match=message):
            assets.read(copied)

    whole = load_file(copied / NORMALIZER)
    save_file({k: x for k, x in whole.items() if k != 'observation.state.q99'}, copied / NORMALIZER)
    refused("expected LeRobot's processors in .*q99")
    (copied / NORMALIZER).write_bytes(b'\x00' * 20)
    refused('expected a whole safetensors file')
    (copied / 'policy_preprocessor.json').write_text('{')
    refused('expected JSON in .*policy_preprocessor.json')
    (copied / 'policy_preprocessor.json').write_text('[]')
    refused('expected an object in .*policy_preprocessor.json, got list')


def test_statistics_from_wherever_they_are(tmp_path):
    scalings = LEROBOT.scalings()
    own = assets.read(POLICIES / 'lerobot_0_4_4').statistics
    assert same_statistics(find_statistics(POLICIES / 'lerobot_0_4_4', scalings), own)
    data = find_statistics(golden.DATA / 'lerobot' / 'v3.0', scalings)
    rows = np.array(pq.read_table(golden.DATA / 'lerobot' / 'v3.0' / 'data')['action'].to_pylist())
    # of the rows; meta/stats.json has averages of the episodes'
    assert isinstance(data['actions'], Statistics)
    np.testing.assert_allclose(data['actions'].q01, np.quantile(rows, 0.01, axis=0), rtol=1e-12)
    assert same_statistics(find_statistics(golden.DATA / 'lerobot' / 'v2.1', scalings), data)
    shutil.copytree(golden.DATA / 'lerobot' / 'v2.1' / 'meta', tmp_path / 'v2.1' / 'meta')
    with pytest.raises(
        UserError,
        match='expected meta/stats.json .format v3.0. in .*; run prepare_data.py --source=',
    ):
        find_statistics(tmp_path / 'v2.1', scalings)
    with pytest.raises(
        UserError, match='expected norm_stats.json, a LeRobot policy .* got none of them; name one'
    ):
        find_statistics(tmp_path, scalings)
    shutil.copytree(golden.DATA / 'lerobot' / 'v3.0' / 'meta', tmp_path / 'meta')
    stored = json.loads((tmp_path / 'meta' / 'stats.json').read_text())
    without_rows = find_statistics(tmp_path, scalings)
    assert without_rows['actions'].q01.tolist() == stored['action']['q01']
    del stored['action']['q01']
    (tmp_path / 'meta' / 'stats.json').write_text(json.dumps(stored))
    with pytest.raises(
        UserError,
        match='expected quantile statistics of action in .*none .*q01.*; run prepare_data.py',
    ):
        find_statistics(tmp_path, scalings)
