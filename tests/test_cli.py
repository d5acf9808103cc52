"""The five scripts from outside: bad input ends with one sentence and status 2, `--help` with the
settings.
"""

import concurrent.futures
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from sigma_jax.cli import command as cli
from sigma_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs' / 'data_so101.py')

BAD = {
    ('train.py', '--workdir=w', '--config.base=nowhere'): (
        'expected a checkpoint at nowhere',
        'check the path',
    ),
    ('prepare_data.py', '--out=o', '--config.data.stridee=4'): (
        '--config.data.stridee',
        'closest: data.stride',
    ),
    ('evaluate.py', '--workdir=nowhere'): (
        'expected a training folder at nowhere',
        'run train.py first',
    ),
    ('convert_weights.py', '--checkpoint=nowhere', '--out=o'): (
        'expected a checkpoint at nowhere',
        'check the path',
    ),
    ('serve.py', '--policy=nowhere'): ('expected a checkpoint at nowhere', 'check the path'),
}
HELP = ('train.py', '--help')


def run(command: tuple[str, ...]) -> subprocess.CompletedProcess:
    """A script in its own process."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope='module')
def results() -> dict[tuple[str, ...], subprocess.CompletedProcess]:
    """All commands, two at a time."""
    commands = [*BAD, HELP]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(run, commands), strict=True))


@pytest.mark.parametrize('command', BAD, ids=' '.join)
def test_bad_input_ends_with_one_sentence(results, command):
    result = results[command]
    assert result.returncode == 2
    assert 'Traceback' not in result.stdout + result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith('error: ')
    for part in BAD[command]:
        assert part in sentence


def test_help_lists_flags_and_settings(results):
    result = results[HELP]
    assert result.returncode == 0 and not result.stderr
    for part in ('Table 1', '--workdir', '--config.curriculum.ramp_steps=82'):
        assert part in result.stdout


def parse(*arguments: str) -> list[str]:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=[])
    return cli.parse_flags(['script.py', *arguments], CONFIG, values)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--config=nowhere.py'], r"expected a config, a \.py file, got none at 'nowhere\.py'"),
        (['--config', str(ROOT / 'README.md')], 'expected a config, a .py file'),
        ([f'--config={ROOT}/sigma_jax/errors.py'], r'expected a function get_config\(\)'),
        (
            [f'--config={ROOT}/configs/sigma_so101.py'],
            'data_so101.py, got .*sigma_so101.py without baselines, data',
        ),
        (['--config.data.stridee=4'], r'--config\.data\.stridee; closest: data\.stride'),
        (['--config.qqqq=4'], r'--config\.qqqq; --help lists all'),
        (['--config.data.cameraz[0]=a'], r'--config\.data\.cameraz; closest: data\.cameras'),
        (
            ['--no_such_flag=1'],
            'as --help lists them, got: Unknown command line flag .no_such_flag.',
        ),
        (['word'], 'expected options that start with --, got word'),
    ],
)
def test_command_lines_that_make_no_sense(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(*arguments)


def test_errors_of_the_user_and_of_the_system_end_with_status_2(capsys):
    for error in (UserError('expected a, got b'), FileNotFoundError(2, 'No such file', 'c')):

        @cli.reports_user_errors
        def main(error=error):
            raise error

        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
    assert capsys.readouterr().err == 'error: expected a, got b\nerror: No such file: c\n'


def test_our_own_mistakes_keep_their_traceback():
    @cli.reports_user_errors
    def main():
        raise KeyError('ours')

    with pytest.raises(KeyError, match='ours'):
        main()
