"""A base that acts by itself: what it does in a window's place is what lies beside the shards."""

import copy
import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax import trees
from sigma_jax.api.policies import load_policy
from sigma_jax.backbones import kinds
from sigma_jax.convert.load_base import ModelConfig, open_base, read_weights
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.nn.quant import QuantConfig, Quantised
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.load import Joints, joints_of
from sigma_jax.policies.protocol import IMAGES, STATE, TASK, Policy, PolicyState
from sigma_jax.policies.sampled_policy import BaseActor, make_sampler, stored_weights
from sigma_jax.processing.processor import of_shards
from sigma_jax.processing.tokenizer import load_tokenizer
from tests.policies.acting import observation

TOKENIZER = 'assets/tokenizer/tokenizer.json'
NAMES = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper')


@pytest.fixture(scope='module')
def base(small_run):
    return read_weights(open_base(str(small_run.base), ModelConfig()))


@pytest.fixture(scope='module')
def policy(small_run, base):
    """The base on the robot, views and prompts of the small run's shards."""
    meta = open_shards(small_run.shards).meta
    sampler = make_sampler(base, meta, meta.horizon, samples=2)
    tokenizer = load_tokenizer(TOKENIZER)
    processor = of_shards(base.policy, sampler.statistics, tokenizer, meta, base.spec.prompt)
    return ActingPolicy(BaseActor(base, processor, sampler, meta.horizon))


@pytest.fixture(scope='module')
def live(small_run):
    """The same weights opened as anybody would."""
    return load_policy(small_run.base, tokenizer=TOKENIZER)


def recorded(small_run, number: int, split='train') -> dict:
    """A window as a robot in its place would have seen it."""
    records, meta = open_shards(small_run.shards).split(split).records(), None
    meta, index, record = records.meta, records.index, records[number]
    frames = zip(meta.camera_names, record.images, strict=True)
    return {IMAGES + name: frame for name, frame in frames} | {
        STATE: record.state,
        TASK: meta.tasks[index.text_id[number]],
        'episode': int(index.episode[number]),
        'frame': int(index.frame[number]),
    }


def test_it_does_what_lies_beside_the_shards(small_run, policy):
    """The base's own actions, sampled four windows at a time; here each window comes alone."""
    stored = open_shards(small_run.shards).split('train').base_actions()
    for number in (0, 1, len(stored) - 1):
        policy.reset()
        got = policy.infer(recorded(small_run, number))['actions']
        assert got.shape == (16, 6) and got.dtype == np.float32
        np.testing.assert_array_equal(got, stored[number, 0])


def test_a_loaded_policy_does_the_same(small_run, live, policy):
    """Its prompt is padded to another length than the shards': masked tokens say nothing."""
    seen = recorded(small_run, 2)
    policy.reset()
    got = live.infer(seen)['actions']
    np.testing.assert_allclose(got, policy.infer(seen)['actions'], rtol=1e-4, atol=1e-3)
    live.reset()


def test_what_it_takes_and_gives_is_reported(live, policy):
    kept: Policy = live
    assert (kept.spec.state_dim, kept.spec.action_dim, kept.spec.horizon) == (6, 6, 16)
    assert kept.spec.action_steps == 16 and kept.spec.processor.prompt_state_dim == 0
    assert policy.spec.cameras == ('up', 'side')


def test_noise_belongs_to_episode_and_frame(small_run, policy):
    """Frames of an episode differ, the same frame of the same episode does not, episodes do."""
    seen = recorded(small_run, 0)
    counted = {key: x for key, x in seen.items() if key not in ('episode', 'frame')}
    policy.reset()
    said = [policy.infer(seen | {'episode': 7, 'frame': n})['actions'] for n in (0, 1)]
    assert np.abs(said[0] - said[1]).max() > 1e-3
    again = policy.infer(seen | {'episode': 7, 'frame': 0})['actions']
    assert np.array_equal(again, said[0])
    policy.reset()
    first = [policy.infer(counted)['actions'] for _ in range(3)]
    policy.reset()
    policy.reset()  # an episode without a frame is none
    second = [policy.infer(counted)['actions'] for _ in range(2)]
    every = [*first, *second]
    assert all(np.abs(x - y).max() > 1e-3 for n, x in enumerate(every) for y in every[:n])


