"""Fixtures shared by all tests."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import orbax.checkpoint as ocp
import pytest

from tests import golden


@pytest.fixture(scope='session')
def golden_params():
    """Weights of the golden pi0.5, read by plain Orbax from openpi's own layout."""
    return ocp.PyTreeCheckpointer().restore(golden.FIXTURE / 'openpi_jax' / 'params')['params']
