"""Observations of several robots, asked of a policy together, in a thread beside the servers.

A server is an event loop (openpi's websocket) or a pool of threads (gRPC); either asks here and
waits. The thread takes what has come, so that requests gather while a batch is computed.
"""

import asyncio
import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import Policy, PolicyState

Answer = tuple[Mapping[str, Any], PolicyState]
NO_WISHES: Mapping[str, Any] = {}
USUAL = {'delay': 0}  # what stands for a robot that wishes nothing, where it is not None
CHUNKING = 'chunking'  # the wish that a policy takes once for all robots

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What one call of the policy was.

    Attributes:
      size: requests that were answered by it.
      padded: observations that were computed, those that only fill up included.
      waiting: requests that had come meanwhile.
      waited_s: from the coming of its oldest request to its start.
      infer_s: of the call itself.
    """

    size: int
    padded: int
    waiting: int
    waited_s: float
    infer_s: float


@dataclasses.dataclass(frozen=True)
class _Request:
    """One robot's question; `answer` is where it waits."""

    observation: Mapping[str, Any]
    state: PolicyState
    wishes: Mapping[str, Any]
    answer: Future[Answer] = dataclasses.field(default_factory=Future)
    came: float = dataclasses.field(default_factory=time.perf_counter)


@dataclasses.dataclass(frozen=True)
class _Task:
    """A call that runs alone in the thread, such as a warm-up."""

    call: Callable[[], Any]
    answer: Future[Any] = dataclasses.field(default_factory=Future)


