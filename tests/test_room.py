"""A test run takes no more room than there is."""

import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import room

GIB = room.GIB


@pytest.mark.parametrize(
    ('cores', 'gib', 'expected'),
    [(2, 16, 2), (16, 64, 16), (16, 8, 5), (16, 3.1, 2), (4, 1, 1), (8, float('inf'), 8)],
)
def test_as_many_workers_as_have_a_core_and_room(cores, gib, expected):
    assert room.workers(cores, gib * GIB) == expected


def machine(
    root: Path, available: int, own: str, **groups: tuple[str, int, int]
) -> tuple[Path, Path]:
    """Folders as Linux has them; each group with its limit, what it holds, and what of that is
    cache.
    """
    (root / 'proc' / 'self').mkdir(parents=True)
    (root / 'proc' / 'meminfo').write_text(
        f'MemTotal: 99999999 kB\nMemAvailable:   {available} kB\n'
    )
    (root / 'proc' / 'self' / 'cgroup').write_text(own)
    for name, (limit, held, cache) in groups.items():
        folder = root / 'groups' / name.replace('_', '/')
        folder.mkdir(parents=True)
        (folder / 'memory.max').write_text(limit + '\n')
        (folder / 'memory.current').write_text(f'{held}\n')
        (folder / 'memory.stat').write_text(f'anon 1\ninactive_file {cache}\nactive_file 7\n')
    return root / 'proc', root / 'groups'


def test_the_tightest_limit_counts(tmp_path):
    """Of the machine, of the process's own group and of those around it; cache can be given
    back.
    """
    groups = {'user': (str(5000), 3000, 500), 'user_job': ('max', 2000, 0)}
    assert room.free(*machine(tmp_path / 'around', 10, '0::/user/job\n', **groups)) == 2500
    assert room.free(*machine(tmp_path / 'machine', 1, '0::/user/job\n', **groups)) == 1024
    assert room.free(*machine(tmp_path / 'none', 10, '0::/\n')) == 10240
    assert room.free(tmp_path / 'no', tmp_path / 'no') == float('inf')


def test_a_container_has_its_limit_at_the_root(tmp_path):
    proc, groups = machine(tmp_path, 10, '0::/\n')
    groups.mkdir()
    for name, text in {
        'memory.max': '4096',
        'memory.current': '96',
        'memory.stat': 'inactive_file 0',
    }.items():
        (groups / name).write_text(text)
    assert room.free(proc, groups) == 4000


def test_memory_is_given_back_where_it_has_grown_and_not_over_and_over():
    keeper = room.Keeper()
    assert not keeper.after(True, int(0.6 * GIB)) and keeper.after(True, int(0.9 * GIB))
    assert not keeper.after(False, int(0.8 * GIB)) and keeper.after(False, int(1.3 * GIB))
    keeper.floor = int(1.1 * GIB)  # that much is no program
    assert not keeper.after(True, int(1.2 * GIB)) and keeper.after(True, int(1.4 * GIB))


def test_giving_back_drops_programs_and_nothing_else():
    @jax.jit
    def double(x):
        calls.append(1)
        return 2 * x

    calls: list[int] = []
    kept = double(jnp.arange(3))
    assert double(kept).tolist() == [0, 4, 8] and len(calls) == 1
    keeper = room.Keeper()
    keeper.give_back()
    assert kept.tolist() == [0, 2, 4] and 0 < keeper.floor <= room.peak()
    assert double(kept).tolist() == [0, 4, 8] and len(calls) == 2  # traced again


def test_a_function_that_may_be_traced_once_may_be_again_when_its_program_was_dropped():
    once = jax.jit(chex.assert_max_traces(lambda x: x + 1, n=1))
    assert once(1) == 2
    room.Keeper().give_back()
    assert once(1) == 2
    with pytest.raises(AssertionError, match='traced > 1 times'):
        once(jnp.zeros(2))


def test_the_largest_process_counts_whether_worker_or_child():
    before = room.peak()
    size = before + 200 * 2**20
    subprocess.run([sys.executable, '-c', f'x = b"1" * {size}'], check=True)
    assert size < room.peak() < size + 200 * 2**20
    assert np.isclose(room.resident() / before, 1, atol=0.9)


@pytest.mark.parametrize('numprocesses', ['0', 'auto'])
def test_a_run_ends_with_the_largest_process(numprocesses, tmp_path):
    """A few tests, in a run of their own; with less room than a worker takes there is one
    worker.
    """
    (tmp_path / 'conftest.py').write_text('from tests.conftest import *\nroom.free = lambda: 1.0\n')
    (tmp_path / 'test_a.py').write_text('def test_a():\n    pass\n')
    words = [
        sys.executable,
        '-m',
        'pytest',
        '-n',
        numprocesses,
        '-v',
        '-p',
        'no:cacheprovider',
        str(tmp_path),
    ]
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[1])}
    out = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert 'largest process: 0.' in out and '1 passed' in out
    assert numprocesses == '0' or ('1 worker' in out and '[gw1]' not in out)
