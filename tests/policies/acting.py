"""A real policy for servers, and observations for it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.policies.base import IMAGES, STATE, TASK, PolicyState
from sigma_jax.policies.load import load_policy
from sigma_jax.policies.sampled import SampledPolicy, one_window, read_observation

TOKENIZER = 'assets/tokenizer/tokenizer.json'


class ManyRobots(SampledPolicy):
    """A base that acts on several robots at once; `calls` holds the sizes of its batches."""

    @classmethod
    def load(cls, folder) -> 'ManyRobots':
        policy = load_policy(folder, tokenizer=TOKENIZER)
        policy.__class__ = cls
        policy.calls, policy.state = [], PolicyState()
        return policy

    def metadata(self) -> dict[str, Any]:
        return {'action_dim': self.spec.action_dim, 'horizon': self.spec.horizon}

    def initial_state(self, episode: int = 0) -> PolicyState:
        return PolicyState(episode)

    def reset(self) -> None:
        self.state = PolicyState(self.state.episode + bool(self.state.frame))

    def infer(self, observation: Mapping[str, Any], *, noise=None) -> Mapping[str, Any]:
        answers, states = self.infer_batch([observation], [self.state])
        (self.state,) = states
        return answers[0]

    def infer_batch(self, observations: Sequence, states: Sequence, *, noise=None):
        self.calls.append(len(observations))
        rows = [self._row(x, state) for x, state in zip(observations, states, strict=True)]
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
        drawn = self._sampler(batch)[:, 0]
        after = [dataclasses.replace(state, frame=state.frame + 1) for state in states]
        return [{'actions': x, 'timing': {'infer_ms': 1.0}} for x in drawn], after

    def _row(self, observation, state):
        frames, reading, task = read_observation(observation, self.spec)
        if state.cameras and set(state.cameras) != set(frames):
            raise UserError('expected the cameras of this episode')
        inputs = self._processor.inputs(frames, reading, task)
        numbers = (np.asarray([x], np.int32) for x in (state.episode, state.frame))
        return one_window(inputs, *numbers, self.spec)


def observation(seed: int = 0, size: int = 28, task: str = 'lift the brick') -> dict[str, Any]:
    """What a robot with two cameras sees."""
    rng = np.random.default_rng(seed)
    frames = {
        f'{IMAGES}{name}': rng.integers(0, 256, (size, size, 3), np.uint8)
        for name in ('up', 'side')
    }
    return frames | {STATE: rng.uniform(-10, 10, 6).astype(np.float32), TASK: task}
