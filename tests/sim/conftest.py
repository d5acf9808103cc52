"""One compiled scene for all tests of the simulator; these tests need the extra `sim`."""

import pytest

from sigma_jax.sim.arm import Arm
from sigma_jax.sim.env import PickPlaceEnv


@pytest.fixture(scope='session')
def env():
    """An environment without images: physics only."""
    return PickPlaceEnv(images=False)


@pytest.fixture(scope='session')
def arm(env) -> Arm:
    """Kinematics of the same scene."""
    return env.arm