class Batcher:
    """Asks a policy for several robots at once, from one thread of its own.

    A batch is made of what waits when the policy is free. It waits itself, `max_wait_s` at most,
    for as many requests as the batch before it had and came meanwhile: clients that ask again at
    once come together, and one that is alone never waits. Batches are filled up to powers of two
    with their last observation, so that few programs are compiled.

    The batcher keeps no state of a robot: who asks passes it and keeps what comes back.

    Args:
      policy: that acts. Nobody else may call it meanwhile.
      max_batch: most requests computed together.
      max_wait_s: longest that a batch waits to fill, seconds.
      on_batch: is told of every call of the policy, in the batcher's thread.

    Raises:
      UserError: a bound below one, or a negative wait.

    Examples:
      >>> async def act(batcher, policy, observations):
      ...     state = policy.initial_state()
      ...     for observation in observations:
      ...         answer, state = await batcher.infer(observation, state)
      ...         yield answer['actions']
    """

    def __init__(
        self,
        policy: Policy,
        max_batch: int = 8,
        max_wait_s: float = 0.002,
        *,
        on_batch: Callable[[BatchReport], None] | None = None,
    ):
        if max_batch < 1 or max_wait_s < 0:
            raise UserError(
                f'expected batches of at least 1 and a wait of at least 0 seconds, got {max_batch} '
                f'and {max_wait_s}; choose others'
            )
        self.policy = policy
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._on_batch = on_batch
        self._waiting: collections.deque[_Request | _Task] = collections.deque()
        self._there = threading.Condition()
        self._closed = False
        self._expected = 1  # requests of the last batch, and those that waited at its end
        self._thread = threading.Thread(target=self._run, name='policy', daemon=True)
        self._thread.start()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the batches that are computed: one program each."""
        return padded_sizes(self._max_batch)

    @property
    def waiting(self) -> int:
        """Requests that wait for their batch."""
        return len(self._waiting)

    def submit(
        self,
        observation: Mapping[str, Any],
        state: PolicyState,
        wishes: Mapping[str, Any] = NO_WISHES,
    ) -> Future[Answer]:
        """Asks for a chunk; returns at once.

        Args:
          observation: as for `policies.protocol.Policy.infer`.
          state: of the robot.
          wishes: what else `infer` takes, by name, such as `noise`.

        Returns:
          What will be (the answer, the state after it), or what was wrong: a UserError where the
            observation was. It may be cancelled while it waits.

        Raises:
          UserError: the batcher is closed.
        """
        return self._put(_Request(observation, state, wishes))

    async def infer(
        self,
        observation: Mapping[str, Any],
        state: PolicyState,
        wishes: Mapping[str, Any] = NO_WISHES,
    ) -> Answer:
        """A chunk for one robot; the event loop goes on meanwhile.

        Args:
          observation: as for `submit`.
          state: of the robot.
          wishes: as for `submit`.

        Returns:
          The answer, and the state after it.

        Raises:
          UserError: the observation is wrong, or the batcher is closed.
        """
        return await asyncio.wrap_future(self.submit(observation, state, wishes))

    def infer_sync(
        self,
        observation: Mapping[str, Any],
        state: PolicyState,
        wishes: Mapping[str, Any] = NO_WISHES,
        timeout: float | None = None,
    ) -> Answer:
        """The same for a thread, which waits.

        Args:
          observation: as for `submit`.
          state: of the robot.
          wishes: as for `submit`.
          timeout: longest wait, seconds; None: as long as it takes.

        Returns:
          The answer, and the state after it.

        Raises:
          UserError: the observation is wrong, or the batcher is closed.
          TimeoutError: no answer came in time; the request is taken back if it still waits.
        """
        answer = self.submit(observation, state, wishes)
        try:
            return answer.result(timeout)
        finally:
            answer.cancel()  # where it still waits
            del answer  # an error's traceback would hold it, and it the error

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Runs a function in the policy's thread, after what waits there; requests queue behind it.

        Args:
          function: without arguments, such as a warm-up.

        Returns:
          What will be its result.

        Raises:
          UserError: the batcher is closed.
        """
        return self._put(_Task(function))

    def close(self, timeout: float | None = None) -> bool:
        """Refuses what comes from now on, and finishes what waits.

        Args:
          timeout: longest wait for that, seconds; None: as long as it takes.

        Returns:
          Whether everything is finished.
        """
        with self._there:
            self._closed = True
            self._there.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _put(self, item: Any) -> Future[Any]:
        with self._there:
            if self._closed:
                raise UserError('expected a server that runs, got one that stops; connect later')
            self._waiting.append(item)
            self._there.notify_all()
        return item.answer

    def _run(self) -> None:
        while batch := self._next():
            if isinstance(batch, _Task):
                _settle(batch.answer, batch.call)
                continue
            live = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            if live:
                self._answer(live)
            self._expected = len(batch) + self.waiting
            del batch, live  # nothing of a robot is kept while the next ones are waited for

    def _next(self) -> list[_Request] | _Task | None:
        """What is to be done; None after the last."""
        with self._there:
            self._there.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            if isinstance(self._waiting[0], _Task):
                return self._waiting.popleft()  # type: ignore[return-value]
            expected = min(self._expected, self._max_batch)
            self._there.wait_for(
                lambda: len(self._waiting) >= expected or self._closed, self._max_wait_s
            )
            batch: list[_Request] = []
            while self._waiting and len(batch) < self._max_batch:
                if not _fits(batch, self._waiting[0]):
                    break
                batch.append(self._waiting.popleft())  # type: ignore[arg-type]
            return batch

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Answers a batch; where it fails, one by one, so that a wrong request fails alone."""
        start = time.perf_counter()
        try:
            found = self._infer(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(_alone(error))
                return
            found = None
        if found is None:
            for one in batch:
                self._answer([one])
            return
        self._report(batch, start)
        for one, answer in zip(batch, found, strict=True):
            one.answer.set_result(answer)

    def _infer(self, batch: Sequence[_Request]) -> list[Answer]:
        size = next(size for size in self.sizes if size >= len(batch))
        padded = [*batch, *[batch[-1]] * (size - len(batch))]
        names = sorted({name for one in batch for name in one.wishes} - {CHUNKING})
        wishes: dict[str, Any] = {
            name: [one.wishes.get(name, USUAL.get(name)) for one in padded] for name in names
        }
        if CHUNKING in batch[0].wishes:
            wishes[CHUNKING] = batch[0].wishes[CHUNKING]
        answers, states = self.policy.infer_batch(
            [one.observation for one in padded], [one.state for one in padded], **wishes
        )
        return list(zip(answers, states, strict=True))[: len(batch)]

    def _report(self, batch: Sequence[_Request], start: float) -> None:
        if self._on_batch is None:
            return
        size = next(size for size in self.sizes if size >= len(batch))
        oldest, now = min(one.came for one in batch), time.perf_counter()
        try:
            self._on_batch(BatchReport(len(batch), size, self.waiting, start - oldest, now - start))
        except Exception:
            log.exception('a report of a batch failed')


def padded_sizes(max_batch: int) -> tuple[int, ...]:
    """Sizes that batches are filled up to: powers of two, and the bound.

    Args:
      max_batch: the largest.

    Returns:
      Ascending.

    Examples:
      >>> from sigma_jax.policies.serving.batching import padded_sizes
      >>> padded_sizes(12)
      (1, 2, 4, 8, 12)
    """
    powers = (2**n for n in range(max_batch.bit_length()))
    return tuple(sorted({*(size for size in powers if size <= max_batch), max_batch}))


def _fits(batch: Sequence[_Request], item: _Request | _Task) -> bool:
    """Whether a request can be computed with others: its chunk goes on in the same way."""
    if isinstance(item, _Task):
        return False
    return not batch or batch[0].wishes.get(CHUNKING) == item.wishes.get(CHUNKING)


def _alone(error: Exception) -> Exception:
    """An error without the frames it went through, which hold pictures; ours is logged before."""
    if not isinstance(error, UserError):
        log.error('the policy failed', exc_info=error)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _settle(answer: Future[Any], call: Callable[[], Any]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(call())
    except Exception as error:
        answer.set_exception(_alone(error))
