"""LeRobot's calls over gRPC on loopback, against a policy that is real."""

import concurrent.futures
import dataclasses
import logging
import subprocess
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from sigma_jax.api.policies import load_policy
from sigma_jax.convert.load_base import ModelConfig, open_base
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.sampled_policy import BaseActor
from sigma_jax.policies.serving.lerobot import wire
from sigma_jax.policies.serving.lerobot.messages import Setup
from sigma_jax.policies.serving.lerobot.service import (
    LerobotServer,
    LerobotSettings,
    check_setup,
)
from sigma_jax.policies.serving.recording import Recorder
from tests.policies.acting import Held
from tests.policies.serving.lerobot.client import (
    JOINTS,
    Robot,
    in_policy_s_words,
    readings,
    recorded,
    seen,
    setup,
)
from tests.policies.serving.lerobot.serving import serving

grpc = pytest.importorskip('grpc')
TOKENIZER = 'assets/tokenizer/tokenizer.json'


@pytest.fixture(scope='module')
def policy(small_run):
    return load_policy(small_run.base, tokenizer=TOKENIZER)


@pytest.fixture(scope='module')
def server(policy):
    with serving(policy) as running:
        yield running


@pytest.fixture
def robot(server):
    found = Robot(server.port)
    yield found
    found.close()


def alone(policy, numbers) -> list[np.ndarray]:
    """What the policy gives for observations of one episode, in-process."""
    state, found = policy.initial_state(), []
    for number in numbers:
        given = in_policy_s_words(readings(number))
        (answer,), (state,) = policy.infer_batch([given], [state])
        found.append(answer['actions'])
    return found


def stacked(chunk) -> np.ndarray:
    return np.stack([one.action for one in chunk])


def status(call, *arguments) -> tuple[str, str]:
    """Code and text of the error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code().name, caught.value.details()


def answers(robot, number: int) -> bool:
    """Whether a client is answered."""
    robot.send(seen(number, must_go=True))
    return len(robot.actions()) == 16


def test_a_client_gets_what_the_policy_gives_bit_for_bit(policy, robot):
    robot.start()
    for number, want in enumerate(alone(policy, range(3))):
        robot.send(seen(number, protocol=5 if number == 1 else 4))
        chunk = robot.actions()
        assert np.array_equal(stacked(chunk), want)
        assert [one.timestep for one in chunk] == list(range(number, number + 16))
        want = [100.0 + number + n / 30 for n in range(16)]
        assert [one.timestamp for one in chunk] == want


def test_lerobot_s_own_bytes_are_answered(robot):
    """Those that its client sent, of small images and of large ones in four parts."""
    for number in (0, 1):
        robot.call('Ready')
        robot.call('SendPolicyInstructions', recorded()[f'SendPolicyInstructions/{number}/0'])
        names = sorted(name for name in recorded() if name.startswith(f'SendObservations/{number}'))
        robot.send_parts([recorded()[name] for name in names])
        chunk = robot.actions()
        assert len(chunk) == 16 and np.isfinite(stacked(chunk)).all()


def test_a_chunk_is_as_long_as_the_client_asked(policy, robot):
    robot.start(actions_per_chunk=3)
    robot.send(seen())
    assert np.array_equal(stacked(robot.actions()), alone(policy, [0])[0][:3])


class Limited(ActingPolicy):
    """Says what its actions are within limits, as a Sigma does."""

    def infer_batch(self, observations, states, **wishes):
        answers, after = super().infer_batch(observations, states, **wishes)
        return [one | {'motor_commands': one['actions'].clip(-2, 2)} for one in answers], after


def test_a_robot_gets_the_commands_within_the_limits(policy):
    with serving(Limited(policy.actor)) as running:
        robot = Robot(running.port)
        robot.start(actions_per_chunk=3)
        robot.send(seen())
        (want,) = alone(policy, [0])
        assert np.abs(want[:3]).max() > 2
        assert np.array_equal(stacked(robot.actions()), want[:3].clip(-2, 2))
        robot.close()


def test_only_the_newest_observation_counts(policy, robot):
    robot.start()
    for number in (5, 6, 7):
        robot.send(seen(number))
    (want,) = alone(policy, [7])
    assert np.array_equal(stacked(robot.actions()), want)
    assert robot.actions() == []


def test_an_answer_comes_when_it_is_ready(policy, robot):
    """LeRobot's server gives none before 33 ms; here it waits for the observation alone."""
    robot.start()
    took = []
    for number in range(20):
        robot.send(seen(number))
        start = time.perf_counter()
        assert len(robot.actions()) == 16
        took.append(time.perf_counter() - start)
    given = in_policy_s_words(readings())
    start = time.perf_counter()
    for _ in range(5):
        policy.infer_batch([given], [policy.initial_state()])
    alone_s = (time.perf_counter() - start) / 5
    assert min(took) < alone_s + 0.025


