"""Whatever was trained acts: from its run or its export, it does what evaluation measures."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest

import convert_weights
from sigma_jax.api.policies import load_policy
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation import measure
from sigma_jax.evaluation.replay import CARRIED, replay
from sigma_jax.evaluation.replay_shards import list_batches
from sigma_jax.evaluation.trained_models import TrainedSigma
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.policies.observation import read_observation
from sigma_jax.policies.protocol import STATE
from sigma_jax.policies.sigma import SigmaActor
from sigma_jax.sigma.adapter import AdapterConfig, AdapterState, to_dict
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.export import export_run
from sigma_jax.training.run import Parts
from tests.hub_server import on_hub
from tests.trained_runs import COMPARED, first_episode, recorded, same, save


@pytest.fixture(scope='module')
def run(rows):
    return rows / 'sigma' / 'seed0'


@pytest.fixture(scope='module')
def trained(run):
    return TrainedSigma(run)


@pytest.fixture(scope='module')
def policy(run):
    return load_policy(run)


def test_a_sigma_does_what_evaluation_measures(small_run, trained, policy):
    """Window by window with what is remembered, against whole episodes at once: the same bits."""
    episode = first_episode(small_run)
    batch = next(list_batches(trained, open_shards(small_run.shards).split('train'), 2))
    assert batch['episode'][0, 0] == episode
    measured = trained.predict(batch, trained.gates)
    policy.reset()
    for n, seen in enumerate(recorded(small_run, episode)):
        answer = policy.infer(seen)
        for name, branch in answer['branches'].items():
            want = getattr(measured.actions, name)[0, n]
            np.testing.assert_array_equal(branch, want, err_msg=f'{n} {name}')
        np.testing.assert_array_equal(policy.state.tau, measured.telepathy.tau[0, n])
        np.testing.assert_array_equal(policy.state.memory, measured.telepathy.memory[0, n])
    assert n > 2 and np.abs(policy.state.memory).max() > 0.01


def test_an_adapter_weighs_as_in_evaluation(small_run, run, trained, policy, tmp_path):
    """Beside a run, and in its export; without it the residual counts whole."""
    split = open_shards(small_run.shards).split('train')
    windows = replay(list_batches(trained, split, 2), trained.predict, 2, runs=(CARRIED,))
    fitted = measure.fit_adapter(windows, AdapterConfig(ok_quantile=0.5, ok_margin=1.0))
    shutil.copytree(run, tmp_path / 'run')
    (tmp_path / 'run/adapter.json').write_text(json.dumps(to_dict(fitted)))
    adapted, *want = measure.run_adapter(windows, CARRIED, fitted)
    assert len(np.unique(want[0])) > 2  # some are trusted, others less
    export_run(tmp_path / 'run', tmp_path / 'out')
    episode, told = first_episode(small_run), []
    for source in ('run', 'out'):
        weighed = load_policy(tmp_path / source, limited=False)
        for n, seen in enumerate(recorded(small_run, episode)):
            answer = weighed.infer(seen)
            for name, branch in answer['branches'].items():
                np.testing.assert_array_equal(branch, getattr(adapted, name)[n], err_msg=name)
            got = answer['scale'], answer['risk'], answer['reasons']
            expected = [jax.tree.map(lambda x, n=n: x[n], part) for part in want]
            assert jax.tree.all(
                jax.tree.map(np.array_equal, got, (*expected[:2], vars(expected[2])))
            )
            np.testing.assert_array_equal(answer['motor_commands'], answer['actions'])
            told.append(answer['timing']['infer_ms'])
    assert min(told) > 0
    whole, seen = load_policy(tmp_path / 'run', adapter=False), recorded(small_run, episode)[0]
    policy.reset()
    answer = whole.infer(seen)
    assert same(answer, policy.infer(seen)) and not {'scale', 'risk', 'reasons'} & set(answer)


def test_motor_commands_keep_to_the_limits(small_run, run, tmp_path):
    """Those of the training's config; what the branches say stays as it is."""
    shutil.copytree(run, tmp_path / 'run')
    config = json.loads((run / 'config.json').read_text())
    config['sigma']['joint_high'] = [0.5] * 6
    (tmp_path / 'run/config.json').write_text(json.dumps(config))
    seen = recorded(small_run, first_episode(small_run))[0]
    answer = load_policy(tmp_path / 'run').infer(seen)
    assert answer['actions'].max() > 0.6
    np.testing.assert_array_equal(answer['motor_commands'], np.minimum(answer['actions'], 0.5))


