"""A server's life: it listens, compiles beside, and ends with a signal once all is answered."""

import asyncio
import os
import signal
import threading
import time

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.policies.serving import running
from sigma_jax.policies.serving.batching import Batcher
from tests.policies.acting import ManyRobots, observation


@pytest.fixture(scope='module')
def policy(small_run):
    return ManyRobots.load(small_run.base)


class Listener:
    """A server that notes what it is told."""

    def __init__(self, answered=True, port=7):
        self.told, self._answered, self._port = [], answered, port

    async def start(self):
        if not self._port:
            raise UserError('expected a free address, got none')
        self.told.append('start')
        return self._port

    async def stop(self, grace_s):
        self.told.append(f'stop {grace_s}')
        return self._answered


def signalled(number):
    return lambda ports: threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_handlers_are_as_before(policy, number):
    batcher, servers, before = (
        Batcher(policy),
        [Listener(), Listener(None)],
        signal.getsignal(number),
    )
    work = running.run(batcher, servers, grace_s=3, on_start=signalled(number))
    assert asyncio.run(work) is True
    assert [server.told for server in servers] == [['start', 'stop 3']] * 2
    with pytest.raises(UserError, match='got one that stops'):
        batcher.submit(observation(), policy.initial_state())
    assert signal.getsignal(number) is before


def test_what_was_not_answered_is_told(policy):
    work = running.run(Batcher(policy), [Listener(False)], on_start=signalled(signal.SIGTERM))
    assert asyncio.run(work) is False


def test_a_program_that_is_compiled_is_not_waited_for(policy):
    """Nobody has asked for it: all is answered."""
    batcher, go = Batcher(policy), threading.Event()
    batcher.call(lambda: go.wait(30))
    start, began = signalled(signal.SIGTERM), time.monotonic()
    assert asyncio.run(running.run(batcher, [], grace_s=0.2, on_start=start)) is True
    assert time.monotonic() - began < 5
    go.set()
    assert batcher.close(30)


def test_a_server_that_fails_to_stop_holds_up_no_other(policy, caplog):
    class Fails(Listener):
        async def stop(self, grace_s):
            raise OSError('broken')

    batcher, other, start = Batcher(policy), Listener(), signalled(signal.SIGTERM)
    assert asyncio.run(running.run(batcher, [Fails(), other], on_start=start)) is False
    assert other.told == ['start', 'stop 10.0'] and 'a server did not stop' in caplog.text
    assert batcher.close(10)


def test_where_one_cannot_listen_the_others_are_stopped(policy):
    batcher, first = Batcher(policy), Listener()
    with pytest.raises(UserError, match='expected a free address'):
        asyncio.run(running.run(batcher, [first, Listener(port=0)]))
    assert first.told == ['start', 'stop 10.0'] and batcher.close(10)


def test_what_runs_beside_may_fail(policy, caplog):
    async def fails():
        raise OSError('full')

    work = running.run(Batcher(policy), [], on_start=signalled(signal.SIGTERM), meanwhile=fails)
    assert asyncio.run(work) is True and 'beside the servers failed' in caplog.text


def test_every_program_is_compiled_once_and_told_of(policy):
    batcher, told = Batcher(policy, 3), []
    programs = policy.programs(batcher.sizes)
    sizes = [size for size, _ in programs]
    assert sorted(sizes) == sizes and set(sizes) == {1, 2, 3}
    asyncio.run(running.warm_up(batcher, programs, lambda *one: told.append(one[:3])))
    assert told == [(size, n + 1, len(sizes)) for n, size in enumerate(sizes)]
    batcher.close()


def test_a_policy_that_goes_on_has_a_program_more(policy):
    """That of a chunk with something left over of the one before."""
    goes_on = ActingPolicy(policy.actor, chunking=ChunkingConfig('guided'))
    more, plain = goes_on.programs((1, 2)), policy.programs((1, 2))
    asked = [program.args[2].chunking for _, program in more]
    assert len(more) == 2 * len(plain) and asked[0] is None
    assert asked[-1].prefix.shape == (2, 16, 6) and asked[-1].delay.tolist() == [1, 1]


def test_a_request_comes_between_two_programs(policy):
    batcher, order = Batcher(policy, 4), []

    async def both():
        warm = asyncio.create_task(
            running.warm_up(
                batcher,
                policy.programs(batcher.sizes),
                lambda size, *_: order.append(size),
            )
        )
        await asyncio.sleep(0)
        await batcher.infer(observation(), policy.initial_state())
        order.append('answered')
        await warm

    asyncio.run(both())
    assert order.index('answered') <= 2 and order[-1] == 4
    batcher.close()


def test_no_program_is_left_for_the_first_request(policy, monkeypatch):
    """A warm policy compiles nothing more, whatever the size of a picture."""
    batcher = Batcher(policy, 2)
    asyncio.run(running.warm_up(batcher, policy.programs(batcher.sizes)))
    compiled = policy.actor.sampler.run._cache_size()
    for size in (1, 2):
        seen = observation(size=40 + size)
        policy.infer_batch([seen] * size, [policy.initial_state(9)] * size)
    assert policy.actor.sampler.run._cache_size() == compiled
    assert np.isfinite(policy.infer(observation())['actions']).all()
    batcher.close()
