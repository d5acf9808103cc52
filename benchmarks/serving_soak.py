"""A server that both kinds of robots load without a pause while they come and go.

Each robot is a process: it connects, asks up to 300 times, says something wrong once in thirty, and
leaves with a word, without one, or killed while it waits for an answer. The next takes its seat at
once. Every robot sees the same at the same step, so every answer is known beforehand: it must be
what `policy.infer` gives in a process of its own for that step of an episode, to the bit where the
server computed one request at a time, to rounding where it did several. Found at fault are

  an answer that is another, or none within a minute; one that the server counts and nobody got
  a wrong request that was answered, an error of the server's own
  memory that grows by more than 2 % from the second fifth to the last
  a p99 whose windows are 25 % above those before, the later half against the earlier

Without grpcio only openpi's protocol is driven.
In less than ten minutes a server's memory is still warming up.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.util
import multiprocessing
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.serving_robots import LONGEST, Load, quantiles, visit
from benchmarks.serving_server import Running, serving

GROWTH, DRIFT, ROUNDING = 0.02, 0.25, 1e-4
SILENCE_S = 60  # after which an answer is lost
WINDOW_S = 300  # or a sixth of the soak, so that there are six at least
# LeRobot's protocol knows a robot by its address: one that comes by the port of a robot that left
# without a word begins that one's next episode, of other noise
EPISODES = {'openpi': 1, 'LeRobot': 3}
SERVER = '--clients=1024', '--idle_s=60'  # robots that left without a word keep their seats so long


@dataclasses.dataclass
class Met:
    """What the robots of one kind met."""

    answers: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # at s, took ms
    visits: int = 0
    refused: int = 0
    killed: int = 0
    lost: int = 0
    off: float = 0.0  # largest difference from what is right, relative to the largest action
    wrong: list[str] = dataclasses.field(default_factory=list)


class Seats:
    """Robots that come and go, in processes that a clean one forks.

    Args:
      right: what is to be answered, by episode and step.
      end: when the last leaves, seconds since 1970.
    """

    def __init__(self, right: Sequence[Sequence[np.ndarray]], end: float):
        self._right, self._end = right, end
        self._context = multiprocessing.get_context('forkserver')
        preloaded = 'benchmarks.serving_soak', 'rich.console', 'rich.table', *_lerobot_modules()
        self._context.set_forkserver_preload([*preloaded])
        self._one = threading.Lock()  # who starts a process also reads what others ended with

    def fill(self, kind: str, load: Load, number: int) -> Met:
        """One seat, until the end."""
        met = Met()
        while time.time() < self._end:
            receiving, sending = self._context.Pipe(False)
            given = kind, load, [number, met.visits], self._end, sending
            process = self._context.Process(target=visit, args=given, daemon=True)
            with self._one:
                process.start()
            sending.close()
            met.visits += 1
            self._listen(kind, receiving, met)
            with self._one:
                process.kill()
                process.join()
        return met

    def _listen(self, kind: str, receiving: Any, met: Met) -> None:
        """What one robot tells, to its end."""
        killed, right = False, self._right[0]
        with receiving:
            while receiving.poll(SILENCE_S):
                try:
                    what, *about = receiving.recv()
                except EOFError:
                    return
                if what == 'answer':
                    right = self.begun(kind, about[-1]) if about[-2] == 0 else right
                    self.take(met, right, *about)
                elif what == 'wrong':
                    met.wrong.append(about[0])
                else:
                    killed = what == 'killed'
                    met.killed += killed
                    met.refused += not killed
        met.lost += not killed
        met.wrong.append(f'{kind}: no answer in {SILENCE_S} s')

    def begun(self, kind: str, actions: np.ndarray) -> Sequence[np.ndarray]:
        """The episode of which this is the first answer, or nearly; all others must be of it."""
        return min(self._right[: EPISODES[kind]], key=lambda right: off(actions, right[0]))

    def take(
        self,
        met: Met,
        right: Sequence[np.ndarray],
        at: float,
        took: float,
        step: int,
        actions: np.ndarray,
    ) -> None:
        """Counts an answer, and compares it with that of its step."""
        met.answers.append((at, took))
        if np.isinf(found := off(actions, right[step])):
            met.wrong.append(f'step {step}: {list(actions.shape)} or not finite')
        else:
            met.off = max(met.off, found)


def off(actions: np.ndarray, right: np.ndarray) -> float:
    """The largest difference, relative to the largest action; infinity where there is none."""
    if actions.shape != right.shape or not np.isfinite(actions).all():
        return np.inf
    return float(np.abs(actions - right).max() / np.abs(right).max())


def soak(arguments: argparse.Namespace, load: Load) -> dict[str, Any]:
    """Robots that come and go, and the server's memory meanwhile."""
    if arguments.policy == 'random':
        raise SystemExit('expected the folder of a policy for a soak, got random')
    kinds = ['openpi', *(['LeRobot'] if _lerobot_modules() else [])]
    robots, seconds = max(arguments.clients), 60 * arguments.soak_min
    right = in_a_process(right_answers, arguments, load)
    with serving(arguments, *SERVER, lerobot=len(kinds) > 1) as (server, _):
        begin, sizes, over = time.time(), [], threading.Event()

        def watch() -> None:
            while not over.wait(seconds / 200):
                sizes.append(((time.time() - begin) / seconds, server.resident()))

        seats = Seats(right, begin + seconds)
        ports = {'openpi': server.port, 'LeRobot': server.lerobot_port}
        with concurrent.futures.ThreadPoolExecutor(1 + len(kinds) * robots) as pool:
            pool.submit(watch)
            asked = {
                kind: [
                    pool.submit(seats.fill, kind, dataclasses.replace(load, port=ports[kind]), n)
                    for n in range(robots)
                ]
                for kind in kinds
            }
            met = {kind: joined([one.result() for one in each]) for kind, each in asked.items()}
            over.set()
        counts = counted(server)
    memory = [np.median([x for at, x in sizes if a <= at < b]) for a, b in ((0.2, 0.4), (0.8, 2))]
    found = {
        'robots': robots,
        'minutes': arguments.soak_min,
        'memory_mib': [size / 2**20 for size in memory],
        'samples': [(arguments.soak_min * at, size / 2**20) for at, size in sizes],
        'growth': float(memory[1] / memory[0] - 1),
        'counts': counts,
        'kinds': {kind: summary(one, begin, seconds) for kind, one in met.items()},
    }
    return found | {'faults': faults(found)}


