"""`transport.AsyncInference` of LeRobot 0.6, so that its robot client drives a policy from here.

The client sends observations and asks for actions at the same time, on one connection. It sends
neither key nor TLS: beyond this machine it goes through a tunnel (docs/howto/drive-lerobot.md).
"""

import asyncio
import dataclasses
import importlib
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from sigma_jax.errors import UserError, few
from sigma_jax.policies.protocol import ACTIONS, COMMANDS, PolicySpec
from sigma_jax.policies.serving import metrics as counted
from sigma_jax.policies.serving.batching import Batcher
from sigma_jax.policies.serving.lerobot import answers, messages, wire
from sigma_jax.policies.serving.lerobot.messages import Seen, Setup
from sigma_jax.policies.serving.lerobot.sessions import Session, Sessions, StatusError
from sigma_jax.policies.serving.limits import check_key, is_key, tls_context
from sigma_jax.policies.serving.metrics import Metrics
from sigma_jax.policies.serving.recording import Recorder

SERVICE = 'transport.AsyncInference'
LONGEST = 800  # letters of a status; gRPC carries it in a header

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LerobotSettings:
    """How LeRobot's clients are served.

    Attributes:
      host: address to listen at.
      port: 0 takes a free one.
      wait_s: longest wait for an observation to answer (LeRobot: `obs_queue_timeout`).
      fps: actions a second, by which they are dated.
      limit: most bytes of an observation.
      part_s: longest wait for the parts of one.
      clients: most at once.
      rate: observations a second of a client, at most; 0: no bound.
      idle_s: after which a client that says nothing is forgotten.
      joints: names of the state's numbers as the robot has them, where the policy knows them.
      key: that clients must send, in `authorization: Api-Key KEY`; '' asks for none.
      certificate: file of the TLS certificate chain; '' serves without TLS.
      private_key: its file.
    """

    host: str = '127.0.0.1'
    port: int = 8080
    wait_s: float = 2.0
    fps: float = 30.0
    limit: int = 32 * 1024 * 1024
    part_s: float = 30.0
    clients: int = 64
    rate: float = 200.0
    idle_s: float = 600.0
    joints: tuple[str, ...] = ()
    key: str = ''
    certificate: str = ''
    private_key: str = ''


