"""One client: the state of its robot's episode, requests in, answers out; no network.

A request is an observation, and beside it or alone:

    reset   true: the next episode begins; `episode` may say its number
    seed    the noise of this chunk: two requests with one seed begin at the same
    noise   where the flow begins, an array [t d], normalised
    prefix  what is left of the chunk before, an array [t2 a] as it was given; the new one goes on
            from it
    delay   steps of it that will have been carried out when the new one comes
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError
from sigma_jax.policies.draws import SEEDS
from sigma_jax.policies.protocol import ACTIONS, PolicyState
from sigma_jax.policies.serving.batching import Answer, Batcher
from sigma_jax.policies.serving.openpi.keys import KeyMap, flatten, translate
from sigma_jax.policies.serving.recording import Episode

RESET, EPISODE, SEED, NOISE = 'reset', 'episode', 'seed', 'noise'
PREFIX, DELAY = 'prefix', 'delay'
WISHES = RESET, EPISODE, SEED, NOISE, PREFIX, DELAY
LARGEST = {EPISODE: 2**31, SEED: SEEDS}  # below which their numbers are; others as episodes


class Session:
    """What is kept of one connection.

    Args:
      batcher: that asks the policy.
      keys: the client's names.
      default_task: the instruction of an observation without one.
      record: where its requests are kept; None: nowhere.

    Attributes:
      state: of its episode; unchanged by a request that fails.
    """

    def __init__(
        self,
        batcher: Batcher,
        keys: KeyMap,
        *,
        default_task: str = '',
        record: Episode | None = None,
    ):
        self._batcher, self._keys, self._default_task = batcher, keys, default_task
        self._record = record
        self.state = batcher.policy.initial_state()

    async def answer(self, message: Any) -> dict[str, Any]:
        """Answers a request.

        Args:
          message: as `wire.unpack` reads it.

        Returns:
          To be packed: `actions` [t a], whatever else the policy tells, and `policy_timing` and
            `server_timing`, each with `infer_ms`. Of a reset alone: `reset` and `episode`.

        Raises:
          UserError: the request is wrong; nothing has changed.
        """
        if not isinstance(message, Mapping):
            raise UserError(
                f'expected an observation as a map, got {type(message).__name__}; send its parts '
                'by name'
            )
        wishes = {key: message[key] for key in WISHES if key in message}
        seen = {key: x for key, x in message.items() if key not in wishes}
        state, alone = self._begin(wishes), not seen and wishes.get(RESET) is True
        if alone:
            self._end_record(wishes)
            self.state = state
            return {RESET: True, EPISODE: state.episode}
        observation = translate(flatten(seen), self._keys, self._default_task)
        start = time.perf_counter()
        found, after = await self._ask(observation, state, wishes)
        self._end_record(wishes)
        if self._record is not None:
            self._record.add(observation, found)
        self.state = after
        timing = {'infer_ms': 1e3 * (time.perf_counter() - start)}
        return as_message(found) | {'server_timing': timing}

    async def _ask(
        self, observation: Mapping[str, Any], state: PolicyState, wishes: Mapping[str, Any]
    ) -> Answer:
        """The answer, and the state after it."""
        asked: dict[str, Any] = {
            name: _rows(name, wishes[name]) for name in (NOISE, PREFIX) if name in wishes
        }
        if SEED in wishes:
            asked[SEED] = _number(SEED, wishes[SEED])
        if (PREFIX in wishes) != (DELAY in wishes):
            raise UserError(f'expected {PREFIX} and {DELAY} together, got one alone; send both')
        if PREFIX in wishes:
            asked[DELAY] = _number(DELAY, wishes[DELAY])
            horizon, given = self._batcher.policy.spec.horizon, len(asked[PREFIX])
            if given > horizon:
                raise UserError(
                    f'expected {PREFIX} of at most {horizon} actions, got {given}; send what is '
                    'left of the chunk before'
                )
            if not most_delay(self._batcher.policy.metadata()):
                raise UserError(
                    f'expected no {PREFIX}, since this policy does not go on from a chunk, got '
                    'one; start the server with --chunking=guided'
                )
        return await self._batcher.infer(observation, state, asked)

    def close(self) -> None:
        """The client is gone."""
        self._end_record({RESET: True})

    def _end_record(self, wishes: Mapping[str, Any]) -> None:
        if self._record is not None and wishes.get(RESET):
            self._record.end()

    def _begin(self, wishes: Mapping[str, Any]) -> PolicyState:
        """The state that a request begins with."""
        if not isinstance(wishes.get(RESET, False), bool | np.bool_):
            raise UserError(
                f'expected {RESET} as true or false, got {type(wishes[RESET]).__name__}'
            )
        if not wishes.get(RESET):
            if EPISODE in wishes:
                raise UserError(f'expected {EPISODE} beside {RESET}, got it alone; send both')
            return self.state
        following = self.state.episode + bool(self.state.frame)
        episode = wishes.get(EPISODE, following)
        return self._batcher.policy.initial_state(_number(EPISODE, episode))


def most_delay(metadata: Mapping[str, Any]) -> int:
    """How many steps of a chunk the next one may go on from.

    Args:
      metadata: of the policy.

    Returns:
      0: it does not go on at all.
    """
    how = metadata['chunking']
    if how is None:
        return 0
    trained = how['mode'] == 'trained'
    return metadata['processor']['max_delay'] if trained else metadata['horizon']


def as_message(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's answer as clients of openpi take it.

    Their `ActionChunkBroker` gives out one row of every array a step, so what has no row for each
    action goes as a list.

    Args:
      answer: of `policies.protocol.Policy.infer`.

    Returns:
      The same; `timing` is called `policy_timing`.
    """
    steps = len(answer[ACTIONS])
    names = {'timing': 'policy_timing'}
    return {names.get(key, key): _plain(value, steps) for key, value in answer.items()}


def _plain(value: Any, steps: int) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(x, steps) for key, x in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(x, steps) for x in value]
    if not hasattr(value, '__array__') or isinstance(value, np.generic):
        return value
    array = np.asarray(value)
    return array if array.ndim and len(array) == steps else array.tolist()


def _rows(name: str, value: Any) -> Float[np.ndarray, 't d']:
    right = isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == 'f'
    with np.errstate(over='ignore'):  # what is too large becomes infinite, and is refused
        given = value.astype(np.float32) if right else None
    if given is None or not np.isfinite(given).all():
        axes = '[t d]' if name == NOISE else '[t2 a]'
        raise UserError(f'expected {name} as finite floats {axes}, got others; send an array')
    return given


def _number(name: str, value: Any) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    below = LARGEST.get(name, LARGEST[EPISODE])
    if not whole or not 0 <= value < below:
        raise UserError(
            f'expected {name} as a whole number from 0 to below {below}, got '
            f'{value if whole else type(value).__name__}'
        )
    return int(value)
