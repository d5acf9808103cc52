"""A merged policy sees the world as its adapter was trained to, wherever the adapter's folder says
it.
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax.convert import assets, checkpoint, source
from sigma_jax.convert.lerobot import read
from sigma_jax.convert.peft import adapter_assets
from sigma_jax.convert.peft.record import ExportRecord
from sigma_jax.errors import UserError
from sigma_jax.objectives import kinds
from sigma_jax.processing.normalize import Scaling, compute_statistics, norm_stats_json
from sigma_jax.processing.spec import OPENPI, OURS, to_json
from tests import golden, metas
from tests.convert.test_assets import edit, same_statistics, write

POLICIES = golden.DATA / 'policies'
RELATIVE = 'lerobot_0_6_1'


def stats(width=6, seed=0):
    values = np.random.default_rng(seed).normal(3, 5, (300, width))
    return {'state': compute_statistics(values), 'actions': compute_statistics(values * 2)}


@pytest.fixture
def adapter(tmp_path):
    """A folder as peft saves it."""
    return pathlib.Path(
        shutil.copytree(golden.DATA / 'peft_tiny' / 'attention', tmp_path / 'run' / 'adapter')
    )


def add_lerobots(adapter, source, factor=1.0, drop=()):
    """LeRobot's files as its PEFT training saves them beside an adapter, statistics times
    `factor`.
    """
    for file in (POLICIES / source).iterdir():
        if file.name not in ('reference.npz', *drop):
            shutil.copy(file, adapter)
    for file in adapter.glob('policy_*.safetensors'):
        save_file({key: x * np.float32(factor) for key, x in load_file(file).items()}, file)
    if 'config.json' not in drop:
        edit(adapter / 'config.json', lambda x: x.update(use_peft=True, pretrained_path='the/base'))
    (adapter / 'train_config.json').write_text('{"steps": 3}')


@pytest.mark.parametrize('layout', ['lerobot', 'jax', 'openpi-pytorch'])
@pytest.mark.parametrize(
    ('own', 'factor'), [(RELATIVE, 2.0), ('lerobot_mean_std', 1.5), ('lerobot_0_4_4', 0.5)]
)
def test_lerobots_processors_beside_an_adapter_count(adapter, tmp_path, own, factor, layout):
    add_lerobots(adapter, own, factor)
    base, want = assets.read(POLICIES / RELATIVE), assets.read(adapter)
    found = adapter_assets.merged(base, adapter)
    assert found.policy == want.policy and same_statistics(found.statistics, want.statistics)
    note = found.notes[0]
    assert (
        "from LeRobot's processors beside the adapter" in note and 'the base differs in: ' in note
    )
    assert ('statistics of state' in note) and (
        'relative joints' in note.partition('differs in')[2]
    ) == (own != RELATIVE)
    write(found, tmp_path / 'out', layout)
    again = assets.read(tmp_path / 'out', layout)
    assert again.policy == want.policy and same_statistics(again.statistics, want.statistics)
    theirs = tmp_path / 'out' if layout == 'lerobot' else tmp_path / 'out' / 'lerobot'
    assert same_statistics(read.read(theirs).statistics, want.statistics)
    # the merged policy is none of peft's
    settings = json.loads((theirs / 'config.json').read_text())
    assert settings['use_peft'] is False and settings['pretrained_path'] is None
    assert not list((tmp_path / 'out').rglob('train_config.json'))


def test_an_export_of_ours_beside_an_adapter_counts(adapter, tmp_path):
    base = assets.PolicyAssets(
        dataclasses.replace(OURS, relative_joints=(True,) * 6), stats(seed=1)
    )
    cut = metas.meta(camera_names=('wrist', 'top'), prompt_state_dim=0, max_prompt_len=200)
    trained = assets.trained_with(base, stats(seed=2), (False,) * 6, cut)
    assets.write(adapter, 'lerobot', trained, golden.config())
    found = adapter_assets.merged(base, adapter)
    assert found.policy == trained.policy and same_statistics(found.statistics, trained.statistics)
    assert 'from policy.json beside the adapter' in found.notes[0] and 'cameras' in found.notes[0]
    (adapter / 'norm_stats.json').unlink()  # the statistics of the export itself lie above
    for file in adapter.glob('policy_*'):
        if file.name != 'policy.json':
            file.unlink()
    (adapter.parent / 'export.json').write_text('{"config": {"objective": "flow_matching"}}')
    (adapter.parent / 'norm_stats.json').write_text(norm_stats_json(stats(seed=3)))
    assert same_statistics(adapter_assets.merged(base, adapter).statistics, stats(seed=3))


@pytest.mark.parametrize(
    ('config', 'scaling', 'flags'),
    [
        (
            {'stats_from': 'shards', 'relative_joints': [True] + [False] * 5},
            Scaling(),
            (True,) + (False,) * 5,
        ),
        ({'stats_from': 'base', 'relative_joints': []}, Scaling('quantile', 'openpi'), (True,) * 6),
    ],
)
def test_an_export_without_a_word_in_the_adapters_folder_is_known_by_its_record(
    adapter, config, scaling, flags
):
    base = assets.PolicyAssets(dataclasses.replace(OPENPI, relative_joints=(True,) * 6), None)
    (adapter.parent / 'norm_stats.json').write_text(norm_stats_json(stats(seed=4)))
    (adapter.parent / 'export.json').write_text(
        json.dumps({'config': {'objective': 'flow_matching'} | config})
    )
    found = adapter_assets.merged(base, adapter)
    assert found.policy.relative_joints == flags and found.statistics['actions'].scaling == scaling
    assert np.array_equal(found.statistics['state'].q01, stats(seed=4)['state'].q01)
    edit(adapter.parent / 'export.json', lambda x: x['config'].update(objective='sigma'))
    sigma = adapter_assets.merged(base, adapter)  # those are in the units of the heads
    assert sigma.statistics is None and "settings are the base's" in sigma.notes[-1]


@pytest.mark.parametrize('place', ['norm_stats.json', 'assets/me/arm/norm_stats.json'])
def test_bare_statistics_beside_an_adapter_count(adapter, place):
    base = assets.read(POLICIES / 'openpi')
    (adapter / place).parent.mkdir(parents=True, exist_ok=True)
    (adapter / place).write_text(norm_stats_json(stats(seed=5)))
    found = adapter_assets.merged(base, adapter)
    assert found.policy == base.policy and np.array_equal(
        found.statistics['state'].q99, stats(seed=5)['state'].q99
    )
    assert (
        f'from {place} beside the adapter' in found.notes[0]
        and 'statistics of actions' in found.notes[0]
    )
    other = adapter / 'assets' / 'other' / 'norm_stats.json'
    other.parent.mkdir(parents=True)
    other.write_text(norm_stats_json(stats(seed=6)))
    if place.startswith('assets'):
        with pytest.raises(
            UserError, match='statistics of one robot beside the adapter .*; name one: --stats'
        ):
            adapter_assets.merged(base, adapter)


def test_what_the_base_assumes_stays_assumed_unless_the_adapter_tells(adapter):
    base = assets.PolicyAssets(OURS, stats(), assumed={'prompt_state': 'openpi by default'})
    shutil.copy(golden.DATA / 'policies/openpi/assets/so101/norm_stats.json', adapter)
    assert adapter_assets.merged(base, adapter).assumed == base.assumed
    (adapter / 'policy.json').write_text(to_json(OURS))
    assert adapter_assets.merged(base, adapter).assumed == {}


def test_a_folder_that_says_nothing_takes_the_bases_and_says_so(adapter):
    base = assets.read(POLICIES / RELATIVE)
    found = adapter_assets.merged(base, adapter)
    assert found.policy == base.policy and same_statistics(found.statistics, base.statistics)
    assert found.files == base.files and 'name them with --stats' in found.notes[-1]


def test_named_statistics_count_before_the_adapters(adapter, tmp_path):
    add_lerobots(adapter, RELATIVE, 2.0)
    (tmp_path / 'norm_stats.json').write_text(norm_stats_json(stats(seed=7)))
    found = adapter_assets.merged(
        assets.read(POLICIES / 'lerobot_0_4_4'), adapter, tmp_path / 'norm_stats.json'
    )
    assert np.array_equal(found.statistics['actions'].q01, stats(seed=7)['actions'].q01)
    assert found.policy.relative_joints == (True,) * 5 + (False,)
    assert any('must hold statistics of relative actions' in note for note in found.notes)


def test_settings_without_statistics(adapter):
    """config.json alone: its settings, and the base's numbers where they mean the same."""
    files = {file.name for file in (POLICIES / RELATIVE).glob('policy_*')}
    add_lerobots(adapter, RELATIVE, drop=files)
    same = adapter_assets.merged(assets.read(POLICIES / RELATIVE), adapter)
    assert same_statistics(same.statistics, assets.read(POLICIES / RELATIVE).statistics)
    with pytest.raises(
        UserError,
        match="actions are relative, unlike the base's, got none; name those of its training",
    ):
        adapter_assets.merged(assets.read(POLICIES / 'lerobot_0_4_4'), adapter)
    edit(adapter / 'config.json', lambda x: x['normalization_mapping'].update(ACTION='QUANTILE10'))
    bare = assets.PolicyAssets(assets.read(POLICIES / RELATIVE).policy, stats())
    with pytest.raises(
        UserError,
        match=r'none of the base with .*q10.*; name those of its '
        r'training with --stats',
    ):
        adapter_assets.merged(bare, adapter)
    edit(adapter / 'config.json', lambda x: x.update(type='pi0'))
    with pytest.raises(UserError, match='expected a pi05 policy'):
        adapter_assets.merged(bare, adapter)


