"""The websocket of openpi's clients, and two pages: `/healthz` and `/metrics`.

On connecting a client gets the metadata. Then each binary frame is a request, and the answer a
binary frame; or a text frame with a sentence, where the request was wrong: the next one is answered
all the same. Where the server itself failed, it closes with 1011 as openpi's does.
"""

import asyncio
import contextlib
import dataclasses
import logging
import ssl
import time
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from sigma_jax.errors import UserError
from sigma_jax.policies.serving import metrics as counted
from sigma_jax.policies.serving.batching import Batcher
from sigma_jax.policies.serving.limits import Rate, check_key, is_key, tls_context
from sigma_jax.policies.serving.metrics import CONTENT_TYPE, Metrics
from sigma_jax.policies.serving.openpi.keys import PRESETS, KeyMap, names
from sigma_jax.policies.serving.openpi.session import Session, most_delay
from sigma_jax.policies.serving.openpi.wire import Bounds, pack, unpack
from sigma_jax.policies.serving.recording import Recorder

LONGEST = 800  # letters of a sentence to a client
STOPS = 'the server stops'

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OpenpiSettings:
    """How openpi's clients are served.

    Attributes:
      host: address to listen at.
      port: 0 takes a free one.
      keys: the clients' names of cameras, state and instruction.
      default_task: the instruction of an observation without one; '': it must have one.
      key: that clients must send, in `Authorization: Api-Key KEY`; '' asks for none.
      certificate: file of the TLS certificate chain; '' serves without TLS.
      private_key: its file.
      bounds: of a message.
      clients: most at once.
      rate: requests a second of a client, at most; 0: no bound.
      idle_s: after which a client that asks nothing is disconnected.
    """

    host: str = '127.0.0.1'
    port: int = 8000
    keys: KeyMap = PRESETS['lerobot']
    default_task: str = ''
    key: str = ''
    certificate: str = ''
    private_key: str = ''
    bounds: Bounds = Bounds()
    clients: int = 64
    rate: float = 200.0
    idle_s: float = 600.0


@dataclasses.dataclass(eq=False)
class _Client:
    """One connection; `busy` while it has a request."""

    socket: ServerConnection
    session: Session
    rate: Rate
    task: asyncio.Task[Any] | None = None
    busy: bool = False
    last_ms: float | None = None  # the request before, from its coming to its answer


