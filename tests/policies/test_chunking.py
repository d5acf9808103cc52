"""Chunks that go on from the one a robot still carries out: weights, what is left over, actions
counted anew, and the base's sampler with all of it.
"""

import copy
import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from sigma_jax.convert.load_base import ModelConfig, open_base, read_weights
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.policies import chunking
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.policies.protocol import STATE
from sigma_jax.policies.sampled_policy import BaseActor, make_sampler
from sigma_jax.policies.serving.batching import Batcher
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.processor import of_shards
from sigma_jax.processing.spec import ProcessorConfig
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.sigma.model import window_keys
from sigma_jax.types import ActionScaling, to_batch
from tests import golden
from tests.backbones import lerobot_chunking as lerobot
from tests.loading import make_loader
from tests.policies.acting import Held
from tests.policies.test_sampled_policy import recorded

TOKENIZER = 'assets/tokenizer/tokenizer.json'


def by_hand(d, h, steps, schedule):
    """The weights as the paper writes them, with H - s = h."""
    out = []
    for i in range(steps):
        c = (h - i) / (h - d + 1)
        if i < d:
            out.append(1.0)
        elif i >= h:
            out.append(0.0)
        else:
            shape = {'linear': c, 'exp': c * (math.exp(c) - 1) / (math.e - 1)}
            out.append(shape.get(schedule, float(schedule == 'ones')))
    return out


@pytest.mark.parametrize('schedule', chunking.SCHEDULES)
def test_weights_are_those_of_the_paper_and_of_lerobot(schedule):
    """Robots of different delays in one call; where the horizon comes before the delay, it wins."""
    delay, horizon = np.array(lerobot.CASES).T
    got = chunking.prefix_weights(delay, horizon, lerobot.STEPS, schedule)
    fits = delay <= horizon
    want = [by_hand(d, h, lerobot.STEPS, schedule) for d, h in np.array(lerobot.CASES)[fits]]
    np.testing.assert_allclose(got[fits], want, rtol=0, atol=1e-6)
    known = np.load(golden.DATA / 'chunking/lerobot.npz')[f'weights_{schedule}']
    np.testing.assert_allclose(got, known, rtol=0, atol=1e-6)
    assert (np.diff(got, axis=-1) <= 0).all() and got[0].max() == (schedule != 'zeros') * got[0, 0]


def test_what_is_left_of_a_chunk():
    chunk = np.arange(12.0).reshape(4, 3)
    assert np.array_equal(chunking.left_over(chunk, 1), chunk[1:])
    assert chunking.left_over(chunk, 4).shape == chunking.left_over(chunk, 9).shape == (0, 3)
    assert np.array_equal(chunking.left_over(chunk, 0), chunk)


def test_robots_of_all_sorts_go_on_together():
    """No more is committed, or binds, than is left over."""
    left = [np.ones((3, 2)), None, np.full((9, 2), 2.0), np.ones((0, 2))]
    made = chunking.of_robots(ChunkingConfig('guided', horizon=4), left, [2, 1, 6, 0], (5, 2))
    assert np.array_equal(made.delay, [2, 0, 5, 0]) and np.array_equal(made.horizon, [3, 0, 4, 0])
    assert np.array_equal(made.prefix[0, :, 0], [1, 1, 1, 0, 0]) and not made.prefix[[1, 3]].any()
    assert (made.prefix[2] == 2).all() and made.max_guidance.tolist() == [5.0] * 4
    reach = chunking.of_robots(ChunkingConfig('guided'), left, [0] * 4, (5, 2)).horizon
    assert np.array_equal(reach, [3, 0, 5, 0])


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ChunkingConfig('guidance'), "expected one of none, guided, .*, got 'guidance'"),
        (lambda: ChunkingConfig(schedule='cosine'), "linear, exp, ones, zeros, got 'cosine'"),
        (lambda: ChunkingConfig(max_guidance=0), 'max_guidance: expected a number above 0, got 0'),
        (lambda: ChunkingConfig(max_guidance=math.inf), 'a number above 0, got inf'),
        (lambda: ChunkingConfig(horizon=0), 'horizon: expected a number of steps from 1 on, or'),
        (lambda: of_one(np.ones((3, 2)), -1), 'expected a delay of 0 or more steps, got -1'),
        (lambda: of_one(np.ones((3, 4))), r'actions \[steps 2\] left over .*, got shape \[3, 4\]'),
        (lambda: of_one(np.ones(3)), r'got shape \[3\]'),
        (lambda: of_one(np.array([[0, np.nan]])), 'expected finite actions left over of a chunk'),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told(make, message):
    with pytest.raises(UserError, match=message):
        make()


