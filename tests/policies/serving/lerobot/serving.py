"""A server that runs beside a test which is its client."""

import contextlib
import dataclasses
import re

from sigma_jax.policies.serving.batching import Batcher
from sigma_jax.policies.serving.lerobot.service import LerobotServer, LerobotSettings
from sigma_jax.policies.serving.metrics import Metrics
from tests.policies.serving.loop import servers

SETTINGS = LerobotSettings(port=0, wait_s=0.3)


class Running:
    """A server that runs until it is stopped."""

    def __init__(self, policy, settings=SETTINGS, recorder=None):
        self.metrics, self.batches = Metrics(), []
        self.batcher = Batcher(policy, 4, 0.01, on_batch=self.batches.append)
        self.server = LerobotServer(self.batcher, settings, self.metrics, recorder)
        self.run, self.port, self._stopped = servers().run, 0, False

    def stop(self, grace_s: float = 5) -> bool:
        """Stops it; twice is once. Whether all was answered."""
        if self._stopped:
            return True
        self._stopped = True
        try:
            return self.run(self.server.stop(grace_s))
        finally:
            self.batcher.close(30)

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
