"""The robot's own client: one action a step, chunks that come in time, a server that goes away."""

import ast
import pathlib
import sys
import threading
import time
from typing import ClassVar

import numpy as np
import pytest

from clients import sigma_client
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.serving.openpi import wire
from sigma_jax.policies.serving.openpi.server import OpenpiSettings
from tests.policies.acting import Held, ManyRobots, observation
from tests.policies.serving.openpi.served import serving

pytestmark = pytest.mark.usefixtures('in_time')
FILE = pathlib.Path(__file__).parents[1] / 'clients' / 'sigma_client.py'


@pytest.fixture(scope='module')
def policy(small_run):
    return ManyRobots.load(small_run.base)


@pytest.fixture(scope='module')
def server(policy):
    with serving(policy) as found:
        yield found


class GoesOn(ActingPolicy):
    """Keeps what is committed and samples the rest as ever; `asked` has prefix and delay."""

    how: ClassVar = {'mode': 'guided'}

    def metadata(self):
        return super().metadata() | {'chunking': self.how}

    def infer_batch(self, observations, states, *, prefix=(None,), delay=(0,)):
        answers, after = super().infer_batch(observations, states)
        self.__dict__.setdefault('asked', []).append((prefix[0], delay[0]))
        for answer, left, n in zip(answers, prefix, delay, strict=True):
            answer['actions'] = np.array(answer['actions'])
            answer['actions'][:n] = 0 if left is None else left[:n]
        return answers, after


def connect(server, **settings):
    return sigma_client.Client(f'ws://127.0.0.1:{server.port}', **settings)


def wanted(policy, count, seed=0):
    """The chunks of an episode in which nothing changes."""
    state, found = policy.initial_state(), []
    for _ in range(count):
        answers, (state,) = policy.infer_batch([observation(seed)], [state])
        found.append(answers[0]['actions'])
    return found


def test_it_is_short_and_needs_little():
    text = FILE.read_text()
    assert len(text.splitlines()) < 100
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    more = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in nodes for alias in node.names} | {n.module for n in more}
    packages = {name.partition('.')[0] for name in names} - sys.stdlib_module_names
    assert packages == {'msgpack', 'numpy', 'websockets'}


def test_it_speaks_as_the_server_does():
    message = {'a': np.arange(6.0).reshape(2, 3)[:, ::-1], 'b': np.float32(1.5), 'c': [1, 'x']}
    data = sigma_client.msgpack.packb(message, default=sigma_client.write)
    assert data == wire.pack(message)
    found = sigma_client.msgpack.unpackb(data, object_hook=sigma_client.read)
    assert np.array_equal(found['a'], message['a']) and found['a'].dtype == np.float64
    assert type(found['b']) is np.float32 and found['c'] == [1, 'x']
    with pytest.raises(TypeError, match='expected numbers'):
        sigma_client.write(np.array([None]))


def test_answers_and_errors(policy, server):
    client = connect(server)
    assert client.metadata['horizon'] == 16
    assert np.array_equal(client.infer(observation())['actions'], wanted(policy, 1)[0])
    with pytest.raises(RuntimeError, match='expected keys out of'):
        client.infer({'x': 1})
    assert client.infer({}, reset=True) == {'reset': True, 'episode': 1}
    assert client.connections == 1


def test_a_robot_that_waits_carries_out_so_many_of_each_chunk(policy, server):
    robot, chunks = sigma_client.Chunks(connect(server), steps=5, wait=True), wanted(policy, 3)
    got = [robot.act(observation()) for _ in range(15)]
    assert np.array_equal(got, np.concatenate([chunk[:5] for chunk in chunks]))
    robot.reset()
    other, _ = policy.infer_batch([observation()], [policy.initial_state(1)])
    assert np.array_equal(robot.act(observation()), other[0]['actions'][0])


def test_without_waiting_a_chunk_goes_on_where_the_one_before_is(policy, server):
    """The new one is asked for at step 5 less the delay, and taken up as many steps in."""
    robot, chunks = sigma_client.Chunks(connect(server), steps=5), wanted(policy, 3)
    first = [robot.act(observation()) for _ in range(4)]  # delay 1: the fifth asks
    held = Held(server.batcher)
    during = [robot.act(observation()) for _ in range(3)]
    assert np.array_equal(first + during, chunks[0][:7])
    held.let_go()
    settle(robot)
    after = [robot.act(observation()) for _ in range(2)]
    assert np.array_equal(after[0], chunks[1][3])
    assert max(robot._late) == 3  # the next one is asked for three steps early
    assert np.array_equal(after[1], chunks[1][4])
    settle(robot)


def settle(robot):
    if robot._asked is not None:
        robot._asked.exception(30)


def test_a_chunk_that_comes_too_late_is_waited_for(policy, server):
    robot, chunks = sigma_client.Chunks(connect(server), steps=16), wanted(policy, 2)
    got = [robot.act(observation()) for _ in range(15)]
    held = Held(server.batcher)
    got.append(robot.act(observation()))  # asks for the next; the last of this one
    threading.Timer(0.2, held.let_go).start()
    start = time.perf_counter()
    got.append(robot.act(observation()))
    assert time.perf_counter() - start > 0.1
    assert np.array_equal(got, np.concatenate([chunks[0], chunks[1][1:2]]))


