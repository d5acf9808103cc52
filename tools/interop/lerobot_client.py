"""Drives a served policy by LeRobot's own RobotClient, and compares with the policy itself.

    python tools/interop/lerobot_client.py --base=runs/base

makes an environment with LeRobot 0.6.1 (once; --env, --python), serves the base on loopback, runs

  one      one client, 200 chunks: each must be what `policy.infer` gives in-process, bit for bit
  four     four clients at once, 50 chunks each: the same to rounding, since they share batches
  killed   two clients, one killed in the middle: the other misses nothing
  restart  the server stopped and started again under a client: it goes on

It prints a line for each, and ends with status 1 where one fails.
"""

import argparse
import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from sigma_jax.api.policies import load_policy  # noqa: E402

PINNED = 'lerobot[async]==0.6.1'
ROBOT = ROOT / 'tools' / 'interop' / 'lerobot_robot.py'
JOINTS = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper')
VIEWS = ('up', 'side')


def make_environment(env: pathlib.Path, python: str) -> str:
    """An environment with LeRobot's client; returns its interpreter."""
    inside = env / 'bin' / 'python'
    if not inside.is_file():
        subprocess.run([python, '-m', 'venv', str(env)], check=True)
    have = subprocess.run([inside, '-c', 'import grpc, lerobot.async_inference.robot_client'],
                          capture_output=True, cwd=env)  # fmt: skip
    if have.returncode:
        subprocess.run([inside, '-m', 'pip', 'install', '--quiet', PINNED], check=True)
    return str(inside)


class Bench:
    """A server in a process of its own, its clients, and what they must get."""

    def __init__(self, arguments: argparse.Namespace, env: str, folder: pathlib.Path):
        self.base, self.tokenizer = arguments.base, arguments.tokenizer
        self.env, self.folder, self.port = env, folder, 0
        self.policy = load_policy(self.base, tokenizer=self.tokenizer)

    @contextlib.contextmanager
    def server(self) -> Iterator[None]:
        """Runs one, at the port of the one before it."""
        command = [sys.executable, 'serve.py', f'--policy={self.base}', '--port=0']
        command += [f'--tokenizer={self.tokenizer}', f'--lerobot_port={self.port}']
        command += ['--lerobot_joints=' + ','.join(f'{name}.pos' for name in JOINTS)]
        command += [f'--compilation_cache={self.folder / "programs"}', '--max_batch=4']
        log = self.folder / 'server.log'
        with log.open('w') as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
        try:
            while not (said := re.search(r'serving LeRobot at \S+:(\d+)', log.read_text())):
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.1)
            self.port = int(said[1])
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()[-2000:]

    def client(self, name: str, **settings: object) -> subprocess.Popen:
        """Starts one; it writes NAME.npz."""
        command = [self.env, str(ROBOT), f'--address=127.0.0.1:{self.port}']
        command += [f'--out={self.folder / name}.npz']
        command += [f'--{key}={value}' for key, value in settings.items()]
        log = (self.folder / f'{name}.log').open('w')
        return subprocess.Popen(command, stdout=log, stderr=log)

    def got(self, name: str) -> dict[str, np.ndarray]:
        """What a client wrote."""
        path = self.folder / f'{name}.npz'
        if not path.is_file():
            raise AssertionError((self.folder / f'{name}.log').read_text()[-2000:])
        with np.load(path) as file:
            return dict(file)

    def want(self, seen: dict[str, np.ndarray], rows: range) -> np.ndarray:
        """What the policy gives in-process for the observations of an episode."""
        self.policy.state = self.policy.initial_state()
        chunks = [self.policy.infer(observed(seen, row))['actions'] for row in rows]
        return np.stack(chunks)[:, : seen['actions'].shape[1]]


def observed(seen: dict[str, np.ndarray], row: int) -> dict[str, object]:
    """An observation that a client sent, in the policy's words."""
    frames = {f'observation.images.{view}': seen[f'image.{view}'][row] for view in VIEWS}
    state = seen['state'][row].astype(np.float32)
    return frames | {'observation.state': state, 'task': str(seen['task'][row])}


