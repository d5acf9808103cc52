"""Killed at any instant and started again, a preparation ends in bitwise the same files."""

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data_pipeline import recordings

REPOSITORY = Path(__file__).parents[2]
# writes one byte when its imports are done and one for every step of progress
CHILD = """
import os, sys
from sigma_jax.data.shards.prepare import prepare
from tests.data_pipeline import recordings
config = recordings.config(sys.argv[1], stride=1, shard_size=6)
os.write(1, b'.')
prepare(config, sys.argv[2], lambda done, total: os.write(1, b'.'))
"""


def start(source: Path, out: Path) -> subprocess.Popen:
    """A preparation in a process of its own."""
    command = [sys.executable, '-c', CHILD, str(source), str(out)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen) -> int:
    """Lets a preparation run to its end."""
    process.communicate()
    return process.returncode


def contents(path: Path) -> dict[str, str]:
    """Digests of the files under their final names."""
    files = (
        [file for file in path.iterdir() if file.is_file() and file.name != '.lock']
        if path.is_dir()
        else []
    )
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A source, and the files that a run without disturbance makes of it."""
    source = recordings.record(
        tmp_path_factory.mktemp('source'), (80, 90, 100, 80, 70), kind='video'
    )
    out = tmp_path_factory.mktemp('undisturbed') / 'out'
    assert finish(start(source, out)) == 0
    return source, contents(out)


def test_five_kills_change_no_bit(undisturbed, tmp_path) -> None:
    source, expected = undisturbed
    instants = random.Random(0)
    out, counts = tmp_path / 'out', []
    for _ in range(5):
        process = start(source, out)
        assert process.stdout is not None
        process.stdout.read(instants.randint(1, 60))
        time.sleep(instants.uniform(0, 0.02))
        assert process.poll() is None
        process.kill()
        process.communicate()
        for name, digest in contents(out).items():
            assert name == 'unfinished.json' or digest == expected[name], name
        counts.append(len(contents(out)))
    # stopped at different places, nothing lost
    assert counts == sorted(counts) and len(set(counts)) >= 3
    assert finish(start(source, out)) == 0
    assert contents(out) == expected
    assert not (out / '.incoming').exists() and not (out / 'unfinished.json').exists()
