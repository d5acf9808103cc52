"""Which observation is answered, and who a client is."""

import asyncio
import dataclasses
import time

import pytest

from sigma_jax.policies.protocol import PolicyState
from sigma_jax.policies.serving.lerobot.messages import Seen, Setup
from sigma_jax.policies.serving.lerobot.sessions import REMEMBERED, Session, Sessions, StatusError

RUNNER = asyncio.Runner()
SETUP = Setup(('a', 'b'), {}, 50, ('', '', ''))


def seen(timestep: int, a: float = 0.0, b: float = 0.0, *, must_go: bool = False) -> Seen:
    return Seen(float(timestep), timestep, must_go, {'a': a, 'b': b, 'task': ''})


def session() -> Session:
    return Session(PolicyState(), SETUP)


@pytest.fixture(scope='module', autouse=True)
def event_loop():
    """One for all waits of the module."""
    with RUNNER:
        yield


def take(one: Session, wait_s: float = 0.0) -> Seen | None:
    return RUNNER.run(one.take(wait_s))


def answered(one: Session, first: Seen) -> Session:
    assert one.offer(first) and take(one) is first
    return one


def test_the_newest_wins():
    one = session()
    for number in range(3):
        assert one.offer(seen(number))
    found = take(one)
    assert found is not None and found.timestep == 2 and take(one) is None


def test_a_timestep_that_was_answered_is_skipped_unless_it_must_go():
    one = answered(session(), seen(7))
    assert not one.offer(seen(7, a=100))
    assert one.offer(seen(8, a=100)) and one.offer(seen(7, a=100, must_go=True))
    found = take(one)
    assert found is not None and found.must_go and take(one) is None


@pytest.mark.parametrize(
    ('a', 'b', 'news'), [(0.7, 0.7, False), (0.71, 0.71, True), (1.0, 0, True), (0, -0.99, False)]
)
def test_a_robot_that_has_hardly_moved_is_skipped(a, b, news):
    """Less than 1 in all joints together (L2), from the last that was answered."""
    one = answered(session(), seen(0, 5.0, 5.0))
    assert one.offer(seen(1, 5.0 + a, 5.0 + b)) == news


def test_it_is_compared_with_the_last_that_was_answered_and_not_the_last_seen():
    one = answered(session(), seen(0))
    assert [one.offer(seen(n, a=0.4 * n)) for n in (1, 2, 3)] == [False, False, True]
    assert take(one) is not None and not one.offer(seen(4, a=1.5))


def test_what_waits_is_not_lost_to_one_that_is_skipped():
    one = answered(session(), seen(0))
    assert one.offer(seen(5, a=9)) and not one.offer(seen(0, a=9))
    found = take(one)
    assert found is not None and found.timestep == 5


def test_after_a_wait_the_newest_that_was_skipped_is_answered():
    """A client that lost an answer says `must_go` no more, and its timestep stands still."""
    one = answered(session(), seen(3))
    assert not one.offer(seen(3)) and not one.offer(seen(3, a=0.1))
    found = take(one, 0.05)
    assert found is not None and found.readings['a'] == 0.1 and take(one) is None
    assert not one.offer(seen(3)) and one.offer(seen(4, a=2))
    assert take(one) is not None and take(one, 0.01) is None  # the skipped one is stale by then


def test_what_was_not_answered_may_be_again():
    one = answered(session(), seen(3))
    one.give_back(seen(3), again=False)
    assert take(one) is None and one.offer(seen(3))
    first = take(one)
    assert first is not None
    one.give_back(first, again=True)
    assert take(one) is first
    one.offer(seen(4, a=9))
    one.give_back(first, again=True)  # a newer one has come
    found = take(one)
    assert found is not None and found.timestep == 4


def test_a_wait_ends_when_something_comes():
    async def run() -> tuple[Seen | None, float]:
        one, start = session(), time.perf_counter()
        waiting = asyncio.create_task(one.take(20))
        await asyncio.sleep(0.01)
        one.offer(seen(1))
        return await waiting, time.perf_counter() - start

    found, seconds = RUNNER.run(run())
    assert found is not None and seconds < 5