def test_a_call_waits_for_an_observation_and_then_says_nothing(robot):
    robot.start()
    start = time.perf_counter()
    assert robot.call('GetActions') == b''
    assert 0.25 < time.perf_counter() - start < 5
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(robot.actions)
        time.sleep(0.1)
        robot.send(seen())
        assert len(waiting.result(20)) == 16


def test_ready_begins_an_episode(policy, robot):
    robot.start()
    robot.send(seen())
    first = stacked(robot.actions())
    robot.send(seen())  # the same timestep: skipped, and answered after a wait
    assert not np.array_equal(stacked(robot.actions()), first)
    robot.call('Ready')  # who it is stays known
    robot.send(seen())
    (again,), _ = policy.infer_batch([in_policy_s_words(readings())], [policy.initial_state(1)])
    assert np.array_equal(stacked(robot.actions()), again['actions'])


def test_clients_at_once_have_episodes_of_their_own(policy, server):
    """Each gets what it would alone; a batch of several rounds otherwise."""
    robots = [Robot(server.port) for _ in range(4)]

    def drive(number):
        one, found = robots[number], []
        one.start()
        for step in range(5):
            one.send(seen(10 * number + step))
            found.append(stacked(one.actions()))
        return found

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(drive, range(4)))
    for number, got in enumerate(found):
        want = alone(policy, range(10 * number, 10 * number + 5))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
        robots[number].close()


def test_a_connection_that_broke_goes_on(policy, server, robot):
    """LeRobot's client does not say again who it is."""
    robot.start()
    assert answers(robot, 0)
    robot.close()
    again = Robot(server.port)
    again.send(seen(1))
    (want,) = alone(policy, [1])
    assert np.array_equal(stacked(again.actions()), want)
    again.close()


def test_a_client_that_is_gone_takes_nothing_with_it(policy, server, robot):
    """Its answer is not waited for, and its observation is not lost to it."""
    gone = Robot(server.port)
    for one in (robot, gone):
        one.start()  # which asks the policy, so before it is held
    held = Held(server.batcher)
    robot.send(seen())
    assert status(robot.actions, 0.2)[0] == 'DEADLINE_EXCEEDED'
    gone.send(seen(1))
    call = gone.channel.unary_unary('/transport.AsyncInference/GetActions').future(b'')
    time.sleep(0.1)
    call.cancel()
    gone.close()
    held.let_go()
    assert np.array_equal(stacked(robot.actions()), alone(policy, [0])[0])


def test_a_server_that_was_restarted_knows_a_client_by_the_joints(policy):
    with serving(policy, joints=JOINTS) as first:
        robot, port = Robot(first.port), first.port
        robot.start()
        assert answers(robot, 0)
    assert status(robot.call, 'GetActions')[0] == 'UNAVAILABLE'
    with serving(policy, joints=JOINTS, port=port):
        for _ in range(100):
            try:
                robot.send(seen(3))
                break
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                time.sleep(0.1)
        assert np.array_equal(stacked(robot.actions()), alone(policy, [3])[0])
        robot.close()


def test_a_server_that_stops_answers_what_it_has(policy):
    with serving(policy, wait_s=20) as running:
        working, idle = Robot(running.port), Robot(running.port)
        for robot in (working, idle):
            robot.start()
        held = Held(running.batcher)
        working.send(seen())
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answer, nothing = pool.submit(working.actions), pool.submit(idle.actions)
            time.sleep(0.2)
            start = time.perf_counter()
            stop = pool.submit(running.stop)
            assert nothing.result(10) == [] and time.perf_counter() - start < 5
            held.let_go()
            assert np.array_equal(stacked(answer.result(20)), alone(policy, [0])[0])
            assert stop.result(30)
        assert status(idle.call, 'Ready')[0] == 'UNAVAILABLE'
        working.close()
        idle.close()


