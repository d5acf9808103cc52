"""Converts a random full-size LeRobot checkpoint, and measures time against `cp` and peak anonymous
memory.

python benchmarks/convert.py --folder=/tmp/convert --dtype=bfloat16 --repeat=3

Each round starts with a cold cache and ends with everything on the disk. The result is read back by
plain Orbax and compared with the tensors it came from. Needs about 3.5 times the checkpoint's size
on the disk (float32: 60 GB).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console
from rich.table import Table

from sigma_jax import trees
from sigma_jax.backbones import pi05, pi05_names
from sigma_jax.convert.checkpoint import target_dtype
from sigma_jax.convert.slices import slices_of
from sigma_jax.convert.tensor_files import DTYPES, TensorFiles, TensorWriter

ROOT = pathlib.Path(__file__).parents[1]
LIMIT_GIB, LIMIT_RATIO = 3.0, 2.0


def lerobot_tensors(
    config: pi05.Pi05Config, dtype: str
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """All tensors of LeRobot's policy: the rules' and the two that no rule reads."""
    shapes = {
        path: leaf.shape for path, leaf in trees.flatten(pi05.abstract_params(config)).items()
    }
    found = {}
    for part in slices_of(shapes, pi05_names.TABLE, whole=True):
        shape = part.tensor_map.to_torch(np.broadcast_to(np.int8(0), part.shape)).shape
        found[f'model.{part.name}'] = (
            shape,
            target_dtype(part.path, DTYPES['F32'], dtype, pi05_names.TABLE),
        )
    rows, kind = found[f'model.{pi05_names.EMBED}']
    found[f'model.{pi05_names.LM_HEAD}'] = (rows, kind)
    found[f'model.{pi05_names.EXPERT_HEAD}'] = ((rows[0], config.expert.width), kind)
    return found


def shallow(config: pi05.Pi05Config, layers: int | None) -> pi05.Pi05Config:
    """The same model with fewer layers in each of its three parts."""
    if layers is None:
        return config
    parts = {
        k: dataclasses.replace(getattr(config, k), depth=layers)
        for k in ('vision', 'language', 'expert')
    }
    return dataclasses.replace(config, **parts)


def write_random(file: pathlib.Path, config: pi05.Pi05Config, dtype: str) -> int:
    """Normal numbers, another stretch of them for each tensor; returns the number of tensors."""
    tensors = lerobot_tensors(config, dtype)
    numbers = np.random.default_rng(0).normal(scale=0.02, size=2**24).astype(np.float32)
    with TensorWriter(file, tensors) as writer:
        for n, (name, (shape, kind)) in enumerate(tensors.items()):
            row, place = int(np.prod(shape[1:])), 7919 * n
            step = max(1, 2**22 // row)
            for first in range(0, shape[0], step):
                count = min(step, shape[0] - first) * row
                place = (place + count) % (len(numbers) - count)
                writer.write(name, numbers[place : place + count].astype(kind), first)
    return len(tensors)


def forget(*folders: pathlib.Path) -> None:
    """Flushes files and drops them from the page cache."""
    for file in (
        f
        for folder in folders
        for f in ([folder] if folder.is_file() else folder.rglob('*'))
        if f.is_file()
    ):
        with open(file, 'rb') as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str], out: pathlib.Path) -> tuple[float, float]:
    """(seconds until all of `out` is on the disk, peak anonymous memory in GiB) of one command."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        try:
            status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
            peak = max(peak, int(status.partition('RssAnon:')[2].split()[0]))
        except (OSError, IndexError):
            pass  # it has just ended
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f'{" ".join(command)} ended with status {process.returncode}')
    forget(out)
    return time.perf_counter() - start, peak / 2**20


def check(out: pathlib.Path, file: pathlib.Path) -> int:
    """Reads the result with plain Orbax, leaf by leaf digest, and three tensors against the file;
    returns leaves.
    """
    with ocp.PyTreeCheckpointer() as reader:
        params = reader.restore(out.absolute() / 'params')['params']
    record = json.loads((out / 'source.json').read_text())
    assert trees.digest(params) == record['digest']
    flat, tensors = trees.flatten(params), TensorFiles([file])
    wide = flat['PaliGemma/llm/layers/mlp/gating_einsum'][-1, 1]
    last = len(flat['PaliGemma/llm/layers/mlp/gating_einsum']) - 1
    up = tensors.read(
        f'model.{pi05_names.PALIGEMMA}language_model.layers.{last}.mlp.up_proj.weight'
    )
    assert np.array_equal(wide.T, up)
    assert np.array_equal(
        flat['PaliGemma/llm/embedder/input_embedding'], tensors.read(f'model.{pi05_names.EMBED}')
    )
    return len(flat)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--folder',
        type=pathlib.Path,
        required=True,
        help='working folder; emptied before and after',
    )
    parser.add_argument(
        '--dtype', choices=('float32', 'bfloat16'), default='bfloat16', help="of LeRobot's file"
    )
    parser.add_argument(
        '--repeat', type=int, default=3, help='rounds of cp and conversion; the medians are printed'
    )
    parser.add_argument(
        '--layers', type=int, help='fewer layers than the real 27 and 18, for a quick look'
    )
    flags = parser.parse_args()
    config = shallow(pi05.Pi05Config(), flags.layers)
    shutil.rmtree(flags.folder, ignore_errors=True)
    (flags.folder / 'lerobot').mkdir(parents=True)
    file, copy, out = (
        flags.folder / 'lerobot/model.safetensors',
        flags.folder / 'copy',
        flags.folder / 'out',
    )
    count, console = write_random(file, config, flags.dtype), Console()
    console.print(f'{count} tensors, {file.stat().st_size / 1e9:.2f} GB, {flags.dtype}')
    rows = []
    for _ in range(flags.repeat):
        for path in (copy, out):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )
        forget(file)
        copied, _ = run(['cp', str(file), str(copy)], copy)
        copy.unlink()
        forget(file)
        script = [
            sys.executable,
            'convert_weights.py',
            f'--checkpoint={file.parent}',
            f'--out={out}',
        ]
        rows.append((copied, *run(script, out)))
        console.print(
            f'  cp {copied:.1f} s, conversion {rows[-1][1]:.1f} s, RssAnon {rows[-1][2]:.2f} GiB'
        )
    leaves = check(out, file)
    table = Table('quantity', 'median', 'limit')
    copied, took, _ = (statistics.median(column) for column in zip(*rows, strict=True))
    table.add_row('cp, s', f'{copied:.1f}', '')
    table.add_row('conversion, s', f'{took:.1f}', '')
    table.add_row('conversion / cp', f'{took / copied:.2f}', f'{LIMIT_RATIO}')
    table.add_row('peak RssAnon, GiB', f'{max(row[2] for row in rows):.2f}', f'{LIMIT_GIB}')
    console.print(table)
    console.print(f'{leaves} leaves read back by plain Orbax, equal by digest and by value')
    shutil.rmtree(flags.folder)


if __name__ == '__main__':
    main()
