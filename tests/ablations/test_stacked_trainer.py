"""Rows x seeds: stopped and continued as one, rows that stop being numbers, training folders that
evaluation opens.
"""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sigma_jax as sj
from configs import ablations as config
from sigma_jax import trees
from sigma_jax.ablations import stacked, stacked_trainer
from sigma_jax.ablations.stacked import Member
from sigma_jax.ablations.summary import summary
from sigma_jax.cli.tables import ablation_table
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation.trained_models import TrainedSigma
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.grid import Grid
from sigma_jax.training.logs import TABLE_1, TrainLog
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import Ablation, to_batch
from tests import toy_run
from tests.loading import make_loader
from tests.small_run import flow_config

GRID = {
    'rows': {'sigma': {}, 'bad': {'film': 0.0}, 'ramp_at_once': {'ramp_speed': float('inf')}},
    'seeds': (0, 7),
}
TOY = toy_run.CONFIG | {
    'objective': 'sigma',
    'steps': 8,
    'ablation': {},
    'log': {'every': 1, 'shares': 0},
}


def toy_objective(trainable, frozen, batch, ablation, key, step):
    """`toy_run.objective`, its distance weighted by the ramp; no number from step 5 on where `film`
    is shut.
    """
    loss, metrics = toy_run.objective(trainable, frozen, batch, ablation, key, step)
    speed = jnp.where(jnp.isinf(ablation.ramp_speed), 2.0, ablation.ramp_speed)
    return loss * speed * jnp.where((step >= 5) & (ablation.film <= 0), jnp.nan, 1.0), metrics


class ToyAblation(toy_run.ToyRun):
    """What `stacked_trainer` needs of an `AblationRun`."""

    def __init__(self, config, members, at_once):
        super().__init__(config)
        optimizer, self.members, self.at_once = optax.adam(0.1), members, 2
        starts = [
            init_state(m.seed, {'sigma': {'w': jnp.full((2, 3), 1.0 + m.seed)}}, optimizer)
            for m in members
        ]
        self.state, self.gates = stacked.start(starts), stacked.stack_gates(members)
        self.step = self.devices.jit_members(
            stacked.vmapped_step(make_step(toy_objective, optimizer), self.at_once)
        )


@pytest.fixture
def toy(monkeypatch):
    """`train(work folder, **changes of the config)` around one matrix."""
    monkeypatch.setattr(stacked_trainer, 'AblationRun', ToyAblation)
    return lambda workdir, grid=GRID, **changes: stacked_trainer.train(
        RunConfig.from_dict(TOY | changes), Grid.from_dict(grid), workdir
    )


def rows(workdir, member):
    return list(
        csv.DictReader(
            stacked_trainer.place(RunFolder(workdir), member).log.read_text().splitlines()
        )
    )


def test_stopped_and_continued_is_the_uninterrupted_run_bitwise(toy, tmp_path, monkeypatch):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    result = toy(whole)
    members, state = result.members, result.state
    write = TrainLog.write

    def stop_at_step_6(log, step, values):
        if step == 6 and 'ramp_at_once/seed0' in str(log.file):
            raise KeyboardInterrupt
        write(log, step, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainLog, 'write', stop_at_step_6)
        toy(stopped)
    assert not list(stopped.glob('rows/*/*/config.json')), 'no row looks finished'
    again = toy(stopped).state
    assert (
        trees.digest(jax.device_get(again)) == trees.digest(jax.device_get(state))
        and again.step == 8
    )
    for member in members:
        assert rows(whole, member) == rows(stopped, member)
    assert (whole / 'ablations.json').read_text() == (stopped / 'ablations.json').read_text()


def test_a_row_that_is_no_number_keeps_its_last_state_and_is_named(toy, tmp_path):
    result = toy(tmp_path)
    members, state = result.members, result.state
    assert state.failed.tolist() == [-1, -1, 5, 5, -1, -1]
    logged = [[row['step'] for row in rows(tmp_path, member)] for member in members]
    assert logged == [list('01234567')] * 2 + [list('01234')] * 2 + [list('01234567')] * 2
    steps = [stacked_trainer.place(RunFolder(tmp_path), m).steps == [5] for m in members]
    assert steps == [False, False, True, True, False, False]
    found = json.loads((tmp_path / 'ablations.json').read_text())
    assert [entry['failed'] for entry in found['bad'] + found['sigma']] == [5, 5, None, None]


def test_the_same_command_again_changes_nothing(toy, tmp_path):
    state = toy(tmp_path).state
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('checkpoints/*/state/*')}
    again = toy(tmp_path).state
    assert trees.digest(jax.device_get(again)) == trees.digest(jax.device_get(state))
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob('checkpoints/*/state/*')
    } == before


def test_when_every_row_is_no_number_nothing_is_left_to_train(toy, tmp_path):
    with pytest.raises(
        UserError, match='step 5: expected a finite loss in some row, got none in all 2'
    ):
        toy(tmp_path, {'rows': {'bad': {'film': 0.0}}, 'seeds': (0, 7)})


def test_a_folder_is_continued_with_its_own_rows_only(toy, tmp_path):
    toy(tmp_path)
    with pytest.raises(UserError, match=r'ablations.seeds: saved \[0, 7\], now \[0, 1\]'):
        toy(tmp_path, GRID | {'seeds': (0, 1)})
    with pytest.raises(UserError, match=r'ablations.rows.bad.film: saved 0.0, now 1.0'):
        toy(tmp_path, GRID | {'rows': GRID['rows'] | {'bad': {'film': 1.0}}})


