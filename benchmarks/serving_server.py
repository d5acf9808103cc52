"""`serve.py` in a process of its own, for what measures it."""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that has compiled its programs."""

    process: subprocess.Popen
    port: int
    lerobot_port: int = -1

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
def serving(
    arguments: argparse.Namespace, *more: str, lerobot: bool = False
) -> Iterator[tuple[Running, list[float]]]:
    """A server, and the times of `/healthz` while its programs were compiled.

    `more` are settings of it; `lerobot` says whether LeRobot's clients are served, too.
    """
    given = [*command(arguments), *more, *(['--lerobot_port=0'] if lerobot else [])]
    process = subprocess.Popen(given, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    stderr: Any = process.stderr
    told = threading.Thread(target=lambda: lines.extend(iter(stderr.readline, '')), daemon=True)
    told.start()
    try:
        port = int(wait_for(lines, r'serving at ws://127.0.0.1:(\d+)', process))
        other = r'serving LeRobot at 127.0.0.1:(\d+)'
        lerobot_port = int(wait_for(lines, other, process)) if lerobot else -1
        found, times = Running(process, port, lerobot_port), []
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