def in_a_process(work: Any, *given: Any) -> Any:
    """What a function returns that has a device and its memory for itself, and gives it back."""
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *given).result()


def right_answers(arguments: argparse.Namespace, load: Load) -> list[list[np.ndarray]]:
    """What the policy itself gives, by episode and step."""
    import sigma_jax as sj

    policy = sj.load_policy(arguments.policy, tokenizer=arguments.tokenizer, dtype=arguments.dtype)
    episodes: list[list[np.ndarray]] = []
    while len(episodes) < max(EPISODES.values()):
        policy.reset()
        answers = [policy.infer(load.episode(step)) for step in range(LONGEST)]
        rows = [np.asarray(one.get('motor_commands', one['actions'])) for one in answers]
        episodes.append(rows)
    return episodes


def joined(parts: Sequence[Met]) -> Met:
    """What several seats met."""
    whole = Met()
    for part in parts:
        for name, value in vars(part).items():
            before = getattr(whole, name)
            setattr(whole, name, max(before, value) if name == 'off' else before + value)
    return whole


def counted(server: Running) -> dict[str, int]:
    """What the server says of itself."""
    page = server.page('/metrics')[0]

    def number(pattern: str) -> int:
        found = re.search(rf'^sigma_{pattern} (\S+)$', page, re.MULTILINE)
        assert found is not None, pattern
        return int(float(found[1]))

    outcomes = 'answered', 'refused', 'failed'
    return {
        **{name: number(rf'requests_total{{outcome="{name}"}}') for name in outcomes},
        'batches': number('batch_size_count'),
        'of_one': number(r'batch_size_bucket{le="1.0"}'),
    }


