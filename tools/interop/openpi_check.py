"""Does openpi's own client, unmodified, drive a policy served from here, and get what it gives?

    python -m tools.interop.openpi_check
    python -m tools.interop.openpi_check --policy=runs/base --tokenizer=TOKENIZER --env=DIR

Makes the client's environment in --env (openpi-client 0.1.2 wants numpy < 2), starts serve.py, and
holds against `policy.infer` in this process: 200 requests bit for bit, four clients at once, one
that is killed in the middle, a server that is restarted under a client. Ends with status 1 where
something differs. Minutes on a CPU.
"""

import argparse
import contextlib
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

import sigma_jax as sj
from clients.sigma_client import Client
from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.training.compilation import enable_compilation_cache

ROOT = pathlib.Path(__file__).resolve().parents[2]

# typing_extensions: it imports it and does not ask for it
NEEDS = ('openpi-client==0.1.2', 'numpy<2', 'typing_extensions')
ROBOT = pathlib.Path(__file__).with_name('openpi_robot.py')
PROMPT = 'put the brick into the box'
CAMERAS = 'up', 'side'


def environment(folder: pathlib.Path) -> str:
    """The interpreter of an environment with openpi's client."""
    python = folder / 'bin' / 'python'
    if not python.exists():
        subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    install = [str(python), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    subprocess.run([*install, *NEEDS], check=True)
    return str(python)


def write_observations(file: pathlib.Path, count: int, state_dim: int) -> list[dict[str, Any]]:
    """Random observations, stored under a LIBERO robot's names and given under ours."""
    rng = np.random.default_rng(count)
    shape = count, 224, 224, 3
    image, wrist = (rng.integers(0, 256, shape, np.uint8) for _ in range(2))
    state = rng.uniform(-20, 20, (count, state_dim)).astype(np.float32)
    np.savez(file, image=image, wrist=wrist, state=state, prompt=PROMPT)
    return [
        {IMAGES + CAMERAS[0]: a, IMAGES + CAMERAS[1]: b, STATE: c, TASK: PROMPT}
        for a, b, c in zip(image, wrist, state, strict=True)
    ]


@contextlib.contextmanager
def server(arguments: argparse.Namespace, port: int) -> Iterator[subprocess.Popen]:
    """serve.py until the block ends; then SIGTERM, which it must answer with status 0."""
    keys = f'libero,observation/image={CAMERAS[0]},observation/wrist_image={CAMERAS[1]}'
    command = [sys.executable, 'serve.py', f'--policy={arguments.policy}', f'--port={port}']
    command += [f'--tokenizer={arguments.tokenizer}', f'--keys={keys}', '--max_batch=4']
    log = pathlib.Path(arguments.folder) / 'server.log'
    with log.open('w') as told:
        process = subprocess.Popen(command, cwd=ROOT, stderr=told)
    try:
        while process.poll() is None and not healthy(port):
            time.sleep(0.2)
        if process.poll() is not None:
            raise SystemExit(log.read_text()[-2000:])
        yield process
        process.send_signal(signal.SIGTERM)
        check('the server ends with status 0', process.wait(60) == 0)
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/healthz', timeout=2) as page:
            return page.read() == b'OK\n'
    except OSError:
        return False


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def check(what: str, right: bool, more: str = '') -> None:
    """A line; the end where it is wrong."""
    print(f'{"ok" if right else "WRONG":6}{what}{f": {more}" if more else ""}', flush=True)
    if not right:
        raise SystemExit(1)


class Robots:
    """Clients of openpi's, as processes."""

    def __init__(self, python: str, port: int, folder: pathlib.Path):
        self._python, self._uri, self._folder = python, f'ws://127.0.0.1:{port}', folder

    def start(self, seen: pathlib.Path, out: str) -> subprocess.Popen:
        """One that asks for what is stored in `seen`."""
        command = [self._python, str(ROBOT), self._uri, str(seen), out]
        quiet = subprocess.DEVNULL if out == '--for_ever' else None  # it ends with an error
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True)

    def finish(self, process: subprocess.Popen, out: pathlib.Path) -> Any:
        """What it got."""
        check('the client ends with status 0', process.wait(600) == 0)
        return np.load(out)


def one_client(robots: Robots, policy: sj.Policy, folder: pathlib.Path, count: int) -> None:
    """All answers of one client, bit for bit."""
    seen = write_observations(folder / 'many.npz', count, policy.spec.state_dim)
    got = robots.finish(
        robots.start(folder / 'many.npz', str(folder / 'out.npz')), folder / 'out.npz'
    )
    policy.reset()
    want = [policy.infer(each)['actions'] for each in seen]
    same = sum(np.array_equal(a, b) for a, b in zip(got['actions'], want, strict=True))
    check(f'{count} requests of one client, bit for bit', same == count, f'{same} the same')
    told = str(got['told'])
    wrong = 'expected observation/image' in told and 'Traceback' not in told
    check('a wrong request is a sentence', wrong, told.splitlines()[-1][:80])
    again = policy.infer(seen[0])['actions']
    check('and the next one is answered', np.array_equal(got['again'], again))
    steps = policy.infer(seen[0])['actions'][:3]
    check("openpi's ActionChunkBroker gives out its rows", np.array_equal(got['steps'], steps))