def test_a_server_that_must_stop_says_what_it_has_not_answered(policy, caplog):
    with serving(policy) as running:
        robot = Robot(running.port)
        robot.start()
        held = Held(running.batcher)
        robot.send(seen())
        with concurrent.futures.ThreadPoolExecutor() as pool:
            late = pool.submit(status, robot.actions)
            time.sleep(0.2)
            threading.Timer(1, held.let_go).start()
            assert not running.stop(grace_s=0.2)
            assert late.result(20)[0] in ('UNAVAILABLE', 'CANCELLED')
        robot.close()
    assert '1 requests were not answered within 0.2 s' in caplog.text


WRONG = {
    'cut': seen()[:-20],
    'no pickle': b'\x00' * 100,
    'empty': b'\x80\x04N.',
    'a name outside the list': b'\x80\x04cos\ngetcwd\n)R.',
    'deep': b'\x80\x04' + b']' * 50_000 + b'a' * 49_999 + b'.',
    'nested': seen(observation=readings(up=[[[0]]])),
    'wrong type': seen(observation=readings(up='an image')),
    'wrong shape': seen(observation=readings(up=np.zeros((28, 28), np.uint8))),
    'NaN': seen(observation=readings(**{JOINTS[0]: float('nan')})),
    'a joint missing': seen(observation={'task': 'x', 'up': np.zeros((4, 4, 3), np.uint8)}),
    'unknown field': seen(more=1),
    'no time': seen(timestamp=float('inf')),
}


@pytest.mark.parametrize('case', WRONG)
def test_a_broken_message_is_an_error_to_its_client_alone(server, robot, caplog, case):
    other, before = Robot(server.port), server.count('refused')
    robot.start()
    other.start()
    with caplog.at_level(logging.WARNING):
        code, text = status(robot.send, WRONG[case])
    assert code == 'INVALID_ARGUMENT' and text.startswith('expected ') and '; ' in text
    assert text in caplog.text and server.count('refused') == before + 1
    assert answers(robot, 1) and answers(other, 1)
    other.close()


def test_broken_parts_are_an_error_to_their_client_alone(server, robot):
    robot.start()
    whole = list(wire.write_parts(seen(), 1000))
    assert 'got a part of one' in status(robot.send_parts, whole[:-1])[1]
    assert 'transfer state 2' in status(robot.send_parts, whole[1:])[1]
    assert 'expected a message of' in status(robot.send_parts, [b'\xff\xff'])[1]
    assert 'got a part of one' in status(robot.send_parts, [])[1]
    large = wire.write_parts(bytes(9 << 20), 5 << 20)
    assert status(robot.send_parts, large)[0] == 'RESOURCE_EXHAUSTED'
    assert answers(robot, 1)


def test_an_observation_beyond_the_limit_is_refused_before_it_is_whole(policy):
    with serving(policy, limit=5 << 20) as running:
        robot = Robot(running.port)
        robot.start()
        sent = []

        def parts():
            for part in wire.write_parts(bytes(100 << 20)):
                sent.append(len(part))
                yield part

        code, text = status(robot.send_parts, parts())
        assert code == 'INVALID_ARGUMENT' and 'at most 5,242,880 bytes, got 6,291,456' in text
        assert len(sent) < 30 and answers(robot, 1)
        robot.close()


def test_an_observation_must_come_in_time(policy):
    with serving(policy, part_s=0.2) as running:
        robot = Robot(running.port)
        robot.start()

        def slow():
            yield next(iter(wire.write_parts(seen(), 1000)))
            time.sleep(1)

        assert 'within 0.2 s, got a part' in status(robot.send_parts, slow())[1]
        assert answers(robot, 1)
        robot.close()


