"""A policy's servers from start to end: programs compiled beside them, then a signal."""

import asyncio
import contextlib
import functools
import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sigma_jax.policies.protocol import IMAGES, STATE, TASK, Policy, PolicySpec
from sigma_jax.policies.serving.batching import Batcher

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# of a robot's pictures: one that is resized, and one that may be the model's own size; where the
# first comes in fractions of grey levels they are two programs
PICTURES = ((480, 640), (224, 224))

log = logging.getLogger(__name__)

# (batch size, programs done, programs in all, seconds that the last took)
OnProgram = Callable[[int, int, int, float], None]


class Server(Protocol):
    """What serves one protocol, on the event loop that runs it."""

    async def start(self) -> int:
        """Begins to listen.

        Returns:
          The port.
        """

    async def stop(self, grace_s: float = 10.0) -> bool | None:
        """Answers what is there, and closes.

        Args:
          grace_s: longest wait for that, seconds.

        Returns:
          False where something was not answered.
        """


async def run(
    batcher: Batcher,
    servers: Sequence[Server],
    *,
    grace_s: float = 10.0,
    on_start: Callable[[Sequence[int]], None] = lambda ports: None,
    meanwhile: Callable[[], Any] | None = None,
) -> bool:
    """Serves until SIGTERM or SIGINT.

    Args:
      batcher: closed at the end; what it still compiles then is not waited for beyond `grace_s`.
      servers: that ask it.
      grace_s: longest wait for answers at the end, seconds.
      on_start: is told the ports, once all listen.
      meanwhile: a coroutine function that runs beside the servers, such as a warm-up.

    Returns:
      Whether everything that was asked was answered.

    Raises:
      UserError: an address cannot be had.
    """
    with stop_event() as stop:
        beside: asyncio.Task[Any] | None = None
        started: list[Server] = []
        answered = True
        try:
            ports = []
            for server in servers:
                ports.append(await server.start())
                started.append(server)
            on_start(ports)
            if meanwhile is not None:
                beside = asyncio.create_task(_logged(meanwhile))
            await stop.wait()
            log.info('stopping: answers what is there, for %g s at most', grace_s)
        finally:
            if beside is not None:
                beside.cancel()
            began = time.monotonic()
            stops = [_stopped(server, grace_s) for server in started]
            answered = all(await asyncio.gather(*stops))
            left = max(grace_s - (time.monotonic() - began), 0.1)
            await asyncio.to_thread(batcher.close, left)
    return answered


async def _stopped(server: Server, grace_s: float) -> bool:
    try:
        return await server.stop(grace_s) is not False
    except Exception:
        log.exception('a server did not stop')
        return False


async def _logged(work: Callable[[], Any]) -> None:
    try:
        await work()
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception('what runs beside the servers failed')


@contextlib.contextmanager
def stop_event() -> Iterator[asyncio.Event]:
    """Within the block, the first SIGTERM or SIGINT sets the event; the second does what it always
    does. Outside of the main thread signals are left as they are.
    """
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def note() -> None:
        event.set()
        restore()

    for number in SIGNALS:
        loop.add_signal_handler(number, note)
    try:
        yield event
    finally:
        restore()


async def warm_up(
    batcher: Batcher,
    observations: Sequence[Mapping[str, Any]],
    on_program: OnProgram = lambda *_: None,
) -> None:
    """Compiles the programs of a policy, or fetches them from the cache; requests come in between.

    Args:
      batcher: whose sizes are compiled, the smallest first.
      observations: one for each program of a size.
      on_program: is told of each.
    """
    jobs = [*itertools.product(batcher.sizes, observations, ways(batcher.policy))]
    for n, (size, seen, wishes) in enumerate(jobs):
        start = time.perf_counter()
        call = functools.partial(_once, batcher, size, seen, wishes)
        await asyncio.wrap_future(batcher.call(call))
        on_program(size, n + 1, len(jobs), time.perf_counter() - start)


def ways(policy: Policy) -> list[Mapping[str, Any]]:
    """What else a robot may wish for that has a program of its own.

    Args:
      policy: that acts.

    Returns:
      Nothing, first; and a chunk to go on from, where the policy does.
    """
    spec = policy.spec
    if policy.metadata()['chunking'] is None:
        return [{}]
    return [{}, {'prefix': np.zeros((spec.horizon, spec.action_dim), np.float32), 'delay': 1}]


def _once(batcher: Batcher, size: int, seen: Mapping[str, Any], wishes: Mapping[str, Any]) -> None:
    state = batcher.policy.initial_state()
    rows: dict[str, Any] = {name: [x] * size for name, x in wishes.items()}
    batcher.policy.infer_batch([seen] * size, [state] * size, **rows)


def examples(
    spec: PolicySpec,
    cameras: Sequence[str] = (),
    pictures: Sequence[tuple[int, int]] = PICTURES,
) -> list[dict[str, Any]]:
    """Observations that a policy compiles its programs for.

    Args:
      spec: what it takes.
      cameras: that will come, where the policy takes any.
      pictures: sizes, (height, width).

    Returns:
      Black ones; none where it is not known which cameras will come.
    """
    names = spec.cameras or cameras
    rest = {STATE: np.zeros(spec.state_dim, np.float32), TASK: 'wait'}
    return [
        {IMAGES + name: np.zeros((*size, 3), np.uint8) for name in names} | rest
        for size in pictures
        if names
    ]
