"""Kills a tiny training at random instants, fills its disk, and compares what comes out with an
undisturbed run.

    python benchmarks/kill_training.py --kills=50
    # mounts a small tmpfs there
    sudo python benchmarks/kill_training.py --kills=0 --disk=/mnt/small

A training is started again until it ends; then weights, moments and running average, the loader's
position, the rows of the log and TensorBoard's values must be those of the undisturbed run, to the
last bit. Ends with status 1 otherwise.
"""

import argparse
import collections
import json
import logging as standard_logging
import multiprocessing
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
from absl import logging  # noqa: E402
from tensorboardX.proto import event_pb2  # noqa: E402

from configs import data_so101, pi05_so101_mix  # noqa: E402
from sigma_jax import trees  # noqa: E402
from sigma_jax.data.rlds.tfrecord import list_records, read_record  # noqa: E402
from sigma_jax.data.shards.plan import DataConfig  # noqa: E402
from sigma_jax.data.shards.prepare import prepare  # noqa: E402
from sigma_jax.errors import UserError  # noqa: E402
from sigma_jax.training import trainer  # noqa: E402
from sigma_jax.training.checkpoints import step_folder  # noqa: E402
from sigma_jax.training.compilation import enable_compilation_cache  # noqa: E402
from sigma_jax.training.config import RunConfig  # noqa: E402
from sigma_jax.training.folder import RunFolder  # noqa: E402

SMALL = {'width': 16, 'depth': 1, 'mlp_dim': 16, 'heads': 2, 'kv_heads': 1, 'head_dim': 8}
VISION = {'width': 16, 'depth': 1, 'mlp_dim': 16, 'heads': 2, 'patch': 14, 'image_size': 28}


def settings(folder: pathlib.Path, steps: int) -> dict:
    """Shards of the embedded data in `folder`, and a config of a few seconds: all weights of a very
    small policy.
    """
    data = data_so101.get_config().to_dict()['data'] | {'image_size': 28, 'stride': 16}
    data |= {'source': str(ROOT / data['source']), 'tokenizer': str(ROOT / data['tokenizer'])}
    prepare(DataConfig.from_settings(data), folder / 'shards')
    config = pi05_so101_mix.get_config().to_dict()
    config['model'] |= {
        'vision': VISION,
        'language': SMALL | {'width': 32},
        'expert': SMALL | {'adaptive': True},
    }
    config |= {
        'trainable': ('params',),
        'shards': str(folder / 'shards'),
        'steps': steps,
        'batch_size': 4,
    }
    config |= {'tokenizer': data['tokenizer'], 'compilation_cache': str(folder / 'programs')}
    return config | {'log': {'every': 1, 'shares': 0}, 'checkpoint': {'every': 5, 'keep': 2}}


def work(config: Mapping, workdir: pathlib.Path) -> None:
    """What a killed process does."""
    logging.set_verbosity(logging.FATAL)
    standard_logging.getLogger('asyncio').setLevel(standard_logging.CRITICAL)
    enable_compilation_cache(config['compilation_cache'])
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    trainer.train(RunConfig.from_dict(config), workdir)


def result(workdir: pathlib.Path) -> dict[str, Any]:
    """All of a finished run that another must have to the bit."""
    folder = RunFolder(workdir)
    last = step_folder(folder.checkpoints, folder.steps[-1])
    with ocp.StandardCheckpointer() as reader:
        state = jax.tree.map(np.asarray, reader.restore((last / 'state').absolute()))
    position = json.loads((last / 'loader' / 'metadata').read_text())
    rows = folder.log.read_text()
    return {
        'step': last.name,
        'state': trees.digest(state),
        'loader': position,
        'rows': rows,
        'board': board(workdir),
    }


def board(workdir: pathlib.Path) -> list[tuple[int, str, float]]:
    """TensorBoard's values of a run in the order of its files, doubled ones included."""
    found = []
    for file in sorted((workdir / 'tensorboard').iterdir()):
        for place in list_records(file):
            event = event_pb2.Event.FromString(read_record(place))
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return sorted(found)


