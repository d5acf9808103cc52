"""A server on loopback for tests, and plain clients."""

import contextlib
import http.client
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect

from sigma_jax.policies.serving.batching import Batcher
from sigma_jax.policies.serving.metrics import Metrics
from sigma_jax.policies.serving.openpi.server import OpenpiServer, OpenpiSettings
from sigma_jax.policies.serving.openpi.wire import pack, unpack
from sigma_jax.policies.serving.recording import Recorder
from tests.policies.serving.loop import servers


class Served:
    """A server that runs, and what speaks to it."""

    def __init__(
        self,
        batcher: Batcher,
        settings: OpenpiSettings,
        metrics: Metrics,
        recorder: Recorder | None = None,
    ):
        self.loop, self.batcher, self.metrics = servers(), batcher, metrics
        self.server = OpenpiServer(batcher, settings, metrics, recorder)
        self.port = self.loop.run(self.server.start())

    def stop(self, grace_s: float = 10) -> bool:
        return self.loop.run(self.server.stop(grace_s))

    @contextlib.contextmanager
    def client(self, **settings: Any) -> Iterator['Client']:
        """A connection."""
        scheme = 'wss' if 'ssl' in settings else 'ws'
        uri = f'{scheme}://127.0.0.1:{self.port}'
        with connect(uri, compression=None, max_size=None, **settings) as socket:
            yield Client(socket)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        """A page: its status, type and text."""
        found = http.client.HTTPConnection('127.0.0.1', self.port, timeout=10)
        with contextlib.closing(found):
            found.request('GET', path, headers=headers or {})
            answer = found.getresponse()
            return answer.status, answer.headers['Content-Type'], answer.read().decode()


class Client:
    """Asks as openpi's client does."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket
        self.metadata = unpack(socket.recv(timeout=30))

    def ask(self, message: Any) -> Any:
        """An answer, or the text of an error."""
        return self.send(pack(message))

    def send(self, frame: str | bytes) -> Any:
        self.socket.send(frame)
        answer = self.socket.recv(timeout=60)
        return answer if isinstance(answer, str) else unpack(answer)


@contextlib.contextmanager
def serving(
    policy: Any,
    settings: OpenpiSettings | None = None,
    *,
    max_batch: int = 4,
    recorder: Recorder | None = None,
) -> Iterator[Served]:
    """A server of a policy; free port, no bound on the rate."""
    metrics = Metrics()
    batcher = Batcher(policy, max_batch, on_batch=metrics.batch)
    served = Served(batcher, settings or OpenpiSettings(port=0, rate=0), metrics, recorder)
    try:
        yield served
        served.stop()
    finally:
        batcher.close(30)