def test_seeds_differ(small_run, live):
    other = load_policy(small_run.base, tokenizer=TOKENIZER, seed=1)
    seen = recorded(small_run, 0)
    live.reset()
    assert np.abs(live.infer(seen)['actions'] - other.infer(seen)['actions']).max() > 1e-3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({STATE: None}, r"expected observation.state in an observation, got \['episode'"),
        ({TASK: None}, 'expected task in an observation, got'),
        ({IMAGES + 'up': None, IMAGES + 'side': None}, r'a frame of some camera \(.*images.up or'),
        ({IMAGES + 'side': None}, r'the cameras of this episode \(up, side\), got up; call reset'),
        ({IMAGES + 'top': np.zeros((28, 28, 3), np.uint8)}, r"cameras out of .*, got \['top'\]"),
        ({IMAGES + 'up': np.zeros((28, 28, 3))}, r'of uint8 \[height width 3\], got float64'),
        ({IMAGES + 'up': np.zeros((28, 28), np.uint8)}, r'of uint8 .*, got uint8 \[28, 28\]'),
        ({STATE: np.zeros(5)}, r'expected observation.state of 6 numbers, got shape \[5\]; pass'),
        ({STATE: np.zeros((1, 6))}, r'of 6 numbers, got shape \[1, 6\]'),
        ({STATE: np.array([0, 0, np.nan, 0, 0, 0])}, r'expected numbers in observation.state, got'),
        ({STATE: np.array([0, 0, np.inf, 0, 0, 0])}, r'expected numbers in observation.state, got'),
        ({TASK: ['lift', 'push']}, 'expected task as a text, got list; pass the instruction'),
        ({TASK: 'lift it ' * 200}, 'prompt of at most .* tokens, as many as the policy reads, got'),
        ({TASK: 'lift \ud800'}, r"expected task as a text, got 'lift .ud800'; pass"),
        ({STATE: 'abc'}, 'expected numbers in observation.state, got abc; look'),
        ({STATE: [[1], [2, 3], 1, 1, 1, 1]}, 'expected numbers in observation.state, got'),
        ({STATE: ['1'] * 6}, 'expected numbers in observation.state, got'),
        ({STATE: np.ones(6, bool)}, 'expected numbers in observation.state, got'),
        ({STATE: np.ones(6) * 1j}, 'expected numbers in observation.state, got'),
        ({STATE: np.full(6, 1e300)}, 'expected numbers in observation.state, got'),
        ({IMAGES + 'up': np.zeros((0, 5, 3), np.uint8)}, r'of uint8 .*, got ndarray \[0, 5, 3\]'),
        ({IMAGES + 'up': [[[0, 0, 0]]]}, 'images.up as an array of uint8 .*, got list'),
        ({'episode': 'a'}, "expected episode as a whole number from 0 to 2147483647, got 'a'"),
        ({'frame': 2**40}, 'expected frame as a whole number from 0 to 2147483647, got 1099'),
        ({'frame': float('nan')}, 'expected frame as a whole number .*, got nan'),
        ({'frame': 1.5}, 'expected frame as a whole number .*, got 1.5'),
        ({3: 4}, r'expected an observation by names .*, got keys \[.*3\]; name its parts'),
    ],
)  # fmt: skip
def test_a_wrong_observation_is_reported_in_a_sentence(small_run, policy, change, message):
    policy.reset()
    policy.infer(recorded(small_run, 0))
    wrong = recorded(small_run, 0) | change
    with pytest.raises(UserError, match=message):
        policy.infer({key: x for key, x in wrong.items() if x is not None})
    policy.infer(recorded(small_run, 0))  # and nothing is broken


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'observations': []}, 'expected an observation of each robot in a list, got 0; pass one'),
        ({'observations': None}, 'an observation of each robot in a list, got None'),
        ({'observations': [None, None]}, 'expected an observation by names .*, got None'),
        ({'states': [PolicyState()]}, 'expected a state of each of 2 robots in a list, got 1'),
        ({'states': [PolicyState(), None]}, 'expected a PolicyState, got None; begin with'),
        ({'seed': 1}, 'expected seed of each of 2 robots in a list, got 1; pass one of each'),
        ({'seed': [1]}, 'expected seed of each of 2 robots in a list, got 1'),
        ({'delay': 2}, 'expected delay of each of 2 robots in a list, got 2'),
        ({'prefix': np.zeros((16, 6))}, 'expected prefix of each of 2 robots in a list, got 16'),
        ({'noise': [None, [[0.0], [1.0, 2.0]]]}, r'noise of floats \[16, 8\], got float32 \[\]'),
    ],
)
def test_rows_that_are_not_of_each_robot_are_named(small_run, policy, change, message):
    asked = {
        'observations': [recorded(small_run, 0)] * 2,
        'states': [policy.initial_state()] * 2,
        **change,
    }
    with pytest.raises(UserError, match=message):
        policy.infer_batch(**asked)


