"""Fixtures shared by all tests."""

import importlib.metadata
import os
import signal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# compile time counts for more than run time here (tests/quick.py)
if os.environ['JAX_PLATFORMS'] == 'cpu':
    options = ['backend_optimization_level=0', 'llvm_disable_expensive_passes=true']
    # parts of a program that are compiled side by side are in memory side by side
    options.append('cpu_parallel_codegen_split_count=1')
    # XLA aborts on a flag that it does not know
    if importlib.metadata.version('jaxlib').startswith('0.10.'):
        options.append('cpu_use_fusion_emitters=false')
    os.environ.setdefault('XLA_FLAGS', ' '.join(f'--xla_{option}' for option in options))

# a shell's background job: tests of Ctrl-C need what it does
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import orbax.checkpoint as ocp
import pytest

from sigma_jax.convert import checkpoint
from tests import golden, room
from tests import small_run as small

keeper, peaks = room.Keeper(), pytest.StashKey[list]()


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers():
    """`-n auto`: no more workers than find room."""
    return room.workers((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """A process that has grown drops its programs, if it can between two modules."""
    yield
    last = nextitem is None or nextitem.path != item.path
    if keeper.after(last, room.resident()):
        keeper.give_back()


def pytest_sessionfinish(session):
    """A worker says what it took."""
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput['peak'] = room.peak()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a worker reported is kept for the last line."""
    node.config.stash.setdefault(peaks, []).append(getattr(node, 'workeroutput', {}).get('peak', 0))


def pytest_terminal_summary(terminalreporter, config):
    """One line: the largest process."""
    largest = max([room.peak(), *config.stash.get(peaks, [])])
    terminalreporter.write_line(f'largest process: {largest / room.GIB:.2f} GiB')


@pytest.fixture(scope='session')
def golden_params():
    """Weights of the golden pi0.5, read by plain Orbax from openpi's own layout."""
    return ocp.PyTreeCheckpointer().restore(golden.FIXTURE / 'openpi_jax' / 'params')['params']


@pytest.fixture
def in_time():
    """What waits for a server fails after two minutes, wherever it waits."""

    def late(*_):
        raise TimeoutError('expected an end within two minutes, got none')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def unread(monkeypatch):
    """Whatever runs beside this may read everything but a base's weights."""
    monkeypatch.setattr(
        checkpoint, 'load_source', lambda *_: pytest.fail('read the weights of the base')
    )


@pytest.fixture(scope='session')
def small_run(tmp_path_factory):
    """A finished preparation on the golden recording; programs compiled for it are kept for the
    runs after it.
    """
    root = tmp_path_factory.mktemp('small_run')
    jax.config.update('jax_compilation_cache_dir', str(root / 'programs'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    yield small.make(root)
    jax.config.update('jax_compilation_cache_dir', None)
