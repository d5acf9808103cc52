"""A policy's servers from start to end: programs compiled beside them, then a signal."""

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from sigma_jax.policies.protocol import Program
from sigma_jax.policies.serving.batching import Batcher

SIGNALS = (signal.SIGTERM, signal.SIGINT)

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
    programs: Sequence[Program],
    on_program: OnProgram = lambda *_: None,
) -> None:
    """Compiles the programs of a policy, or fetches them from the cache; requests come in between.

    Args:
      batcher: of the policy.
      programs: of the policy (`Policy.programs`).
      on_program: is told of each.
    """
    for n, (size, program) in enumerate(programs):
        start = time.perf_counter()
        await asyncio.wrap_future(batcher.call(program))
        on_program(size, n + 1, len(programs), time.perf_counter() - start)