def test_robots_may_come_in_any_row(small_run, policy):
    seen, states = recorded(small_run, 0), [policy.initial_state()]
    one, _ = policy.infer_batch((x for x in [seen]), tuple(states))
    assert np.array_equal(one[0]['actions'], policy.infer_batch([seen], states)[0][0]['actions'])


def test_numbers_of_episodes_are_whole(live):
    for number in (2**31, -1, 'a', True, 1.0):
        with pytest.raises(UserError, match='expected episode as a whole number from 0 to'):
            live.initial_state(number)
    assert live.initial_state(np.int64(7)).episode == 7


@pytest.fixture(scope='module')
def unnamed(live):
    """A policy that names no cameras."""
    actor = copy.copy(live.actor)
    actor._processor = dataclasses.replace(
        actor.processor,
        cameras=(),
        config=dataclasses.replace(actor.processor.config, cameras=()),
    )
    actor._spec = dataclasses.replace(actor.spec, cameras=())
    return ActingPolicy(actor)


def test_the_first_observation_says_the_order_of_cameras(unnamed):
    """Later ones go by name; the state keeps it."""
    seen = observation()
    turned = {key: seen[key] for key in reversed(seen)}
    _, (state,) = unnamed.infer_batch([turned], [unnamed.initial_state()])
    assert state.cameras == ('side', 'up')
    answers = [unnamed.infer_batch([one], [state])[0][0]['actions'] for one in (turned, seen)]
    assert np.array_equal(*answers)
    fresh = [unnamed.infer_batch([one], [PolicyState(frame=1)])[0][0] for one in (turned, seen)]
    assert np.array_equal(fresh[0]['actions'], answers[0])
    assert np.abs(fresh[1]['actions'] - answers[0]).max() > 1e-4


def test_robots_with_other_cameras_are_asked_apart(small_run, unnamed):
    seen = recorded(small_run, 0)
    fewer = {key: x for key, x in seen.items() if key != IMAGES + 'side'}
    with pytest.raises(UserError, match=r'as many cameras of each .* \(0: up, side; 1: up\); ask'):
        unnamed.infer_batch([seen, fewer], [unnamed.initial_state()] * 2)


def test_a_task_may_be_as_long_as_the_prompt_where_nothing_else_reads_it(small_run, live):
    live.reset()
    assert live.infer(recorded(small_run, 0) | {TASK: 'a b c d e ' * 12})['actions'].size
    live.reset()


def test_a_camera_may_be_absent_from_an_episode_s_start(small_run, policy):
    """It is masked; the frame itself counts for nothing then."""
    seen = recorded(small_run, 0)
    alone = {key: x for key, x in seen.items() if key != IMAGES + 'side'}
    policy.reset()
    got = policy.infer(alone)['actions']
    policy.reset()
    assert np.abs(got - policy.infer(seen)['actions']).max() > 1e-4


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_weights_lie_as_asked(small_run, live, kind):
    """In fewer bytes; the actions stay near."""
    storage = QuantConfig(kind, ('.*/mlp(_1)?/linear',))
    small = load_policy(small_run.base, tokenizer=TOKENIZER, storage=storage)
    leaf = small.actor.sampler.weights['PaliGemma']['llm']['layers']['mlp']['linear']
    assert isinstance(leaf, Quantised) if kind == 'int8' else leaf.dtype == jnp.bfloat16
    seen = recorded(small_run, 0)
    live.reset()
    want, got = live.infer(seen)['actions'], small.infer(seen)['actions']
    assert 0 < np.abs(got - want).max() < 0.1 * np.ptp(want)


