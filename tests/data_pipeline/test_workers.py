"""Worker processes end with the process that started them, even where that is killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sigma_jax.data.shards.prepare import prepare
from tests.data_pipeline import recordings

REPOSITORY = Path(__file__).parents[2]
# prints the numbers of its workers as soon as they have done something, and waits to be killed
CHILD = """
import multiprocessing, sys, time
from sigma_jax.data.loader.loader import make_loader
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import shards_processor
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.sim.record import RecordingPlan, record
from tests.data_pipeline.recordings import SETTINGS

def wait(*_):
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(600)

def load(shards):
    tokenizer = load_tokenizer(SETTINGS['tokenizer'])
    opened = open_shards(shards)
    processor, order = shards_processor(opened, tokenizer), Order(2, num_epochs=None)
    loader = make_loader(opened.split('train'), processor, order, num_workers=1)
    wait(next(loader))

def record_many(out):
    record(RecordingPlan('target', 9, height=32, width=32), out, workers=2, on_episode=wait)

if __name__ == '__main__':
    globals()[sys.argv[1]](sys.argv[2])
"""


def runs(pid: int) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    state = subprocess.run(
        ['ps', '-o', 'stat=', '-p', str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith('Z')


def after_kill(*arguments: str | Path) -> list[int]:
    """The workers of a process that was killed while it had some."""
    command = [sys.executable, '-c', CHILD, *map(str, arguments)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        ran = [runs(pid) for pid in workers]
        process.kill()
    assert ran and all(ran)
    return workers


@pytest.mark.parametrize('work', ['load', 'record_many'])
def test_a_killed_process_leaves_no_worker_behind(work: str, tmp_path: Path) -> None:
    if work == 'load':
        prepare(
            recordings.config(recordings.record(tmp_path / 'source', (40, 30, 30))),
            tmp_path / 'out',
        )
    workers = after_kill(work, tmp_path / 'out')
    until = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(runs, workers))
