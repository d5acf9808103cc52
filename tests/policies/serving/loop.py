"""One event loop for all servers of tests, in a thread that ends with the process.

One, because grpc.aio has one place for the events of all loops of a process; and as a daemon, so
that a server which does not stop fails its test and holds up nothing.
"""

import asyncio
import functools
import threading
from typing import Any


class Loop:
    """An event loop in a thread; `run` waits for a coroutine there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name='servers', daemon=True).start()

    def run(self, work: Any, timeout: float = 60) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        finally:
            future.cancel()  # where it took too long


@functools.cache
def servers() -> Loop:
    """The loop."""
    return Loop()
