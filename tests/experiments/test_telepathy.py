"""The runner: every stage once and in order, in time, and arguments that the scripts know."""

import io
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from experiments import telepathy
from experiments.telepathy import SIZES, Stage
from sigma_jax.cli import command as cli
from sigma_jax.errors import UserError
from sigma_jax.evaluation.cost import compute
from sigma_jax.training.config import RunConfig

NEVER = float('inf')
SAVES = """
import pathlib, signal, sys, time
place = pathlib.Path({place!r})
place.write_text(place.read_text() + 'x' if place.exists() else 'x')
def save(number, _):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(0.3)
    place.write_text(place.read_text() + 's')
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(0 if 's' in place.read_text() else 60)
"""


def quiet() -> Console:
    return Console(file=io.StringIO())


def writes(place: pathlib.Path, text: str) -> tuple[str, ...]:
    return (sys.executable, '-c', f"open({str(place)!r}, 'a').write({text!r})")


def test_every_stage_runs_once_and_in_order(tmp_path):
    place, out = tmp_path / 'log', tmp_path / 'out'
    todo = [Stage(name, writes(place, name)) for name in 'abc']
    for _ in range(2):
        assert telepathy.run(iter(todo), out, NEVER, quiet())
    assert place.read_text() == 'abc'


def test_a_failed_stage_is_reported_and_comes_again(tmp_path):
    place, out = tmp_path / 'log', tmp_path / 'out'
    fails = Stage('b', (sys.executable, '-c', 'raise SystemExit(3)'))
    with pytest.raises(UserError, match='stage b: expected status 0, got 3'):
        telepathy.run(iter([Stage('a', writes(place, 'a')), fails]), out, NEVER, quiet())
    mended = [Stage('a', writes(place, 'a')), Stage('b', writes(place, 'b'))]
    assert telepathy.run(iter(mended), out, NEVER, quiet()) and place.read_text() == 'ab'


def test_it_ends_in_time_and_the_next_call_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(telepathy, 'GRACE', 0.5)
    place, out = tmp_path / 'log', tmp_path / 'out'
    todo = [
        Stage('a', (sys.executable, '-c', SAVES.format(place=str(place)))),
        Stage('b', writes(place, 'b')),
    ]
    start = time.monotonic()
    assert not telepathy.run(iter(todo), out, start + 4, quiet())
    assert time.monotonic() - start < 10 and place.read_text() == 'xs'
    assert not telepathy.run(iter(todo), out, time.monotonic() + 0.9, quiet()), (
        'too late to begin a stage'
    )
    assert telepathy.run(iter(todo), out, NEVER, quiet()) and place.read_text() == 'xsxb'


def meets(tmp_path: pathlib.Path, mine: str, other: str) -> tuple[str, ...]:
    """A command that ends well only where the one of `other` runs at the same time."""
    program = f"""
import pathlib, time
pathlib.Path({str(tmp_path / mine)!r}).touch()
end = time.monotonic() + 20
while not pathlib.Path({str(tmp_path / other)!r}).exists():
    assert time.monotonic() < end
    time.sleep(0.02)
"""
    return (sys.executable, '-c', program)


def test_stages_beside_each_other_run_together(tmp_path):
    todo = [
        Stage('a', writes(tmp_path / 'log', 'a')),
        Stage('b', meets(tmp_path, 'b', 'c'), parallel=True),
        Stage('c', meets(tmp_path, 'c', 'b'), parallel=True),
        Stage('d', writes(tmp_path / 'log', 'd'), parallel=True),
    ]
    groups = [[one.name for one in group] for group in telepathy.together(iter(todo), 2)]
    assert groups == [['a'], ['b', 'c'], ['d']]
    assert telepathy.run(iter(todo), tmp_path / 'out', NEVER, quiet(), 2)
    assert (tmp_path / 'log').read_text() == 'ad'


def test_one_that_fails_beside_others_leaves_them_finished(tmp_path):
    fails = Stage('a', (sys.executable, '-c', 'raise SystemExit(3)'), parallel=True)
    well = Stage('b', writes(tmp_path / 'log', 'b'), parallel=True)
    with pytest.raises(UserError, match='stage a: expected status 0, got 3'):
        telepathy.run(iter([fails, well]), tmp_path / 'out', NEVER, quiet(), 2)
    assert telepathy.finished(well, tmp_path / 'out') and not telepathy.finished(
        fails, tmp_path / 'out'
    )


def test_all_that_run_together_end_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(telepathy, 'GRACE', 0.5)
    places = [tmp_path / 'b', tmp_path / 'c']
    todo = [
        Stage(x.name, (sys.executable, '-c', SAVES.format(place=str(x))), parallel=True)
        for x in places
    ]
    assert not telepathy.run(iter(todo), tmp_path / 'out', time.monotonic() + 4, quiet(), 2)
    assert [x.read_text() for x in places] == ['xs', 'xs']


