"""openpi's client, end to end on loopback: it gets what the policy gives in-process."""

import concurrent.futures
import logging
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sigma_jax.errors import UserError
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.policies.serving.openpi.keys import parse_keys
from sigma_jax.policies.serving.openpi.server import OpenpiServer, OpenpiSettings
from sigma_jax.policies.serving.openpi.wire import Bounds, pack
from tests import room
from tests.policies.acting import Held, ManyRobots, observation
from tests.policies.serving.openpi.broken import messages
from tests.policies.serving.openpi.served import serving


@pytest.fixture(scope='module')
def policy(small_run):
    """Compiled for the sizes that tests meet."""
    found = ManyRobots.load(small_run.base)
    for size in (1, 2, 4):
        found.infer_batch([observation()] * size, [found.initial_state()] * size)
    return found


@pytest.fixture(scope='module')
def server(policy):
    with serving(policy) as found:
        yield found


def alone(policy, seen, state=None):
    answers, states = policy.infer_batch([seen], [state or policy.initial_state()])
    return answers[0]['actions'], states[0]


def settings(**changes) -> OpenpiSettings:
    return OpenpiSettings(**{'port': 0, 'rate': 0} | changes)


def test_answers_are_the_policys_own_bit_for_bit(policy, server):
    state = policy.initial_state()
    with server.client() as client:
        for seed in range(4):
            want, state = alone(policy, observation(seed), state)
            answer = client.ask(observation(seed))
            assert answer['actions'].dtype == np.float32
            assert np.array_equal(answer['actions'], want)


def test_frames_may_come_in_any_order(policy, server):
    """Of a policy that names its cameras."""
    seen, cameras = observation(), [IMAGES + name for name in ('up', 'side')]
    assert policy.spec.cameras == ('up', 'side')
    want, _ = alone(policy, seen)
    swapped = dict(zip(cameras, reversed([seen[name] for name in cameras]), strict=True))
    with server.client() as client:
        assert np.array_equal(client.ask(dict(reversed(seen.items())))['actions'], want)
    with server.client() as client:
        assert not np.array_equal(client.ask(seen | swapped)['actions'], want)


def test_what_is_told_on_connecting(policy, server):
    with server.client() as client:
        told = client.metadata
    assert (told['action_dim'], told['state_dim'], told['horizon']) == (6, 6, 16)
    assert told['observation_keys'] == [IMAGES + 'NAME', STATE, TASK]


def test_times_are_told_the_whole_one_from_the_second_answer_on(server):
    with server.client() as client:
        first, second = client.ask(observation()), client.ask(observation())
    assert 0 < first['policy_timing']['infer_ms'] <= first['server_timing']['infer_ms']
    assert 'prev_total_ms' not in first['server_timing'] and 'timing' not in first
    assert second['server_timing']['prev_total_ms'] >= first['server_timing']['infer_ms']


def test_each_connection_is_an_episode_of_its_own_and_reset_begins_the_next(policy, server):
    seen = observation()
    first, after = alone(policy, seen)
    second, _ = alone(policy, seen, after)
    other, _ = alone(policy, seen, policy.initial_state(1))
    seventh, _ = alone(policy, seen, policy.initial_state(7))
    assert len({x.tobytes() for x in (first, second, other, seventh)}) == 4
    with server.client() as one, server.client() as two:
        assert np.array_equal(one.ask(seen)['actions'], first)
        assert np.array_equal(two.ask(seen)['actions'], first)
        assert np.array_equal(one.ask(seen)['actions'], second)
        assert one.ask({'reset': True}) == {'reset': True, 'episode': 1}
        assert one.ask({'reset': True}) == {'reset': True, 'episode': 1}  # none was begun
        assert np.array_equal(one.ask(seen)['actions'], other)
        assert np.array_equal(one.ask(seen | {'reset': True, 'episode': 7})['actions'], seventh)
        assert np.array_equal(two.ask(seen)['actions'], second)


def test_a_reset_that_fails_resets_nothing(policy, server):
    seen = observation()
    second, _ = alone(policy, seen, alone(policy, seen)[1])
    with server.client() as client:
        client.ask(seen)
        assert 'expected observation.state' in client.ask({'reset': True, TASK: 'x'})
        assert np.array_equal(client.ask(seen)['actions'], second)