def test_relative_joints_count_from_where_the_robot_is(small_run, run, policy, tmp_path):
    """Those of the base: the same chunk, from the reading on. What Sigma adds stays as it is."""
    shutil.copytree(run, tmp_path / 'run')
    shutil.copytree(small_run.base, tmp_path / 'base')
    config = json.loads((run / 'config.json').read_text()) | {'base': str(tmp_path / 'base')}
    (tmp_path / 'run/config.json').write_text(json.dumps(config))
    flags = [True, False, False, True, False, True]
    (tmp_path / 'base/policy.json').write_text(json.dumps({'relative_joints': flags}))
    other, seen = load_policy(tmp_path / 'run'), recorded(small_run, first_episode(small_run))[1]
    policy.reset()
    got, want = other.infer(seen)['branches'], policy.infer(seen)['branches']
    counted = np.where(flags, seen[STATE], 0)
    assert np.abs(seen[STATE]).min() > 0.01
    for name, branch in want.items():
        np.testing.assert_allclose(got[name], branch + counted, rtol=1e-4, atol=1e-3)


def test_an_untrained_sigma_is_its_base_to_the_bit(small_run, tmp_path):
    """Heads as a training begins with them: the residual is zero, and so is nothing else."""
    config = json.loads(json.dumps(small_run.config(steps=1)))
    parts = Parts(RunConfig.from_dict(config), Devices(jax.local_devices()[:1]))
    trainable, _ = parts.blueprint.start(parts.base, parts.frozen, parts.example)
    save(tmp_path / 'fresh', config, jax.device_get(trainable))
    fresh = load_policy(tmp_path / 'fresh')
    meta = open_shards(small_run.shards).meta
    base = load_policy(small_run.base, tokenizer=config['tokenizer'], robot=meta)
    for seen in recorded(small_run, first_episode(small_run))[:3]:
        got, want = fresh.infer(seen), base.infer(seen)
        np.testing.assert_array_equal(got['actions'], want['actions'][: fresh.spec.horizon])
        assert got['tau_l2'] > 0


def test_states_are_put_back_and_robots_do_not_meet(small_run, policy):
    seen = recorded(small_run, first_episode(small_run))[:3]
    policy.reset()
    policy.infer(seen[0])
    kept = policy.state
    want = policy.infer(seen[1])
    policy.infer(seen[2])
    policy.state = kept
    assert same(policy.infer(seen[1]), want)
    fresh = policy.initial_state(kept.episode)
    (one, other), (after, second) = policy.infer_batch([seen[1], seen[2]], [kept, fresh])
    assert same(one, want)
    policy.state = fresh
    alone = policy.infer(seen[2])
    assert same(other, alone)
    for name in ('memory', 'tau'):
        assert np.array_equal(getattr(second, name), getattr(policy.state, name))
    assert after.frame == kept.frame + 1 and after.memory is not kept.memory


def test_memory_counts_and_reset_forgets_it(small_run, policy):
    first, second = recorded(small_run, first_episode(small_run))[:2]
    policy.reset()
    alone = policy.infer(second)
    policy.reset()
    policy.infer(first)
    after = policy.infer(second)
    assert np.abs(alone['branches']['traj'] - after['branches']['traj']).max() > 1e-4
    policy.reset()
    assert same(policy.infer(second), alone)


@pytest.fixture(scope='module')
def limited(policy):
    """The same Sigma, half of whose residual is trusted, on a robot that turns slowly."""
    actor = policy.actor
    objective, a = actor.parts.objective, policy.spec.action_dim
    sigma = dataclasses.replace(objective.sigma, joint_rate=(2.0,) * a)
    m = (1 + sigma.chunk + sigma.horizon) * a
    none, most = np.float32(0), np.float32(1e9)
    state = AdapterState(
        *(np.ones(a), np.ones(m), np.zeros((1, m)), np.zeros(2)),
        *(np.float32(1), most, most, most, none, np.float32(0.5), none, none, none),
    )
    parts = dataclasses.replace(
        actor.parts, objective=dataclasses.replace(objective, sigma=sigma), adapter=state
    )
    return ActingPolicy(
        SigmaActor(actor.base, parts), chunking=ChunkingConfig('lerobot', 'ones', 2.0)
    )


