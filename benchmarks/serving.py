"""What serving costs beside `policy.infer`, on this machine: overhead, clients at once, a soak.

    python -m benchmarks.serving
    python -m benchmarks.serving --clients=1,4,16 --max_batch=16 --policy=runs/base --dtype=bfloat16
    python -m benchmarks.serving --clients=1,16 --max_batch=16 --policy=random
    python -m benchmarks.serving --soak_min=30 --clients=4

The server is `serve.py` in a process of its own, and so is each robot (clients/sigma_client.py),
with two pictures of 224 pixels. Overhead is a request's whole time at the robot less what the
policy's own call took. A soak lets robots come and go, some of them killed, with a wrong request
among thirty; it ends with status 1 where an answer was lost or wrong, or memory grew by more than
2 %.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.serving_robots import Answered, Load, Soaked, coming_and_going, steady, windows

ROOT = pathlib.Path(__file__).resolve().parents[1]
WARM = 0.2  # of a soak; until then a server's memory may grow
GROWTH = 0.02
WINDOW = 5  # minutes


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that has compiled its programs."""

    process: subprocess.Popen
    port: int

    def resident(self) -> int:
        """Its memory, bytes."""
        text = pathlib.Path(f'/proc/{self.process.pid}/status').read_text()
        found = re.search(r'VmRSS:\s+(\d+) kB', text)
        assert found is not None
        return 1024 * int(found[1])

    def page(self, path: str) -> tuple[str, float]:
        """A page, and the seconds until it came."""
        start = time.perf_counter()
        with urllib.request.urlopen(f'http://127.0.0.1:{self.port}{path}', timeout=10) as page:
            return page.read().decode(), time.perf_counter() - start