def test_those_that_share_a_gpu_take_its_memory_as_they_need_it():
    name = 'XLA_PYTHON_CLIENT_PREALLOCATE'
    asks = (
        sys.executable,
        '-c',
        f'import os; raise SystemExit(3 if os.environ.get({name!r}) == "false" else 4)',
    )
    assert telepathy.call([asks], NEVER) == [4] and telepathy.call([asks, asks], NEVER) == [3, 3]


@pytest.mark.parametrize('size', sorted(SIZES))
@pytest.mark.parametrize('quick', [False, True])
def test_the_scripts_know_every_argument(tmp_path, monkeypatch, size, quick):
    monkeypatch.setattr(telepathy, 'equal_steps', lambda *_: 7)
    found = list(telepathy.stages(SIZES[size], tmp_path / 'data', tmp_path / 'out', quick))
    names = [stage.name for stage in found]
    seeds = [f'lora{n}' for n in range(2 if quick else 5)]
    first = ['mix', 'policy'] if SIZES[size].policy else ['base']
    assert names == [*first, 'shards', 'rows', *seeds, 'report']
    groups = [[stage.name for stage in group] for group in telepathy.together(iter(found), 5)]
    assert groups == [*([name] for name in first), ['shards'], ['rows'], seeds, ['report']]
    for stage in found:
        script, *arguments = stage.command[1:]
        source = (telepathy.ROOT / script).read_text()
        known = re.findall(r"(?:DEFINE_\w+|add|argument)\(\s*'(?:--)?(\w+)'", source)
        assert {re.split('[.=]', x.removeprefix('--'))[0] for x in arguments} <= {
            *known,
            'config',
        }, script
        if script in ('train.py', 'prepare_data.py'):
            file = next(
                (x.split('=')[1] for x in arguments if x.startswith('--config=')),
                'configs/data_so101.py',
            )
            cli.require_known(arguments, file, dict(cli.flatten(cli.load(file))))
    every = ' '.join(' '.join(stage.command) for stage in found)
    assert '--config.steps=7' in every and every.count(f'--config.base={tmp_path}') == 1 + len(
        seeds
    )


def test_episodes_are_split_for_good():
    of = {name: set(episodes) for name, episodes in telepathy.SPLITS.items()}
    assert not of['train'] & of['test'] and not of['calibration'] & (of['train'] | of['test'])
    assert len(of['test']) >= 100


def test_plain_lora_gets_as_much_arithmetic_as_sigma():
    places = {'base': '', 'shards': '', 'model': cli.load('configs/pi05_so101_mix.py')['model']}
    steps = telepathy.equal_steps(SIZES['tiny'], places, 50)
    sigma, lora = (cli.load(f'configs/{name}_so101.py') | places for name in ('sigma', 'lora'))
    spent = [
        compute.of_training(RunConfig.from_dict(config | {'steps': n}))
        for config, n in ((sigma, 50), (lora, steps), (lora, 1))
    ]
    assert abs(spent[0] - spent[1]) <= spent[2] / 2 and steps > 1


def test_what_another_command_made_is_not_taken(tmp_path):
    place, out = tmp_path / 'log', tmp_path / 'out'
    assert telepathy.run(iter([Stage('a', writes(place, 'a'))]), out, NEVER, quiet())
    with pytest.raises(UserError, match='choose another --out'):
        telepathy.run(iter([Stage('a', writes(place, 'b'))]), out, NEVER, quiet())
    assert place.read_text() == 'a'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_what_stops_it_reaches_its_stage_once(tmp_path, number):
    """The child saves at the first signal and would die of a second one."""
    place = tmp_path / 'log'
    program = f"""
import signal, sys
from experiments import telepathy
signal.signal(signal.SIGTERM, telepathy.stop)
telepathy.call([(sys.executable, '-c', {SAVES.format(place=str(place))!r})], float('inf'))
"""
    command = [sys.executable, '-c', program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=telepathy.ROOT
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == 'ready\n'
        process.send_signal(number)
        assert process.wait(30) != 0 and place.read_text() == 'xs'


def test_what_is_stopped_while_a_stage_starts_ends_the_stage_too(monkeypatch):
    started, popen = [], subprocess.Popen

    def stopped_meanwhile(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(telepathy.subprocess, 'Popen', stopped_meanwhile)
    with pytest.raises(KeyboardInterrupt):
        telepathy.call([(sys.executable, '-c', 'import time; time.sleep(60)')], float('inf'))
    assert started[0].poll() == -signal.SIGTERM


def test_without_episodes_it_says_how_they_are_made(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        telepathy.main(['--data', str(tmp_path), '--out', str(tmp_path / 'out')])
    assert end.value.code == 2 and 'expected recorded episodes at' in capsys.readouterr().err