def of_one(left, delay=0):
    return chunking.of_robots(ChunkingConfig('guided'), [left], [delay], (5, 2))


SCALING = ActionScaling(
    action_std=np.ones(2),
    low=np.float32([-10.0, 0.0]),
    span=np.float32([20.0, 100.0]),
    relative=np.float32([1, 0]),  # the first joint counts from the state, 0 to 40 degrees
    state_low=np.float32([0.0, 0.0]),
    state_span=np.float32([40.0, 1.0]),
)


def test_relative_actions_are_counted_anew_from_where_the_robot_is():
    """30 degrees are 10 beyond a robot that stands at 20, and 5 short of one at 35."""
    chunk = np.float32([[30.0, 75.0], [20.0, 50.0]])
    made = chunking.of_robots(ChunkingConfig('guided'), [chunk, chunk], [1, 0], (3, 2))
    state = np.float32([[0.0, 0.0], [0.75, 0.0]])  # 20 and 35 degrees
    got = chunking.continuation(made, state, SCALING)
    np.testing.assert_allclose(got.actions[0, :2], [[1.0, 0.5], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(got.actions[1, :2], [[-0.5, 0.5], [-1.5, 0.0]], atol=1e-6)
    np.testing.assert_allclose(got.weights[0], [1.0, by_hand(1, 2, 3, 'exp')[1], 0.0], rtol=1e-6)
    assert got.mode == 'guided' and not got.weights[:, 2].any()


def test_a_trained_policy_is_given_what_is_committed_and_no_more():
    """Its horizon and schedule do not count."""
    config = ChunkingConfig('trained', 'ones', horizon=1)
    made = chunking.of_robots(config, [np.ones((4, 2))] * 2, [3, 0], (5, 2))
    got = chunking.continuation(made, np.zeros((2, 2), np.float32), SCALING)
    assert np.array_equal(got.weights, [[1, 1, 1, 0, 0], [0] * 5]) and got.mode == 'trained'


def test_only_a_policy_that_learned_it_goes_on_from_given_actions():
    for mode, delay in [('trained', 4), ('guided', 0), ('lerobot', 0), ('none', 0)]:
        chunking.check_learned(ChunkingConfig(mode), ProcessorConfig(max_delay=delay))
    with pytest.raises(UserError, match="config.rtc.max_delay for 'trained', got one trained with"):
        chunking.check_learned(ChunkingConfig('trained'), ProcessorConfig())


@pytest.mark.parametrize('mode', ['guided', 'lerobot', 'trained', 'none'])
@pytest.mark.parametrize('schedule', chunking.SCHEDULES)
def test_a_robot_is_bound_where_it_has_a_weight(mode, schedule):
    """The same answer without the weights, before anything is computed."""
    for delay, steps, horizon in itertools.product((0, 1, 3), (None, 0, 2, 4), (None, 1, 3)):
        left = None if steps is None else np.ones((steps, 2))
        config = ChunkingConfig(mode, schedule, horizon=horizon)
        made = chunking.of_robots(config, [None, left], [2, delay], (5, 2))
        weights = chunking.continuation(made, np.zeros((2, 2), np.float32), SCALING).weights
        assert chunking.binds(made) == (mode != 'none' and bool((weights > 0).any()))


def test_what_is_committed_stays_to_the_bit():
    rng = np.random.default_rng(0)
    new, old = rng.standard_normal((2, 2, 4, 3)).astype(np.float32)
    old = np.pad(old, [(0, 0), (0, 2), (0, 0)])  # longer than what is kept of a chunk
    got = np.asarray(chunking.keep_committed(new, old, np.array([3, 0])))
    assert np.array_equal(got[0, :3], old[0, :3]) and np.array_equal(got[0, 3:], new[0, 3:])
    assert np.array_equal(got[1], new[1])
    assert np.array_equal(chunking.keep_committed(new[0], old[0], 3), got[0])


# the base's sampler


@pytest.fixture(scope='module')
def base(small_run):
    return read_weights(open_base(str(small_run.base), ModelConfig()))


@pytest.fixture(scope='module')
def sampler(small_run, base):
    """The small base on its own robot, two draws a window, first joint relative."""
    meta = open_shards(small_run.shards).meta
    made = make_sampler(base, meta, meta.horizon, samples=2)
    relative = (True,) + (False,) * 5
    scaling = action_scaling(made.statistics, made.statistics, relative)
    return dataclasses.replace(made, scaling=scaling)


@pytest.fixture(scope='module')
def batch(small_run):
    """Three windows of the shards as the loader gives them."""
    split, tokenizer = open_shards(small_run.shards).split('train'), load_tokenizer(TOKENIZER)
    statistics = small_run.base / 'norm_stats.json'
    first = next(make_loader(split, tokenizer, batch_size=3, norm_stats=statistics))
    return to_batch({key: x[:, 0] for key, x in first.items()})


def test_one_program_serves_all_and_gives_the_plain_chunks_to_the_bit(sampler, batch):
    """Delay 0 with weights of zero, and robots that have no chunk yet: the plain program runs."""
    plain = sampler(batch)
    before = sampler.run._cache_size()
    left = [plain[n, 0, 4:] for n in range(3)]
    free = (
        [ChunkingConfig('guided', 'zeros'), [0, 0, 0], left],
        [ChunkingConfig('guided', 'zeros'), [2, 3, 1], [None] * 3],
    )
    for config, delays, given in free:
        made = chunking.of_robots(config, given, delays, (16, 6))
        assert np.array_equal(sampler(batch, made), plain)
    assert sampler.run._cache_size() == before
    held = sampler(batch, chunking.of_robots(free[0][0], left, [4, 0, 8], (16, 6)))
    assert np.abs(held - plain)[[0, 2]].max() > 1e-2 and sampler.run._cache_size() == before + 1
    np.testing.assert_allclose(held[1], plain[1], rtol=1e-5, atol=1e-3)
    none = chunking.of_robots(ChunkingConfig(), left, [4, 0, 8], (16, 6))
    assert np.array_equal(sampler(batch, none), plain)
    assert sampler.run._cache_size() == before + 1


@pytest.mark.parametrize('mode', ['guided', 'lerobot', 'trained'])
def test_a_robot_that_moved_goes_on_from_its_chunk(sampler, batch, mode):
    """Raw actions of an earlier observation, in the units the robot has: the new chunk begins with
    them, wherever the state is that relative joints count from.
    """
    moved = batch.replace(
        observation=batch.observation.replace(state=batch.observation.state + 0.3)
    )
    plain, before = sampler(moved), sampler(batch)
    left = [before[n, 0, 4:] for n in range(3)]
    config = ChunkingConfig(mode, 'ones', 2.0)  # the small base takes two steps
    held = sampler(moved, chunking.of_robots(config, left, [3, 5, 4], (16, 6)))
    spread = np.asarray(sampler.scaling.span)
    for row, delay in enumerate((3, 5, 4)):
        apart = [
            np.abs((x[row, :, :delay] - left[row][:delay]) / spread).max() for x in (plain, held)
        ]
        most = {'guided': 0.5 * apart[0], 'lerobot': 1e-4, 'trained': 1e-5}[mode]
        assert apart[1] < most and apart[0] > 0.05
    assert np.abs(held[:, 0] - held[:, 1]).max() > 1e-3  # draws differ


# a policy that acts


@pytest.fixture(scope='module')
def policy(small_run, base, sampler):
    """The same base and sampler, on observations; it goes on as the paper's guidance does."""
    meta, words = open_shards(small_run.shards).meta, load_tokenizer(TOKENIZER)
    processor = of_shards(base.policy, sampler.statistics, words, meta, base.spec.prompt)
    actor = BaseActor(base, processor, sampler, meta.horizon)
    return ActingPolicy(actor, chunking=ChunkingConfig('guided', 'ones', 2.0))


@pytest.fixture(scope='module')
def seen(small_run):
    """Three observations; each names its episode and frame, so that its own noise is known."""
    return [recorded(small_run, n) for n in range(3)]


def own_noise(observation):
    keys = window_keys(
        jax.random.fold_in(jax.random.key(0), 0),
        np.array([observation['episode']]),
        np.array([observation['frame']]),
    )
    return np.asarray(jax.random.normal(keys[0], (16, 8)))


def together(policy, observations, **wanted):
    """Actions of robots with states of their own."""
    states = [policy.initial_state(n) for n in range(len(observations))]
    return [x['actions'] for x in policy.infer_batch(observations, states, **wanted)[0]]


def test_a_draw_can_be_named(policy, seen):
    """Its noise, or a seed of it, whatever episode and frame are; for one robot of several too."""
    assert policy.spec.noise_shape == (16, 8)
    plain = policy.infer(seen[0])['actions']
    assert np.array_equal(policy.infer(seen[0], noise=own_noise(seen[0]))['actions'], plain)
    drawn = policy.infer(seen[0], seed=5)['actions']
    later = policy.infer(seen[0] | {'episode': 9, 'frame': 4}, seed=np.int64(5))['actions']
    assert np.array_equal(drawn, later)
    same = policy.infer(seen[0], noise=jax.random.normal(jax.random.key(5), (16, 8)))['actions']
    assert np.array_equal(drawn, same)
    other = policy.infer(seen[0], seed=2**32 - 1)['actions']
    assert np.abs(drawn - plain).max() > 0.1 and np.abs(drawn - other).max() > 0.1
    noise, seeds = [own_noise(seen[0]), None, None], [None, None, 5]
    rows = together(policy, [seen[0], seen[1], seen[0]], noise=noise, seed=seeds)
    assert np.array_equal(rows[0], plain) and np.array_equal(rows[2], drawn)
    np.testing.assert_allclose(rows[1], policy.infer(seen[1])['actions'], rtol=1e-5, atol=1e-4)


def test_going_on_keeps_what_is_committed_and_stays_near_the_rest(policy, seen):
    """In raw units, to the bit; each robot by its own delay, one of them without a chunk."""
    before = together(policy, seen)
    moved = [x | {'frame': x['frame'] + 1, STATE: x[STATE] + 0.3} for x in seen]
    free, left = together(policy, moved), [before[0][3:], before[1][5:], None]
    held = together(policy, moved, prefix=left, delay=np.array([4, 0, 2]))
    assert np.array_equal(held[0][:4], left[0][:4]) and held[0].dtype == np.float32
    np.testing.assert_allclose(held[2], free[2], rtol=1e-5, atol=1e-3)
    for row in (0, 1):
        steps = len(left[row])
        far = [np.abs(x[row][:steps] - left[row]).mean() for x in (free, held)]
        assert far[1] < 0.5 * far[0] and not np.array_equal(held[row][4:], left[row][4:16])
    alone = policy.infer(moved[0], prefix=left[0], delay=4)['actions']
    assert np.array_equal(alone, held[0])
    naive = together(policy, moved, prefix=left, delay=[4, 0, 2], chunking=ChunkingConfig())
    assert np.array_equal(naive[0][:4], left[0][:4]) and np.array_equal(naive[0][4:], free[0][4:])
    assert np.array_equal(naive[1], free[1]) and np.array_equal(naive[2], free[2])
    drawn = policy.infer(moved[0], prefix=left[0], delay=4, seed=3)['actions']
    assert np.array_equal(drawn[:4], left[0][:4]) and np.abs(drawn - alone).max() > 1e-3


def test_without_delay_and_weights_it_is_the_plain_chunk_to_the_bit(policy, seen):
    policy.warm_up()
    ran = policy.actor.sampler.run._cache_size()
    plain = policy.infer(seen[0])['actions']
    policy.infer(seen[0], prefix=plain[1:], delay=2)  # compiled by then
    for mode in ('guided', 'lerobot'):
        how = ChunkingConfig(mode, 'zeros')
        got = policy.infer(seen[0], prefix=plain[2:] + 1, delay=0, chunking=how)['actions']
        assert np.array_equal(got, plain)
    assert np.array_equal(policy.infer(seen[0], delay=3)['actions'], plain)  # of nothing
    assert policy.actor.sampler.run._cache_size() == ran


def test_a_policy_goes_on_from_as_many_steps_as_it_was_trained_with(policy, seen):
    """Given actions of the base that was not; the sampler does not look."""
    actor, how = policy.actor, ChunkingConfig('trained')
    left = policy.infer(seen[0])['actions'][2:]
    with pytest.raises(UserError, match='expected a policy trained with config.rtc.max_delay'):
        ActingPolicy(actor, chunking=how)
    with pytest.raises(UserError, match='expected a policy trained with config.rtc.max_delay'):
        policy.infer(seen[1], prefix=left, delay=1, chunking=how)
    learned = copy.copy(actor)
    settings = dataclasses.replace(actor.spec.processor, max_delay=3)
    learned._spec = dataclasses.replace(actor.spec, processor=settings)
    trained = ActingPolicy(learned, chunking=how)
    got = trained.infer(seen[1], prefix=left, delay=3)['actions']
    assert np.array_equal(got[:3], left[:3])
    assert trained.metadata()['chunking']['mode'] == 'trained'
    with pytest.raises(UserError, match='a delay of at most 3 steps, .*, got 4; choose'):
        trained.infer(seen[1], prefix=left, delay=4)
    trained.infer(seen[1], prefix=left[:2], delay=4)  # no more than two are left


NOISE = np.zeros((16, 8), np.float32)


@pytest.mark.parametrize(
    ('wanted', 'message'),
    [
        ({'noise': NOISE, 'seed': 1}, 'expected noise or seed, got both; leave one out'),
        ({'noise': NOISE[:, :6]}, r'noise of floats \[16, 8\], got float32 \[16, 6\]; draw it'),
        ({'noise': NOISE.astype(int)}, r'noise of floats \[16, 8\], got int64 \[16, 8\]'),
        ({'noise': NOISE + np.nan}, 'expected finite noise, got NaN or infinity in it'),
        ({'seed': -1}, 'expected seed from 0 to 4294967295, got -1; choose one'),
        ({'seed': 2**32}, 'expected seed from 0 to 4294967295, got 4294967296'),
        ({'seed': 1.5}, 'expected seed from 0 to 4294967295, got 1.5'),
        ({'seed': True}, 'expected seed from 0 to 4294967295, got True'),
        ({'chunking': 'guided'}, "chunking: expected ChunkingConfig.*, got 'guided'; pass one"),
        ({'prefix': 'x', 'delay': 1}, r'actions \[steps 6\] .*, got shape \[\]; pass them'),
        ({'prefix': np.full((4, 6), 1e30), 'delay': 1}, 'expected finite actions, got NaN or'),
        ({'prefix': np.zeros((4, 6)), 'delay': True}, 'a delay of 0 or more steps, got True'),
        ({'prefix': np.zeros((4, 5)), 'delay': 1}, r'actions \[steps 6\] .*, got shape \[4, 5\]'),
        ({'prefix': np.zeros((4, 6)), 'delay': -1}, 'a delay of 0 or more steps, got -1'),
        ({'prefix': np.zeros((4, 6)), 'delay': 1.0}, 'a delay of 0 or more steps, got 1.0'),
    ],
)
def test_what_a_call_may_not_ask_for(policy, seen, wanted, message):
    """The state is as it was."""
    before = policy.state
    with pytest.raises(UserError, match=message):
        policy.infer(seen[0], **wanted)
    assert policy.state is before


def test_a_robot_far_outside_is_named_and_the_others_are_answered(policy, seen):
    """By a batcher, which asks for each alone where it cannot for all."""
    left = [np.zeros((4, 6)), np.full((4, 6), 1e30), None]
    with pytest.raises(UserError, match='NaN or infinity for robot 1; its state'):
        together(policy, seen, prefix=left, delay=[1, 1, 0])
    batcher = Batcher(policy, 4)
    held = Held(batcher)
    answers = [
        batcher.submit(one, policy.initial_state(), {'prefix': prefix, 'delay': 1})
        for one, prefix in zip(seen, left, strict=True)
    ]
    held.let_go()
    assert [one.exception(60) is None for one in answers] == [True, False, True]
    batcher.close()


def test_a_policy_that_was_not_told_how_to_go_on_asks(policy, seen):
    with pytest.raises(UserError, match='expected prefix=None of a policy that was not told how'):
        ActingPolicy(policy.actor).infer(seen[0], prefix=np.zeros((4, 6)), delay=1)


def test_a_policy_without_a_flow_neither_goes_on_nor_begins_anywhere(policy, seen):
    other = copy.copy(policy.actor)
    other._spec = dataclasses.replace(other.spec, noise_shape=None)
    with pytest.raises(UserError, match='noise=None and seed=None of a policy that does not act'):
        ActingPolicy(other).infer(seen[0], seed=1)
    with pytest.raises(UserError, match="expected 'none' of a policy that does not act by flow"):
        ActingPolicy(other, chunking=policy.chunking).infer(seen[0], prefix=np.zeros((4, 6)))
