"""Fixtures shared by all tests."""

import importlib.metadata
import os
import signal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if os.environ['JAX_PLATFORMS'] == 'cpu':  # compile time counts for more than run time here (tests/quick.py)
    options = ['backend_optimization_level=0', 'llvm_disable_expensive_passes=true']
    if importlib.metadata.version('jaxlib').startswith('0.10.'):  # XLA aborts on a flag that it does not know
        options.append('cpu_use_fusion_emitters=false')
    os.environ.setdefault('XLA_FLAGS', ' '.join(f'--xla_{option}' for option in options))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: tests of Ctrl-C need what it does
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import orbax.checkpoint as ocp
import pytest

from sigma_jax.convert import checkpoint
from tests import golden
from tests import small_run as small


@pytest.fixture(scope='session')
def golden_params():
    """Weights of the golden pi0.5, read by plain Orbax from openpi's own layout."""
    return ocp.PyTreeCheckpointer().restore(golden.FIXTURE / 'openpi_jax' / 'params')['params']


@pytest.fixture
def unread(monkeypatch):
    """Whatever runs beside this may read everything but a base's weights."""
    monkeypatch.setattr(checkpoint, 'load', lambda *_: pytest.fail('read the weights of the base'))


@pytest.fixture(scope='session')
def small_run(tmp_path_factory):
    """A finished preparation on the golden recording; programs compiled for it are kept for the runs after it."""
    root = tmp_path_factory.mktemp('small_run')
    jax.config.update('jax_compilation_cache_dir', str(root / 'programs'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    yield small.make(root)
    jax.config.update('jax_compilation_cache_dir', None)
