"""Whatever was trained acts: from its run or its export, it does what evaluation measures."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from sigma_jax.api.policies import load_policy
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation.replay_shards import list_batches
from sigma_jax.evaluation.trained_models import TrainedSigma
from sigma_jax.policies.acting import ActingPolicy, read_observation
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.policies.sigma import SigmaActor
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training.export import export_run
from tests.trained_runs import make_rows

COMPARED = ('actions', 'motor_commands', 'tau_l2', 'branches')


@pytest.fixture(scope='module')
def rows(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('acting') / 'rows'
    make_rows(small_run, folder)
    return folder


@pytest.fixture(scope='module')
def run(rows):
    return rows / 'sigma' / 'seed0'


@pytest.fixture(scope='module')
def policy(run):
    return load_policy(run)


def recorded(small_run, episode: int, split='train') -> list[dict]:
    """An episode's windows as a robot would have seen them."""
    records = open_shards(small_run.shards).split(split).records()
    meta, index, seen = records.meta, records.index, []
    for n in np.flatnonzero(np.asarray(index.episode) == episode).tolist():
        frames = zip(meta.camera_names, records[n].images, strict=True)
        seen.append(
            {IMAGES + name: frame for name, frame in frames}
            | {
                STATE: records[n].state,
                TASK: meta.tasks[index.text_id[n]],
                'episode': int(index.episode[n]),
                'frame': int(index.frame[n]),
            }
        )
    return seen


def first_episode(small_run) -> int:
    return int(open_shards(small_run.shards).split('train').records().index.episode[0])


def same(one, other, names=COMPARED) -> bool:
    parts = [{name: answer[name] for name in names} for answer in (one, other)]
    return jax.tree.all(jax.tree.map(np.array_equal, *parts))


def test_a_sigma_does_what_evaluation_measures(small_run, run, policy):
    """Window by window with what is remembered, against whole episodes at once: the same bits."""
    episode = first_episode(small_run)
    trained = TrainedSigma(run)
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


def test_an_untrained_sigma_is_its_base_to_the_bit(small_run, run, tmp_path):
    policy = load_policy(run)
    parts = policy.actor.parts
    fresh = jax.tree.map(np.zeros_like, parts.trainable)
    policy.actor.parts = dataclasses.replace(parts, trainable=fresh)
    base = policy.actor.base
    for seen in recorded(small_run, first_episode(small_run))[:2]:
        state = policy.state
        got = policy.infer(seen)
        reading = seen[STATE]
        chunk = base.act(
            [
                (
                    {name.removeprefix(IMAGES): x for name, x in seen.items() if IMAGES in name},
                    reading,
                    seen[TASK],
                )
            ],
            [dataclasses.replace(state, episode=seen['episode'], frame=seen['frame'])],
        )[0]['actions'][0]
        assert np.array_equal(got['actions'], chunk[: policy.spec.horizon])


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
    (one, other), (after, _) = policy.infer_batch([seen[1], seen[2]], [kept, fresh])
    assert same(one, want)
    policy.state = fresh
    alone = policy.infer(seen[2])
    assert same(other, alone)
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


def base_chunk(policy, seen, state):
    reading = read_observation(seen, policy.spec)
    at = dataclasses.replace(state, episode=seen['episode'], frame=seen['frame'])
    return policy.actor.base.act([reading], [at])[0]['actions'][0][: policy.spec.horizon]


def test_an_export_acts_alone(small_run, run, policy, tmp_path):
    """Without run and shards, to the bit; another base is refused."""
    out = export_run(run, tmp_path / 'export', with_base=True)
    away = tmp_path / 'away'
    shutil.copytree(out, away)
    settings = json.loads((away / 'export.json').read_text())
    settings['config'] |= {'shards': 'nowhere', 'base': 'nowhere', 'tokenizer': 'nowhere'}
    (away / 'export.json').write_text(json.dumps(settings))
    other = load_policy(away)
    policy.reset()
    for seen in recorded(small_run, first_episode(small_run))[:3]:
        assert same(policy.infer(seen), other.infer(seen))
    settings['base']['digest'] = 'f' * 64
    (away / 'export.json').write_text(json.dumps(settings))
    with pytest.raises(UserError, match='expected the base that was trained around'):
        load_policy(away)


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


def test_a_run_that_cannot_act_is_named(run, tmp_path):
    broken = tmp_path / 'run'
    shutil.copytree(run, broken)
    (broken / 'adapter.json').write_text('{"sigma_res": 1}')
    with pytest.raises(UserError, match='adapter'):
        load_policy(broken)
    old = tmp_path / 'export'
    old.mkdir()
    (old / 'export.json').write_text('{"config": {}}')
    with pytest.raises(UserError, match='expected the record of an export that can act'):
        load_policy(old)