@pytest.mark.parametrize('absent', ['policy_preprocessor', 'policy_postprocessor'])
@pytest.mark.parametrize(
    ('own', 'factor'), [(RELATIVE, 2.0), ('lerobot_mean_std', 3.0), ('lerobot_min_max', 0.5)]
)
def test_one_of_an_adapters_two_processors_tells_the_statistics_of_both(
    adapter, own, factor, absent
):
    add_lerobots(adapter, own, factor)
    want = assets.read(adapter)
    for file in adapter.glob(f'{absent}*'):
        file.unlink()
    found = adapter_assets.merged(assets.read(POLICIES / RELATIVE), adapter)
    assert (
        same_statistics(found.statistics, want.statistics)
        and found.policy.actions == want.policy.actions
    )
    assert (
        'statistics, relative joints' in found.notes[0]
        and 'statistics of actions' in found.notes[0]
    )
    assert any(
        f'no {absent}.json: state and actions are normalised as policy_' in note
        for note in found.notes
    )


def test_the_note_says_whose_the_statistics_are(adapter, tmp_path):
    base = assets.read(POLICIES / RELATIVE)
    (tmp_path / 'named.json').write_text(norm_stats_json(stats(seed=7)))
    bare = adapter_assets.merged(base, adapter, tmp_path / 'named.json')
    assert any(
        f"settings are the base's, statistics those of {tmp_path}/named.json" in note
        for note in bare.notes
    )
    assert not any('name them with --stats' in note for note in bare.notes)
    files = {file.name for file in (POLICIES / RELATIVE).glob('policy_*')}
    add_lerobots(adapter, RELATIVE, drop=files)  # config.json alone
    theirs = adapter_assets.merged(base, adapter)
    assert (
        theirs.notes[0].startswith("statistics are the base's")
        and 'name them with --stats' in theirs.notes[0]
    )
    assert "relative joints, cameras and prompt are from LeRobot's config.json" in theirs.notes[0]
    assert not any('hold no statistics' in note for note in theirs.notes)
    named = adapter_assets.merged(base, adapter, tmp_path / 'named.json')
    assert named.notes[0].startswith(
        f'statistics are from {tmp_path}/named.json, as given; relative joints'
    )
    assert 'statistics of' not in named.notes[0]