@contextlib.contextmanager
def serving(arguments: argparse.Namespace) -> Iterator[tuple[Running, list[float]]]:
    """A server, and the times of `/healthz` while its programs were compiled."""
    process = subprocess.Popen(command(arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    stderr: Any = process.stderr
    told = threading.Thread(target=lambda: lines.extend(iter(stderr.readline, '')), daemon=True)
    told.start()
    try:
        port = int(wait_for(lines, r'serving at ws://127.0.0.1:(\d+)', process))
        found, times = Running(process, port), []
        while process.poll() is None and not any('ready' in line for line in lines):
            times.append(found.page('/healthz')[1])
            time.sleep(0.05)
        yield found, times
        process.terminate()
        if process.wait(60):
            raise SystemExit(f'expected status 0 of the server, got {process.returncode}')
    finally:
        process.kill()
        told.join()


def command(arguments: argparse.Namespace) -> list[str]:
    """The server's."""
    given = [f'--max_batch={arguments.max_batch}', f'--max_wait_ms={arguments.max_wait_ms}']
    given += [f'--tokenizer={arguments.tokenizer}', f'--compilation_cache={arguments.cache}']
    given += [f'--keys={keys(arguments.cameras)}']
    if arguments.policy == 'random':
        cameras = f'--cameras={",".join(arguments.cameras)}'
        return [sys.executable, '-m', 'benchmarks.serving_random', cameras, *given]
    given += ['--port=0', '--rate=0', f'--dtype={arguments.dtype}']
    return [sys.executable, 'serve.py', f'--policy={arguments.policy}', *given]


def wait_for(lines: Sequence[str], pattern: str, process: subprocess.Popen) -> str:
    """What a line of the server says, once it is there."""
    while process.poll() is None:
        for line in [*lines]:
            if found := re.search(pattern, line):
                return found[1]
        time.sleep(0.05)
    raise SystemExit(''.join(lines))


def keys(cameras: Sequence[str]) -> str:
    """The policy's own keys, with its cameras named, so that programs are compiled at the start."""
    pairs = [f'observation.images.{name}={name}' for name in cameras]
    return ','.join([*pairs, 'observation.state=observation.state', 'task=task'])


def load(arguments: argparse.Namespace, port: int) -> Load:
    """What the robots send."""
    names = tuple(f'observation.images.{name}' for name in arguments.cameras)
    return Load(f'ws://127.0.0.1:{port}', names, 224, arguments.state_dim)


def crowd(work: Any, robots: int, *given: Any) -> list[Any]:
    """Robots at once, each in a process."""
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(robots, context) as pool:
        asked = [pool.submit(work, given[0], n, *given[1:]) for n in range(robots)]
        return [one.result() for one in asked]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The middle, and what one of a hundred exceeds."""
    return {'p50': float(np.quantile(values, 0.5)), 'p99': float(np.quantile(values, 0.99))}


def row(robots: int, answers: Sequence[Answered]) -> dict[str, Any]:
    """What so many robots met."""
    begin = min(one.at_s for one in answers)
    end = max(one.at_s + one.whole_ms / 1e3 for one in answers)
    return {
        'robots': robots,
        'requests': len(answers),
        'per_s': len(answers) / (end - begin),
        'whole_ms': quantiles([one.whole_ms for one in answers]),
        'infer_ms': quantiles([one.infer_ms for one in answers]),
        'overhead_ms': quantiles([one.whole_ms - one.infer_ms for one in answers]),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows for each number of robots."""
    rows = []
    with serving(arguments) as (server, pages):
        for robots in arguments.clients:
            begin = time.time() + 3 + robots
            found = crowd(steady, robots, load(arguments, server.port), begin, arguments.requests)
            rows.append(row(robots, [one for each in found for one in each]))
    most = 1e3 * max(pages, default=0)
    return {'rows': rows, 'healthz_ms': most, 'healthz_pages': len(pages)}


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Robots that come and go, and the server's memory meanwhile."""
    robots, seconds = max(arguments.clients), 60 * arguments.soak_min
    with serving(arguments) as (server, _):
        begin, sizes, over = time.time(), [], threading.Event()

        def watch() -> None:
            while not over.wait(seconds / 200):
                sizes.append((time.time() - begin, server.resident()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        met: list[Soaked] = crowd(
            coming_and_going, robots, load(arguments, server.port), begin + seconds
        )
        over.set()
        watcher.join()
        page = server.page('/metrics')[0]
    answers = [one for each in met for one in each.answers]
    early = [size for at, size in sizes if seconds * WARM <= at < seconds * (WARM + 0.2)]
    late = [size for at, size in sizes if at >= seconds * 0.8]
    counted = re.search(r'sigma_requests_total\{outcome="answered"\} (\S+)', page)
    assert counted is not None
    return {
        **row(robots, answers),
        'connections': sum(each.connections for each in met),
        'refused': sum(each.refused for each in met),
        'wrong': [text for each in met for text in each.wrong],
        'lost': int(float(counted[1])) - len(answers),
        'memory_mib': [np.median(early) / 2**20, np.median(late) / 2**20],
        'growth': float(np.median(late) / np.median(early) - 1),
        'minutes': [
            {'from': n * WINDOW, 'n': len(x), **quantiles(x)}
            for n, x in windows(answers, begin, 60 * WINDOW)
        ],
    }


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """A table, milliseconds."""
    table = Table(
        'robots', 'requests', 'per s', 'whole p50', 'p99', 'infer p50', 'overhead p50', 'p99'
    )
    for one in rows:
        whole, over = one['whole_ms'], one['overhead_ms']
        numbers = whole['p50'], whole['p99'], one['infer_ms']['p50'], over['p50'], over['p99']
        texts = [f'{x:.2f}' for x in numbers]
        table.add_row(str(one['robots']), str(one['requests']), f'{one["per_s"]:.1f}', *texts)
    console.print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--policy', default='assets/pi05_tiny', help='or random: full size; default: %(default)s')
    add('--tokenizer', default='assets/tokenizer/tokenizer.json', help='default: %(default)s')
    add('--dtype', default='float32', help='default: %(default)s')
    add('--cameras', type=lambda x: x.split(','), default=['up', 'side'], help='default: up,side')
    add('--state_dim', type=int, default=6, help='default: %(default)s')
    add('--clients', type=lambda x: [int(n) for n in x.split(',')], default=[1], help='default: 1')
    add('--requests', type=int, default=500, help='of each client; default: %(default)s')
    add('--max_batch', type=int, default=0, help='as of serve.py; default: %(default)s')
    add('--max_wait_ms', type=float, default=10.0, help='default: %(default)s')
    add('--cache', default='~/.cache/sigma_jax', help='of programs; default: %(default)s')
    add('--soak_min', type=float, default=0, help='minutes of robots that come and go')
    add('--out', type=pathlib.Path, help='a file for all numbers, JSON')
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    arguments, console = parse(), Console()
    found = soak(arguments) if arguments.soak_min else measure(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + '\n')
    show(found.get('rows', [found]), console)
    if not arguments.soak_min:
        text = f'/healthz while programs were compiled: {found["healthz_pages"]} times, at most '
        console.print(f'{text}{found["healthz_ms"]:.0f} ms')
        return
    for one in found['minutes']:
        numbers = f'{one["n"]:6d} answers, p50 {one["p50"]:.1f} ms, p99 {one["p99"]:.1f} ms'
        console.print(f'from minute {one["from"]:2d}: {numbers}')
    before, after = found['memory_mib']
    console.print(
        f'{found["connections"]} connections, {found["refused"]} refused, {len(found["wrong"])} '
        f'wrong, {found["lost"]} answers lost; memory {before:.1f} -> {after:.1f} MiB '
        f'({100 * found["growth"]:+.2f} %)'
    )
    console.print(*found['wrong'][:10], sep='\n')
    if found['wrong'] or found['growth'] > GROWTH or found['lost']:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