def summary(met: Met, begin: float, seconds: float) -> dict[str, Any]:
    """Numbers of one kind; times by windows."""
    length = min(WINDOW_S, seconds / 6)
    by: dict[int, list[float]] = {}
    for at, took in met.answers:
        by.setdefault(int((at - begin) // length), []).append(took)
    whole = round(seconds / length)  # a robot's last answer may come after the end
    windows = [
        {'from_s': n * length, 'n': len(x), **quantiles(x)}
        for n, x in sorted(by.items())
        if n < whole
    ]
    late = [one['p99'] for one in windows]
    half = len(late) // 2
    drift = float(np.median(late[half:]) / np.median(late[:half]) - 1) if half else np.nan
    numbers = {name: x for name, x in vars(met).items() if name != 'answers'}
    return {'answers': len(met.answers), **numbers, 'windows': windows, 'drift': drift}


def faults(found: dict[str, Any]) -> list[str]:
    """In words."""
    counts, kinds = found['counts'], found['kinds']
    told = [text for one in kinds.values() for text in one['wrong'][:5]]
    most = 0.0 if counts['of_one'] == counts['batches'] else ROUNDING
    told += [
        f'{kind}: answers are off by {one["off"]:.1e}, at most {most:g} is rounding'
        for kind, one in kinds.items()
        if not one['off'] <= most
    ]
    told += [
        f'{kind}: p99 went up by {100 * one["drift"]:.0f} %'
        for kind, one in kinds.items()
        if not one['drift'] <= DRIFT
    ]
    got, killed = (sum(one[name] for one in kinds.values()) for name in ('answers', 'killed'))
    if not 0 <= counts['answered'] - got <= killed:
        told.append(f'the server answered {counts["answered"]} times, robots got {got}')
    if counts['failed']:
        told.append(f'{counts["failed"]} requests failed by a fault of the server')
    if not found['growth'] <= GROWTH:
        told.append(f'memory grew by {100 * found["growth"]:.2f} %')
    return told


def describe(found: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [] if 'LeRobot' in found['kinds'] else ["no grpcio here: openpi's protocol alone"]
    counts = found['counts']
    one_by_one = counts['of_one'] == counts['batches']
    for kind, one in found['kinds'].items():
        right = 'to the bit' if not one['off'] else f'to {one["off"]:.1e}'
        lines.append(
            f'{found["robots"]} robots of {kind}: {one["answers"]} answers as of policy.infer '
            f'{right}, {one["visits"]} visits, {one["killed"]} killed, {one["refused"]} wrong '
            f'requests refused, {one["lost"]} lost; p99 {100 * one["drift"]:+.0f} %'
        )
        lines += [
            f'  from {x["from_s"] / 60:4.1f} min: {x["n"]:6d} answers, p50 {x["p50"]:.1f} ms, '
            f'p99 {x["p99"]:.1f} ms'
            for x in one['windows']
        ]
    before, after = found['memory_mib']
    lines.append(
        f'server: {counts["answered"]} answered, {counts["refused"]} refused, {counts["failed"]} '
        f'failed, {"one by one" if one_by_one else "in batches"}; memory {before:.1f} -> '
        f'{after:.1f} MiB ({100 * found["growth"]:+.2f} %)'
    )
    return [*lines, *(f'FAULT {text}' for text in found['faults'])]


def _lerobot_modules() -> list[str]:
    """What a robot of LeRobot's needs, where it is installed."""
    installed = importlib.util.find_spec('grpc') is not None
    return ['grpc', 'tests.policies.serving.lerobot.client'] if installed else []
