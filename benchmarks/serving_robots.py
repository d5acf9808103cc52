"""Robots that load a server, each in a process of its own, without jax."""

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from clients.sigma_client import Client

PROMPT = 'put the brick into the box'


@dataclasses.dataclass(frozen=True)
class Load:
    """What robots do.

    Attributes:
      uri: of the server.
      keys: of the pictures.
      size: of a picture's side, pixels.
      state_dim: numbers of a state.
    """

    uri: str
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


@dataclasses.dataclass(frozen=True)
class Answered:
    """One answer: when it was asked for, and what it took, milliseconds."""

    at_s: float
    whole_ms: float
    server_ms: float
    infer_ms: float


def ask(client: Client, observation: dict[str, Any], **wishes: Any) -> tuple[Answered, Any]:
    """One request, timed."""
    at = time.time()
    start = time.perf_counter()
    answer = client.infer(observation, **wishes)
    whole = 1e3 * (time.perf_counter() - start)
    timing = answer['server_timing']['infer_ms'], answer['policy_timing']['infer_ms']
    return Answered(at, whole, *timing), answer['actions']


def steady(load: Load, number: int, begin: float, count: int) -> list[Answered]:
    """One robot that asks so many times without a pause, from a common beginning on."""
    client, seen = Client(load.uri), load.observation(number)
    for _ in range(5):
        client.infer(seen)
    time.sleep(max(begin - time.time(), 0))
    return [ask(client, seen)[0] for _ in range(count)]


@dataclasses.dataclass
class Soaked:
    """What one robot of a soak met."""

    answers: list[Answered] = dataclasses.field(default_factory=list)
    refused: int = 0
    connections: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)


def coming_and_going(load: Load, number: int, end: float) -> Soaked:
    """A robot that connects, asks some times, says something wrong now and then, and leaves with or
    without a word, until the end. One seed has one answer, whoever asks.
    """
    found, rng = Soaked(), np.random.default_rng([number, os.getpid()])
    seen = [load.observation(n) for n in range(8)]
    known: dict[int, np.ndarray] = {}
    while time.time() < end:
        client = Client(load.uri)
        found.connections += 1
        for _ in range(rng.integers(5, 100)):
            if time.time() >= end:
                break
            _one(client, seen, rng, found, known)
        if client.connections > 1:
            found.wrong.append(f'a connection broke {client.connections - 1} times')
        socket: Any = client._socket
        if rng.random() < 0.5:
            socket.close()
        else:
            socket.socket.close()  # as a robot that lost its power
    return found


def _one(client: Client, seen: list, rng: Any, found: Soaked, known: dict) -> None:
    if rng.random() < 0.03:
        try:
            client.infer({'observation.state': np.full(3, np.nan)})
            found.wrong.append('a wrong request was answered')
        except RuntimeError:
            found.refused += 1
        return
    n = int(rng.integers(len(seen)))
    answered, actions = ask(client, seen[n], seed=n)
    found.answers.append(answered)
    first = known.setdefault(n, actions)
    if np.abs(actions - first).max() > 1e-4 * np.abs(first).max():
        found.wrong.append(f'observation {n} was answered otherwise than before')


def windows(
    answers: list[Answered], begin: float, seconds: float
) -> Iterator[tuple[int, list[float]]]:
    """Whole times, by windows of so many seconds."""
    by: dict[int, list[float]] = {}
    for one in answers:
        by.setdefault(int((one.at_s - begin) // seconds), []).append(one.whole_ms)
    yield from sorted(by.items())
