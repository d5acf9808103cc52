"""Robots that ask at once are answered together, each as it would be alone."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.policies.protocol import STATE
from sigma_jax.policies.serving.batching import Batcher, padded_sizes
from tests.policies.acting import Held, ManyRobots, observation


@pytest.fixture(scope='module')
def policy(small_run):
    """Compiled for the sizes that tests meet."""
    found = ManyRobots.load(small_run.base)
    for size in (1, 2, 4):
        found.infer_batch([observation()] * size, [found.initial_state()] * size)
    return found


@pytest.fixture
def batcher(policy):
    """One that may hold four, and whose policy has been called by nobody."""
    policy.calls.clear()
    found = Batcher(policy, 4, 0.2)
    yield found
    assert found.close(30)


def alone(policy, seen, state=None):
    answers, states = policy.infer_batch([seen], [state or policy.initial_state()])
    return answers[0]['actions'], states[0]


def test_one_robot_gets_what_the_policy_gives_bit_for_bit(policy, batcher):
    state = policy.initial_state(3)
    for seed in range(3):
        want, after = alone(policy, observation(seed), state)
        answer, state = batcher.infer_sync(observation(seed), state)
        assert np.array_equal(answer['actions'], want) and state == after
    assert state.frame == 3


def test_robots_that_ask_at_once_are_computed_together_and_filled_up(policy, batcher):
    held = Held(batcher)
    states = [policy.initial_state(n) for n in range(3)]
    asked = [batcher.submit(observation(n), state) for n, state in enumerate(states)]
    assert batcher.waiting == 3
    held.let_go()
    answers = [one.result(30) for one in asked]
    assert policy.calls == [4]  # three, filled up to the program that there is
    for n, (answer, state) in enumerate(answers):
        want, _ = alone(policy, observation(n), states[n])
        np.testing.assert_allclose(answer['actions'], want, rtol=1e-4, atol=1e-3)
        assert (state.episode, state.frame) == (n, 1)


def test_chunks_that_go_on_are_what_infer_gives_bit_for_bit(policy, batcher):
    """Beside robots that have none yet, and others that go on in another way."""
    guided, other = ChunkingConfig('guided'), ChunkingConfig('lerobot', 'ones', 2.0)
    left = policy.infer(observation(9))['actions'][4:]
    held, fresh = {'prefix': left, 'delay': 3}, policy.initial_state()
    wishes = [
        {'chunking': guided} | held,
        {'chunking': guided},
        {'chunking': other} | held,
        {},
        {'seed': 5},
    ]
    want = []
    for n, wish in enumerate(wishes):
        policy.state = fresh
        want.append(policy.infer(observation(n), **wish)['actions'])
    policy.calls.clear()
    busy = Held(batcher)
    asked = [batcher.submit(observation(n), fresh, wish) for n, wish in enumerate(wishes)]
    busy.let_go()
    for expected, one in zip(want, asked, strict=True):
        assert np.array_equal(one.result(60)[0]['actions'], expected)
    assert policy.calls == [2, 1, 2]


def test_no_batch_is_larger_than_the_bound(policy, batcher):
    held = Held(batcher)
    asked = [batcher.submit(observation(n), policy.initial_state()) for n in range(9)]
    held.let_go()
    for one in asked:
        one.result(30)
    assert policy.calls == [4, 4, 1]


def test_a_batch_waits_for_as_many_as_came_together_before(policy, batcher):
    """Two in step stay together; one that is alone never waits, but once after them."""
    held = Held(batcher)
    asked = [batcher.submit(observation(n), policy.initial_state()) for n in range(2)]
    held.let_go()
    assert all(one.result(30) for one in asked)
    first = batcher.submit(observation(0), policy.initial_state())
    time.sleep(0.05)  # within the wait of 0.2 s
    batcher.submit(observation(1), policy.initial_state()).result(30)
    first.result(30)
    assert policy.calls == [2, 2]
    started = [time.perf_counter()]
    for _ in range(3):
        batcher.infer_sync(observation(0), policy.initial_state())
        started.append(time.perf_counter())
    times = np.diff(started)
    assert policy.calls == [2, 2, 1, 1, 1]
    assert times[0] > 0.2 > times[1:].min()


def test_robots_that_ask_in_turns_come_together(policy, batcher):
    """One that comes while another's chunk is computed waits for that one to ask again."""
    held = Held(batcher)
    first = batcher.submit(observation(0), policy.initial_state())
    held.let_go()
    slow = policy.infer_batch

    def robot(seed):
        for _ in range(4):
            batcher.infer_sync(observation(seed), policy.initial_state())

    def infer_batch(*asked, **wishes):
        time.sleep(0.05)
        return slow(*asked, **wishes)

    first.result(30)
    policy.calls.clear()
    policy.infer_batch = infer_batch
    try:
        robots = [threading.Thread(target=robot, args=(seed,), daemon=True) for seed in range(2)]
        robots[0].start()
        time.sleep(0.02)
        robots[1].start()
        for one in robots:
            one.join(30)
    finally:
        del policy.infer_batch
    assert policy.calls[0] == 1 and policy.calls[1:4] == [2, 2, 2]


