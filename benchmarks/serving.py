"""What serving costs beside `policy.infer`, on this machine: overhead, clients at once, a soak.

    python -m benchmarks.serving
    python -m benchmarks.serving --clients=1,4,16 --max_batch=16 --policy=runs/base --dtype=bfloat16
    python -m benchmarks.serving --clients=1,16 --max_batch=16 --policy=random
    python -m benchmarks.serving --soak_min=30 --clients=4

The server is `serve.py` in a process of its own, and so is each robot (clients/sigma_client.py),
with two pictures of 224 pixels. Overhead is a request's whole time at the robot less what the
policy's own call took. What a soak is, benchmarks/serving_soak.py says: so many robots of each
protocol; it ends with status 1 where something was wrong.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import serving_soak
from benchmarks.serving_robots import Answered, Load, quantiles, steady
from benchmarks.serving_server import serving


def load(arguments: argparse.Namespace, port: int) -> Load:
    """What the robots send."""
    names = tuple(f'observation.images.{name}' for name in arguments.cameras)
    return Load(port, names, 224, arguments.state_dim)


def crowd(work: Any, robots: int, *given: Any) -> list[Any]:
    """Robots at once, each in a process."""
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(robots, context) as pool:
        asked = [pool.submit(work, given[0], n, *given[1:]) for n in range(robots)]
        return [one.result() for one in asked]


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
    if arguments.soak_min:
        found = serving_soak.soak(arguments, load(arguments, 0))
        lines = serving_soak.describe(found)
    else:
        found = measure(arguments)
        show(found['rows'], console)
        pages, most = found['healthz_pages'], found['healthz_ms']
        lines = [f'/healthz while programs were compiled: {pages} times, at most {most:.0f} ms']
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + '\n')
    console.print(*lines, sep='\n', soft_wrap=True)
    if found.get('faults'):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