class LerobotServer:
    """Serves a policy to LeRobot's clients, on the event loop that runs it.

    Args:
      batcher: that asks the policy.
      settings: how.
      metrics: where it counts: answers, and calls that were refused or failed.
      recorder: keeps what comes and goes; None: nothing does.

    Raises:
      UserError: an address that others reach, without a key; a certificate that cannot be read; or
        grpcio is missing.

    Examples:
      >>> async def serve(batcher):
      ...     server = LerobotServer(batcher)
      ...     await server.start()
      ...     await asyncio.Event().wait()
    """

    def __init__(
        self,
        batcher: Batcher,
        settings: LerobotSettings = LerobotSettings(),
        metrics: Metrics | None = None,
        recorder: Recorder | None = None,
    ):
        check_key(settings.host, settings.key)
        tls_context(settings.certificate, settings.private_key)
        self._grpc = import_grpc()  # what is missing is told before any door opens
        self._batcher, self._settings = batcher, settings
        self._metrics = metrics or Metrics()
        self._sessions = Sessions(
            lambda episode: batcher.policy.initial_state(episode),
            most=settings.clients,
            idle_s=settings.idle_s,
            gone_s=10 * settings.wait_s,
            joints=settings.joints,
            rate=settings.rate,
            record=None if recorder is None else recorder.episode,
        )
        self._metrics.gauge(
            'lerobot_clients', 'LeRobot clients', lambda: len(self._sessions.by_peer)
        )
        self._server: Any = None
        self._answering = self._lost = 0
        self._stopping = False

    async def start(self) -> int:
        """Begins to listen.

        Returns:
          The port.

        Raises:
          UserError: the address is taken, or the certificate cannot be read.
        """
        grpc, settings = self._grpc, self._settings
        self._server = grpc.aio.server(
            options=[
                ('grpc.max_receive_message_length', 2 * wire.PART),
                ('grpc.max_concurrent_streams', 16),
                ('grpc.max_connection_idle_ms', int(settings.idle_s * 1000)),
                ('grpc.so_reuseport', 0),
            ],
            maximum_concurrent_rpcs=8 * settings.clients,
        )
        self._server.add_generic_rpc_handlers((self._handlers(grpc),))
        host = f'[{settings.host}]' if ':' in settings.host else settings.host
        address = f'{host}:{settings.port}'
        try:
            port = self._listen(grpc, address)
        except RuntimeError as error:
            raise UserError(
                f'expected a free address, got {address}, which cannot be had; choose another port'
            ) from error
        await self._server.start()
        return port

    async def stop(self, grace_s: float = 10.0) -> bool:
        """Refuses new calls, answers those that are there, and closes.

        Args:
          grace_s: longest wait for that, seconds.

        Returns:
          Whether all were answered.
        """
        self._stopping = True
        for session in self._sessions.by_peer.values():
            session.wake()
        if self._server is not None:
            await self._server.stop(grace_s)
        self._sessions.close()
        if late := self._answering + self._lost:
            log.warning('%d requests were not answered within %g s', late, grace_s)
        return not late

    def _listen(self, grpc: Any, address: str) -> int:
        settings = self._settings
        if not settings.certificate:
            return self._server.add_insecure_port(address)
        names = settings.private_key or settings.certificate, settings.certificate
        files = map(pathlib.Path, names)
        pair = tuple(file.read_bytes() for file in files)
        return self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))

    def _handlers(self, grpc: Any) -> Any:
        one, many = grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        calls: dict[str, tuple[Any, Callable[..., Awaitable[bytes]]]] = {
            'Ready': (one, self._ready),
            'SendPolicyInstructions': (one, self._introduce),
            'SendObservations': (many, self._see),
            'GetActions': (one, self._act),
        }
        handlers = {
            name: kind(self._reported(name, grpc, handle)) for name, (kind, handle) in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _reported(self, name: str, grpc: Any, handle: Callable[..., Awaitable[bytes]]) -> Any:
        """A handler whose errors are a status for that client, and a line in the log."""

        async def call(request: Any, context: Any) -> bytes:
            start = time.perf_counter()
            try:
                self._check_key(context)
                return await handle(context.peer(), request)
            except UserError as error:
                outcome, text = counted.REFUSED, str(error)[:LONGEST]
                status = getattr(error, 'status', 'INVALID_ARGUMENT')
                log.warning('%s: %s: %s', context.peer(), name, text)
            except Exception as error:
                outcome, text = counted.FAILED, f'the server failed: {type(error).__name__}'
                status = 'INTERNAL'
                log.exception('%s: %s failed', context.peer(), name)
            self._metrics.request(outcome, time.perf_counter() - start)
            if self._stopping:
                status, text = 'UNAVAILABLE', 'the server stops'
            await context.abort(getattr(grpc.StatusCode, status), text)
            raise AssertionError  # abort has raised

        return call

    def _check_key(self, context: Any) -> None:
        sent = dict(context.invocation_metadata() or ()).get('authorization')
        if not is_key(sent, self._settings.key):
            raise StatusError(
                f'expected the key of this server, got {"another" if sent else "none"}; send it as '
                'authorization: Api-Key KEY',
                'UNAUTHENTICATED',
            )

    async def _ready(self, peer: str, request: bytes) -> bytes:
        self._sessions.begin(peer)
        log.info('%s: connected', peer)
        return wire.EMPTY

    async def _introduce(self, peer: str, request: bytes) -> bytes:
        self._sessions.find(peer).rate.take()
        setup = messages.read_setup(wire.read_data(request))
        check_setup(setup, self._batcher.policy.spec, self._settings.joints)
        # compiles for this robot, and finds what the policy refuses, before it moves
        policy = self._batcher.policy
        await self._batcher.infer(setup.example(), policy.initial_state())
        self._sessions.find(peer).setup = setup
        log.info(
            '%s: asked for %s %s on %s, which is not loaded: this server has one policy; joints '
            '%s, cameras %s',
            *(peer, *map(repr, setup.asked)),
            *(few(setup.joints, ', ', 32), few(setup.cameras, ', ', 32)),
        )
        return wire.EMPTY

    async def _see(self, peer: str, request: AsyncIterator[bytes]) -> bytes:
        session = self._sessions.find(peer)
        session.rate.take()
        async with session.coming:
            data = await self._whole(request)
        seen = await asyncio.to_thread(messages.read_seen, data)
        setup = self._sessions.setup_of(peer, seen)
        setup.observation(seen)  # what is wrong is reported now, and not with the actions
        self._sessions.find(peer).offer(seen)
        return wire.EMPTY

    async def _whole(self, request: AsyncIterator[bytes]) -> bytes:
        parts = wire.Parts(self._settings.limit)
        try:
            async with asyncio.timeout(self._settings.part_s):
                async for part in request:
                    if (whole := parts.add(part)) is not None:
                        return whole
        except TimeoutError as error:
            raise UserError(
                f'expected an observation within {self._settings.part_s:g} s, got a part of one; '
                'look at the network'
            ) from error
        raise UserError('expected a whole observation, got a part of one; send it anew')

    async def _act(self, peer: str, request: bytes) -> bytes:
        session = self._sessions.find(peer)
        async with session.turn:
            seen = None if self._stopping else await session.take(self._settings.wait_s)
            if seen is None:
                return wire.EMPTY
            return await self._answer(session, seen)

    async def _answer(self, session: Session, seen: Seen) -> bytes:
        setup, start = cast(Setup, session.setup), time.perf_counter()
        self._answering += 1
        try:
            observation = setup.observation(seen)
            answer, state = await self._batcher.infer(observation, session.state)
        except asyncio.CancelledError:
            session.give_back(seen, again=True)
            self._lost += self._stopping
            raise
        except Exception:
            session.give_back(seen, again=False)
            raise
        finally:
            self._answering -= 1
        session.state = state
        if session.record is not None:
            session.record.add(observation, answer)
        self._metrics.request(counted.ANSWERED, time.perf_counter() - start)
        actions = answer.get(COMMANDS, answer[ACTIONS])[: setup.chunk]
        return wire.write_data(
            answers.write_chunk(actions, seen.timestamp, seen.timestep, self._settings.fps)
        )


def check_setup(setup: Setup, spec: PolicySpec, joints: tuple[str, ...] = ()) -> None:
    """Whether a policy can drive a client's robot; reported at its start.

    Args:
      setup: who the client is.
      spec: what the policy takes and gives.
      joints: names of the state's numbers, where the policy knows them.

    Raises:
      UserError: another number or order of joints.
    """
    if len(setup.joints) != spec.state_dim:
        raise UserError(
            f'expected a robot of {spec.state_dim} joints, got {len(setup.joints)} '
            f'({few(setup.joints, ", ", 16)}); serve a policy of this robot'
        )
    if joints and setup.joints != joints and set(setup.joints) == set(joints):
        raise UserError(
            f'expected joints in the order {few(joints, ", ", 16)}, got '
            f'{few(setup.joints, ", ", 16)}; let the robot name them in that order'
        )


def import_grpc() -> Any:
    """The module grpc, with grpc.aio.

    Returns:
      The module.

    Raises:
      UserError: it is missing.
    """
    try:
        importlib.import_module('grpc.aio')
        return importlib.import_module('grpc')
    except ImportError as error:
        raise UserError(
            'expected the package grpcio for LeRobot clients, got none installed; pip install '
            "'sigma_jax[serve]'"
        ) from error