def test_the_adapters_horizon_is_the_merged_policys(adapter):
    opened = source.open_source(golden.FIXTURE / 'lerobot.safetensors')
    assert adapter_assets.sized(opened, adapter) == (opened, ())
    add_lerobots(adapter, RELATIVE)
    found, notes = adapter_assets.sized(opened, adapter)
    assert found.config.action_horizon == 4 and notes == (
        'action_horizon is 4, as in adapter; 10 in the base',
    )
    edit(adapter / 'config.json', lambda x: x.update(chunk_size=0))
    with pytest.raises(
        UserError, match='expected action_horizon of at least 1 in .*config.json, got 0'
    ):
        adapter_assets.sized(opened, adapter)


def test_an_adapter_within_a_training_or_an_export_is_found(adapter):
    assert (
        adapter_assets.home(adapter) == adapter and adapter_assets.home(adapter.parent) == adapter
    )
    step = adapter.parent.parent / 'step'
    shutil.copytree(adapter, step / 'pretrained_model')
    assert adapter_assets.home(step) == step / 'pretrained_model'


@pytest.mark.parametrize('name', ['adapter_model.safetensors', 'adapter_config.json'])
def test_a_file_of_an_adapter_and_a_run_are_refused_with_the_folder_to_name(adapter, name):
    with pytest.raises(UserError, match=f'got the file .*{name}; name --adapter={adapter}$'):
        adapter_assets.home(adapter / name)
    run = adapter.parent.parent / 'training'
    for step in ('000020', '000100'):
        shutil.copytree(adapter, run / 'checkpoints' / step / 'pretrained_model')
    with pytest.raises(
        UserError, match='with 2 steps; name one of them: --adapter=.*/000100/pretrained_model$'
    ):
        adapter_assets.home(run)


@pytest.mark.parametrize('named', ['lerobot/pi05_base', None])
@pytest.mark.parametrize('part', ['', 'adapter_model.safetensors'])
def test_an_adapter_named_alone_is_told_from_its_base(adapter, part, named):
    add_lerobots(adapter, RELATIVE)
    edit(adapter / 'adapter_config.json', lambda x: x.update(base_model_name_or_path=named))
    with pytest.raises(
        UserError,
        match=rf'merge them: .*--checkpoint={named or "BASE"} '
        rf'--adapter={adapter}',
    ) as caught:
        checkpoint.load(adapter / part)
    assert ('it names lerobot/pi05_base' in str(caught.value)) == (named is not None)


@pytest.mark.parametrize('name', sorted(kinds.KINDS))
def test_a_record_says_of_every_objective_whether_it_trains_the_policy(tmp_path, name):
    (tmp_path / 'export.json').write_text(json.dumps({'config': {'objective': name}}))
    assert ExportRecord.read(tmp_path).trains_policy == kinds.KINDS[name].trains_policy
    (tmp_path / 'export.json').write_text('{}')
    assert not ExportRecord.read(tmp_path).trains_policy
    (tmp_path / 'export.json').write_text('{"config": {"objective": "other"}}')
    with pytest.raises(UserError, match="expected 'sigma' or 'flow_matching', got 'other'"):
        ExportRecord.read(tmp_path)
