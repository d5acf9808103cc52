"""Settings that are rows: any number of any values ends in a section of a config or in a
sentence.
"""

import itertools
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from configs import data_so101
from sigma_jax.cli import command as cli
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.errors import UserError
from sigma_jax.nn.lora import LoraConfig
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.settings import check_row, from_section
from sigma_jax.sigma.curriculum import CurriculumConfig, make_schedules
from sigma_jax.sigma.losses import LossConfig
from sigma_jax.training import groups
from sigma_jax.training.config import RunConfig

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / 'configs').glob('*.py') if 'get_config' in path.read_text())
SECTIONS = {
    'curriculum': CurriculumConfig,
    'loss': LossConfig,
    'lora': LoraConfig,
    'quant': QuantConfig,
}
VALUES = (
    '0.5',
    '(0.5,)',
    '(1,2)',
    '(1,2,3,4)',
    '()',
    '"a"',
    '("a","b")',
    '(True,"b",0.5)',
    '("(",)',
    '(1,None)',
)
ELSEWHERE = {
    'relative_joints',
    'seeds',
    'rows',
    'data.camera_map',
    'data.state_map',
    'data.action_map',
}


def rows(file):
    """Names of the settings of a config that are rows."""
    found = dict(cli.flatten(cli.load(str(file))))
    return [name for name, value in found.items() if isinstance(value, tuple)]


def given(file, argument):
    """The config that a command line describes."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=[])
    cli.parse_flags(['script.py', f'--config={file}', argument], str(file), values)
    return holder.value.to_dict()


def take(config, name):
    """What the part of the project that reads the setting makes of it."""
    section, _, key = name.rpartition('.')
    if section == 'data':
        return getattr(DataConfig.from_settings(config['data']), key)
    if not section:
        groups.check_groups(RunConfig.from_dict(config))
        return config[key]
    made = from_section(SECTIONS[section], config[section], section)
    if section == 'curriculum':
        make_schedules(made)
    return getattr(made, key)


def test_every_row_of_every_config_is_looked_at():
    known = {f'{section}.' for section in SECTIONS} | {'data.'}
    names = {name for file in FILES for name in rows(file)}
    assert (
        len(names) > 12
        and {'curriculum.sem', 'loss.action_weights', 'freeze', 'data.split_fractions'} <= names
    )
    for name in names - ELSEWHERE:
        assert name in ('trainable', 'freeze') or name[: name.find('.') + 1] in known, name


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_rows_of_any_length_and_kind_end_well(file):
    for name, value in itertools.product(sorted(set(rows(file)) - ELSEWHERE), VALUES):
        try:
            config = given(file, f'--config.{name}={value}')
            found = take(config, name)
        except UserError as error:
            assert name.rpartition('.')[2] in str(error) and (
                'expected' in str(error) or '--help' in str(error)
            )
            continue
        before = dict(cli.flatten(cli.load(str(file))))[name]
        assert isinstance(found, tuple)
        if name in ('curriculum.sem', 'curriculum.intent', 'curriculum.tau', 'loss.action_weights'):
            assert len(found) == len(before), (name, value)


SENTENCES = [
    (
        'curriculum',
        CurriculumConfig,
        'sem',
        (0.5,),
        r'config.curriculum.sem: expected 2 numbers, '
        r'got \(0.5,\); write',
    ),
    (
        'curriculum',
        CurriculumConfig,
        'tau',
        (0.0, 0.1, 0.2),
        'config.curriculum.tau: expected 2 numbers',
    ),
    (
        'curriculum',
        CurriculumConfig,
        'intent',
        0.5,
        'config.curriculum.intent: expected 2 numbers, got 0.5',
    ),
    ('loss', LossConfig, 'action_weights', [1.0], 'config.loss.action_weights: expected 3 numbers'),
    (
        'loss',
        LossConfig,
        'action_weights',
        (1, 1, True),
        'config.loss.action_weights: expected 3 numbers',
    ),
    ('lora', LoraConfig, 'patterns', (1,), 'config.lora.patterns: expected a row of texts, got'),
    (
        'quant',
        QuantConfig,
        'int8',
        ('*',),
        r'config.quant.int8: expected regular expressions, got '
        r'.\*.',
    ),
]


@pytest.mark.parametrize(('section', 'kind', 'name', 'value', 'sentence'), SENTENCES)
def test_the_sentence_names_setting_number_and_kind(section, kind, name, value, sentence):
    with pytest.raises(UserError, match=sentence):
        from_section(kind, {name: value}, section)


def test_what_fits_is_taken_as_it_is():
    made = from_section(CurriculumConfig, {'sem': [0, 1.5], 'tau': (0.0, 0.1)}, 'curriculum')
    assert made.sem == (0, 1.5) and made.tau == (0.0, 0.1)
    check_row('x', None, tuple[float, ...] | None)
    check_row('x', 'no row at all', str)
    with pytest.raises(UserError, match='x: expected a row of numbers'):
        check_row('x', 'ab', tuple[float, ...] | None)
    assert DataConfig.from_settings(data_so101.get_config().data.to_dict()).split_fractions == (
        0.6,
        0.2,
        0.2,
    )
