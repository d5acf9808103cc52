"""Training from shards to checkpoint: a stopped and continued run is the uninterrupted one, and
errors that stop it.
"""

import csv
import dataclasses
import json
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sigma_jax import trees
from sigma_jax.convert import checkpoint
from sigma_jax.convert.load_base import open_base, read_weights
from sigma_jax.data.shards import seen
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation.trained_models import TrainedSigma
from sigma_jax.processing.spec import read_policy
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.training import build, loop, trainer
from sigma_jax.training.checkpoints import Checkpoints
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.logs import TABLE_1, TrainLog
from sigma_jax.training.progress import SILENT
from sigma_jax.training.signals import StopSignal
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import Ablation, to_batch
from tests.loading import make_loader
from tests.small_run import flow_config


@pytest.fixture(scope='module')
def whole(small_run, tmp_path_factory):
    """Five steps in one go: (work folder, last state)."""
    workdir = tmp_path_factory.mktemp('whole')
    return workdir, trainer.train(RunConfig.from_dict(small_run.config()), workdir).state


@pytest.fixture(scope='module')
def stopped(small_run, tmp_path_factory):
    """The same run, stopped at step 3 with checkpoint 2 as its newest, and continued: (work folder,
    last state).
    """
    workdir = tmp_path_factory.mktemp('stopped')
    with pytest.MonkeyPatch.context() as patch:
        write = TrainLog.write

        def stop_at_step_3(log, step, values):
            if step == 3:
                raise KeyboardInterrupt
            write(log, step, values)

        patch.setattr(TrainLog, 'write', stop_at_step_3)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(RunConfig.from_dict(small_run.config()), workdir)
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        assert checkpoints.latest() == 2
    return workdir, trainer.train(RunConfig.from_dict(small_run.config()), workdir).state


def rows(workdir):
    return list(csv.DictReader((workdir / 'train_log.csv').read_text().splitlines()))


def test_stop_and_continue_is_the_uninterrupted_run_bitwise(whole, stopped):
    state, continued = whole[1], stopped[1]
    assert int(state.step) == int(continued.step) == 5
    assert trees.digest(jax.device_get(state)) == trees.digest(jax.device_get(continued))


def test_a_run_is_not_asked_to_end_before_where_it_is(whole, small_run, tmp_path):
    """And its config still says what made its newest checkpoint."""
    run = tmp_path / 'run'
    shutil.copytree(whole[0], run)
    before = (run / 'config.json').read_bytes()
    for steps in (1, 4):
        with pytest.raises(UserError, match=f'expected steps of at least 5, .*got {steps}; name'):
            trainer.train(RunConfig.from_dict(small_run.config(steps=steps)), run)
    assert (run / 'config.json').read_bytes() == before


def test_logged_metrics_are_the_same_to_the_last_digit(whole, stopped):
    assert rows(whole[0]) == rows(stopped[0])
    assert [row['step'] for row in rows(whole[0])] == list('01234')
    assert all(np.isfinite(float(x)) for row in rows(whole[0]) for x in row.values())
    assert list(rows(whole[0])[0])[: len(TABLE_1)] == TABLE_1


def test_data_order_continues_where_it_stopped(whole, stopped):
    files = [
        [w / 'checkpoints' / f'step_{n}' / 'loader' / 'metadata' for n in (2, 4, 5)]
        for w in (whole[0], stopped[0])
    ]
    positions = [[json.loads(file.read_text()) for file in row] for row in files]
    assert positions[0] == positions[1] and positions[0][0] != positions[0][1] != positions[0][2]


def test_checkpoints_hold_nothing_of_the_base(whole, small_run):
    base = set(trees.flatten(checkpoint.load(small_run.base).params))
    state = jax.device_get(whole[1])
    assert set(state.trainable) == {'sigma', 'lora'}
    assert not {path.removeprefix('lora/') for path in trees.flatten(state.trainable)} & base
    with ocp.StandardCheckpointer() as reader:
        saved = reader.restore((whole[0] / 'checkpoints/step_5/state').absolute())
    assert not any(path.endswith(tuple(base)) for path in trees.flatten(saved))
    assert 0 <= trees.count(saved) - trees.count(state) <= 2, 'a random key is two numbers'