def one(bench: Bench) -> str:
    """200 chunks, bit for bit."""
    with bench.server():
        bench.client('one', chunks=200).wait(600)
    seen = bench.got('one')
    chunks, steps = seen['actions'], seen['timesteps']
    assert len(chunks) == 200 and seen['errors'].size == 0, seen['errors']
    assert np.array_equal(chunks, bench.want(seen, range(200)))
    assert np.array_equal(steps, seen['seen_timestep'][:, None] + np.arange(steps.shape[1]))
    assert (np.diff(seen['timestamps'][:, 0]) > 0).all() and seen['carried_out'] > 200
    waits = np.quantile(1e3 * seen['waits'][1:], [0.05, 0.5, 0.99])
    return (
        f'200 chunks of {seen["sent"]} observations equal policy.infer bit for bit, '
        f'{seen["carried_out"]} actions carried out; GetActions took {waits[0]:.1f} ms (5 %), '
        f'{waits[1]:.1f} (50 %), {waits[2]:.1f} (99 %) with the wait for an observation'
    )


def four(bench: Bench) -> str:
    """Four clients at once."""
    with bench.server():
        names = [f'four{n}' for n in range(4)]
        clients = [bench.client(name, chunks=50, seed=n) for n, name in enumerate(names)]
        for client in clients:
            client.wait(600)
    largest = 0.0
    for name in names:
        seen = bench.got(name)
        assert len(seen['actions']) == 50 and seen['errors'].size == 0, seen['errors']
        want = bench.want(seen, range(50))
        np.testing.assert_allclose(seen['actions'], want, rtol=1e-4, atol=1e-3)
        largest = max(largest, float(np.abs(seen['actions'] - want).max()))
    return f'4 x 50 chunks, each as policy.infer for its own episode to {largest:.1e}'


def killed(bench: Bench) -> str:
    """A client that dies."""
    with bench.server():
        stays, dies = bench.client('stays', chunks=100), bench.client('dies', chunks=10_000)
        wait_for_chunk(bench, 'dies', dies, 20)
        dies.kill()
        stays.wait(600)
    seen = bench.got('stays')
    assert len(seen['actions']) == 100 and seen['errors'].size == 0, seen['errors']
    np.testing.assert_allclose(seen['actions'], bench.want(seen, range(100)), rtol=1e-4, atol=1e-3)
    return '100 chunks for the client beside the one that was killed, none missed'


def restart(bench: Bench) -> str:
    """A server that is started again."""
    with bench.server():
        client = bench.client('restart', chunks=200, fps=30)
        wait_for_chunk(bench, 'restart', client, 60)
    with bench.server():
        client.wait(600)
    seen = bench.got('restart')
    chunks = seen['actions']
    assert len(chunks) == 200, len(chunks)
    splits = [
        n for n in range(1, 200) if np.array_equal(chunks[n], bench.want(seen, range(n, n + 1))[0])
    ]
    assert splits, 'no chunk begins an episode'
    for rows in (range(splits[0]), range(splits[0], 200)):
        assert np.array_equal(chunks[rows.start : rows.stop], bench.want(seen, rows))
    said = {str(text)[:60] for text in seen['errors']}
    return (
        f'{splits[0]} chunks before and {200 - splits[0]} after the restart, each as policy.infer; '
        f'the client got meanwhile: {sorted(said)}'
    )


def wait_for_chunk(bench: Bench, name: str, client: subprocess.Popen, number: int) -> None:
    """Until a client has had that many."""
    log = bench.folder / f'{name}.log'
    while f'chunk {number}\n' not in log.read_text():
        assert client.poll() is None, log.read_text()[-2000:]
        time.sleep(0.1)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('--base', required=True, help='folder of a converted base')
    add('--tokenizer', default='', help='default: the one beside the base')
    add('--env', type=pathlib.Path, default=ROOT / 'runs' / 'lerobot_client')
    add('--python', default='python3.12', help='to make the environment with')
    add('--only', choices=['one', 'four', 'killed', 'restart'], help='default: all of them')
    add('--keep', type=pathlib.Path, help='folder for logs and what clients got')
    arguments = parser.parse_args()
    env, failed = make_environment(arguments.env, arguments.python), 0
    folder = arguments.keep or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments, env, folder)
    for case in (one, four, killed, restart):
        if arguments.only in (None, case.__name__):
            try:
                print(f'{case.__name__}: {case(bench)}', flush=True)
            except AssertionError as error:
                failed += 1
                print(f'{case.__name__}: FAILED: {error}', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