def test_a_seed_repeats_a_draw_and_leaves_the_episode_as_it_is(policy, server):
    seen = observation()
    _, after = alone(policy, seen)
    third, _ = alone(policy, seen, after.__class__(0, 2, after.cameras))
    with server.client() as client:
        client.ask(seen)
        five, again, six = (client.ask(seen | {'seed': n})['actions'] for n in (5, 5, 6))
        assert np.array_equal(five, again) and np.abs(five - six).max() > 1e-3
    with server.client() as client:
        client.ask(seen)
        client.ask(seen | {'seed': 5})
        assert np.array_equal(client.ask(seen)['actions'], third)


def test_a_seed_or_noise_is_as_in_process(policy, server):
    seen, noise = observation(), np.ones(policy.spec.noise_shape, np.float32)
    with server.client() as client:
        for wish in ({'seed': 3}, {'noise': noise}):
            policy.state = policy.initial_state()
            want = policy.infer(seen, **wish)['actions']
            client.ask({'reset': True, 'episode': 0})
            assert np.array_equal(client.ask(seen | wish)['actions'], want)
        assert 'got both' in client.ask(seen | {'seed': 3, 'noise': noise})


def test_a_chunk_goes_on_from_what_is_left_as_in_process(policy):
    """Its committed steps to the bit, the rest as `infer` gives it."""
    goes_on, seen = ActingPolicy(policy.actor, chunking=ChunkingConfig('guided')), observation()
    before = goes_on.infer(seen)['actions']
    want = goes_on.infer(seen, prefix=before[4:], delay=3)['actions']
    with serving(goes_on, max_batch=1) as server, server.client() as client:
        assert client.metadata['max_delay'] == 16
        assert np.array_equal(client.ask(seen)['actions'], before)
        for wrong in ({'prefix': before}, {'delay': 1}, {'prefix': before, 'delay': -1}):
            assert 'expected' in client.ask(seen | wrong)
        long = client.ask(seen | {'prefix': np.concatenate([before, before]), 'delay': 3})
        assert long.startswith('expected prefix of at most 16 actions, got 32; send what is left')
        others = client.ask(seen | {'prefix': before[0], 'delay': 3})
        assert others.startswith('expected prefix as finite floats [t2 a], got others')
        got = client.ask(seen | {'prefix': before[4:], 'delay': 3})['actions']
        assert np.array_equal(got, want) and np.array_equal(got[:3], before[4:7])
        assert 'actions' in client.ask(seen | {'seed': 2**32 - 1})
        assert '0 to below 4294967296' in client.ask(seen | {'seed': 2**32})


def test_a_policy_that_was_not_told_how_goes_on_from_nothing(server):
    with server.client() as client:
        assert client.metadata['max_delay'] == 0
        prefix = np.zeros((4, 6), np.float32)
        told = client.ask(observation() | {'prefix': prefix, 'delay': 1})
    assert 'start the server with --chunking=guided' in told


def test_a_client_with_other_keys_and_no_instruction(policy):
    keys = parse_keys('libero,observation/image=up,observation/wrist_image=side', policy.spec)
    seen = observation()
    want, _ = alone(policy, seen)
    with (
        serving(policy, settings(keys=keys, default_task=seen[TASK])) as server,
        server.client() as client,
    ):
        answer = client.ask(
            {
                'observation/state': seen[STATE],
                'observation/wrist_image': seen[IMAGES + 'side'],
                'observation/image': seen[IMAGES + 'up'],
            }
        )
        assert np.array_equal(answer['actions'], want)
        assert client.metadata['observation_keys'][0] == 'observation/image'


def test_clients_that_ask_at_once_are_computed_together(policy, server):
    held = Held(server.batcher)
    policy.calls.clear()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:

        def one(n):
            with server.client() as client:
                return client.ask(observation(n))['actions']

        asked = [pool.submit(one, n) for n in range(3)]
        while server.batcher.waiting < 3:
            time.sleep(0.01)
        held.let_go()
        found = [one.result(60) for one in asked]
    assert policy.calls == [4]
    for n, actions in enumerate(found):
        np.testing.assert_allclose(actions, alone(policy, observation(n))[0], rtol=1e-4, atol=1e-3)