def test_a_sigma_goes_on_from_what_the_robot_carries_out(small_run, limited):
    """Its residual as far as it is trusted, and its limits, are in the chunk that is given, which
    goes on from the one before all the same; what it remembers is what it would without.
    """
    first, second = recorded(small_run, first_episode(small_run))[:2]
    limited.reset()
    before = limited.infer(first)['motor_commands']
    state, left, rate = limited.state, before[4:], 2.0
    plain, after = limited.infer(second), limited.state
    limited.state = state
    held = limited.infer(second, prefix=left, delay=3)
    for name in ('actions', 'motor_commands'):
        assert np.array_equal(held[name][:3], left[:3])
    for name in ('memory', 'tau'):
        assert np.array_equal(getattr(limited.state, name), getattr(after, name))
    assert held['scale'] == plain['scale'] == 0.5 and held['tau_l2'] == plain['tau_l2']
    added = plain['actions'] - base_chunk(limited, second, state)
    assert np.abs(added[: len(left)]).max() > 0.3
    np.testing.assert_allclose(held['actions'][: len(left)], left, rtol=0, atol=0.01)
    turned = np.abs(np.diff(held['motor_commands'], axis=0)).max(0)
    assert turned.max() > 0.99 * rate and (turned < rate + 1e-3).all()
    assert np.abs(np.diff(held['actions'], axis=0)).max() > 2 * rate
    limited.state = state
    odd = np.arange(len(left))[:, None] % 2
    jumps = left + np.where(odd, 50, -50).astype(np.float32)  # beyond all limits
    far = limited.infer(second, prefix=jumps, delay=3)['motor_commands']
    assert np.array_equal(far[:3], jumps[:3])
    limited.state = state
    again = limited.infer(second, prefix=left, chunking=ChunkingConfig('guided', 'zeros'))
    assert same(again, plain)


def within_rate(actions, start, rate=2.0) -> np.ndarray:
    """A chunk of which no step is further than `rate` from the one before, from `start` on."""
    found = []
    for target in actions:
        start = np.clip(target, start - np.float32(rate), start + np.float32(rate))
        found.append(start)
    return np.stack(found)


def test_a_chunk_begins_within_reach_of_where_the_robot_is(small_run, limited):
    """From its reading on, or from the steps that are committed, however many robots there are."""
    first, second = recorded(small_run, first_episode(small_run))[:2]
    far = second | {STATE: second[STATE] - np.float32(25)}
    fresh = limited.initial_state()
    answers = []
    for seen in (first, second, far):
        limited.state = fresh
        answers.append(limited.infer(seen))
        want = within_rate(answers[-1]['actions'], seen[STATE])
        assert np.array_equal(answers[-1]['motor_commands'], want)
    assert np.abs(answers[2]['actions'][0] - far[STATE]).min() > 10
    left = answers[0]['motor_commands'][4:]
    for delay in (0, 3):
        limited.state = fresh
        held = limited.infer(far, prefix=left, delay=delay)
        want = within_rate(held['actions'], held['actions'][0] if delay else far[STATE])
        assert np.array_equal(held['motor_commands'], want)
    prefixes = [left, None, None]
    both, _ = limited.infer_batch(
        [far, first, second], [fresh] * 3, prefix=prefixes, delay=[3, 0, 0]
    )
    for one, alone in zip(both, (held, *answers[:2]), strict=True):
        assert same(one, alone, (*COMPARED, 'scale', 'risk'))


def test_a_joint_that_is_not_read_begins_where_it_is_told(policy):
    """By name, whatever the order; some robots do not read what they move."""
    robot = policy.actor.parts.robot
    names = 'grip', *robot.state_names[:0:-1]
    other = dataclasses.replace(robot, action_names=names)
    got = other.positions(np.arange(6, dtype=np.float32))
    np.testing.assert_array_equal(got, [np.nan, 5, 4, 3, 2, 1])


def base_chunk(policy, seen, state):
    reading = read_observation(seen, policy.spec)
    at = dataclasses.replace(state, episode=seen['episode'], frame=seen['frame'])
    return policy.actor.base.act([reading], [at])[0]['actions'][0][: policy.spec.horizon]


def test_an_export_acts_alone(small_run, run, policy, tmp_path, monkeypatch):
    """In another place, when run, shards and base are gone; with another base it does not."""
    here = tmp_path / 'here'
    shutil.copytree(run, here / 'run')
    shutil.copytree(small_run.base, here / 'base')
    shutil.copytree(small_run.shards, here / 'shards')
    shutil.copytree('assets/tokenizer', here / 'tokenizer')
    config = json.loads((run / 'config.json').read_text())
    config |= {name: str(here / name) for name in ('base', 'shards')}
    config['tokenizer'] = str(here / 'tokenizer/tokenizer.json')
    (here / 'run/config.json').write_text(json.dumps(config))
    words = ['export', f'--workdir={here / "run"}', f'--out={tmp_path / "out"}', '--with_base']
    monkeypatch.setattr(sys, 'argv', ['convert_weights.py', *words])
    with pytest.raises(SystemExit, match='0'):
        convert_weights.main()
    shutil.rmtree(here)
    away = shutil.move(tmp_path / 'out', tmp_path / 'away')
    other = load_policy(away)
    policy.reset()
    for seen in recorded(small_run, first_episode(small_run))[:3]:
        assert same(policy.infer(seen), other.infer(seen))
    told = json.loads((away / 'export.json').read_text())
    told['base']['digest'] = 'f' * 64
    (away / 'export.json').write_text(json.dumps(told))
    with pytest.raises(UserError, match='expected the base that was trained around'):
        load_policy(away)


