"""Broken messages in numbers: an error each, memory that does not grow, and answers as before."""

import re
import signal
import statistics
import threading
import urllib.request

import pytest

from sigma_jax.policies.serving.lerobot import wire
from tests import room
from tests.policies.serving.lerobot.broken import broken
from tests.policies.serving.lerobot.client import Robot, seen
from tests.test_serve import TINY, line_with, started

grpc = pytest.importorskip('grpc')

COUNT, LARGE = 2000, 20
MIB = 2**20


def refused(robot, parts) -> bool:
    """Whether an observation is reported to its client as wrong."""
    try:
        robot.send_parts(parts)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.INVALID_ARGUMENT and '; ' in error.details()
    return False


def counted(port: str) -> dict[str, float]:
    """Requests by how they ended, as the server's own page tells it."""
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=10) as page:
        text = page.read().decode()
    found = re.findall(r'sigma_requests_total{outcome="(\w+)"} (\S+)', text)
    return {outcome: float(count) for outcome, count in found}


@pytest.mark.slow
def test_two_thousand_broken_messages_change_nothing(tmp_path):
    """And 20 of 100 MB among them, of which the server keeps 32 MiB at most, and not for long. It
    is a process of its own, so that what the robots here take is not counted.
    """
    options = [f'--policy={TINY}', '--lerobot_port=0', '--max_batch=1', '--rate=0', '--no_warm_up']
    with started(*options, f'--compilation_cache={tmp_path / "programs"}') as process:
        port = line_with(process, 'serving at ws').rpartition(':')[2]
        serves = int(line_with(process, 'serving LeRobot at').rpartition(':')[2])
        bad, good = Robot(serves), Robot(serves)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or the pipe is full
        good.start()
        bad.start()
        resident = []
        for number in range(COUNT):
            assert refused(bad, broken(number)), number
            if number % (COUNT // LARGE) == 0:
                assert refused(bad, wire.write_parts(bytes(100 * MIB)))
            if number % 20 == 0:
                for robot in (good, bad):
                    robot.send(seen(number, must_go=True))
                    assert len(robot.actions(timeout=120)) == 16, number
            if number % 100 == 99:
                resident.append(room.resident(process.pid))
        found = counted(port)
        assert found['refused'] == COUNT + LARGE and not found.get('failed')
        early, late = (statistics.median(x) for x in (resident[4:11], resident[-7:]))
        assert 0 < late < 1.02 * early, resident
        for robot in (bad, good):
            robot.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