def test_flow_matching_leaves_a_policy_with_its_statistics(small_run):
    found = checkpoint.load(small_run.base)
    assert found.config.vision.image_size == 28 and found.config.sample_steps == 2
    assert json.loads((small_run.base / 'norm_stats.json').read_text()).keys() == {'norm_stats'}
    config = RunConfig.from_dict(flow_config(small_run.shards))
    start = read_weights(open_base('', config.model), config.seed, config.tokenizer).params
    moved = [
        not np.array_equal(x, y)
        for x, y in zip(*map(jax.tree.leaves, (start, found.params)), strict=True)
    ]
    assert sum(moved) > 0.8 * len(moved)


def test_a_policy_that_goes_on_from_given_actions_is_trained_by_a_setting(small_run, tmp_path):
    """Another training than without, in the same draws; the policy's own file says so."""
    config = flow_config(small_run.shards) | {'rtc': {'max_delay': 4}}
    trained = trainer.train(RunConfig.from_dict(config), tmp_path / 'run')
    policy = tmp_path / 'run/policy'
    assert [read_policy(x).max_delay for x in (policy, small_run.base)] == [4, 0]
    found, plain = (json.loads((x / 'source.json').read_text()) for x in (policy, small_run.base))
    assert found['digest'] != plain['digest'] and np.isfinite(float(trained.losses['loss']))


def test_a_policy_follows_its_run(small_run, tmp_path):
    """Steps are raised and the run goes on: its weights replace the old ones, and nobody else's."""
    run = tmp_path / 'run'
    shutil.copytree(small_run.flow, run)
    policy = run / 'policy'

    def digest():
        return json.loads((policy / 'source.json').read_text())['digest']

    before, config = digest(), flow_config(small_run.shards)
    assert (
        set(seen.read(policy))
        == set(seen.of_split(open_shards(small_run.shards).meta, 'train'))
        == set(seen.read(run))
    )
    trainer.train(RunConfig.from_dict(config), run)
    assert digest() == before, 'nothing was trained'
    trained = trainer.train(RunConfig.from_dict(config | {'steps': 3}), run).state
    assert digest() != before and trainer.saved_at(policy) == 3
    found = checkpoint.load(policy).params
    assert trees.digest(found) == trees.digest(
        jax.device_get(trained.ema or trained.trainable)['params']
    )
    assert sorted(path.name for path in run.iterdir() if 'policy' in path.name) == ['policy']
    (policy / 'source.json').unlink()
    trainer.train(RunConfig.from_dict(config | {'steps': 4}), run)
    assert trainer.saved_at(policy) is None, 'a folder that no run has saved is left alone'


def test_evaluation_predicts_with_the_last_checkpoint(whole, small_run):
    trained = TrainedSigma(whole[0])
    assert trained.provenance['step'] == 5 and trained.sequence_length == 2
    assert trained.base.digest == json.loads((small_run.base / 'source.json').read_text())['digest']
    average = jax.device_get(whole[1].ema)
    assert (
        trees.digest(trained.trainable)
        == trees.digest(average)
        != trees.digest(jax.device_get(whole[1].trainable))
    )
    batch = next(
        make_loader(
            open_shards(small_run.shards).split('train'),
            batch_size=2,
            sequence_length=2,
            baselines='pi05',
            tokenizer=load_tokenizer('assets/tokenizer/tokenizer.json'),
        )
    )
    output = trained.predict(batch, Ablation())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(output))
    gates = jax.tree.map(np.float32, Ablation())
    batch = to_batch(batch)
    objective = build.make_objective(
        RunConfig.from_dict(small_run.config()), trained.base.config, batch
    )
    asked = average, trained.frozen, batch, gates
    _, want = jax.jit(objective.replay)(*asked)  # window by window, as a robot has them
    assert jax.tree.all(jax.tree.map(np.array_equal, output, jax.device_get(want)))
    _, together = jax.jit(objective.forward)(*asked)
    chex.assert_trees_all_close(output, jax.device_get(together), rtol=1e-4, atol=1e-4)


def test_folders_that_hold_no_trained_sigma(small_run, tmp_path):
    def refused(workdir, message):
        with pytest.raises(UserError, match=message):
            TrainedSigma(workdir)

    refused(tmp_path, 'got no config.json in it; run train.py first')
    refused(small_run.flow, "expected a run with objective 'sigma' in .*, got 'flow_matching'")