def test_a_wait_can_be_ended_with_nothing():
    one = session()
    one.wake()
    assert take(one, 20) is None


def test_memory_of_timesteps_is_bounded():
    one = session()
    for number in range(REMEMBERED + 10):
        answered(one, seen(number, a=9.0 * number))
    assert len(one._answered) == REMEMBERED and not one.offer(seen(REMEMBERED, a=-99))
    assert one.offer(seen(0, a=-99))


def sessions(**settings) -> Sessions:
    return Sessions(PolicyState, **settings)


def test_clients_have_states_of_their_own_and_ready_begins_an_episode():
    found = sessions()
    one, two = found.begin('ipv4:h:1'), found.begin('ipv4:h:2')
    one.state, one.setup = PolicyState(0, 5), SETUP
    assert found.find('ipv4:h:1') is one and found.find('ipv4:h:2') is two is not one
    again = found.begin('ipv4:h:1')
    assert (again.state.episode, again.state.frame) == (1, 0) and again.setup is SETUP
    assert found.begin('ipv4:h:1').state.episode == 1  # an episode without a frame is none
    assert found.find('ipv4:h:2') is two


def test_a_connection_that_broke_is_known_by_its_host():
    found = sessions()
    found.begin('ipv4:h:1').setup = SETUP
    assert found.setup_of('ipv4:h:2', seen(0)) is SETUP
    assert found.find('ipv4:h:2').setup is SETUP
    found.find('ipv4:h:2').offer(seen(0))


def test_of_several_robots_of_one_kind_the_last_that_called_is_meant():
    found = sessions()
    other = dataclasses.replace(SETUP, chunk=7)
    found.begin('ipv4:h:1').setup, found.begin('ipv4:h:2').setup = SETUP, other
    assert found.setup_of('ipv4:h:3', seen(0)) is other
    found.find('ipv4:h:1')
    assert found.setup_of('ipv4:h:4', seen(0)) is SETUP


@pytest.mark.parametrize(
    'case', ['another host', 'other joints', 'two setups', 'the policy lacks one']
)
def test_a_client_that_is_not_known_is_reported(case):
    found = sessions(joints=('a', 'c') if case == 'the policy lacks one' else ())
    if case == 'another host':
        found.begin('ipv4:h:1').setup = SETUP
    if case == 'other joints':
        found.begin('ipv4:g:1').setup = dataclasses.replace(SETUP, joints=('a', 'z'))
    if case == 'two setups':
        found.begin('ipv4:g:1').setup = SETUP
        found.begin('ipv4:g:3').setup = dataclasses.replace(SETUP, joints=('b', 'a'))
    with pytest.raises(StatusError, match='expected SendPolicyInstructions before') as caught:
        found.setup_of('ipv4:g:2', seen(0))
    assert caught.value.status == 'FAILED_PRECONDITION'


def test_a_client_of_a_server_that_was_restarted_is_known_by_its_joints():
    found = sessions(joints=('b', 'a'))
    assert found.setup_of('ipv4:h:1', seen(0)).joints == ('b', 'a')


def test_clients_that_are_gone_make_room_where_it_is_needed():
    """A robot that is started again and again is another connection each time."""
    found = sessions(most=2, gone_s=0.1)
    for peer in ('a:1', 'b:1'):
        found.begin(peer)
    time.sleep(0.15)
    found.find('a:1')
    found.begin('a:2')
    assert set(found.by_peer) == {'a:1', 'a:2'}
    time.sleep(0.15)

    async def answering() -> None:
        async with found.by_peer['a:1'].turn:
            found.begin('a:3')

    RUNNER.run(answering())
    assert set(found.by_peer) == {'a:1', 'a:3'}


def test_clients_are_bounded_and_idle_ones_forgotten():
    found = sessions(most=2, idle_s=0.2)
    for peer in ('a:1', 'b:1'):
        found.begin(peer)
    with pytest.raises(StatusError, match='at most 2 clients at once, got one more') as caught:
        found.find('c:1')
    assert caught.value.status == 'RESOURCE_EXHAUSTED'
    time.sleep(0.15)
    found.find('b:1')
    time.sleep(0.1)
    found.find('c:1')
    assert set(found.by_peer) == {'b:1', 'c:1'}