def four_clients(robots: Robots, policy: sj.Policy, folder: pathlib.Path) -> None:
    """Each gets its own; where four are computed together, sums are made in another order."""
    inputs = [folder / f'in{n}.npz' for n in range(4)]
    outputs = [folder / f'out{n}.npz' for n in range(4)]
    seen = [
        write_observations(each, 20 + n, policy.spec.state_dim) for n, each in enumerate(inputs)
    ]
    started = [robots.start(a, str(b)) for a, b in zip(inputs, outputs, strict=True)]
    got = [robots.finish(*each)['actions'] for each in zip(started, outputs, strict=True)]
    furthest, same, count = 0.0, 0, 0
    for mine, found in zip(seen, got, strict=True):
        policy.state = policy.initial_state()
        want = [policy.infer(each)['actions'] for each in mine]
        furthest = max(furthest, float(np.abs(found - np.array(want)).max()))
        same += sum(np.array_equal(a, b) for a, b in zip(found, want, strict=True))
        count += len(mine)
    scale = float(np.abs(want).max())
    text = f'{same} of {count} bit for bit, the rest within {furthest:.1g} of {scale:.3g}'
    check('four clients at once', furthest < 1e-4 * scale, text)


def killed_client(robots: Robots, policy: sj.Policy, folder: pathlib.Path) -> None:
    """It is killed while it is answered; another one notices nothing."""
    doomed = robots.start(folder / 'in0.npz', '--for_ever')
    assert doomed.stdout is not None
    doomed.stdout.readline()
    time.sleep(0.3)
    seen = write_observations(folder / 'few.npz', 10, policy.spec.state_dim)
    other = robots.start(folder / 'few.npz', str(folder / 'few_out.npz'))
    time.sleep(0.5)
    doomed.kill()
    doomed.wait()
    got = robots.finish(other, folder / 'few_out.npz')['actions']
    policy.state = policy.initial_state()
    want = np.array([policy.infer(each)['actions'] for each in seen])
    near = float(np.abs(got - want).max())
    right = near < 1e-4 * np.abs(want).max()
    check('a client killed in the middle, and another beside it', right, f'within {near:.1g}')


def restarted(arguments: argparse.Namespace, robots: Robots, port: int, policy: sj.Policy) -> None:
    """The server goes while clients ask, and comes again."""
    folder = pathlib.Path(arguments.folder)
    seen = write_observations(folder / 'few.npz', 10, policy.spec.state_dim)[0]
    ours = {
        'observation/image': seen[IMAGES + CAMERAS[0]],
        'observation/wrist_image': seen[IMAGES + CAMERAS[1]],
        'observation/state': seen[STATE],
        'prompt': PROMPT,
    }
    policy.state = policy.initial_state()
    want = policy.infer(seen)['actions']
    with server(arguments, port):
        client = Client(f'ws://127.0.0.1:{port}')
        check('our own client gets the same', np.array_equal(client.infer(ours)['actions'], want))
        theirs = robots.start(folder / 'few.npz', '--for_ever')
        assert theirs.stdout is not None
        theirs.stdout.readline()
    check("openpi's client says that its connection is gone", theirs.wait(60) != 0)
    with server(arguments, port):
        got = client.infer(ours)['actions']
        again = np.array_equal(got, want) and client.connections == 2
        check('ours connects again and asks anew', again)
        out = folder / 'after.npz'
        found = robots.finish(robots.start(folder / 'few.npz', str(out)), out)
        check("a new client of openpi's is served", np.array_equal(found['actions'][0], want))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--policy', default='assets/pi05_tiny', help='default: %(default)s')
    add('--tokenizer', default='assets/tokenizer/tokenizer.json', help='default: %(default)s')
    add('--env', default='runs/openpi_client', help="the client's; default: %(default)s")
    add('--requests', type=int, default=200, help='default: %(default)s')
    arguments = parser.parse_args()
    python, port = environment(pathlib.Path(arguments.env).absolute()), free_port()
    enable_compilation_cache('~/.cache/sigma_jax')
    policy = sj.load_policy(str(arguments.policy), tokenizer=arguments.tokenizer)
    with tempfile.TemporaryDirectory() as name:
        arguments.folder = name
        folder = pathlib.Path(name)
        robots = Robots(python, port, folder)
        with server(arguments, port):
            one_client(robots, policy, folder, arguments.requests)
            four_clients(robots, policy, folder)
            killed_client(robots, policy, folder)
        restarted(arguments, robots, port, policy)
    print('all the same')


if __name__ == '__main__':
    main()
