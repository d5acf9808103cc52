r"""Our training step and sampler at full size beside LeRobot's PyTorch, on one GPU, with random
weights.

    python benchmarks/train.py  # LoRA at B = 32 and 8, Sigma, baselines
    python benchmarks/train.py --cases lora --batch 32 --lerobot eager compile \
        --lerobot-python=PYTHON
    python benchmarks/train.py --cases lora --batch 4 --base nf4 --limit=22 --profile --cached
    python benchmarks/train.py --tiny --lerobot eager  # the same code in a minute on a CPU

Two views, 200 prompt tokens, 50 actions, rank 16 on q, k, v and output projections, image encoder
frozen; Sigma: 8 sequences of 4 windows, 64 visual tokens, two passes. Times are medians of
synchronised calls after two that warm up, on batches that lie on the device; `share` is model FLOPs
a second over those of an 8192^3 bfloat16 product in the same run (`train_cases.model_flops` says
what is counted).

Every case runs in a process of its own, so that nothing of one counts in the peak of another. The
peak is the most that the allocator had given out at one time, `peak_bytes_in_use`: weights, state
and batch, XLA's temporary buffers, what autotuning took while compiling. It does not hold the CUDA
context and the code on the device (about 0.5 GiB), nor what the allocator reserves ahead and gives
to nobody; LeRobot's is PyTorch's `max_memory_allocated`, the same quantity. `--limit` caps what the
allocator may ever take from the device.
"""

import argparse
import ctypes
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.train_table import profiles, table  # noqa: E402