def test_grids_and_configs_that_cannot_be_meant(small_run, tmp_path):
    grid = Grid.from_dict(config.get_config())
    with pytest.raises(
        UserError, match="config.ablations: expected objective 'sigma', .*, got 'flow_matching'"
    ):
        stacked_trainer.train(
            RunConfig.from_dict(flow_config(small_run.shards)), grid, tmp_path / 'run'
        )
    with pytest.raises(
        UserError,
        match=r'expected a file with rows and seeds, got none of '
        r"\['seeds'\]",
    ):
        sj.train_ablations(small_run.config(), {'rows': {}}, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_the_table_leaves_out_and_names_what_failed(tmp_path):
    members = [Member('a', n, Ablation()) for n in range(3)]
    for member, loss in zip(members, (1.0, 2.0, 50.0), strict=True):
        with TrainLog(tmp_path / str(member.seed), 0) as log:
            log.write(
                9, {'loss': loss, 'mse_vec': 1.0, 'mse_chk': 1.0, 'mse_trj': 1.0, 'L_sem': 3.0}
            )
    found = summary(
        members, [RunFolder(tmp_path / str(n)) for n in range(3)], np.array([-1, -1, 12])
    )
    assert found['a'][2] == {
        'seed': 2,
        'failed': 12,
        'loss': 50.0,
        'mse_vec': 1.0,
        'mse_chk': 1.0,
        'mse_trj': 1.0,
    }
    cells = [next(iter(column.cells)) for column in ablation_table(found).columns]
    assert cells == ['a', '1.5 ± 0.71', '1 ± 0', '1 ± 0', '1 ± 0', '2', 'seed 2 at step 12']


@pytest.fixture(scope='module')
def real(small_run, tmp_path_factory):
    """Two members of Sigma before their first step, on cached features: (work folder, members,
    state).
    """
    workdir = tmp_path_factory.mktemp('real')
    changes = {'steps': 0, 'features': 'cache'}
    rows = {name: GRID['rows'][name] for name in ('sigma', 'ramp_at_once')}
    result = stacked_trainer.train(
        RunConfig.from_dict(small_run.config(**changes)),
        Grid.from_dict({'rows': rows, 'seeds': (7,)}),
        workdir,
    )
    return workdir, result.members, result.state


def test_every_member_is_a_training_that_evaluation_opens(real, small_run):
    workdir, members, state = real
    place = stacked_trainer.place(RunFolder(workdir), members[1]).path
    record = 'acting/export.json'  # what it acts by
    assert (place / record).read_bytes() == (workdir / record).read_bytes()
    trained = TrainedSigma(place)
    alone = jax.device_get(stacked.member_state(state, 1))
    assert trees.digest(trained.trainable) == trees.digest(alone.ema)
    assert trained.provenance['seed'] == 7 and trained.provenance['step'] == 0
    assert (
        json.dumps(trained.config.to_dict(), allow_nan=False)
        and np.float32(trained.gates.ramp_speed) == np.inf
    )
    tokenizer = load_tokenizer(trained.config.tokenizer)
    settings = {'batch_size': 2, 'sequence_length': 2, 'baselines': 'pi05', 'tokenizer': tokenizer}
    batch = next(make_loader(open_shards(small_run.shards).split('train'), **settings))
    gates = jax.tree.map(np.float32, Ablation())
    _, want = trained.forward(alone.ema, trained.frozen, to_batch(batch), gates)
    for got, expected in zip(
        *map(jax.tree.leaves, (trained.predict(batch, Ablation()), want)), strict=True
    ):
        assert np.array_equal(got, expected)


@pytest.mark.slow
def test_a_member_is_trained_as_a_plain_run_of_its_seed(small_run, tmp_path):
    """Three steps from shards to the log: the same columns, and numbers to rounding."""
    changes = {'steps': 3, 'features': 'cache', 'log': {'every': 1, 'shares': 0}}
    grid = {
        'rows': {'no_film': {'film': 0.0}, 'ramp_at_once': GRID['rows']['ramp_at_once']},
        'seeds': (0,),
    }
    members = stacked_trainer.train(
        RunConfig.from_dict(small_run.config(**changes)), Grid.from_dict(grid), tmp_path / 'rows'
    ).members
    logs = [rows(tmp_path / 'rows', member) for member in members]
    np.testing.assert_allclose([float(log[0]['w_sem']) for log in logs], [0.1, 1.0], rtol=1e-6)
    plain = small_run.config(**changes)
    trainer.train(
        RunConfig.from_dict(plain | {'ablation': plain['ablation'] | {'film': 0.0}}),
        tmp_path / 'plain',
    )
    expected = list(csv.DictReader((tmp_path / 'plain/train_log.csv').read_text().splitlines()))
    assert list(logs[0][0]) == list(expected[0]) and list(expected[0])[: len(TABLE_1)] == TABLE_1
    for one, other in zip(logs[0], expected, strict=True):
        np.testing.assert_allclose(
            [float(x) for x in one.values()], [float(x) for x in other.values()], rtol=1e-4
        )
