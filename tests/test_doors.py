"""Wrong values at the doors: each ends in a sentence that names it, before anything is done."""

import re

import pytest

import sigma_jax as sj
from configs import ablations, data_so101, sigma_so101
from sigma_jax.data.sources import source_settings
from sigma_jax.errors import UserError
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.policies.load import check_named
from sigma_jax.types import Ablation

DATA = data_so101.get_config().data.to_dict()
ROWS = {'sigma': {}, 'no_tau': {'tau': 0.0}}
TINY = 'tests/data/pi05_tiny/openpi_jax'


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        ({'steps': 'x'}, "config.steps: expected a whole number, got 'x'"),
        ({'steps': 1.5}, 'config.steps: expected a whole number, got 1.5'),
        ({'steps': True}, 'config.steps: expected a whole number, got True'),
        ({'steps': -1}, 'config.steps: expected at least 0, got -1'),
        ({'ema': 'x'}, "config.ema: expected a number, got 'x'"),
        ({'triton': 1}, 'config.triton: expected True or False, got 1'),
        ({'base': None}, 'config.base: expected a text, got None'),
        ({'loss': {'hard_ratio': '1'}}, "config.loss.hard_ratio: expected a number, got '1'"),
        ({'loss': 3}, 'config.loss: expected settings by name, got 3; give a dictionary'),
        ({'model': {'dtype': 'foo'}}, "dtype: expected 'float32', 'bfloat16', .*, got 'foo'"),
        ({'model': {'remat': 1}}, 'config.model.remat: expected a text, got 1'),
        ({'model': {'vision': {'width': 'x'}}}, 'config.model.vision.width: expected a whole'),
        ({'objective': 'foo'}, "config.objective: expected 'sigma' or 'flow_matching', got 'foo'"),
        ({'stats_from': 'foo'}, "config.stats_from: expected 'base' or 'shards', got 'foo'"),
        ({'features': 'disk'}, "config.features: expected '' or 'cache', got 'disk'"),
        ({'accumulate': 0}, 'config.accumulate: expected at least 1, got 0'),
        ({'batch_size': 0}, 'batch_size and sequence_length of at least 1, got 0 and 4'),
        ({'log': {'shares': -1}}, 'config.log.shares: expected at least 0, got -1'),
        (5, 'config: expected settings by name, got 5'),
        (None, 'config: expected settings by name, got None'),
    ],
)
def test_settings_of_a_run(settings, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        sj.RunConfig.from_dict(settings)
    with pytest.raises(UserError, match=sentence):
        sj.train(settings, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_run_takes_a_dictionary_and_the_config_of_a_file():
    settings = sigma_so101.get_config()
    assert sj.RunConfig.from_dict(settings) == sj.RunConfig.from_dict(settings.to_dict())
    assert sj.RunConfig.of(settings.to_dict()) == sj.RunConfig.from_dict(settings)
    config = sj.RunConfig(steps=0)
    assert sj.RunConfig.of(config) is config


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'stride': 'x'}, "config.data.stride: expected a whole number, got 'x'"),
        ({'source': None}, 'config.data.source: expected a text, got None'),
        ({'min_motion': 'x'}, "config.data.min_motion: expected a number, got 'x'"),
        ({'cameras': 'up'}, "config.data.cameras: expected a row of texts, got 'up'"),
        ({'strides': 1}, "got unknown 'strides'"),
    ],
)
def test_settings_of_data(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        sj.DataConfig.from_settings(DATA | changes)
    with pytest.raises(UserError, match=sentence):
        sj.prepare_data(DATA | changes, tmp_path / 'shards')
    assert not (tmp_path / 'shards').exists()


def test_a_preparation_takes_a_dictionary_and_names_of_bases_only(tmp_path):
    assert sj.DataConfig.of(DATA) == sj.DataConfig.from_settings(DATA)
    with pytest.raises(UserError, match='data settings .* got missing'):
        sj.prepare_data({}, tmp_path / 'shards')
    with pytest.raises(UserError, match='base: expected the folder of a converted pi0.5'):
        sj.prepare_data(DATA, tmp_path / 'shards', base=5)


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        ({'foo': 1}, r"data: expected some of the settings .* got unknown \['foo'\]"),
        (5, r'data: expected a DataConfig, or some of .* by name, got 5'),
        ({'state_column': 3}, 'data.state_column: expected a text, got 3'),
        ({'cameras': 'up'}, "data.cameras: expected a row of texts, got 'up'"),
        ({'rlds': {'fps': 'x'}}, "data.rlds.fps: expected a number, got 'x'"),
        ({'rlds': 3}, 'data.rlds: expected settings by name, got 3'),
        ({'torch_shards': {'channels_first': 1}}, 'channels_first: expected True or False, got 1'),
    ],
)
def test_settings_of_a_source(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        sj.open_dataset('assets/so101_pickplace', settings)


def test_a_source_takes_none_a_config_and_a_dictionary():
    usual = source_settings(None)
    assert source_settings({}) == usual
    assert source_settings(sj.DataConfig.from_settings(DATA)).cameras == tuple(DATA['cameras'])


@pytest.mark.parametrize(
    ('grid', 'sentence'),
    [
        (None, 'ablations: expected settings by name, got None'),
        ({'seeds': (0,)}, r"expected a file with rows and seeds, got none of \['rows'\]"),
        ({'rows': ROWS, 'seeds': (0,), 'atonce': 2}, r"got unknown \['atonce'\]"),
        ({'rows': ['a'], 'seeds': (0,)}, 'ablations.rows: expected names with the gates'),
        ({'rows': None, 'seeds': (0,)}, 'ablations.rows: expected names with the gates'),
        ({'rows': ROWS, 'seeds': 3}, 'ablations.seeds: expected a row of whole numbers, got 3'),
        ({'rows': ROWS, 'seeds': (0, 0)}, r'different seeds, got 2 rows and seeds \[0, 0\]'),
        ({'rows': ROWS, 'seeds': (0,), 'at_once': 'x'}, "0 or more members, got 'x'"),
        ({'rows': ROWS, 'seeds': (0,), 'at_once': -1}, 'at_once of 0 or more members, got -1'),
        ({'rows': [('a', {}), ('a', {})], 'seeds': (0,)}, r"different rows, got \['a', 'a'\]"),
        ({'rows': [(1, {})], 'seeds': (0,)}, 'a name of letters, digits and _, got 1'),
        ({'rows': {'a': {'tau': 'x'}}, 'seeds': (0,)}, 'expected gates that are numbers'),
        ({'rows': ROWS, 'seeds': (0,), 'order': ['a']}, r"order: expected the names .*, got \['a'"),
    ],
)
def test_rows_and_seeds(grid, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        sj.Grid.from_dict(grid)
    with pytest.raises(UserError, match=sentence):
        sj.train_ablations(sj.RunConfig(), grid, tmp_path / 'rows')
    if grid is not None:
        with pytest.raises(UserError, match=sentence):
            sj.forecast(sj.RunConfig(), card_gib=24, grid=grid)
    assert not (tmp_path / 'rows').exists()


def test_a_grid_holds_every_gate_and_what_suits_the_device():
    grid = sj.Grid.from_dict(ablations.get_config())
    assert len(grid.rows) == 12 and grid.seeds == (0, 1, 2, 3, 4) and grid.at_once == 0
    own = sj.Grid.from_dict({'rows': ROWS, 'seeds': [1], 'at_once': 2}, Ablation(film=0.0))
    assert own.rows[1] == ('no_tau', Ablation(film=0.0, tau=0.0)) and own.at_once == 2
    turned = {'rows': ROWS, 'seeds': [1], 'order': ['no_tau', 'sigma']}
    assert [name for name, _ in sj.Grid.from_dict(turned).rows] == ['no_tau', 'sigma']
    assert sj.Grid.of(own) is own


@pytest.mark.parametrize('dtype', ['float16', 'foo', 32])
def test_a_dtype_that_no_conversion_writes(dtype, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"'bfloat16', got {dtype!r}; choose one")):
        sj.convert_weights(TINY, tmp_path / 'out', dtype=dtype)
    assert not (tmp_path / 'out').exists()


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match='expected a path or a hub id, got None; name one'):
        sj.convert_weights(None, tmp_path / 'out')


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'folder': ''}, "expected the folder of a policy, got ''; name one"),
        ({'folder': None}, 'expected the folder of a policy, got None; name one'),
        ({'dtype': 'foo'}, "dtype: expected 'float32', .*, got 'foo'"),
        ({'storage': 'foo'}, "storage: expected a QuantConfig, got 'foo'"),
        ({'robot': 'so101'}, "robot: expected at least 1 joint, or .*, got 'so101'"),
        ({'robot': -3}, 'robot: expected at least 1 joint, or .*, got -3'),
        ({'robot': 0}, 'robot: expected at least 1 joint, or .*, got 0'),
        ({'robot': True}, 'robot: expected at least 1 joint, or .*, got True'),
    ],
)
def test_a_policy_that_cannot_be_meant(changes, sentence):
    settings = {'folder': TINY, 'storage': QuantConfig()} | changes
    with pytest.raises(UserError, match=sentence):
        sj.load_policy(settings.pop('folder'), **settings)


