"""Where a step's time goes on a GPU: a profiler trace of `jax.profiler`, summed by kernel group.

Groups are known by kernel names, as XLA, cuBLAS, cuDNN and Triton write them; the first pattern
that matches holds. A fusion is named after its last operations, so that the line between
element-wise work and reductions is XLA's.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

ATTENTION = r'(flash|fmha|mha|sdpa|attention)'
GROUPS = (
    ('attention forward', rf'{ATTENTION}.*(fprop|fwd|forward)'),
    ('attention backward', rf'{ATTENTION}.*(bprop|bwd|backward|dgrad|convert_d|dot_do)'
                           r'|^compute_dot_do|^convert_dq'),
    ('attention forward', ATTENTION),
    ('matrix products', r'nvjet|gemm|cublas|cutlass|xmma|splitk|(^|_)dot(_|$|\.)|sm\d\d_.*tensor'
                        r'|conv(olution|_fprop)'),
    ('copies, transposes', r'memcpy|memset|copy|transpose|concatenate|slice|pad|broadcast|gather'
                           r'|scatter|iota'),
    ('reductions, norms', r'reduce|softmax|norm|cumsum|sort|scan'),
    ('element-wise', r'.*'),
)  # fmt: skip
IDLE = 'idle'


@dataclasses.dataclass(frozen=True)
class Profile:
    """Milliseconds a step: by group (idle gaps included), of the whole step, and of the longest
    kernels.
    """

    step_ms: float
    groups: dict[str, float]
    kernels: list[tuple[str, int, float]]  # name, calls a step, milliseconds a step


def group(name: str) -> str:
    """The group of a kernel."""
    return next(label for label, pattern in GROUPS if re.search(pattern, name, re.IGNORECASE))


def record(call: Callable[[], Any], folder: pathlib.Path, steps: int = 3) -> Profile | None:
    """Traces `steps` calls into `folder` and sums them; None where the trace holds no GPU."""
    jax.profiler.start_trace(str(folder))
    try:
        for _ in range(steps):
            call()
    finally:
        jax.profiler.stop_trace()
    (file,) = folder.rglob('*.xplane.pb')
    return summarise(kernels_of(jax.profiler.ProfileData.from_file(str(file))), steps)


def kernels_of(data: Any) -> list[tuple[str, float, float]]:
    """(name, start, end) in nanoseconds of all that ran on the streams of the first GPU, in order
    of start.
    """
    planes = sorted(
        (p for p in data.planes if re.fullmatch(r'/device:GPU:\d+', p.name)), key=lambda p: p.name
    )
    streams = [line for line in planes[0].lines if line.name.startswith('Stream')] if planes else []
    events = [
        (e.name, e.start_ns, e.start_ns + e.duration_ns) for line in streams for e in line.events
    ]
    return sorted(events, key=lambda event: event[1])


def summarise(kernels: Iterable[tuple[str, float, float]], steps: int) -> Profile | None:
    """Sums by group. Kernels of several streams may overlap: groups add up to the step, then, or to
    a little more.
    """
    kernels = list(kernels)
    if not kernels:
        return None
    time: dict[str, float] = collections.defaultdict(float)
    calls: dict[str, int] = collections.defaultdict(int)
    for name, start, end in kernels:
        time[name] += end - start
        calls[name] += 1
    scale = 1e-6 / steps
    groups: dict[str, float] = collections.defaultdict(float)
    for name, duration in time.items():
        groups[group(name)] += duration * scale
    span = (max(end for _, _, end in kernels) - kernels[0][1]) * scale
    groups[IDLE] = span - _busy(kernels) * scale
    longest = [
        (name, calls[name] // steps, duration * scale) for name, duration in _longest(time)[:30]
    ]
    return Profile(span, dict(_longest(groups)), longest)


def _busy(kernels: list[tuple[str, float, float]]) -> float:
    """Nanoseconds in which at least one kernel ran; `kernels` are in order of start."""
    busy, until = 0.0, float('-inf')
    for _, start, end in kernels:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def _longest(times: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(times.items(), key=lambda item: -item[1])