def test_a_wrong_request_fails_alone(policy, batcher):
    held = Held(batcher)
    wrong = observation(1) | {STATE: np.zeros(5, np.float32)}
    asked = [batcher.submit(x, policy.initial_state()) for x in (observation(0), wrong)]
    held.let_go()
    want, _ = alone(policy, observation(0))
    assert np.array_equal(asked[0].result(30)[0]['actions'], want)
    with pytest.raises(UserError, match='expected observation.state of 6 numbers'):
        asked[1].result(30)
    assert np.array_equal(
        batcher.infer_sync(observation(0), policy.initial_state())[0]['actions'], want
    )


def test_an_error_holds_on_to_no_picture(policy, batcher):
    """Neither the traceback nor what the error came from is kept."""
    with pytest.raises(UserError) as caught:
        batcher.infer_sync({STATE: np.zeros(6)}, policy.initial_state())
    seen = caught.value.__traceback__
    while seen := seen.tb_next:
        assert not {'batch', 'observations', 'answer'} & set(seen.tb_frame.f_locals) or (
            seen.tb_frame.f_code.co_filename.endswith('_base.py')
        )
    assert caught.value.__context__ is None


def test_a_mistake_of_ours_is_told_and_logged(policy, batcher, caplog):
    batcher.policy = None
    with pytest.raises(AttributeError):
        batcher.infer_sync(observation(), policy.initial_state())
    batcher.policy = policy
    assert 'the policy failed' in caplog.text and 'Traceback' in caplog.text
    batcher.infer_sync(observation(), policy.initial_state())


def test_coroutines_and_threads_may_ask_at_once(policy, batcher):
    async def robots():
        ask = (batcher.infer(observation(n), policy.initial_state(n)) for n in range(4))
        return await asyncio.gather(*ask)

    with ThreadPoolExecutor(4) as pool:
        ask = [
            pool.submit(batcher.infer_sync, observation(n), policy.initial_state(n))
            for n in range(4)
        ]
        found = asyncio.run(robots())
        for n, (one, (answer, state)) in enumerate(zip(ask, found, strict=True)):
            assert one.result(30)[1] == state and state.episode == n
            near = one.result()[0]['actions']
            np.testing.assert_allclose(answer['actions'], near, rtol=1e-4, atol=1e-3)
    assert max(policy.calls) > 1


def test_the_event_loop_goes_on_while_the_policy_works(policy, batcher):
    async def ticks():
        held, count = Held(batcher), 0
        asked = asyncio.ensure_future(batcher.infer(observation(), policy.initial_state()))
        for _ in range(20):
            await asyncio.sleep(0.001)
            count += not asked.done()
        held.let_go()
        await asked
        return count

    assert asyncio.run(ticks()) == 20


def test_who_gives_up_is_not_computed(policy, batcher):
    held = Held(batcher)
    with pytest.raises(TimeoutError):
        batcher.infer_sync(observation(), policy.initial_state(), timeout=0.01)

    async def hurry():
        ask = batcher.infer(observation(), policy.initial_state())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask, 0.01)

    asyncio.run(hurry())
    held.let_go()
    batcher.infer_sync(observation(1), policy.initial_state())
    assert policy.calls == [1]


def test_closing_finishes_what_waits_and_refuses_the_rest(policy):
    batcher = Batcher(policy, 2)
    held = Held(batcher)
    asked = [batcher.submit(observation(n), policy.initial_state()) for n in range(3)]
    assert not batcher.close(0.01)  # the thread is held
    with pytest.raises(UserError, match='got one that stops; connect later'):
        batcher.submit(observation(), policy.initial_state())
    held.let_go()
    assert batcher.close(30)
    assert all(one.result(0)[1].frame == 1 for one in asked)


def test_every_call_of_the_policy_is_told(policy):
    told = []
    batcher = Batcher(policy, 4, on_batch=told.append)
    held = Held(batcher)
    asked = [batcher.submit(observation(n), policy.initial_state()) for n in range(3)]
    time.sleep(0.02)
    held.let_go()
    for one in asked:
        one.result(30)
    batcher.close()
    (report,) = told
    assert (report.size, report.padded, report.waiting) == (3, 4, 0)
    assert report.waited_s > 0.02 and report.infer_s > 0


def test_a_report_that_fails_costs_no_answer(policy, caplog):
    def fails(_):
        raise OSError('full')

    batcher = Batcher(policy, on_batch=fails)
    batcher.infer_sync(observation(), policy.initial_state())
    batcher.close()
    assert 'a report of a batch failed' in caplog.text


def test_a_call_runs_in_the_thread_of_the_policy_and_may_fail(batcher):
    assert batcher.call(lambda: threading.current_thread().name).result(30) == 'policy'
    with pytest.raises(ZeroDivisionError):
        batcher.call(lambda: 1 // 0).result(30)
    held = Held(batcher)
    given_up = batcher.call(lambda: 1)
    assert given_up.cancel()
    held.let_go()
    with pytest.raises(CancelledError):
        given_up.result(30)


@pytest.mark.parametrize(
    ('bound', 'sizes'), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (6, (1, 2, 4, 6))]
)
def test_few_sizes_are_computed(policy, bound, sizes):
    batcher = Batcher(policy, bound)
    assert batcher.sizes == padded_sizes(bound) == sizes
    batcher.close()


@pytest.mark.parametrize('bad', [(0, 0.1), (4, -1.0)])
def test_bounds_that_make_no_sense(policy, bad):
    with pytest.raises(UserError, match='expected batches of at least 1 and a wait of at least 0'):
        Batcher(policy, *bad)