@pytest.mark.parametrize('kind', ['stored', 'bfloat16', 'int8'])
def test_leaves_on_the_device_are_shared_and_the_others_lie_in_the_same_form(base, kind):
    path = 'PaliGemma/llm/layers/mlp/linear'
    storage = QuantConfig(kind, ('.*/mlp(_1)?/linear',))
    alone = stored_weights(base, storage)
    leaf = leaves(alone)[path]
    shared = stored_weights(base, storage, trees.unflatten({path: leaf}))
    assert leaves(shared)[path] is leaf
    assert jax.tree.structure(alone) == jax.tree.structure(shared)
    assert jax.tree.all(jax.tree.map(np.array_equal, alone, shared))
    expert = leaves(alone)['PaliGemma/llm/layers/mlp_1/linear']
    if kind == 'int8':
        assert isinstance(expert, Quantised) and isinstance(leaf, Quantised)
    else:
        assert expert.dtype == leaf.dtype == ('float32' if kind == 'stored' else jnp.bfloat16)


def leaves(weights):
    return trees.flatten(weights, is_leaf=lambda x: isinstance(x, Quantised))


def test_a_robot_is_known_by_its_joints(base):
    assert joints_of(base, None) == joints_of(base, 6)
    assert joints_of(base, None).action_names[-1] == 'joint_5'
    robot = Joints(NAMES, NAMES)
    assert joints_of(base, robot) is robot


def test_folders_that_are_no_policy(small_run, tmp_path, monkeypatch, base):
    def refused(message, folder=small_run.base, **settings):
        with pytest.raises(UserError, match=message):
            load_policy(folder, **{'tokenizer': TOKENIZER} | settings)

    refused('expected a checkpoint at', folder=tmp_path / 'nowhere')
    refused("expected the folder of a policy, got ''", folder='')
    refused('expected base= of a training alone, got /x for the weights in', base='/x')
    refused('expected seed from 0 to 4294967295, got -1', seed=-1)
    refused("chunking: expected ChunkingConfig.*, got 'guided'; pass one", chunking='guided')
    refused('expected tokenizer.json or tokenizer.model in', tokenizer='')
    refused('expected a robot of up to 8 actions', robot=9)
    refused('7', robot=7)
    shutil.copytree(small_run.base, tmp_path / 'bare')
    (tmp_path / 'bare/norm_stats.json').unlink()
    refused('expected norm_stats.json in .*bare, got none', folder=tmp_path / 'bare')
    still = dataclasses.replace(base.spec, samples=False)
    monkeypatch.setitem(kinds.KINDS, 'pi05', still)
    refused("expected a base that acts, got one of kind 'pi05'")


def test_steps_to_carry_out_are_the_policy_s_own(small_run, tmp_path):
    shutil.copytree(small_run.base, tmp_path / 'base')
    settings = json.loads((tmp_path / 'base/policy.json').read_text())
    for steps, want in ((5, 5), (40, 16)):
        (tmp_path / 'base/policy.json').write_text(json.dumps(settings | {'action_steps': steps}))
        found = load_policy(tmp_path / 'base', tokenizer=TOKENIZER)
        assert found.spec.action_steps == want


def test_frames_come_either_way_round_and_under_the_robots_names(small_run, live):
    seen = recorded(small_run, 0)
    keys = [key for key in seen if key.startswith(IMAGES)]
    turned = {
        key: value.transpose(2, 0, 1) if key in keys else value for key, value in seen.items()
    }
    want = live.infer(seen)['actions']
    np.testing.assert_array_equal(live.infer(turned)['actions'], want)
    names = {f'cam{n}': key.removeprefix(IMAGES) for n, key in enumerate(keys)}
    theirs = {name: key for key, name in names.items()}
    renamed = {
        IMAGES + theirs[key.removeprefix(IMAGES)] if key in keys else key: value
        for key, value in seen.items()
    }
    policy = ActingPolicy(live.actor, names)
    np.testing.assert_array_equal(policy.infer(renamed)['actions'], want)
    with pytest.raises(UserError, match=f'expected one frame of {names["cam0"]}, got two'):
        policy.infer(renamed | {keys[0]: seen[keys[0]]})


@pytest.mark.parametrize('cameras', [{'a': 'nobody'}, {'a': 'up', 'b': 'up'}])
def test_names_of_cameras_that_mean_nothing(live, cameras):
    with pytest.raises(UserError, match="cameras: expected {robot's name: policy's name}, .*up"):
        ActingPolicy(live.actor, cameras)


