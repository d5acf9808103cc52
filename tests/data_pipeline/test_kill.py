"""A preparation in a process of its own: too little room, a second writer, kills while episodes are
tried.
"""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sigma_jax.data.shards.prepare import prepare
from tests.data_pipeline import damages, recordings

REPOSITORY = Path(__file__).parents[2]
# a dot when the imports are done and one for every step; ends as the script does: a sentence and
# status 2
CHILD = """
import os, resource, sys
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from tests.data_pipeline import recordings
source, out, limit, bad = sys.argv[1:]
config = recordings.config(source, stride=1, shard_size=6, on_bad_episode=bad)
dot = lambda done, total: os.write(1, b'.')
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
dot(0, 0)
try:
    prepare(config, out, dot, dot)
except UserError as error:
    sys.stderr.write(str(error))
    sys.exit(2)
"""


def start(
    source: Path, out: Path, limit: int = 0, on_bad_episode: str = 'error'
) -> subprocess.Popen:
    """A preparation under way; `limit` in bytes a file."""
    command = [sys.executable, '-c', CHILD, str(source), str(out), str(limit), on_bad_episode]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def contents(path: Path) -> dict[str, str]:
    """Digests of the files under their final names."""
    names = ('.lock', '.incoming', 'unfinished.json')
    files = [file for file in path.iterdir() if file.name not in names] if path.is_dir() else []
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """Four episodes; the last test damages one."""
    return recordings.record(tmp_path_factory.mktemp('source'), (40, 45, 50, 40), kind='video')


@pytest.fixture(scope='module')
def expected(source: Path, tmp_path_factory) -> dict[str, str]:
    """The files of a preparation that nothing disturbs."""
    out = tmp_path_factory.mktemp('undisturbed') / 'out'
    finish(source, out)
    return contents(out)


def finish(source: Path, out: Path, on_bad_episode: str = 'error') -> None:
    """The same preparation here, to its end."""
    prepare(recordings.config(source, stride=1, shard_size=6, on_bad_episode=on_bad_episode), out)


# bytes: the first file does not fit; some shards do
@pytest.mark.parametrize('limit', [400, 13_000])
def test_no_room_is_reported_and_the_run_continues_when_there_is_some(
    limit: int, source, expected, tmp_path
) -> None:
    stopped = start(source, tmp_path / 'out', limit)
    message = stopped.communicate()[1].decode()
    assert (
        stopped.returncode == 2
        and ('got a full disk; free some and run the same command again') in message
    )
    found = contents(tmp_path / 'out')
    assert found.keys() < expected.keys() and all(
        expected[name] == digest for name, digest in found.items()
    )
    finish(source, tmp_path / 'out')
    assert contents(tmp_path / 'out') == expected


def test_a_second_process_stops_and_the_first_goes_on(source, expected, tmp_path) -> None:
    first = start(source, tmp_path / 'out')
    assert first.stdout is not None
    first.stdout.read(5)
    first.send_signal(signal.SIGSTOP)  # asleep among its shards
    second = start(source, tmp_path / 'out')
    assert b'another running preparation' in second.communicate()[1] and second.returncode == 2
    first.send_signal(signal.SIGCONT)
    assert first.communicate()[1] == b'' and first.returncode == 0
    assert contents(tmp_path / 'out') == expected


def test_kills_while_episodes_are_tried_change_nothing(source, tmp_path) -> None:
    damages.write(recordings.video_path(1, recordings.CAMERAS[0]), 'no video')(source)
    for count in (3, 9):  # in the trial of four episodes, among the shards
        process = start(source, tmp_path / 'killed', on_bad_episode='skip')
        assert process.stdout is not None
        process.stdout.read(count)
        process.kill()
        process.communicate()
    for name in ('killed', 'undisturbed'):
        finish(source, tmp_path / name, on_bad_episode='skip')
    assert contents(tmp_path / 'killed') == contents(tmp_path / 'undisturbed')
    assert (
        b'"1": "expected a readable video at videos/chunk-000/'
        in (tmp_path / 'killed/meta.json').read_bytes()
    )
