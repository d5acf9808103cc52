"""Room for the test run: how many workers it holds, and what a worker gives back when it has
grown.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import resource

import chex
import jax

GIB = 2**30
WORKER = 1.5 * GIB  # what one worker may take, its children included
# from here on a worker drops its compiled programs between modules; the next one needs the rest
GROWN = 0.66 * GIB
# and from here on between the tests of a module, though it has to compile some of them again
FULL = 0.80 * GIB
STEP = 0.15 * GIB  # by which it must have grown since the last time: what is no program stays
PROC, GROUPS = pathlib.Path('/proc'), pathlib.Path('/sys/fs/cgroup')


def workers(cores: int, room: float | None = None) -> int:
    """As many workers as there are cores, but no more than find room; one at least."""
    return max(1, int(min(cores, (free() if room is None else room) // WORKER)))


def free(proc: pathlib.Path = PROC, groups: pathlib.Path = GROUPS) -> float:
    """Bytes that may still be taken before the system or a control group runs out; infinite where
    nobody says.
    """
    found = [_available(proc / 'meminfo'), *map(_left, _groups(proc / 'self' / 'cgroup', groups))]
    return min(found, default=float('inf'))


def _available(meminfo: pathlib.Path) -> float:
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    return min(
        (1024 * int(line.split()[1]) for line in lines if line.startswith('MemAvailable:')),
        default=float('inf'),
    )


def _groups(own: pathlib.Path, groups: pathlib.Path) -> list[pathlib.Path]:
    """The control group of this process and those around it, of version 2; in a container its root
    alone is there.
    """
    lines = own.read_text().splitlines() if own.is_file() else []
    path = next((line.removeprefix('0::/') for line in lines if line.startswith('0::/')), '')
    around = pathlib.PurePosixPath(path)
    return [groups / each for each in (around, *around.parents)]


def _left(group: pathlib.Path) -> float:
    """What a control group may still take: its limit less what it holds that cannot be given
    back.
    """
    try:
        limit = int((group / 'memory.max').read_text())  # or 'max'
        held = int((group / 'memory.current').read_text())
        stat = (group / 'memory.stat').read_text().splitlines()
        cache = sum(int(line.split()[1]) for line in stat if line.startswith('inactive_file '))
    except (OSError, ValueError):
        return float('inf')
    return limit - held + cache


def resident(process: int | str = 'self') -> int:
    """Bytes that a process holds now, this one unless told; 0 where the system does not say."""
    try:
        pages = int((PROC / str(process) / 'statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0


def peak() -> int:
    """Bytes of the largest process so far: this one or one of its children."""
    unit = 1024 if os.uname().sysname == 'Linux' else 1
    return max(_own_peak(), unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def _own_peak() -> int:
    """Of this process. What `getrusage` says of it begins with the size of the process that started
    it.
    """
    status = PROC / 'self' / 'status'
    lines = status.read_text().splitlines() if status.is_file() else []
    said = (1024 * int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))
    return next(said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class Keeper:
    """Gives memory back between tests."""

    def __init__(self) -> None:
        """Nothing has been given back yet."""
        self.floor = 0

    def after(self, last_of_module: bool, now: int) -> bool:
        """Whether a process of `now` bytes should give back after a test."""
        return now > max(GROWN if last_of_module else FULL, self.floor + STEP)

    def give_back(self) -> None:
        """Drops compiled programs and what only they held; functions compile again when they are
        called again.
        """
        jax.clear_caches()
        chex.clear_trace_counter()  # that they are traced again is no fault of a test's
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
            ctypes.CDLL(None).malloc_trim(0)
        self.floor = resident()