def differing(workdir: pathlib.Path, expected: Mapping[str, Any]) -> list[str]:
    """What a finished run has otherwise than the undisturbed one."""
    got = result(workdir)
    return [f'{workdir.name}: {name} differs' for name in expected if got[name] != expected[name]]


def kill_often(
    config: Mapping,
    folder: pathlib.Path,
    expected: Mapping,
    kills: int,
    spans: tuple[float, float],
    target: Callable[[Mapping, pathlib.Path], None] = work,
) -> bool:
    """Kills `kills` processes somewhere in `spans` seconds after their start; returns whether
    nothing differed.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['sigma_jax.training.trainer'])
    stages: collections.Counter[int] = collections.Counter()
    killed, finished, wrong, torn, out = 0, 0, list[str](), 0, folder / 'out-0'
    while True:
        process = context.Process(target=target, args=(config, out))
        process.start()
        process.join(random.uniform(*spans) if killed < kills else None)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            stages[max(RunFolder(out).steps, default=0)] += 1
            torn += any(RunFolder(out).checkpoints.glob('*tmp*'))
            continue
        wrong += (
            differing(out, expected)
            if process.exitcode == 0
            else [f'{out.name}: status {process.exitcode}']
        )
        finished += 1
        print(f'{killed} kills, {finished} trainings ended', flush=True)
        shutil.rmtree(out)
        out = folder / f'out-{finished}'
        if killed >= kills:
            break
    differ = f'{wrong} differ' if wrong else 'all as the undisturbed one'
    print(
        f'{killed} kills, {torn} of them in the middle of a checkpoint; {finished} trainings '
        f'ended; {differ}'
    )
    print(
        'kills by newest checkpoint:',
        ', '.join(f'{n}: {stages[n]}' for n in sorted(stages)),
        flush=True,
    )
    return not wrong


def fill_disk(config: Mapping, mount: pathlib.Path, need: int, expected: Mapping) -> bool:
    """Trains on a tmpfs that grows step by step to what is needed, each time until it is full;
    whether all was well.
    """
    mount.mkdir(parents=True, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8k', 'tmpfs', str(mount)], check=True)
    try:
        return all(
            [
                _fill(config, mount, size, expected)
                for size in [*range(8, need, need // 12), 2 * need, 4 * need]
            ]
        )
    finally:
        subprocess.run(['umount', str(mount)], check=True)


def _fill(config: Mapping, mount: pathlib.Path, size: int, expected: Mapping) -> bool:
    subprocess.run(['mount', '-o', f'remount,size={size}k', str(mount)], check=True)
    out = mount / 'out'
    try:
        work(config, out)
        state, wrong = 'ended', differing(out, expected)
    except UserError as error:
        state, wrong = str(error), []
    print(
        f'{size} kB: checkpoints {RunFolder(out).steps}; {state}{wrong or ""}',
        flush=True,
    )
    return not wrong and (state == 'ended' or 'full disk' in state)


def main() -> None:
    """Reads the command line, runs what it asks for, ends with status 1 where anything differed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=50, help='how many')
    parser.add_argument('--seed', type=int, default=0, help='of the instants')
    parser.add_argument('--steps', type=int, default=150, help='of the training')
    parser.add_argument(
        '--disk', type=pathlib.Path, help='where to mount a small tmpfs; needs the rights to mount'
    )
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = settings(folder, arguments.steps)
        work(config, folder / 'first')  # compiles
        began = time.perf_counter()
        work(config, folder / 'undisturbed')
        longest = time.perf_counter() - began
        expected = result(folder / 'undisturbed')
        need = sum(
            -(-file.stat().st_size // 4096) * 4 for file in (folder / 'undisturbed').rglob('*')
        )
        print(f'undisturbed: {arguments.steps} steps and {need} kB in {longest:.1f} s', flush=True)
        well = fill_disk(config, arguments.disk, need, expected) if arguments.disk else True
        if arguments.kills:
            well &= kill_often(config, folder, expected, arguments.kills, (0.0, 2 * longest))
        print(f'{time.perf_counter() - began - longest:.0f} s')
    sys.exit(0 if well else 1)


if __name__ == '__main__':
    main()
