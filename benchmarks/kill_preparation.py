"""Kills a preparation at random instants, fills its disk, and compares what comes out with an
undisturbed run.

    python benchmarks/kill_preparation.py --kills=200
    # mounts a small tmpfs there
    sudo python benchmarks/kill_preparation.py --kills=0 --disk=/mnt/small

After every kill all files under their final names must be those of the undisturbed run; a
preparation is started again until it ends, and then all of its files must be. Ends with status 1
where one is not.
"""

import argparse
import collections
import hashlib
import multiprocessing
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import data_so101  # noqa: E402
from sigma_jax.data.shards.plan import DataConfig  # noqa: E402
from sigma_jax.data.shards.prepare import prepare  # noqa: E402
from sigma_jax.errors import UserError  # noqa: E402

PASSING = ('.lock', '.incoming', 'unfinished.json')  # not part of the result
PAGE = 4096  # a tmpfs gives out whole ones


def settings(arguments: argparse.Namespace) -> DataConfig:
    """The embedded data set's config, cut for a few seconds of work and many files."""
    data = data_so101.get_config().to_dict()['data']
    paths = {'source': str(ROOT / data['source']), 'tokenizer': str(ROOT / data['tokenizer'])}
    return DataConfig.from_settings(
        data | paths | {'stride': arguments.stride, 'shard_size': arguments.shard_size}
    )


def digests(out: pathlib.Path) -> dict[str, str]:
    """sha256 of every file under its final name."""
    files = [file for file in out.iterdir() if file.name not in PASSING] if out.is_dir() else []
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def differing(out: pathlib.Path, expected: dict[str, str]) -> list[str]:
    """Files that the undisturbed run does not have, or not so."""
    return [name for name, digest in digests(out).items() if expected.get(name) != digest]


def kill_often(
    config: DataConfig, folder: pathlib.Path, expected: dict[str, str], kills: int, longest: float
) -> bool:
    """Kills `kills` runs after up to `longest` seconds each; prints a summary, returns whether
    nothing differed.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['sigma_jax.data.shards.prepare'])
    stages: collections.Counter[int] = collections.Counter()
    killed, finished, wrong, out = 0, 0, [], folder / 'out-0'
    while killed < kills or digests(out).keys() < expected.keys():
        process = context.Process(target=prepare, args=(config, out))
        process.start()
        process.join(random.uniform(0, longest) if killed < kills else None)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            stages[len(digests(out))] += 1
        wrong += [f'{out.name}: {name} differs' for name in differing(out, expected)]
        if process.exitcode == 0:
            wrong += [
                f'{out.name}: {name} is missing' for name in expected.keys() - digests(out).keys()
            ]
            finished += 1
            shutil.rmtree(out)
            out = folder / f'out-{finished}'
            if killed >= kills:
                break
    print(
        f'{killed} kills, {finished} preparations finished in spite of them, {len(wrong)} files '
        f'differ {wrong[:3]}'
    )
    print(
        'kills by number of finished files:', ', '.join(f'{n}: {stages[n]}' for n in sorted(stages))
    )
    return not wrong


def _sizes(folder: pathlib.Path) -> list[int]:
    """Kilobytes: ten even steps to what the result needs, then page by page, for the small files at
    the end.
    """
    need = sum(-(-file.stat().st_size // PAGE) for file in folder.iterdir()) * PAGE // 1024
    return [
        *range(8, need - 120, need // 10),
        *range(need - 120, need + 80, PAGE // 1024),
        2 * need,
    ]


def fill_disk(
    config: DataConfig, mount: pathlib.Path, folder: pathlib.Path, expected: dict[str, str]
) -> bool:
    """Prepares on a tmpfs that grows step by step, each time until it is full; returns whether all
    ended well.
    """
    mount.mkdir(parents=True, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8k', 'tmpfs', str(mount)], check=True)
    try:
        return all([_fill(config, mount, expected, size) for size in _sizes(folder)])
    finally:
        subprocess.run(['umount', str(mount)], check=True)


def _fill(config: DataConfig, mount: pathlib.Path, expected: dict[str, str], size: int) -> bool:
    subprocess.run(['mount', '-o', f'remount,size={size}k', str(mount)], check=True)
    out = mount / 'out'
    try:
        state = 'written' if not prepare(config, out).was_complete else 'already complete'
    except UserError as error:
        state = str(error)
    wrong = differing(out, expected) if state != 'written' or digests(out) != expected else []
    print(
        f'{size} kB: {len(digests(out))} of {len(expected)} files, {len(wrong)} differ; {state}',
        flush=True,
    )
    return not wrong and ('full disk' in state or digests(out) == expected)


def main() -> None:
    """Reads the command line, runs what it asks for, ends with status 1 where anything differed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=200, help='how many')
    parser.add_argument('--seed', type=int, default=0, help='of the instants')
    parser.add_argument('--stride', type=int, default=16, help='frames from window to window')
    parser.add_argument('--shard_size', type=int, default=16, help='windows a file')
    parser.add_argument(
        '--disk', type=pathlib.Path, help='where to mount a small tmpfs; needs the rights to mount'
    )
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    config = settings(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        began = time.perf_counter()
        prepare(config, folder / 'undisturbed')
        longest = time.perf_counter() - began
        expected = digests(folder / 'undisturbed')
        print(f'undisturbed: {len(expected)} files in {longest:.1f} s', flush=True)
        well = (
            fill_disk(config, arguments.disk, folder / 'undisturbed', expected)
            if arguments.disk
            else True
        )
        well &= (
            kill_often(config, folder, expected, arguments.kills, longest)
            if arguments.kills
            else True
        )
    sys.exit(0 if well else 1)


if __name__ == '__main__':
    main()