def test_a_client_that_is_killed_takes_nobody_with_it(policy, server):
    held = Held(server.batcher)
    with server.client() as one, server.client() as two:
        one.socket.send(pack(observation()))
        two.socket.send(pack(observation(1)))
        while server.batcher.waiting < 2:
            time.sleep(0.01)
        one.socket.socket.close()
        held.let_go()
        assert isinstance(two.socket.recv(timeout=30), bytes)
        assert 'actions' in two.ask(observation())
    assert 'actions' in ask_once(server)


def ask_once(server, message=None, **settings):
    with server.client(**settings) as client:
        return client.ask(observation() if message is None else message)


def test_pages_answer_at_once_while_a_program_compiles(small_run):
    """A policy that nobody asked yet; its first answer takes seconds."""
    fresh = ManyRobots.load(small_run.base, seed=int(time.time()))
    with serving(fresh) as server, server.client() as client:
        client.socket.send(pack(observation()))
        times, began = [], time.perf_counter()
        while not client_has_answer(client) and time.perf_counter() - began < 300:
            start = time.perf_counter()
            assert server.get('/healthz')[:1] + server.get('/healthz')[2:] == (200, 'OK\n')
            times.append((time.perf_counter() - start) / 2)
            client.socket.ping().wait(5)
            time.sleep(0.02)
    assert len(times) > 10 and np.median(times) < 0.1


def client_has_answer(client) -> bool:
    try:
        client.socket.recv(timeout=0)
    except TimeoutError:
        return False
    return True


def test_metrics_tell_what_was_done(policy):
    with serving(policy) as server:
        with server.client() as client:
            client.ask(observation())
            client.ask({'x': 1})
            status, kind, page = server.get('/metrics')
        assert status == 200 and kind.startswith('text/plain; version=0.0.4')
        lines = set(page.splitlines())
    assert 'sigma_requests_total{outcome="answered"} 1.0' in lines
    assert 'sigma_requests_total{outcome="refused"} 1.0' in lines
    assert 'sigma_requests_total{outcome="failed"} 0.0' in lines
    assert 'sigma_batch_size_sum 1.0' in lines and 'sigma_clients 1.0' in lines
    assert 'sigma_request_seconds_count 2.0' in lines and 'sigma_infer_seconds_count 1.0' in lines


def test_other_pages_are_none(server):
    assert server.get('/healthz?x=1')[0] == 200
    assert server.get('/')[0] == 426  # a websocket is spoken here


# --- who may come in, and how much


def test_a_key_is_asked_for(policy):
    with serving(policy, settings(key='right')) as server:
        for headers in ({}, {'Authorization': 'Api-Key wrong'}, {'Authorization': 'right'}):
            with pytest.raises(InvalidStatus, match='401'):
                ask_once(server, additional_headers=headers)
            assert server.get('/metrics', headers)[0] == 401
        right = {'Authorization': 'Api-Key right'}
        assert 'actions' in ask_once(server, additional_headers=right)
        assert server.get('/healthz')[0] == server.get('/metrics', right)[0] == 200


def test_without_a_key_only_this_machine_is_served(server):
    with pytest.raises(UserError, match=r'a key for what others reach \(0.0.0.0\), got none'):
        OpenpiServer(server.batcher, settings(host='0.0.0.0'))


def test_a_page_in_a_browser_cannot_connect(server):
    with pytest.raises(InvalidStatus, match='403'):
        ask_once(server, additional_headers={'Origin': 'http://example.org'})


def test_an_address_that_is_taken(server):
    with pytest.raises(UserError, match='expected a free address, got 127.0.0.1'):
        server.loop.run(OpenpiServer(server.batcher, settings(port=server.port)).start())


def test_a_large_message_ends_that_connection_alone(policy):
    with (
        serving(policy, settings(bounds=Bounds(bytes=10_000))) as server,
        server.client() as other,
        server.client() as client,
    ):
        with pytest.raises(ConnectionClosed) as caught:
            client.send(b'\0' * 10_001)
        assert caught.value.rcvd.code == 1009
        assert 'actions' in other.ask(observation())


def test_a_client_that_asks_too_often_is_told(policy):
    with serving(policy, settings(rate=5)) as server, server.client() as client:
        found = [client.ask({'reset': True}) for _ in range(10)]
        assert found[0] == {'reset': True, 'episode': 0}
        assert 'expected at most 5 requests a second, got more; ask less' in str(found[-1])
        time.sleep(0.5)
        assert isinstance(client.ask({'reset': True}), dict)


