"""A stopped, killed or full run continues to the same result; `benchmarks/kill_training.py` does
more of it.
"""

import errno
import os
import random
import signal

import optax
import pytest
from orbax.checkpoint import checkpoint_manager

from benchmarks import kill_training
from sigma_jax.cli import command as cli
from sigma_jax.errors import UserError
from sigma_jax.files import writer_lock
from sigma_jax.training.checkpoints import Checkpoints, compare, completed, whole_steps
from sigma_jax.training.config import RunConfig
from sigma_jax.training.logs import Board, TrainLog, read_rows
from sigma_jax.training.signals import stop_on_signal
from sigma_jax.training.step import init_state
from tests import toy_run
from tests.toy_run import CONFIG


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """40 steps of the toy, a row each, a checkpoint every 4."""
    workdir = tmp_path_factory.mktemp('undisturbed')
    toy_run.work(CONFIG, workdir)
    return kill_training.result(workdir)


def test_three_kills_change_nothing(undisturbed, tmp_path, capsys):
    random.seed(1)
    assert kill_training.kill_often(CONFIG, tmp_path, undisturbed, 3, (0.5, 3.0), toy_run.work)
    assert '3 kills' in capsys.readouterr().out


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_call_continues(
    undisturbed, tmp_path, monkeypatch, capsys, number
):
    write = TrainLog.write

    def interrupted(log, step, values):
        write(log, step, values)
        if step == 5:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLog, 'write', interrupted)
        with pytest.raises(SystemExit) as caught:
            cli.reports_user_errors(toy_run.work)(CONFIG, tmp_path)
    assert caught.value.code == 128 + number
    said = capsys.readouterr().err
    assert (
        f'stopped by {number.name}: step 7 is saved; run the same command again to continue' in said
    )
    assert whole_steps(tmp_path / 'checkpoints')[-1] == 7
    toy_run.work(CONFIG, tmp_path)
    assert kill_training.differing(tmp_path, undisturbed) == []


def test_the_second_signal_does_what_it_always_does():
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_training_in_a_folder_stops_before_it_reads_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(toy_run, 'ToyRun', lambda *_: pytest.fail('built a run'))
    with (
        writer_lock(tmp_path, 'training'),
        pytest.raises(UserError, match='got another running training; wait for it'),
    ):
        toy_run.work(CONFIG, tmp_path)


def test_another_config_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    toy_run.work(CONFIG | {'steps': 1}, tmp_path)
    monkeypatch.setattr(toy_run, 'ToyRun', lambda *_: pytest.fail('built a run'))
    with pytest.raises(
        UserError,
        match='accumulate: saved 1, now 2; restore those values or choose another --workdir',
    ):
        toy_run.work(CONFIG | {'accumulate': 2}, tmp_path)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('where', ['rows', 'board', 'checkpoint'])
def test_a_full_disk_is_reported_with_step_and_checkpoint(
    undisturbed, tmp_path, monkeypatch, where
):
    """Room ends at step 9, after the checkpoint of step 8; with room again the run ends as if
    nothing had been.
    """

    def full(of, method):
        real = getattr(of, method)

        def stops(self, *arguments):
            if int(run[0].state.step) >= 9:
                raise (
                    ValueError('RESOURCE_EXHAUSTED: No space left on device')
                    if where == 'checkpoint'
                    else FULL
                )
            return real(self, *arguments)

        patch.setattr(of, method, stops)

    run = []
    with monkeypatch.context() as patch:
        build = toy_run.ToyRun
        patch.setattr(toy_run, 'ToyRun', lambda c: run.append(build(c)) or run[0])
        full(
            *{
                'rows': (TrainLog, 'write'),
                'board': (Board, 'write'),
                'checkpoint': (Checkpoints, 'save'),
            }[where]
        )
        with pytest.raises(UserError) as caught:
            toy_run.work(CONFIG, tmp_path)
    said = str(caught.value)
    assert (
        f'step {12 if where == "checkpoint" else 9}: expected room in' in said
        and 'checkpoint 8 is whole' in said
    )
    toy_run.work(CONFIG, tmp_path)
    assert kill_training.differing(tmp_path, undisturbed) == []


def test_a_write_that_fails_in_the_background_stops_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr(checkpoint_manager.CheckpointManager, '_finalize_checkpoint', full)
    with pytest.raises(UserError, match=r'expected room in .*, got a full disk'):
        toy_run.work(CONFIG, tmp_path)


def test_a_line_cut_short_is_left_out_and_the_board_follows_the_rows(tmp_path):
    with TrainLog(tmp_path, 0) as log:
        for step in range(3):
            log.write(step, {'loss': 1 / (step + 1)})
    with (tmp_path / 'train_log.csv').open('a') as file:
        file.write('3,0.')
    assert [row['step'] for row in read_rows(tmp_path / 'train_log.csv')] == ['0', '1', '2']
    for _ in range(2):
        with TrainLog(tmp_path, 2) as log:
            log.write(2, {'loss': 0.5})
        assert kill_training.board(tmp_path) == [
            (0, 'loss', 1.0),
            (1, 'loss', 0.5),
            (2, 'loss', 0.5),
        ]


@pytest.mark.parametrize(
    ('section', 'key'), [('log', 'every'), ('checkpoint', 'every'), ('checkpoint', 'keep')]
)
def test_intervals_of_nothing(tmp_path, section, key):
    with pytest.raises(UserError, match=rf'{section}\.{key}: expected at least 1'):
        toy_run.work(CONFIG | {section: CONFIG[section] | {key: 0}}, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_reading_beside_a_training_sweeps_nothing_away(tmp_path):
    half = tmp_path / 'step_4.orbax-checkpoint-tmp'
    half.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
    assert half.is_dir()
    state = init_state(0, {'sigma': {}}, optax.sgd(0.1))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, {}, RunConfig())
    assert not half.exists() and whole_steps(tmp_path) == [0]


def test_old_checkpoints_do_not_name_new_settings():
    old = completed({'seed': 0})
    assert compare(old, RunConfig(compilation_cache='x').to_dict()) == []
    assert compare(old, RunConfig(accumulate=2).to_dict()) == ['accumulate: saved 1, now 2']