def nested(config, section, **changes):
    return config | {section: config[section] | changes}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: nested(c, 'sigma', widht=3), r"config.sigma: .*, got unknown keys \['widht'\]"),
        (lambda c: nested(c, 'loss', hard_ratio=2.0), r'loss.hard_ratio: expected a share in \(0, '
                                                      r'1\]'),
        (lambda c: nested(c, 'lora', patterns=('.*/v_proj',)), "pattern '.*/v_proj', which matches "
                                                               'none of'),
        (lambda c: nested(c, 'lora', rank=0), 'lora.rank: expected at least 1, got 0'),
        (lambda c: nested(c, 'lora', patterns=('.*/q_einsum_1/w',)), 'LoRA factors of .*, which '
                                                                     'would never learn'),
        (lambda c: c | {'objective': 'behaviour'}, "expected 'sigma' or 'flow_matching', got "
                                                   "'behaviour'"),
        (lambda c: nested(c, 'rtc', max_delay=3), "max_delay: expected 0 for objective 'sigma', "
                                                  'got 3'),
        (lambda c: c | {'trainable': ('sigma', 'heads')}, r"expected some of .*, got \['heads'\]"),
        (lambda c: c | {'trainable': ('lora',)}, r"config.trainable: objective 'sigma' expects "
                                                 r"\('sigma',\)"),
        (lambda c: c | {'trainable': ('sigma', 'params')}, r"config.trainable: objective 'sigma' "
                                                           r"expects \('sigma',\)"),
        (lambda c: c | {'shards': 'nowhere'}, 'expected finished shards in nowhere'),
        (lambda c: c | {'base': 'nowhere'}, 'expected a checkpoint at nowhere'),
        (lambda c: c | {'batch_size': 0}, 'expected batch_size and sequence_length of at least 1'),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_meant(small_run, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        trainer.train(RunConfig.from_dict(change(small_run.config())), tmp_path / 'run')
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_another_base_than_the_baselines_were_made_with(small_run, tmp_path):
    loaded = checkpoint.load(small_run.base)
    shifted = dataclasses.replace(
        loaded, params=jax.tree.map(lambda x: x + np.float32(1e-3), loaded.params)
    )
    checkpoint.save(shifted, small_run.base, tmp_path / 'other')
    with pytest.raises(
        UserError,
        match='expected baselines of the policy .*prepare the shards with the same --base',
    ):
        trainer.train(
            RunConfig.from_dict(small_run.config(base=str(tmp_path / 'other'))),
            tmp_path / 'run',
        )


def test_a_tokenizer_with_more_tokens_than_the_table(small_run, tmp_path):
    loaded = checkpoint.load(small_run.base)
    flat = trees.flatten(loaded.params)
    flat['PaliGemma/llm/embedder/input_embedding'] = flat['PaliGemma/llm/embedder/input_embedding'][
        :100
    ]
    smaller = dataclasses.replace(loaded.config, vocab_size=100)
    with pytest.raises(UserError, match=r'expected shape \(640, \d+\), got \(100, \d+\)'):
        checkpoint.save(
            dataclasses.replace(loaded, params=trees.unflatten(flat)),
            small_run.base,
            tmp_path / 'other',
        )
    cut = dataclasses.replace(loaded, params=trees.unflatten(flat), config=smaller)
    checkpoint.save(cut, small_run.base, tmp_path / 'other')
    with pytest.raises(UserError, match='100'):
        trainer.train(
            RunConfig.from_dict(small_run.config(base=str(tmp_path / 'other'))),
            tmp_path / 'run',
        )


class Batches:
    """Batches of one window whose action at step `bad` is not a number."""

    def __init__(self, bad):
        self.bad, self.step = bad, -1

    def __next__(self):
        self.step += 1
        one, actions = (
            np.ones((1, 1)),
            np.full((1, 1, 2, 3), np.nan if self.step == self.bad else 0.5, np.float32),
        )
        names = (
            'images',
            'image_mask',
            'prompt',
            'prompt_mask',
            'text',
            'text_mask',
            'state',
            'reset',
            'mask',
        )
        numbers = {k: one.astype(int) for k in ('text_id', 'episode')} | {
            'frame': one.astype(int) * 7
        }
        return (
            dict.fromkeys(names, one)
            | numbers
            | {'actions': actions, 'action_mask': one[..., None] > 0}
        )

    def get_state(self):
        return {'step': self.step}


@pytest.mark.parametrize(
    ('log', 'bad', 'at', 'kept'), [(1, 3, 3, 2), (100, 3, 3, 2), (100, 2, 2, 2), (4, 5, 5, 4)]
)
def test_a_loss_that_is_not_finite_stops_and_never_reaches_a_checkpoint(
    tmp_path, log, bad, at, kept
):
    """The loop itself, around one matrix: checkpoints every 2 steps, also where no row is due."""

    def objective(trainable, frozen, batch, ablation, key, step):
        loss = jnp.mean((trainable['sigma']['w'] - batch.actions) ** 2)
        return loss, {'L_act': loss}

    config = RunConfig.from_dict({'steps': 8, 'log': {'every': log}, 'checkpoint': {'every': 2}})
    state = init_state(0, {'sigma': {'w': jnp.zeros((2, 3))}}, optax.sgd(0.1))
    run = types.SimpleNamespace(
        config=config,
        state=state,
        step=jax.jit(make_step(objective, optax.sgd(0.1))),
        devices=Devices(jax.devices()[:1]),
        frozen=None,
        ablation=None,
    )
    (tmp_path / 'run').mkdir()
    one = trainer.One(run)
    with (
        pytest.raises(UserError) as caught,
        Checkpoints(tmp_path / 'checkpoints', keep=2) as checkpoints,
        one.logs(RunFolder(tmp_path / 'run'), 0),
    ):
        loop.loop(one, Batches(bad), checkpoints, SILENT, StopSignal())
    assert f'step {at}: expected finite losses' in str(caught.value) and '(1, 7)' in str(
        caught.value
    )
    with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        assert checkpoints.latest() == kept
        assert np.isfinite(checkpoints.restore_trainable(kept)['sigma']['w']).all()


def test_rows_of_a_log_cut_short_are_dropped(tmp_path):
    with TrainLog(tmp_path, 0) as log:
        log.write(0, {'loss': 1 / 3, 'mse_vec': 2.0})
        log.write(1, {'loss': 0.1, 'tau_rms': 5.0})
    with TrainLog(tmp_path, 1) as log:
        log.write(1, {'loss': 0.5, 'mse_vec': 1e-30})
    assert [list(row.items()) for row in rows(tmp_path)] == [
        [('step', '0'), ('loss', repr(1 / 3)), ('mse_vec', '2.0')],
        [('step', '1'), ('loss', '0.5'), ('mse_vec', '1e-30')],
    ], 'a column that only a dropped row had is gone with it'
    with TrainLog(tmp_path, 0) as log:
        log.write(0, {'loss': 9.0})
    assert len(rows(tmp_path)) == 1 and float(rows(tmp_path)[0]['loss']) == 9.0


def test_a_log_with_columns_of_before_goes_on_under_the_names_of_today(tmp_path):
    (tmp_path / 'train_log.csv').write_text('step,mse_traj,mse_vec\n0,3.5,2.0\n')
    with TrainLog(tmp_path, 1) as log:
        log.write(1, {'mse_trj': 0.25, 'mse_vec': 1.0})
    assert [list(row.items()) for row in rows(tmp_path)] == [
        [('step', '0'), ('mse_trj', '3.5'), ('mse_vec', '2.0')],
        [('step', '1'), ('mse_trj', '0.25'), ('mse_vec', '1.0')],
    ]


def test_a_run_without_checkpoint_cannot_be_evaluated(small_run, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(small_run.config()))
    with pytest.raises(UserError, match='expected a checkpoint in .*, got none; run train.py'):
        TrainedSigma(tmp_path)


def test_shards_of_another_image_size(small_run, tmp_path, unread):
    shutil.copytree(small_run.shards, tmp_path / 'shards')
    meta = tmp_path / 'shards' / 'meta.json'
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {'image_size': 56}))
    with pytest.raises(
        UserError, match='expected images of 28 px, which the base takes, got 56 px'
    ):
        trainer.train(
            RunConfig.from_dict(small_run.config(shards=str(tmp_path / 'shards'))),
            tmp_path / 'run',
        )


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'tokenizer': 'nowhere'}, 'nowhere'),
        ({'trainable': ('sigma', 'heads')}, r"got \['heads'\]"),
        ({'trainable': ('params',)}, 'choose one'),
        ({'optimizer': {'speed': 1}}, r"unknown keys \['speed'\]"),
        ({'ablation': {'gamma': 1}}, r"unknown keys \['gamma'\]"),
        ({'sigma': {'width': 8}}, r"unknown keys \['width'\]"),
    ],
)
def test_settings_are_checked_before_weights_are_read(small_run, tmp_path, unread, wrong, message):
    """Half a minute at full size."""
    with pytest.raises(UserError, match=message):
        trainer.train(RunConfig.from_dict(small_run.config(**wrong)), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
