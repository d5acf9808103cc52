"""Statistics that are named stand in every file that any reader takes; those that stood there
before, in none.
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from sigma_jax.convert import assets
from sigma_jax.convert.lerobot import read
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import compute_statistics, norm_stats_json, normalize
from sigma_jax.processing.spec import OPENPI
from tests import golden
from tests.convert.test_assets import LAYOUTS, edit, write

POLICIES = golden.DATA / 'policies'


def stats(width=6, seed=0):
    values = np.random.default_rng(seed).normal(3, 5, (300, width))
    return {'state': compute_statistics(values), 'actions': compute_statistics(values * 2)}


@pytest.fixture
def named(tmp_path):
    """A file with other statistics than any policy here has."""
    (tmp_path / 'named.json').write_text(norm_stats_json(stats()))
    return tmp_path / 'named.json'


def every(out):
    """{where: normalised state} by every file with statistics in a folder, each as its own reader
    uses it.
    """
    x, found = np.linspace(-4, 9, 6, dtype=np.float32), {}
    for file in out.rglob('norm_stats.json'):
        body = json.loads(file.read_text())['norm_stats']['state']
        low, high = np.array(body['q01']), np.array(body['q99'])
        found[str(file.relative_to(out))] = 2 * (x - low) / (high - low) - 1
    for folder in (out, out / 'lerobot'):
        if read.is_here(folder):
            for file in folder.glob('policy_*.safetensors'):
                body = load_file(file)
                low, high = body['observation.state.q01'], body['observation.state.q99']
                found[str(file.relative_to(out))] = 2 * (x - low) / (high - low) - 1
    return normalize(x, stats()['state']), found


def holds_one(out):
    want, found = every(out)
    for place, got in found.items():
        np.testing.assert_allclose(got, want, atol=2e-6, err_msg=place)
    return set(found)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('source', ['lerobot_0_4_4', 'lerobot_0_6_1', 'openpi'])
def test_named_statistics_stand_in_every_file(tmp_path, named, source, layout):
    write(assets.read(POLICIES / source, stats=named), tmp_path / 'out', layout)
    places = holds_one(tmp_path / 'out')
    assert 'norm_stats.json' in places and ('assets/so101/norm_stats.json' in places) == (
        source == 'openpi'
    )
    lerobot = [place for place in places if place.endswith('.safetensors')]
    assert len(lerobot) == (2 if source != 'openpi' or layout == 'lerobot' else 0)
    # and after the next conversion
    write(assets.read(tmp_path / 'out', layout), tmp_path / 'again', 'lerobot')
    assert len(holds_one(tmp_path / 'again')) >= 3


def test_all_else_in_lerobots_files_stays(tmp_path, named):
    folder = pathlib.Path(shutil.copytree(POLICIES / 'lerobot_0_6_1', tmp_path / 'policy'))
    edit(
        folder / 'policy_preprocessor.json',
        lambda x: x['steps'].append({'class': 'mine.Blur', 'config': {'n': 3}}),
    )
    for layout, place in (('lerobot', '.'), ('jax', 'lerobot')):
        write(assets.read(folder, stats=named), tmp_path / layout, layout)
        for file in ('policy_preprocessor.json', 'policy_postprocessor.json', 'config.json'):
            assert json.loads((tmp_path / layout / place / file).read_text()) == json.loads(
                (folder / file).read_text()
            )
        states = {file.name for file in (tmp_path / layout / place).glob('*.safetensors')}
        assert states == {file.name for file in folder.glob('*.safetensors')}
        kept = load_file(folder / 'policy_preprocessor_step_3_normalizer_processor.safetensors')
        new = load_file(
            tmp_path
            / layout
            / place
            / 'policy_preprocessor_step_3_normalizer_processor.safetensors'
        )
        assert all(np.array_equal(new[key], x) for key, x in kept.items() if 'images' in key)
        # of the numbers that were there before
        assert not {'action.min', 'observation.state.max'} & new.keys()


def test_another_width_is_reported_in_lerobots_features(tmp_path):
    (tmp_path / 'named.json').write_text(norm_stats_json(stats(4)))
    write(
        assets.read(POLICIES / 'lerobot_0_4_4', stats=tmp_path / 'named.json'),
        tmp_path / 'out',
        'jax',
    )
    config = json.loads((tmp_path / 'out' / 'lerobot' / 'config.json').read_text())
    assert (
        config['output_features']['action']['shape']
        == config['input_features']['observation.state']['shape']
        == [4]
    )
    assert len(read.read(tmp_path / 'out' / 'lerobot').statistics['actions'].mean) == 4


def two_robots(folder, first, second):
    for name, one in (('me/arm', first), ('you/hand', second)):
        (folder / 'assets' / name).mkdir(parents=True)
        (folder / 'assets' / name / 'norm_stats.json').write_text(norm_stats_json(one))
    return folder


@pytest.mark.parametrize('layout', LAYOUTS)
def test_of_several_robots_the_chosen_one_stays(tmp_path, layout):
    folder = two_robots(tmp_path / 'source', stats(), stats(seed=9))
    found = assets.read(folder, 'openpi-jax', stats=folder / 'assets' / 'me' / 'arm')
    notes = write(found, tmp_path / 'out', layout)
    assert {'norm_stats.json', 'assets/me/arm/norm_stats.json'} <= holds_one(tmp_path / 'out')
    assert 'assets of you/hand are left out' in ' '.join(notes)


def test_of_several_robots_none_stays_beside_statistics_from_elsewhere(tmp_path, named):
    folder = two_robots(tmp_path / 'source', stats(seed=8), stats(seed=9))
    notes = write(assets.read(folder, 'openpi-jax', stats=named), tmp_path / 'out')
    assert holds_one(tmp_path / 'out') == {'norm_stats.json', 'assets/robot/norm_stats.json'}
    assert 'assets of me/arm, you/hand are left out' in ' '.join(notes)
    kept = write(assets.read(folder, 'openpi-jax'), tmp_path / 'kept')  # nothing was chosen
    assert len(
        list((tmp_path / 'kept').rglob('norm_stats.json'))
    ) == 2 and 'name their source' in ' '.join(kept)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_numbers_edited_in_a_converted_folder_reach_every_file_of_the_next(tmp_path, layout):
    source = pathlib.Path(shutil.copytree(POLICIES / 'openpi', tmp_path / 'source'))
    write(assets.read(source), tmp_path / 'one')
    (tmp_path / 'one' / 'norm_stats.json').write_text(norm_stats_json(stats()))
    write(assets.read(tmp_path / 'one'), tmp_path / 'two', layout)
    assert 'assets/so101/norm_stats.json' in holds_one(tmp_path / 'two')


def test_changed_settings_reach_lerobots_carried_files(tmp_path):
    first = assets.read(POLICIES / 'lerobot_0_6_1')
    absolute = dataclasses.replace(
        first, policy=dataclasses.replace(first.policy, relative_joints=())
    )
    write(absolute, tmp_path / 'out', 'jax')
    assert read.read(tmp_path / 'out' / 'lerobot').policy.relative_joints == ()


def test_a_config_without_processors_is_carried_as_it_is(tmp_path, named):
    (tmp_path / 'policy').mkdir()
    shutil.copy(POLICIES / 'lerobot_0_6_1' / 'config.json', tmp_path / 'policy')
    write(assets.read(tmp_path / 'policy', stats=named), tmp_path / 'out')
    same = (tmp_path / 'out' / 'lerobot' / 'config.json').read_bytes()
    assert same == (POLICIES / 'lerobot_0_6_1' / 'config.json').read_bytes()
    assert holds_one(tmp_path / 'out') == {'norm_stats.json', 'assets/robot/norm_stats.json'}


def test_flags_as_wide_as_the_model_are_cut_to_the_named_statistics(tmp_path, named):
    (tmp_path / 'policy').mkdir()
    wide = dataclasses.replace(OPENPI, relative_joints=(True,) * 32)
    assets.write(tmp_path / 'policy', 'jax', assets.PolicyAssets(wide), golden.config())
    assert assets.read(tmp_path / 'policy', stats=named).policy.relative_joints == (True,) * 6


@pytest.mark.parametrize('width', [4, 7])
def test_statistics_of_another_robot_are_refused_for_relative_joints(tmp_path, width):
    (tmp_path / 'named.json').write_text(norm_stats_json(stats(width)))
    with pytest.raises(
        UserError, match=f'expected statistics of 6 actions, .* got {width} in .*named.json'
    ):
        assets.read(POLICIES / 'lerobot_0_6_1', stats=tmp_path / 'named.json')


@pytest.mark.parametrize(
    ('mine', 'theirs', 'said'),
    [
        (
            'lerobot_mean_std',
            'lerobot_0_6_1',
            'which none are relative, .* of whose policy 0, 1, 2, 3, 4 are relative',
        ),
        (
            'lerobot_0_4_4',
            'lerobot_0_6_1',
            'which none are relative, .* of whose policy 0, 1, 2, 3, 4 are relative',
        ),
        (
            'lerobot_0_6_1',
            'lerobot_min_max',
            'which 0, 1, 2, 3, 4 are relative, .* of whose policy none are relative',
        ),
    ],
)
@pytest.mark.parametrize('place', ['', 'lerobot', 'jax', 'jax/norm_stats.json', 'jax/assets/robot'])
def test_statistics_of_relative_actions_are_refused_for_absolute_ones(
    tmp_path, mine, theirs, said, place
):
    named = POLICIES / theirs
    if place:
        layout = place.partition('/')[0]
        write(assets.read(named), tmp_path / layout, layout)
        named = tmp_path / place
    with pytest.raises(UserError, match=f'{said}; name'):
        assets.read(POLICIES / mine, stats=named)


def test_statistics_of_other_relative_joints_are_refused(tmp_path):
    found = assets.read(POLICIES / 'lerobot_0_6_1')
    other = dataclasses.replace(found.policy, relative_joints=(True,) * 6)
    write(dataclasses.replace(found, policy=other), tmp_path / 'all')
    with pytest.raises(UserError, match='of whose policy 0, 1, 2, 3, 4, 5 are relative'):
        assets.read(POLICIES / 'lerobot_0_6_1', stats=tmp_path / 'all')
    write(found, tmp_path / 'same')
    assert assets.read(POLICIES / 'lerobot_0_6_1', stats=tmp_path / 'same').policy == found.policy


@pytest.mark.parametrize('mine', [POLICIES / 'openpi', golden.FIXTURE / 'lerobot.safetensors'])
def test_where_nothing_tells_of_relative_joints_a_note_does(mine):
    found = assets.read(
        mine, 'lerobot' if mine.suffix else 'openpi-jax', stats=POLICIES / 'lerobot_0_6_1'
    )
    (note,) = [note for note in found.notes if 'of whose policy' in note]
    assert (
        '0, 1, 2, 3, 4 are relative, but nothing' in note
        and ('correct relative_joints in policy.json') in note
    )
    assert found.policy.relative_joints == ()