def test_a_robot_is_counted_or_named():
    check_named(None)
    check_named(6)
    check_named(sj.open_dataset('assets/so101_pickplace'))


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (('runs', {'splits': 'test'}), r"expected a sequence of splits, got 'test'; give \('test'"),
        (('runs', {'episodes_at_once': 0}), 'expected episodes_at_once of at least 1, got 0'),
        (([], {}), 'expected finished trainings in some folders, got none'),
    ],
)
def test_what_evaluate_cannot_take(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        sj.evaluate(arguments[0], **arguments[1])


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('train_log.csv', 'folder of a checkpoint, got .*the folder of a training; export it'),
        ('export.json', "record of a policy that can act in .*, got none of 'acting'; export the"),
    ],
)
def test_other_folders_of_this_project_are_known(tmp_path, name, sentence):
    (tmp_path / name).write_text('{}')
    (tmp_path / 'sigma.safetensors').write_bytes(b'')
    with pytest.raises(UserError, match=f'expected the {sentence}'):
        sj.load_policy(tmp_path)


def test_shards_are_asked_for_before_a_base_that_may_lie_on_the_hub(tmp_path):
    config = sigma_so101.get_config().to_dict()
    config |= {'base': 'owner/nothing', 'shards': str(tmp_path / 'none')}
    with pytest.raises(UserError, match='none'):
        sj.train(config, tmp_path / 'run')