def test_what_the_policy_refuses_is_reported_with_the_actions(policy, robot):
    """And the next observation of the same timestep is answered: LeRobot's would be skipped."""
    robot.start()
    assert answers(robot, 0)
    robot.send(seen(1, observation=readings(task='lift it ' * 300)))
    code, text = status(robot.actions)
    assert code == 'INVALID_ARGUMENT' and 'expected a prompt of at most' in text
    robot.send(seen(1))
    assert np.array_equal(stacked(robot.actions()), alone(policy, [0, 1])[1])


def test_a_mistake_of_ours_is_reported_and_logged(server, robot, policy, caplog):
    robot.start()
    robot.send(seen())
    server.batcher.policy, kept = None, server.batcher.policy
    assert status(robot.actions) == ('INTERNAL', 'the server failed: AttributeError')
    server.batcher.policy = kept
    assert 'GetActions failed' in caplog.text and 'Traceback' in caplog.text
    robot.send(seen())
    assert np.array_equal(stacked(robot.actions()), alone(policy, [0])[0])


def test_a_client_that_has_not_said_who_it_is_is_reported(policy):
    with serving(policy) as running:
        robot = Robot(running.port)
        robot.call('Ready')
        code, text = status(robot.send, seen())
        assert code == 'FAILED_PRECONDITION' and 'start the robot client anew' in text
        assert robot.actions() == []
        robot.close()


def test_a_robot_that_does_not_fit_is_reported_at_its_start(server, robot):
    state = {'dtype': 'float32', 'shape': (2,), 'names': ['a', 'b']}
    camera = {'dtype': 'image', 'shape': (4, 4, 3), 'names': []}
    features = {'observation.state': state, 'observation.images.up': camera}
    wrong = wire.write_data(setup(lerobot_features=features))
    code, text = status(robot.call, 'SendPolicyInstructions', wrong)
    assert code == 'INVALID_ARGUMENT' and 'expected a robot of 6 joints, got 2 (a, b);' in text
    assert status(robot.call, 'SendPolicyInstructions', b'\xff')[0] == 'INVALID_ARGUMENT'
    robot.start()
    assert answers(robot, 0)


def test_the_order_of_joints_is_compared_with_the_policy_s(policy):
    spec = policy.spec
    known = Setup(JOINTS, {'up': 'observation.images.up'}, 50, ('', '', ''))
    check_setup(known, spec, JOINTS)
    with pytest.raises(UserError, match='expected joints in the order gripper.pos, .*, got should'):
        check_setup(known, spec, JOINTS[::-1])
    check_setup(known, spec, tuple(name.upper() for name in JOINTS))  # other names say nothing


def test_cameras_that_the_policy_refuses_are_reported_at_the_start(small_run, policy):
    meta = open_shards(small_run.shards).meta
    spec = dataclasses.replace(policy.spec, cameras=meta.camera_names)
    assert spec.cameras == ('up', 'side')
    processor = dataclasses.replace(policy.actor.processor, cameras=spec.cameras)
    base = open_base(str(small_run.base), ModelConfig())
    actor = BaseActor(base, processor, policy.actor.sampler, spec.horizon)
    with serving(ActingPolicy(actor)) as running:
        robot = Robot(running.port)
        camera = {'dtype': 'image', 'shape': (28, 28, 3), 'names': []}
        state = {'dtype': 'float32', 'shape': (6,), 'names': list(JOINTS)}
        features = {'observation.state': state, 'observation.images.top': camera}
        wrong = wire.write_data(setup(lerobot_features=features))
        code, text = status(robot.call, 'SendPolicyInstructions', wrong)
        assert code == 'INVALID_ARGUMENT' and 'cameras out of' in text and 'top' in text
        renamed = {'observation.images.top': 'observation.images.up'}
        robot.start(lerobot_features=features, rename_map=renamed)
        robot.send(seen(observation=readings(top=readings()['up'])))
        assert len(robot.actions()) == 16
        robot.close()


def test_the_program_is_compiled_before_the_robot_starts(policy, server, robot):
    """With images of the size that the client announces; its episode has not begun."""
    before = len(server.batches)
    robot.start()
    assert [one.size for one in server.batches[before:]] == [1]
    robot.send(seen())
    assert np.array_equal(stacked(robot.actions()), alone(policy, [0])[0])


