"""Times one case of `benchmarks/train.py` in this process."""

import dataclasses
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import kernel_groups, train_cases

GIB = 2**30


def memory(key: str) -> float | None:
    """GiB that the first device's allocator reports; None where it does not, as on a CPU."""
    value = (jax.devices()[0].memory_stats() or {}).get(key)
    return None if value is None else value / GIB


def durations(call: Callable[[], Any], repeat: int, seconds: float) -> list[float]:
    """Seconds of up to `repeat` synchronised calls, fewer where `seconds` are over but at least
    3.
    """
    times: list[float] = []
    for _ in range(2):
        call()
    while len(times) < repeat and (len(times) < 3 or sum(times) < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def ceiling(tiny: bool) -> dict[str, Any]:
    """Operations a second of a square bfloat16 product: the median of ten rounds of twenty."""
    n = 256 if tiny else 8192
    a, b = (jax.random.normal(jax.random.key(k), (n, n), jnp.bfloat16) for k in range(2))
    multiply = jax.jit(lambda a, b: a @ b)

    def round_of_twenty() -> None:
        jax.block_until_ready([multiply(a, b) for _ in range(20)])

    seconds = statistics.median(durations(round_of_twenty, 10, 20.0)) / 20
    return {'flops_per_s': 2 * n**3 / seconds, 'size': n, 'device': jax.devices()[0].device_kind}


def measure(case: dict, repeat: int, seconds: float, profile: bool) -> dict[str, Any]:
    """The row of a case: windows a second, milliseconds, memory, compile seconds, and the profile
    if asked for.
    """
    described = train_cases.Case(**case)
    program = train_cases.build(described)
    start = memory('bytes_in_use')
    number = program.call()
    times = durations(program.call, repeat, seconds)
    middle = statistics.median(times)
    plan = program.compiled.memory_analysis()
    row = {
        'per_s': described.batch / middle,
        'ms': 1e3 * middle,
        'fastest_ms': 1e3 * min(times),
        'slowest_ms': 1e3 * max(times),
        'calls': len(times),
        'flops_per_s': program.flops / middle,
        'compile_s': program.compile_s,
        'start_gib': start,
        'peak_gib': memory('peak_bytes_in_use'),
        'limit_gib': memory('bytes_limit'),
        'temp_gib': plan.temp_size_in_bytes / GIB,
        'arguments_gib': plan.argument_size_in_bytes / GIB,
        'first': number,
        'device': jax.devices()[0].device_kind,
    }
    if not math.isfinite(number):
        raise FloatingPointError(f'expected a finite loss or action, got {number}')
    if profile:
        with tempfile.TemporaryDirectory() as folder:
            found = kernel_groups.record(program.call, pathlib.Path(folder))
        row['profile'] = dataclasses.asdict(found) if found else None
    return row