KINDS = ('lora', 'sigma', 'baselines', 'sampler')


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--cases', nargs='+', choices=KINDS, default=['lora', 'sigma', 'baselines'])
    add(
        '--batch',
        nargs='+',
        type=int,
        default=[32, 8],
        help='windows a step, of lora and baselines (32 8)',
    )
    add('--sequences', type=int, default=8, help='of a Sigma step (8)')
    add('--windows', type=int, default=4, help='consecutive windows a sequence (4)')
    add(
        '--remat',
        nargs='+',
        default=['save_attention'],
        help="what a layer keeps, or 'none': all (save_attention)",
    )
    add('--base', nargs='+', choices=('bf16', 'int8', 'nf4'), default=['bf16'])
    add('--repeat', type=int, default=20, help='calls that are timed, at most (20)')
    add(
        '--seconds',
        type=float,
        default=20.0,
        help='... or as many as fit into these, at least 3 (20)',
    )
    add('--limit', type=float, metavar='GIB', help='hard limit of the allocator on the device')
    add(
        '--cached',
        action='store_true',
        help='compile a second time, in another process, from the persistent cache',
    )
    add('--profile', action='store_true', help='time by kernel group')
    add(
        '--busy',
        action='store_true',
        help='also lora and sigma fed by the loader from --shards (benchmarks/busy.py)',
    )
    add(
        '--shards',
        help='folder of prepare_data.py, horizon 50 and the image size of the base, for --busy',
    )
    add('--workers', type=int, default=0, help='decoding processes of --busy (0: threads)')
    add(
        '--lerobot',
        nargs='+',
        choices=('eager', 'compile'),
        default=[],
        help='LoRA cases in PyTorch too',
    )
    add('--lerobot-python', default=sys.executable, help='a Python with LeRobot >= 0.5 (this one)')
    add(
        '--compile-mode',
        default='max-autotune',
        help="of torch.compile; LeRobot's own is max-autotune",
    )
    add('--tiny', action='store_true', help='small widths and batches, for a CPU')
    add(
        '--in-process',
        action='store_true',
        help='no processes of their own, for debugging: peaks add up',
    )
    add('--out', type=pathlib.Path, help='writes all numbers as JSON')
    add('--child', nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.tiny:
        flags.batch, flags.sequences, flags.windows, flags.repeat = [2], 1, 2, min(flags.repeat, 3)
    if flags.busy and not flags.shards:
        parser.error(
            '--busy expects --shards=DIR, made by prepare_data.py --config.data.horizon=50'
        )
    return flags


def cases(flags: argparse.Namespace) -> Iterator[dict]:
    """Arguments of `train_cases.Case`, in the order they run."""
    for kind, base in itertools.product(flags.cases, flags.base):
        training = kind in ('lora', 'sigma')
        sizes = {'sigma': [flags.sequences * flags.windows], 'sampler': [1]}.get(kind, flags.batch)
        for batch, remat in itertools.product(sizes, flags.remat if training else ['none']):
            windows = flags.windows if kind == 'sigma' else 1
            yield {
                'kind': kind,
                'batch': batch,
                'windows': windows,
                'remat': remat,
                'base': base,
                'tiny': flags.tiny,
            }


def jobs(flags: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """(what to do, its arguments): the ceiling, then every case, then those fed by the loader."""
    yield 'ceiling', {'tiny': flags.tiny}
    timing = {key: getattr(flags, key) for key in ('repeat', 'seconds', 'profile')}
    for case in cases(flags):
        yield 'measure', {'case': case, **timing}
    for case in cases(flags) if flags.busy else ():
        if case['kind'] in ('lora', 'sigma'):
            yield 'busy', {'case': case, 'shards': flags.shards, 'workers': flags.workers}


def run_here(what: str, arguments: dict) -> dict[str, Any]:
    """One job in this process. What goes wrong becomes the row's `error`."""
    try:
        return job(what)(**arguments)
    # out of memory, a policy that XLA refuses: the other cases still count
    except Exception as error:
        return {'error': f'{type(error).__name__}: {error}'[:1000]}


def job(what: str) -> Callable[..., dict[str, Any]]:
    """The function behind a job; only those that need the loader import it."""
    if what == 'busy':
        from benchmarks import busy

        return busy.measure
    from benchmarks import train_measure

    known: dict[str, Callable[..., dict[str, Any]]] = {
        'ceiling': train_measure.ceiling,
        'measure': train_measure.measure,
    }
    return known[what]


def run_child(
    what: str, arguments: dict, flags: argparse.Namespace, cache: str | None = None
) -> dict[str, Any]:
    """One job in a process of its own; its last line is its result."""
    env = dict(os.environ)
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), env.get('PYTHONPATH')]))
    if cache:
        env |= {
            'JAX_COMPILATION_CACHE_DIR': cache,
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
        }
    if flags.limit and (total := device_bytes()):
        env |= {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{flags.limit * 2**30 / total:.6f}'}
        env |= {'XLA_PYTHON_CLIENT_PREALLOCATE': 'true'}
    return last_line([sys.executable, __file__, '--child', what, json.dumps(arguments)], env)


def last_line(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """The JSON object in the last line that a command prints; {'error'} where it ends otherwise."""
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith(('{', '[')):
        return {'error': f'status {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}'}
    return json.loads(lines[-1])


def device_bytes() -> int:
    """Memory of the first NVIDIA GPU, asked of the driver, so that JAX need not be loaded for it; 0
    without one.
    """
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError:
        return 0
    device, total = ctypes.c_int(), ctypes.c_size_t()
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    return 0 if failed or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device) else total.value


def label(what: str, case: dict) -> str:
    """What a row is called."""
    if not case:
        return 'matmul ceiling'
    base = '' if case['base'] == 'bf16' else f' {case["base"]}'
    return f'ours {case["kind"]}{base}{" with data" if what == "busy" else ""}'


def said(row: dict, seconds: float) -> str:
    """What is known of a row as soon as it is there: a run that is cut off has said its numbers."""
    numbers = {'per_s': 'windows/s', 'peak_gib': 'GiB at most', 'compile_s': 's to compile'}
    known = [f'{row[key]:.1f} {unit}' for key, unit in numbers.items() if row.get(key) is not None]
    what = ', '.join([row['error']] if 'error' in row else known)
    size = f' B={row["batch"]} {row["remat"]}' if 'batch' in row else ''
    return f'{row["name"]}{size}: {what or "done"} (took {seconds:.0f} s)'


def run_ours(flags: argparse.Namespace, console: Console) -> list[dict]:
    """The ceiling and all cases; each row says what was run, then what was measured."""
    rows: list[dict] = []
    for what, arguments in jobs(flags):
        start, case = time.perf_counter(), arguments.get('case', {})
        row = run_here(what, arguments) if flags.in_process else run_cached(what, arguments, flags)
        row = {'name': label(what, case), **case, **row}
        console.print(said(row, time.perf_counter() - start), highlight=False)
        if rows and 'flops_per_s' in row and 'flops_per_s' in rows[0]:
            row['share'] = row['flops_per_s'] / rows[0]['flops_per_s']
        rows.append(row)
    return rows


def run_cached(what: str, arguments: dict, flags: argparse.Namespace) -> dict[str, Any]:
    """One job in a process; with --cached in a second one too, which finds the program that the
    first has compiled.
    """
    if not flags.cached or what != 'measure':
        return run_child(what, arguments, flags)
    with tempfile.TemporaryDirectory() as cache:
        row = run_child(what, arguments, flags, cache)
        again = run_child(what, arguments | {'repeat': 3, 'profile': False}, flags, cache)
    return row | {'cached_compile_s': again.get('compile_s')}


def run_lerobot(flags: argparse.Namespace, console: Console) -> list[dict]:
    """LeRobot's rows: a child for each way of running it and each batch."""
    rows = []
    for mode, batch in itertools.product(flags.lerobot, flags.batch):
        command = [
            flags.lerobot_python,
            str(ROOT / 'benchmarks' / 'lerobot_train.py'),
            '--mode',
            mode,
        ]
        command += [
            '--batch',
            str(batch),
            '--repeat',
            str(flags.repeat),
            '--seconds',
            str(flags.seconds),
        ]
        command += ['--compile-mode', flags.compile_mode, *(['--tiny'] if flags.tiny else [])]
        start = time.perf_counter()
        row = last_line(command, dict(os.environ))
        row = {
            'name': f'LeRobot {mode}',
            'kind': 'lora',
            'batch': batch,
            'remat': 'checkpointing',
            **row,
        }
        console.print(said(row, time.perf_counter() - start), highlight=False)
        rows.append(row)
    return rows


def main(argv: list[str] | None = None, console: Console | None = None) -> int:
    """Entry point; the status is 1 where a case failed."""
    flags = parse(argv)
    if flags.child:
        print(json.dumps(run_here(flags.child[0], json.loads(flags.child[1]))))
        return 0
    console = console or Console(width=140)
    rows = run_ours(flags, console) + run_lerobot(flags, console)
    console.print(table(rows))
    if (groups := profiles(rows)) is not None:
        console.print(groups)
    if flags.out:
        flags.out.write_text(json.dumps(rows, indent=1))
    return int(any('error' in row for row in rows))


if __name__ == '__main__':
    raise SystemExit(main())