def test_a_client_that_asks_nothing_is_disconnected(policy):
    with serving(policy, settings(idle_s=0.2)) as server, server.client() as client:
        assert 'actions' in client.ask(observation())
        with pytest.raises(ConnectionClosed, match='no request for 0.2 s'):
            client.socket.recv(timeout=10)


def test_no_more_clients_than_the_bound(policy):
    with serving(policy, settings(clients=1)) as server, server.client() as client:
        with pytest.raises(InvalidStatus, match='503'):
            ask_once(server)
        assert 'actions' in client.ask(observation())


# --- what is wrong is that client's alone


def test_broken_messages_are_errors_to_that_client_alone(policy, server):
    send_broken(policy, server, 320)


@pytest.mark.slow
def test_two_thousand_broken_messages(policy, server):
    send_broken(policy, server, 2000)


def send_broken(policy, server, count):
    """Each is a sentence; every so often another client asks, and gets its answer."""
    want, _ = alone(policy, observation())
    with server.client() as client:
        for n, (kind, frame) in enumerate(messages(count)):
            answer = client.send(frame)
            assert isinstance(answer, str), f'{kind}: {frame[:200]!r} was answered'
            assert len(answer) <= 800 and '/' + 'work' not in answer and 'Traceback' not in answer
            if n == count // 5:
                before = room.resident()
            if n % 40 == 0:
                assert np.array_equal(ask_once(server)['actions'], want), kind
        assert np.array_equal(client.ask(observation())['actions'], want)
    assert room.resident() - before < 20 * 2**20


def test_a_hundred_megabytes_are_not_kept(policy, server):
    before = room.resident()
    for _ in range(3):
        with pytest.raises(ConnectionClosed):
            ask_frame(server, bytes(100 * 2**20))
    assert room.resident() - before < 60 * 2**20
    assert 'actions' in ask_once(server)


def ask_frame(server, frame):
    with server.client() as client:
        return client.send(frame)


def test_a_mistake_of_ours_closes_as_openpis_server_does(policy, server, caplog, monkeypatch):
    """Only that connection; the client gets a sentence, the log the traceback."""
    with server.client() as client, server.client() as other:
        with monkeypatch.context() as patch:
            patch.setattr(policy, 'actor', None)
            assert 'the server failed at this request' in client.ask(observation())
        with pytest.raises(ConnectionClosed) as caught:
            client.socket.recv(timeout=10)
        assert caught.value.rcvd.code == 1011
        assert 'actions' in other.ask(observation())
    assert 'Traceback' in caplog.text


# --- the end


def test_the_end_answers_what_is_there_and_refuses_the_rest(policy):
    with serving(policy) as server, server.client() as busy, server.client() as idle:
        held = Held(server.batcher)
        busy.socket.send(pack(observation()))
        while not server.batcher.waiting:
            time.sleep(0.01)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(server.stop)
            with pytest.raises(ConnectionClosed, match='the server stops'):
                idle.socket.recv(timeout=10)
            with pytest.raises(OSError):
                ask_once(server)
            held.let_go()
            assert isinstance(busy.socket.recv(timeout=30), bytes)
            with pytest.raises(ConnectionClosed, match='the server stops'):
                busy.socket.recv(timeout=10)
            assert stopped.result(30)


def test_the_end_comes_within_its_bound(policy, caplog):
    with serving(policy) as server, server.client() as client:
        held = Held(server.batcher)
        client.socket.send(pack(observation()))
        while not server.batcher.waiting:
            time.sleep(0.01)
        start = time.perf_counter()
        assert not server.stop(0.3)
        assert 0.3 <= time.perf_counter() - start < 5
        with pytest.raises(ConnectionClosed):
            client.socket.recv(timeout=10)
        held.let_go()
    assert '1 requests were not answered within 0.3 s' in caplog.text


def test_comings_and_goings_are_logged(policy, caplog):
    with caplog.at_level(logging.INFO), serving(policy) as server:
        ask_once(server, {'x': 1})
    text = caplog.text
    assert 'connected' in text and 'refused: expected keys out of' in text and 'gone' in text


def test_a_page_that_is_none(server):
    status, _, text = server.get('/nope')
    assert status == 404 and text.startswith(
        'expected /healthz, /metrics or a websocket, got /nope'
    )