class OpenpiServer:
    """Serves a policy to openpi's clients, on the event loop that runs it.

    Args:
      batcher: that asks the policy.
      settings: how.
      metrics: where it counts.
      recorder: keeps what comes and goes; None: nothing does.

    Raises:
      UserError: an address that others reach, without a key; a certificate that cannot be read.

    Examples:
      >>> async def run(batcher):
      ...     server = OpenpiServer(batcher)
      ...     await server.start()
      ...     await asyncio.Event().wait()
    """

    def __init__(
        self,
        batcher: Batcher,
        settings: OpenpiSettings = OpenpiSettings(),
        metrics: Metrics | None = None,
        recorder: Recorder | None = None,
    ):
        check_key(settings.host, settings.key)
        self._tls: ssl.SSLContext | None = tls_context(settings.certificate, settings.private_key)
        self._batcher, self._settings = batcher, settings
        self._metrics, self._recorder = metrics or Metrics(), recorder
        self._clients: set[_Client] = set()
        self._metrics.gauge('clients', 'connections', lambda: len(self._clients))
        told = batcher.policy.metadata()
        keys = list(names(settings.keys))
        self._hello = pack({**told, 'observation_keys': keys, 'max_delay': most_delay(told)})
        self._server: Server | None = None
        self._stopping = False

    async def start(self) -> int:
        """Begins to listen.

        Returns:
          The port.

        Raises:
          UserError: the address cannot be had.
        """
        settings = self._settings
        try:
            self._server = await serve(
                self._handle,
                settings.host,
                settings.port,
                origins=[None],  # a page in a browser is no robot
                compression=None,
                server_header=None,
                max_size=settings.bounds.bytes,
                max_queue=2,
                process_request=self._process,
                ssl=self._tls,
                logger=logging.getLogger(f'{__name__}.socket'),
            )
        except OSError as error:
            raise UserError(
                f'expected a free address, got {settings.host}:{settings.port} '
                f'({error.strerror}); choose another --port'
            ) from error
        return next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self, grace_s: float = 10.0) -> bool:
        """Refuses new clients and requests, answers those that are there, and closes.

        Args:
          grace_s: longest wait for that, seconds.

        Returns:
          Whether all were answered.
        """
        self._stopping = True
        if self._server is None:
            return True
        self._server.close(close_connections=False)
        tasks = {one.task: one for one in self._clients if one.task is not None}
        for task, client in tasks.items():
            if not client.busy:
                task.cancel(STOPS)
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        unanswered = [task for task in late if tasks[task].busy]
        for task in late:
            task.cancel(STOPS)
        if unanswered:
            log.warning('%d requests were not answered within %g s', len(unanswered), grace_s)
        if late:
            await asyncio.wait(late, timeout=1.0)
        return not unanswered

    def _process(self, socket: ServerConnection, request: Request) -> Response | None:
        """The two pages, and who may come in."""
        path = request.path.partition('?')[0]
        if path == '/healthz':
            return socket.respond(HTTPStatus.OK, 'OK\n')
        if not is_key(request.headers.get('Authorization'), self._settings.key):
            log.warning('%s: no or another key', _peer(socket))
            text = 'expected the key of this server; send it as Authorization: Api-Key KEY\n'
            return socket.respond(HTTPStatus.UNAUTHORIZED, text)
        if path == '/metrics':
            response = socket.respond(HTTPStatus.OK, self._metrics.page().decode())
            del response.headers['Content-Type']
            response.headers['Content-Type'] = CONTENT_TYPE
            return response
        if 'Upgrade' not in request.headers and path != '/':
            text = f'expected /healthz, /metrics or a websocket, got {path[:100]}; ask for one\n'
            return socket.respond(HTTPStatus.NOT_FOUND, text)
        if len(self._clients) >= self._settings.clients:
            text = f'expected at most {self._settings.clients} clients, got one more; come later\n'
            return socket.respond(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _handle(self, socket: ServerConnection) -> None:
        """One client, from its coming to its going."""
        settings = self._settings
        session = Session(
            self._batcher,
            settings.keys,
            default_task=settings.default_task,
            record=None if self._recorder is None else self._recorder.episode(),
        )
        client = _Client(socket, session, Rate(settings.rate), asyncio.current_task())
        self._clients.add(client)
        log.info('%s: connected', _peer(socket))
        try:
            await self._talk(client)
        except ConnectionClosed:
            pass
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            with contextlib.suppress(ConnectionClosed, asyncio.CancelledError):
                await socket.close(CloseCode.GOING_AWAY, STOPS)
        finally:
            self._clients.discard(client)
            session.close()
            log.info('%s: gone', _peer(socket))

    async def _talk(self, client: _Client) -> None:
        """Requests and answers, one after the other."""
        socket = client.socket
        await socket.send(self._hello)
        while not self._stopping:
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    message = await socket.recv()
            except TimeoutError:
                text = f'no request for {self._settings.idle_s:g} s'
                await socket.close(CloseCode.GOING_AWAY, text)
                return
            client.busy = True
            await self._answer(client, message)
            client.busy = False
        await socket.close(CloseCode.GOING_AWAY, STOPS)

    async def _answer(self, client: _Client, message: str | bytes) -> None:
        """One request; what is wrong with it is told to this client alone."""
        start = time.perf_counter()
        outcome = counted.ANSWERED
        try:
            await client.socket.send(await self._reply(client, message))
        except UserError as error:
            outcome = counted.REFUSED
            log.info('%s: refused: %s', _peer(client.socket), str(error)[:LONGEST])
            await client.socket.send(str(error)[:LONGEST])
        except (ConnectionClosed, asyncio.CancelledError):
            raise
        except Exception:
            outcome = counted.FAILED
            log.exception('%s: a request failed', _peer(client.socket))
            await client.socket.send('the server failed at this request; its log says how')
            await client.socket.close(CloseCode.INTERNAL_ERROR, 'the server failed')
        finally:
            seconds = time.perf_counter() - start
            client.last_ms = 1e3 * seconds
            self._metrics.request(outcome, seconds)

    async def _reply(self, client: _Client, message: str | bytes) -> bytes:
        client.rate.take()
        if isinstance(message, str):
            raise UserError('expected a binary frame with msgpack, got a text frame; send bytes')
        reply = await client.session.answer(unpack(message, self._settings.bounds))
        if client.last_ms is not None and 'server_timing' in reply:
            reply['server_timing']['prev_total_ms'] = client.last_ms
        return pack(reply)


def _peer(socket: ServerConnection) -> str:
    """Address and port of a client."""
    address = socket.remote_address
    return ':'.join(map(str, address[:2])) if address else 'a client'
