"""Robots that load a server, each in a process of its own, without jax."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from clients.sigma_client import Client

PROMPT = 'put the brick into the box'
WRONG = 0.03  # of a visit's requests
LONGEST = 300  # requests of a visit


@dataclasses.dataclass(frozen=True)
class Load:
    """What robots do.

    Attributes:
      port: of the server.
      keys: of the pictures.
      size: of a picture's side, pixels.
      state_dim: numbers of a state.
    """

    port: int
    keys: tuple[str, ...]
    size: int
    state_dim: int

    def observation(self, seed: int) -> dict[str, Any]:
        """Random pictures and joints."""
        rng = np.random.default_rng(seed)
        shape = self.size, self.size, 3
        pictures = {key: rng.integers(0, 256, shape, np.uint8) for key in self.keys}
        state = rng.uniform(-20, 20, self.state_dim).astype(np.float32)
        return pictures | {'observation.state': state, 'task': PROMPT}

    def episode(self, step: int) -> dict[str, Any]:
        """What every robot of a soak sees at a step."""
        return self.observation(step % 8)


@dataclasses.dataclass(frozen=True)
class Answered:
    """One answer: when it was asked for, and what it took, milliseconds."""

    at_s: float
    whole_ms: float
    server_ms: float
    infer_ms: float


def ask(client: Client, observation: dict[str, Any]) -> Answered:
    """One request, timed."""
    at = time.time()
    start = time.perf_counter()
    answer = client.infer(observation)
    whole = 1e3 * (time.perf_counter() - start)
    return Answered(
        at, whole, answer['server_timing']['infer_ms'], answer['policy_timing']['infer_ms']
    )


def steady(load: Load, number: int, begin: float, count: int) -> list[Answered]:
    """One robot that asks so many times without a pause, from a common beginning on."""
    client, seen = Client(f'ws://127.0.0.1:{load.port}'), load.observation(number)
    for _ in range(5):
        client.infer(seen)
    time.sleep(max(begin - time.time(), 0))
    return [ask(client, seen) for _ in range(count)]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The middle, and what one of a hundred exceeds."""
    return {'p50': float(np.quantile(values, 0.5)), 'p99': float(np.quantile(values, 0.99))}


class Robot(Protocol):
    """A connection to a server."""

    def ask(self, step: int) -> np.ndarray:
        """What is to be carried out, [t a], for what is seen at a step."""

    def ask_wrong(self, step: int) -> bool:
        """Sends something that is wrong; whether it was refused."""

    def close(self) -> None:
        """Leaves."""


class OpenpiRobot:
    """One that speaks openpi's protocol."""

    def __init__(self, load: Load):
        self._load, self._client = load, Client(f'ws://127.0.0.1:{load.port}', patience_s=0)

    def ask(self, step: int) -> np.ndarray:
        """See `Robot`."""
        answer = self._client.infer(self._load.episode(step))
        return answer.get('motor_commands', answer['actions'])

    def ask_wrong(self, step: int) -> bool:
        """See `Robot`."""
        try:
            self._client.infer(self._load.episode(step) | {'observation.state': np.zeros(3)})
        except RuntimeError:
            return True
        return False

    def close(self) -> None:
        """See `Robot`."""
        socket: Any = self._client._socket
        socket.close()


class LerobotRobot:
    """One that speaks LeRobot's protocol; the environment must have grpcio."""

    def __init__(self, load: Load):
        from tests.policies.serving.lerobot import client

        self._load, self._wire = load, client
        self._robot = client.Robot(load.port)
        names = [key.removeprefix('observation.images.') for key in load.keys]
        self._names = dict(zip(load.keys, names, strict=True))
        picture = {'dtype': 'image', 'shape': (load.size, load.size, 3)}
        state = {'dtype': 'float32', 'shape': (load.state_dim,), 'names': self._joints()}
        features = {'observation.state': state, **dict.fromkeys(load.keys, picture)}
        self._robot.start(lerobot_features=features)

    def ask(self, step: int) -> np.ndarray:
        """See `Robot`."""
        self._send(step)
        chunk: list[Any] = self._robot.actions()
        if [one.timestep for one in chunk] != [*range(step, step + len(chunk))] or not chunk:
            raise ValueError(f'expected actions from step {step} on, got {len(chunk)} others')
        return np.stack([one.action for one in chunk])

    def ask_wrong(self, step: int) -> bool:
        """See `Robot`."""
        import grpc

        try:
            self._send(step, **{self._joints()[0]: float('nan')})
        except grpc.RpcError as error:
            found: Any = error
            return found.code() == grpc.StatusCode.INVALID_ARGUMENT
        return False

    def close(self) -> None:
        """See `Robot`."""
        self._robot.close()

    def _joints(self) -> list[str]:
        return [f'joint_{n}.pos' for n in range(self._load.state_dim)]

    def _send(self, step: int, **changes: float) -> None:
        seen = self._load.episode(step)
        readings = {name: seen[key] for key, name in self._names.items()} | {'task': seen['task']}
        readings |= zip(self._joints(), seen['observation.state'].tolist(), strict=True)
        fields = {'timestamp': time.time(), 'timestep': step, 'observation': readings | changes}
        self._robot.send(self._wire.pickled('TimedObservation', fields | {'must_go': False}))


ROBOTS: dict[str, Callable[[Load], Robot]] = {'openpi': OpenpiRobot, 'LeRobot': LerobotRobot}


def visit(kind: str, load: Load, seed: Sequence[int], end: float, told: Connection) -> None:
    """A robot that comes, asks some times, says something wrong now and then, and leaves: with a
    word, without one, or killed while it waits.

    It tells ('answer', at_s, whole_ms, step, actions), ('refused',), ('killed',) and
    ('wrong', text).
    """
    rng = np.random.default_rng(seed)
    try:
        robot = ROBOTS[kind](load)
        steps = int(rng.integers(5, LONGEST))
        for step in range(steps):
            if time.time() >= end:
                break
            if rng.random() < WRONG:
                refused = robot.ask_wrong(step)
                told.send(('refused',) if refused else ('wrong', 'a wrong request was answered'))
            at, start = time.time(), time.perf_counter()
            actions = robot.ask(step)
            told.send(('answer', at, 1e3 * (time.perf_counter() - start), step, actions))
        _leave(robot, steps, rng, told)
    except Exception as error:
        told.send(('wrong', f'{kind}: {type(error).__name__}: {error}'))
    os._exit(0)


def _leave(robot: Robot, step: int, rng: np.random.Generator, told: Connection) -> None:
    """A third says goodbye, a third does not, a third is killed with a request under way."""
    how = rng.integers(3)
    if how == 0:
        robot.close()
    elif how == 1:
        told.send(('killed',))
        kill = os.getpid(), signal.SIGKILL
        threading.Timer(rng.uniform(0, 0.02), os.kill, kill).start()
        with contextlib.suppress(Exception):
            robot.ask(step)
        time.sleep(60)