def test_a_chunk_goes_on_from_what_is_left_of_the_one_before(policy):
    """The steps that are carried out meanwhile are committed: the arm notices no seam."""
    goes_on = GoesOn(policy.actor)
    with serving(goes_on) as server:
        robot = sigma_client.Chunks(connect(server), steps=5)
        got = [robot.act(observation()) for _ in range(4)]
        held = Held(server.batcher)
        got += [robot.act(observation()) for _ in range(3)]  # asks at the fifth, for a delay of 1
        held.let_go()
        settle(robot)
        got.append(robot.act(observation()))  # the third action of the second chunk
        settle(robot)
        (first, second), wait = goes_on.asked[:2], sigma_client.Chunks(robot.client, wait=True)
        chunks = wanted(policy, 2)
        assert first == (None, 0) and second[1] == 1
        assert np.array_equal(second[0], chunks[0][4:])
        assert np.array_equal(got, [*chunks[0][:7], chunks[1][3]])
        robot.act(observation())  # asks at once: it takes three steps
        settle(robot)
        assert goes_on.asked[2][1] == 3
        wait.reset()
        wait.act(observation())
        assert goes_on.asked[-1] == (None, 0)  # one that waits begins anew


def test_no_more_is_committed_than_the_policy_has_learned(policy):
    goes_on = GoesOn(policy.actor)
    goes_on.how = {'mode': 'trained'}
    with serving(goes_on) as server:
        assert connect(server).metadata['max_delay'] == 0  # it has not learned to go on
        robot = sigma_client.Chunks(connect(server), steps=2)
        robot.client.metadata['max_delay'] = 2
        robot._late = [7]
        robot.client.infer = lambda seen, **rest: asked.append(rest) or {'actions': np.ones((9, 6))}
        asked = []
        robot.act(observation())
        robot.act(observation())
        settle(robot)
        assert asked[1]['delay'] == 2 and len(asked[1]['prefix']) == 8


def test_motor_commands_are_what_is_carried_out(policy, server):
    robot = sigma_client.Chunks(connect(server), steps=2, wait=True)
    robot.client.infer = lambda seen: {
        'actions': np.ones((4, 6)),
        'motor_commands': np.zeros((4, 6)),
    }
    assert np.array_equal(robot.act(observation()), np.zeros(6))


def test_an_error_comes_out_of_act_and_the_next_call_asks_again(server):
    robot = sigma_client.Chunks(connect(server))
    with pytest.raises(RuntimeError, match='expected keys out of'):
        robot.act({'x': 1})
    want = connect(server).infer(observation())['actions'][0]
    assert np.array_equal(robot.act(observation()), want)


def test_it_connects_again_when_the_server_comes_back(policy):
    with serving(policy) as first:
        client = connect(first)
        before = client.infer(observation())['actions']
    settings, found = OpenpiSettings(port=first.port, rate=0), []
    ask = threading.Thread(target=lambda: found.append(client.infer(observation())))
    ask.start()
    time.sleep(0.3)
    with serving(policy, settings):
        ask.join(30)
    assert np.array_equal(found[0]['actions'], before) and client.connections == 2


def test_its_patience_ends(policy):
    with serving(policy) as server:
        client = connect(server, patience_s=0.3)
    start = time.perf_counter()
    with pytest.raises(OSError):
        client.infer(observation())
    assert 0.1 < time.perf_counter() - start < 5


def test_a_wrong_key_is_told_at_once(policy):
    with serving(policy, OpenpiSettings(port=0, key='right')) as server:
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match='HTTP 401 expected the key of this server'):
            connect(server, api_key='wrong')
        assert time.perf_counter() - start < 5
        assert connect(server, api_key='right').connections == 1


def test_a_message_that_is_too_long_is_told_once(policy):
    with serving(
        policy, OpenpiSettings(port=0, rate=0, bounds=wire.Bounds(bytes=10_000))
    ) as server:
        client = connect(server)
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match=r'expected an answer, got: .*1009 .*10000 bytes'):
            client.infer(observation(size=100))
        assert time.perf_counter() - start < 5 and client.connections == 1
        assert 'actions' in client.infer(observation()) and client.connections == 2


def test_it_learns_how_late_chunks_are_even_where_it_carries_out_whole_ones(server):
    """Five steps late: the robot stands still once, and not at each of four chunks."""
    robot, step = sigma_client.Chunks(connect(server), steps=16), 0.03
    asked = robot.client.infer
    robot.client.infer = lambda *seen, **rest: (time.sleep(4.5 * step), asked(*seen, **rest))[1]
    robot.act(observation())
    stood = []
    for _ in range(64):
        time.sleep(step)
        start = time.perf_counter()
        robot.act(observation())
        stood.append(time.perf_counter() - start > step)
    assert stood[15] and sum(stood[16:]) <= 1 and max(robot._late) >= 4  # 1: a busy machine's
    settle(robot)