def test_after_warming_up_nothing_compiles(small_run, live, caplog):
    """And no state has changed."""
    before = live.state
    live.warm_up((1, 2))
    assert live.state is before
    seen = [recorded(small_run, n) for n in range(3)]
    with jax.log_compiles(), caplog.at_level('WARNING'):
        for count in (1, 2):
            live.infer_batch(seen[:count], [live.initial_state()] * count)
            live.infer_batch(seen[:count], [live.initial_state()] * count, seed=[1] * count)
        assert 'Compiling' not in caplog.text
        live.infer_batch(seen, [live.initial_state()] * 3)
    assert 'Compiling' in caplog.text


def test_a_state_is_put_back_from_a_file(tmp_path, live):
    rng = np.random.default_rng(0)
    memory, tau = (rng.standard_normal(n).astype(np.float32) for n in (4, 2))
    for state in (PolicyState(3, 7, ('front', 'wrist'), memory, tau), PolicyState(1)):
        state.save(tmp_path / 'state.npz')
        found = PolicyState.load(tmp_path / 'state.npz')
        assert jax.tree.all(jax.tree.map(np.array_equal, vars(found), vars(state)))
        assert type(found.frame) is int and found.cameras == state.cameras
    with pytest.raises(UserError, match='expected a folder for .*nowhere/x, got none; make it'):
        state.save(tmp_path / 'nowhere/x')
    with pytest.raises(UserError, match='expected a state with memory of shape .*, got'):
        live.infer_batch([{}], [PolicyState(memory=memory)])


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'nothing of the sort'])
def test_a_file_that_is_no_state(tmp_path, content):
    (tmp_path / 'state.npz').write_bytes(content)
    with pytest.raises(UserError, match='expected the state of a policy in .*state.npz, got'):
        PolicyState.load(tmp_path / 'state.npz')


def test_prompts_are_padded_to_the_first_length_that_holds_them(small_run, live):
    """What is masked says nothing; a batch has the longest of its prompts."""
    processor, seen = live.actor.processor, recorded(small_run, 0)
    assert processor.prompt_lengths == (64, 144, 200)
    whole = dataclasses.replace(processor, prompt_lengths=())
    state = processor.normalized(seen[STATE])
    tokens, mask = processor.prompt(seen[TASK], state)
    all_tokens, all_mask = whole.prompt(seen[TASK], state)
    assert len(tokens) == 64 and len(all_tokens) == 200 and all_mask.sum() == mask.sum()
    assert np.array_equal(all_tokens[:64], tokens) and not all_mask[64:].any()
    assert len(processor.prompt(seen[TASK], state, 65)[0]) == 144
    long = seen | {TASK: 'a b c d e f g h i j k l m n o p q r s t u v w x y z ' * 1}
    assert len(processor.prompt(long[TASK], state)[0]) == 144
    live.reset()
    together, _ = live.infer_batch([seen, long], [live.initial_state()] * 2)
    for one, answer in zip((seen, long), together, strict=True):
        live.reset()
        alone = live.infer(one)['actions']
        np.testing.assert_allclose(answer['actions'], alone, rtol=1e-4, atol=1e-3)
    live.reset()


def test_warming_up_knows_the_cameras_that_will_come(unnamed):
    found = unnamed.programs(cameras=('left', 'right'))
    assert list(found[0][1].args[0][0].frames) == ['left', 'right']
    ways = [program.args[2].draws for _, program in unnamed.programs(drawn=True)]
    assert [way is None for way in ways] == [True, False] * len(found)


def test_programs_are_one_a_length_and_number_of_robots(live):
    found = live.programs((4, 1))
    assert [count for count, _ in found] == [1] * (len(found) // 2) + [4] * (len(found) // 2)
    lengths = [program.args[0][0].prompt_length for _, program in found]
    assert set(lengths) == {64, 144, 200} and len(found[-1][1].args[0]) == 4


def test_a_state_with_a_pickle_in_it_runs_nothing(tmp_path):
    class Harmless:
        def __reduce__(self):
            return (pathlib.Path(tmp_path / 'ran').touch, ())

    arrays = {'memory': np.array([Harmless()], object), 'cameras': np.array([], str)}
    np.savez(tmp_path / 'state.npz', episode=0, frame=0, **arrays)
    with pytest.raises(UserError, match='expected the state of a policy in .*state.npz, got'):
        PolicyState.load(tmp_path / 'state.npz')
    assert not (tmp_path / 'ran').exists()
