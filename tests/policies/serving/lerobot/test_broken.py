"""Broken messages in numbers: an error each, memory that does not grow, and answers as before."""

import pytest

from sigma_jax.api.policies import load_policy
from sigma_jax.policies.serving.lerobot import wire
from tests import room
from tests.policies.acting import TOKENIZER
from tests.policies.serving.lerobot.broken import broken
from tests.policies.serving.lerobot.client import Robot, seen
from tests.policies.serving.lerobot.serving import serving

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


@pytest.mark.slow
def test_two_thousand_broken_messages_change_nothing(small_run):
    """And 20 of 100 MB among them, of which the server keeps 32 MiB at most, and not for long."""
    policy = load_policy(small_run.base, tokenizer=TOKENIZER)
    with serving(policy, rate=0) as running:
        bad, good = Robot(running.port), Robot(running.port)
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
                    assert len(robot.actions()) == 16, number
            if number % 100 == 99:
                resident.append(room.resident())
        assert running.count('refused') == COUNT + LARGE and running.count('failed') == 0
        early, late = max(resident[4:8]), max(resident[-4:])
        assert late < 1.02 * early, resident
        bad.close()
        good.close()
