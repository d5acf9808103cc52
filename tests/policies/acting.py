"""A real policy for servers, and observations for it."""

import threading
from typing import Any

import numpy as np

from sigma_jax.api.policies import load_policy
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.policies.serving.batching import Batcher

TOKENIZER = 'assets/tokenizer/tokenizer.json'


class ManyRobots(ActingPolicy):
    """A base that acts on several robots at once; `calls` holds the sizes of its batches."""

    calls: list[int]

    @classmethod
    def load(cls, folder, **settings) -> 'ManyRobots':
        policy = cls(load_policy(folder, tokenizer=TOKENIZER, **settings).actor)
        policy.calls = []
        return policy

    def infer_batch(self, observations, states, **wishes):
        self.calls.append(len(observations))
        return super().infer_batch(observations, states, **wishes)


def observation(seed: int = 0, size: int = 28, task: str = 'lift the brick') -> dict[str, Any]:
    """What a robot with two cameras sees."""
    rng = np.random.default_rng(seed)
    frames = {
        f'{IMAGES}{name}': rng.integers(0, 256, (size, size, 3), np.uint8)
        for name in ('up', 'side')
    }
    return frames | {STATE: rng.uniform(-10, 10, 6).astype(np.float32), TASK: task}


class Held:
    """Keeps the policy's thread busy until it is let go, so that requests gather."""

    def __init__(self, batcher: Batcher):
        self._go, self._busy = threading.Event(), threading.Event()
        self._done = batcher.call(self._hold)
        assert self._busy.wait(30)

    def _hold(self) -> None:
        self._busy.set()
        self._go.wait(30)

    def let_go(self) -> None:
        self._go.set()
        self._done.result(30)
