"""A server in a thread of its own, as the script runs it, for tests that are its clients."""

import asyncio
import contextlib
import dataclasses
import re
import threading

from sigma_jax.policies.serving.batching import Batcher
from sigma_jax.policies.serving.lerobot.service import LerobotServer, LerobotSettings
from sigma_jax.policies.serving.metrics import Metrics

SETTINGS = LerobotSettings(port=0, wait_s=0.3)


class Running:
    """A server that runs until it is stopped."""

    def __init__(self, policy, settings=SETTINGS, recorder=None):
        self.metrics, self.batches = Metrics(), []
        self.batcher = Batcher(policy, 4, 0.01, on_batch=self.batches.append)
        self.server = LerobotServer(self.batcher, settings, self.metrics, recorder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.port = 0

    def run(self, coroutine, timeout: float = 60):
        """Runs something on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def stop(self, grace_s: float = 5) -> bool:
        """Stops it; twice is once. Whether all was answered."""
        if self._loop.is_closed():
            return True
        answered = self.run(self.server.stop(grace_s))
        self.batcher.close(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        return answered

    def count(self, outcome: str) -> int:
        """Requests that ended so."""
        page = self.metrics.page().decode()
        found = re.search(rf'sigma_requests_total{{outcome="{outcome}"}} (\S+)', page)
        return int(float(found[1])) if found else 0

    def sessions(self) -> dict:
        """What is kept of clients."""
        return self.server._sessions.by_peer


@contextlib.contextmanager
def serving(policy, recorder=None, **settings):
    """A server for a while."""
    running = Running(policy, dataclasses.replace(SETTINGS, **settings), recorder)
    try:
        running.port = running.run(running.server.start())
        yield running
    finally:
        running.stop()