def test_the_path_that_a_client_names_is_reported_and_not_loaded(robot, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        robot.start(pretrained_name_or_path=str(tmp_path / 'trap'))
    assert f"{str(tmp_path / 'trap')!r} on 'cpu', which is not loaded" in caplog.text
    assert answers(robot, 0)


def test_answers_refusals_and_failures_are_counted(server, robot, policy):
    def counts():
        return [server.count(outcome) for outcome in ('answered', 'refused', 'failed')]

    before = counts()
    robot.start()
    assert answers(robot, 0) and robot.actions() == []
    assert counts() == [before[0] + 1, *before[1:]]  # nothing to say is no answer
    status(robot.send, b'')
    server.batcher.policy = None
    robot.send(seen(1))
    status(robot.actions)
    server.batcher.policy = policy
    assert counts() == [n + 1 for n in before]
    page = server.metrics.page().decode()
    assert f'sigma_lerobot_clients {float(len(server.sessions()))}' in page


def test_what_was_answered_is_recorded_by_episodes(policy, tmp_path):
    recorder = Recorder(tmp_path / 'served', policy.spec)
    with serving(policy, recorder) as running:
        robot = Robot(running.port)
        for numbers in ((0, 1, 2), (3, 4)):  # `Ready` ends the first, the server's end the second
            robot.start()
            for number in numbers:
                robot.send(seen(number))
                assert len(robot.actions()) == 16
        robot.close()
    assert recorder.close() == tmp_path / 'served'
    kept = [np.load(tmp_path / f'served/chunks/episode_{n:06d}.npz')['actions'] for n in (0, 1)]
    assert np.array_equal(kept[0], alone(policy, [0, 1, 2])) and len(kept[1]) == 2


def test_more_observations_than_the_rate_are_refused(policy):
    with serving(policy, rate=5) as running:
        robot = Robot(running.port)
        robot.start()
        for number in range(4):  # and who it is
            robot.send(seen(number))
        assert 'expected at most 5 requests a second' in status(robot.send, seen(9))[1]
        assert len(robot.actions()) == 16
        robot.close()


def test_a_key_is_asked_for(policy):
    with serving(policy, key='secret') as running:
        for sent in ({}, {'authorization': 'Api-Key wrong'}, {'authorization': 'secret'}):
            stranger = Robot(running.port, **sent)
            code, text = status(stranger.call, 'Ready')
            assert code == 'UNAUTHENTICATED' and 'expected the key of this server' in text
            assert 'secret' not in text
            stranger.close()
        friend = Robot(running.port, authorization='Api-Key secret')
        friend.start()
        assert answers(friend, 0)
        friend.close()
        assert len(running.sessions()) == 1  # strangers leave nothing


def test_beyond_this_machine_there_must_be_a_key():
    with pytest.raises(UserError, match=r'expected a key for what others reach \(0.0.0.0\)'):
        LerobotServer(None, LerobotSettings(host='0.0.0.0'))
    LerobotServer(None, LerobotSettings(host='0.0.0.0', key='x'))


def test_tls(policy, tmp_path):
    key, chain = tmp_path / 'key.pem', tmp_path / 'chain.pem'
    make = f'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {key}'
    make += f' -out {chain} -subj /CN=localhost -addext subjectAltName=DNS:localhost'
    subprocess.run(['openssl', *make.split()], check=True, capture_output=True)
    with serving(policy, certificate=str(chain), private_key=str(key)) as running:
        safe = Robot(running.port, grpc.ssl_channel_credentials(chain.read_bytes()))
        safe.start()
        assert answers(safe, 0)
        safe.close()
        plain = Robot(running.port)
        assert status(plain.call, 'Ready')[0] == 'UNAVAILABLE'
        plain.close()
    with (
        pytest.raises(UserError, match='expected a certificate and its key in PEM'),
        serving(policy, certificate=str(chain), private_key=str(tmp_path / 'none')),
    ):
        pass


def test_a_port_that_is_taken_is_reported(policy, server):
    with (
        pytest.raises(UserError, match=f'a free address, got 127.0.0.1:{server.port}, which'),
        serving(policy, port=server.port),
    ):
        pass


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'grpc.aio', None)
    with pytest.raises(UserError, match=r"package grpcio .* pip install 'sigma_jax\[serve\]'"):
        LerobotServer(SimpleNamespace(policy=None))  # before a door of any server opens
