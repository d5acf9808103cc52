"""Requests that are wrong in every way that a client or a network may come up with."""

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.policies.serving.openpi.wire import pack
from tests.policies.acting import observation

Frame = str | bytes


def cut(rng: np.random.Generator) -> Frame:
    whole = pack(observation(int(rng.integers(99))))
    return whole[: int(rng.integers(0, len(whole)))]


def noise(rng: np.random.Generator) -> Frame:
    return b'\xc1' + rng.bytes(int(rng.integers(0, 5000)))


def text(rng: np.random.Generator) -> Frame:
    return ['{"state": [1]}', '', 'hello', 'ä' * int(rng.integers(1, 999))][rng.integers(4)]


def changed(*changes: dict[str, Any]) -> Callable[[np.random.Generator], Frame]:
    def make(rng: np.random.Generator) -> Frame:
        found = observation(int(rng.integers(99))) | changes[rng.integers(len(changes))]
        return msgpack.packb({key: x for key, x in found.items() if x is not ...}, default=_raw)

    return make


def _raw(x: np.ndarray) -> dict:
    """Any array, those that are not to be sent included."""
    return {'__ndarray__': True, 'data': x.tobytes(), 'dtype': x.dtype.str, 'shape': x.shape}


def deep(rng: np.random.Generator) -> Frame:
    depth = int(rng.choice([9, 100, 1000, 100_000]))
    return [b'\x91', b'\x81\xa1a'][rng.integers(2)] * depth + b'\xc0'


def promising(rng: np.random.Generator) -> Frame:
    head = [b'\xdd', b'\xdf', b'\xc6', b'\xdb', b'\xc9'][rng.integers(5)]
    return head + rng.bytes(4) + b'\1' * int(rng.integers(0, 100))


def pickled(rng: np.random.Generator) -> Frame:
    """Harmless in content, and nothing here reads it anyway."""
    import pickle

    return pickle.dumps({'state': rng.bytes(10)}, protocol=int(rng.integers(0, 6)))


def several(rng: np.random.Generator) -> Frame:
    return pack(observation(1)) + pack(observation(2))


def other(rng: np.random.Generator) -> Frame:
    return pack([1, None, [observation()], 'x', 2.5, True][rng.integers(6)])


UP = IMAGES + 'up'
FULL = {
    'cut': cut,
    'noise': noise,
    'text': text,
    'deep': deep,
    'promising': promising,
    'pickled': pickled,
    'several': several,
    'other': other,
    'missing': changed({STATE: ...}, {TASK: ...}, {UP: ..., IMAGES + 'side': ...}),
    'type': changed({STATE: 'x'}, {TASK: 1}, {UP: 'x'}, {UP: None}, {STATE: {'a': 1}}),
    'shape': changed(
        {STATE: np.zeros(5)},
        {STATE: np.zeros((6, 1))},
        {STATE: np.zeros(0)},
        {UP: np.zeros((28, 28), np.uint8)},
        {UP: np.zeros((0, 28, 3), np.uint8)},
        {UP: np.zeros((1, 4097, 3), np.uint8)},
    ),
    'dtype': changed(
        {UP: np.zeros((28, 28, 3))},
        {STATE: np.zeros(6, complex)},
        {STATE: np.zeros(6, bool)},
        {STATE: np.zeros(6, '<M8[s]')},
        {UP: np.zeros((28, 28, 3), 'V1')},
    ),
    'nan': changed(
        {STATE: np.full(6, np.nan)},
        {STATE: [1e300] * 6},
        {STATE: np.array([0, 0, np.inf, 0, 0, 0])},
    ),
    'unknown': changed({'x': 1}, {'observation.stat': np.zeros(6)}, {'a': {'b': {'c': 1}}}),
    'long': changed({TASK: 'lift it ' * 500}, {'k' * 5000: 1}),
    'wishes': changed(
        {'reset': 'yes'}, {'seed': -1}, {'seed': 1.5}, {'episode': 3}, {'seed': 2**40},
        {'noise': np.zeros(3)}, {'noise': np.full((16, 8), np.nan, np.float32)}, {'noise': 'x'},
        {'reset': True, 'episode': 'x'}, {'reset': np.zeros(3)}, {'reset': [1]}, {'seed': [1]},
    ),
}  # fmt: skip


def messages(count: int, seed: int = 0) -> Iterator[tuple[str, Frame]]:
    """(what is wrong, the frame), every kind in turn."""
    rng, kinds = np.random.default_rng(seed), list(FULL)
    for n in range(count):
        kind = kinds[n % len(kinds)]
        yield kind, FULL[kind](rng)
