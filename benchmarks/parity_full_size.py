"""Full-size parity: LeRobot's own PyTorch pi0.5 and ours, with the same random weights, on one
accelerator.

    # a GPU with 40 GB; LeRobot >= 0.5 beside sigma_jax
    python benchmarks/parity_full_size.py
    # the same at a width that a CPU takes
    python benchmarks/parity_full_size.py --tiny --device=cpu

For float32 and then bfloat16: random weights in LeRobot's model, saved as it saves them; what that
model computes with them (`tools/make_fixture.py`); conversion (`convert_weights.py`); every
quantity in our model. A process of its own for each, so that PyTorch and JAX do not share the
memory. The status is 0 when velocity and sampled actions
agree: relative difference at most 1e-3 in float32, cosine at least 0.999 in bfloat16.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / 'tests' / 'data' / 'pi05_tiny' / 'config.json'
LIMIT = 1e-3  # relative, float32
JUDGED = ('velocity', 'sampled_actions')


def run(name: str, command: list) -> str:
    """Runs one step, prints its seconds and peak host memory, returns what it printed. Ends all
    where it fails.
    """
    print(f'--- {name}', flush=True)
    start = time.perf_counter()
    env = os.environ | {
        'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    }
    child = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, env=env
    )
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        lines.append(line)
        if not line.startswith('{'):
            print('   ', line, end='', flush=True)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds, memory = time.perf_counter() - start, usage.ru_maxrss / 2**20
    print(f'    {seconds:.1f} s, peak host memory {memory:.2f} GiB', flush=True)
    if child.returncode:
        raise SystemExit(f'{name} ended with status {child.returncode}')
    return ''.join(lines)


def measure(flags: argparse.Namespace) -> None:
    """The step in JAX: prints the rows of `verify` as one line of JSON, after what they took."""
    import jax

    from sigma_jax.convert.parity.verify import verify

    start = time.perf_counter()
    rows = verify(flags.checkpoint, flags.fixture, LIMIT, flags.dtypes)
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get('peak_bytes_in_use', 0) / 2**30
    seconds = time.perf_counter() - start
    print(
        f'{device.device_kind}: loaded, compiled and compared in {seconds:.1f} s, peak device '
        f'memory {peak:.2f} GiB'
    )
    print(json.dumps({'rows': [vars(row) for row in rows]}))


def compare(dtype: str, flags: argparse.Namespace, folder: pathlib.Path) -> list[dict]:
    """All steps for one dtype; returns the rows. The files of a step go as soon as nobody needs
    them.
    """
    weights, fixture, converted = (
        folder / f'{dtype}_{name}' for name in ('weights', 'fixture', 'converted')
    )
    tiny = ['--tiny-config', TINY] if flags.tiny else []
    common = ['--dtype', dtype, '--device', flags.device, *tiny]
    script = ROOT / 'benchmarks' / 'parity_weights.py'
    run(
        f'{dtype}: random weights',
        [flags.reference_python, script, '--out', weights, '--seed', flags.seed, *common],
    )
    script = ROOT / 'tools' / 'make_fixture.py'
    command = [
        flags.reference_python,
        script,
        '--library',
        'lerobot',
        '--checkpoint',
        weights,
        '--out',
        fixture,
    ]
    run(
        f'{dtype}: LeRobot', [*command, '--cameras', flags.cameras, '--batch', flags.batch, *common]
    )
    script = ROOT / 'convert_weights.py'
    run(
        f'{dtype}: conversion',
        [sys.executable, script, '--checkpoint', weights, '--out', converted],
    )
    shutil.rmtree(weights)
    command = [
        sys.executable,
        __file__,
        '--stage',
        'verify',
        '--checkpoint',
        converted,
        '--fixture',
        fixture,
    ]
    text = run(f'{dtype}: ours', [*command, '--dtypes', dtype])
    shutil.rmtree(converted)
    return json.loads(text.splitlines()[-1])['rows']


def agrees(row: dict, dtype: str) -> bool:
    """The bounds of this benchmark, for the quantities that a policy is used for."""
    if row['quantity'] not in JUDGED:
        return True
    return row['max_rel'] <= LIMIT if dtype == 'float32' else row['cosine'] >= 0.999


def show(results: dict[str, list[dict]]) -> None:
    """One line a quantity and dtype."""
    print(f'\n{"dtype":10}{"quantity":28}{"max abs":>10}{"max rel":>10}{"cosine":>12}  verdict')
    for dtype, rows in results.items():
        for row in rows:
            numbers = f'{row["max_abs"]:10.2e}{row["max_rel"]:10.2e}{row["cosine"]:12.8f}'
            print(f'{dtype:10}{row["quantity"]:28}{numbers}  {row["verdict"]}')


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tiny', action='store_true', help="the golden fixture's sizes")
    parser.add_argument(
        '--device', default='cuda', help='of PyTorch; JAX takes what it finds (default: cuda)'
    )
    parser.add_argument('--dtypes', default='float32,bfloat16', help='(default: both)')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--cameras', default='3')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--work', type=pathlib.Path, help='folder for 30 GB of scratch (default: a temporary one)'
    )
    parser.add_argument(
        '--reference-python',
        default=sys.executable,
        help='a Python with LeRobot (default: this one)',
    )
    parser.add_argument('--stage', choices=('all', 'verify'), default='all', help=argparse.SUPPRESS)
    parser.add_argument('--checkpoint', help=argparse.SUPPRESS)
    parser.add_argument('--fixture', help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.stage == 'verify':
        return measure(flags)
    with tempfile.TemporaryDirectory(dir=flags.work) as folder:
        results = {
            dtype: compare(dtype, flags, pathlib.Path(folder)) for dtype in flags.dtypes.split(',')
        }
    show(results)
    wrong = [
        (dtype, row['quantity'])
        for dtype, rows in results.items()
        for row in rows
        if not agrees(row, dtype)
    ]
    print('velocity and sampled actions agree' if not wrong else f'these DIFFER: {wrong}')
    raise SystemExit(bool(wrong))


if __name__ == '__main__':
    main()
