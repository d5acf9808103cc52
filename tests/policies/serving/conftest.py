"""No test of a server waits for ever."""

import pytest


@pytest.fixture(autouse=True)
def limited(in_time):
    """Every test here."""
