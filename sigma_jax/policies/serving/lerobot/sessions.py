"""What is kept of each client: one observation that waits, and the state of its episode."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import PolicyState
from sigma_jax.policies.serving.lerobot.messages import Seen, Setup, setup_of_joints
from sigma_jax.policies.serving.limits import Rate
from sigma_jax.policies.serving.recording import Episode

REMEMBERED = 4096  # timesteps that were answered


class StatusError(UserError):
    """An error that gRPC has a status for.

    Args:
      text: the sentence.
      status: gRPC's name of it.
    """

    def __init__(self, text: str, status: str):
        super().__init__(text)
        self.status = status


class Session:
    """An episode of one client, from its `Ready` on.

    The newest observation waits, and no other. One is skipped where its timestep was answered
    already, or where the robot has hardly moved since the last that was answered, as LeRobot's
    server does; unless it must go, or is the first. But what was skipped is kept: a client whose
    answer was lost never says again that it must go, so that it would wait for ever.

    Args:
      state: of the policy, at the episode's start.
      setup: who the client is; None before it has said so.
      rate: observations a second, at most; 0: no bound.
      moved: Euclidean distance of two states, raw units, from which on the robot has moved.
      record: where what is answered is kept; None: nowhere.
    """

    def __init__(
        self,
        state: PolicyState,
        setup: Setup | None = None,
        *,
        rate: float = 0.0,
        moved: float = 1.0,
        record: Episode | None = None,
    ):
        self.state, self.setup, self.rate = state, setup, Rate(rate)
        self.record = record
        # one observation at a time, so that a client fills no more memory; and one answer
        self.coming, self.turn = asyncio.Lock(), asyncio.Lock()
        self.last_call = time.monotonic()
        self._moved = moved
        self._came = asyncio.Event()
        self._next: Seen | None = None
        self._skipped: Seen | None = None
        self._answered: dict[int, None] = {}
        self._position: np.ndarray | None = None  # of the last answered

    def offer(self, seen: Seen) -> bool:
        """Takes an observation, in the place of one that waits.

        Args:
          seen: checked against `setup`.

        Returns:
          Whether it is to be answered; else it is skipped.

        Raises:
          UserError: a joint that is no number.
        """
        if not self._is_news(seen):
            self._skipped = seen
            return False
        self._next, self._skipped = seen, None
        self._came.set()
        return True

    async def take(self, wait_s: float) -> Seen | None:
        """The observation to be answered now.

        Args:
          wait_s: longest wait for one, seconds.

        Returns:
          The newest; after the wait the newest that was skipped; None where none came.
        """
        if not self._came.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), wait_s)
        seen = self._next if self._came.is_set() else self._skipped
        self._next = self._skipped = None
        self._came.clear()
        if seen is not None:
            self._remember(seen)
        return seen

    def give_back(self, seen: Seen, *, again: bool) -> None:
        """Undoes `take` where no answer went out.

        Args:
          seen: what was taken.
          again: whether it may be answered later, should no newer one have come.
        """
        self._answered.pop(seen.timestep, None)
        self._position = None
        if again and self._next is None:
            self._next = seen
            self._came.set()

    def wake(self) -> None:
        """Ends a wait; there is nothing to answer."""
        self._came.set()

    def _is_news(self, seen: Seen) -> bool:
        if seen.must_go or self._position is None or self.setup is None:
            return True
        if seen.timestep in self._answered:
            return False
        return float(np.linalg.norm(self.setup.state(seen) - self._position)) >= self._moved

    def _remember(self, seen: Seen) -> None:
        self._answered[seen.timestep] = None
        if len(self._answered) > REMEMBERED:
            del self._answered[next(iter(self._answered))]
        self._position = self.setup.state(seen) if self.setup else None


@dataclasses.dataclass
class Sessions:
    """The sessions of all clients, by their connection.

    Attributes:
      start: a policy's state at the start of an episode, by its number.
      most: clients at once.
      idle_s: seconds after which one that says nothing is forgotten.
      gone_s: the same where the place is needed for another; LeRobot's client always waits for an
        answer, and asks anew after 2 s.
      joints: what the policy's state is made of, where that is known.
      rate: see `Session`.
      moved: see `Session`.
      record: makes a record of an episode; None: there is none.
    """

    start: Callable[[int], PolicyState]
    most: int = 64
    idle_s: float = 600.0
    gone_s: float = 20.0
    joints: tuple[str, ...] = ()
    rate: float = 0.0
    moved: float = 1.0
    record: Callable[[], Episode] | None = None
    by_peer: dict[str, Session] = dataclasses.field(default_factory=dict)

    def begin(self, peer: str) -> Session:
        """A new episode of a client.

        Args:
          peer: its connection.

        Returns:
          Its session; who it is stays known.

        Raises:
          UserError: too many clients.
        """
        before = self.by_peer.pop(peer, None)
        _end_record(before)
        episode = before.state.episode + bool(before.state.frame) if before else 0
        return self._add(peer, self.start(episode), before.setup if before else None)

    def find(self, peer: str) -> Session:
        """The session of a connection; one that is not known yet begins.

        Args:
          peer: the connection.

        Returns:
          Its session.

        Raises:
          UserError: too many clients.
        """
        session = self.by_peer.get(peer) or self._add(peer, self.start(0), None)
        session.last_call = time.monotonic()
        return session

    def close(self) -> None:
        """Ends the records of all episodes."""
        for session in self.by_peer.values():
            _end_record(session)

    def setup_of(self, peer: str, seen: Seen) -> Setup:
        """Who sends an observation.

        LeRobot's client says so once. Where its connection broke since then, it is known by the
        setups of other connections from its host, if all that fit the observation are of one
        kind of robot; after a restart of the server by the joints of the policy, if their names
        are the robot's.

        Args:
          peer: the connection.
          seen: what it has sent.

        Returns:
          Its setup, which its session keeps.

        Raises:
          StatusError: it is not known, or too many clients.
        """
        session = self.find(peer)
        if session.setup is None:
            session.setup = self._guess(peer, seen)
        return session.setup

    def _guess(self, peer: str, seen: Seen) -> Setup:
        host = peer.rpartition(':')[0]
        there = [one for name, one in self.by_peer.items() if name.rpartition(':')[0] == host]
        there.sort(key=lambda one: one.last_call)
        found = [one.setup for one in there if one.setup and not one.setup.lacking(seen)]
        if not found and self.joints:
            found = [setup_of_joints(self.joints, seen)]
        robots = {(one.joints, tuple(sorted(one.cameras.items()))) for one in found}
        if len(robots) != 1 or found[-1].lacking(seen):
            raise StatusError(
                'expected SendPolicyInstructions before the first observation, got an observation '
                f'of a connection that is not known ({peer}); start the robot client anew',
                'FAILED_PRECONDITION',
            )
        return found[-1]

    def _add(self, peer: str, state: PolicyState, setup: Setup | None) -> Session:
        full = len(self.by_peer) >= self.most
        for name, one in list(self.by_peer.items()):
            idle_s = time.monotonic() - one.last_call
            gone = full and idle_s > self.gone_s and not one.turn.locked()
            if idle_s > self.idle_s or gone:
                _end_record(self.by_peer.pop(name))
        if len(self.by_peer) >= self.most:
            raise StatusError(
                f'expected at most {self.most} clients at once, got one more; try again later',
                'RESOURCE_EXHAUSTED',
            )
        record = self.record and self.record()
        session = Session(state, setup, rate=self.rate, moved=self.moved, record=record)
        self.by_peer[peer] = session
        return session


def _end_record(session: Session | None) -> None:
    if session is not None and session.record is not None:
        session.record.end()