def test_only_what_reads_a_task_alone_is_bound_by_it(rows, policy):
    """A Sigma says what it reads; of a fine-tuned policy the prompt alone counts."""
    reads = policy.actor.processor
    task = 'a ' * reads.max_text_len
    sentence = f'text of at most {reads.max_text_len} tokens, as many as the policy reads, got'
    with pytest.raises(UserError, match=sentence):
        reads.text(task)
    tuned = load_policy(rows / 'pi05_lora' / 'seed0').actor.processor
    assert tuned.text(task)[1].sum() > reads.max_text_len


def test_a_fine_tuned_policy_goes_on_from_as_many_steps_as_it_was_given(small_run, rows):
    how, seen = ChunkingConfig('trained'), recorded(small_run, first_episode(small_run))[1]
    policy = load_policy(rows / 'pi05_lora' / 'seed0', chunking=how)
    left = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    actions = policy.infer(seen, prefix=left, delay=3)['actions']
    assert np.array_equal(actions[:3], left[:3]) and np.abs(actions[3:9] - left[3:]).max() > 0.1
    with pytest.raises(UserError, match='a delay of at most 3 steps, with which the policy was'):
        policy.infer(seen, prefix=left, delay=4)
    with pytest.raises(UserError, match='expected a policy trained with config.rtc.max_delay'):
        load_policy(small_run.flow, chunking=how)


def test_an_export_acts_by_hub_id(small_run, run, policy, tmp_path, monkeypatch):
    """Whatever of it acting needs is fetched."""
    export_run(run, tmp_path / 'out', with_base=True)
    seen = recorded(small_run, first_episode(small_run))[0]
    with on_hub(tmp_path / 'out', tmp_path / 'cache', monkeypatch):
        shutil.rmtree(tmp_path / 'out')
        other = load_policy('robots/tiny@v1')
    policy.reset()
    assert same(policy.infer(seen), other.infer(seen))


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
    adapted = shutil.copytree(run, tmp_path_factory.mktemp('exported') / 'run')
    fitted = AdapterState(*[np.float32(1)] * len(dataclasses.fields(AdapterState)))
    (adapted / 'adapter.json').write_text(json.dumps(to_dict(fitted)))
    return export_run(adapted, adapted.parent / 'out')


@pytest.mark.parametrize('name', ['adapter', 'sigma.safetensors', 'adapter.json'])
def test_an_export_without_what_was_trained_is_refused(exported, tmp_path, name):
    """It would act as something that nobody measured."""
    assert load_policy(exported)
    folder = shutil.copytree(exported, tmp_path / 'out')
    (folder / name).rename(tmp_path / 'gone')
    with pytest.raises(UserError, match=f'expected {name} in .*, as its record says, got none'):
        load_policy(folder)


def test_merged_weights_do_not_stand_for_all_that_was_trained(run, tmp_path):
    """Beside them lie Sigma's heads; without these it would act as a base."""
    out = export_run(run, tmp_path / 'out', merge=True)
    shutil.rmtree(out / 'adapter')
    (out / 'sigma.safetensors').unlink()
    with pytest.raises(UserError, match='expected sigma.safetensors and adapter in .*, got none'):
        load_policy(out)


def test_factors_are_those_that_were_written(exported, tmp_path):
    """Other numbers are refused; an export that does not know its own is taken at its word."""
    folder = shutil.copytree(exported, tmp_path / 'out')
    weights, record = folder / 'adapter/adapter_model.safetensors', folder / 'export.json'
    content = weights.read_bytes()
    weights.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(UserError, match='adapter the factors that were written, got others; copy'):
        load_policy(folder)
    told = json.loads(record.read_text())
    del told['factors_digest']
    record.write_text(json.dumps(told))
    assert load_policy(folder)


@pytest.mark.parametrize('name', ['config', 'step', 'objective', 'weights', 'files'])
def test_a_damaged_record_of_an_export_is_named(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / 'out')
    told = json.loads((folder / 'export.json').read_text()) | {name: None}
    (folder / 'export.json').write_text(json.dumps(told))
    with pytest.raises(UserError, match=f'record of a policy that can act in .*got none of {name}'):
        load_policy(folder)


def test_a_run_that_cannot_act_is_named(run, tmp_path):
    broken = tmp_path / 'run'
    shutil.copytree(run, broken)
    (broken / 'adapter.json').write_text('{"sigma_res": 1}')
    with pytest.raises(UserError, match='adapter'):
        load_policy(broken)
    old = tmp_path / 'export'
    old.mkdir()
    (old / 'export.json').write_text('{"config": {}}')
    with pytest.raises(UserError, match='expected the record of a policy that can act'):
        load_policy(old)
