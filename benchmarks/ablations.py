r"""Rows x seeds in one program against one compiled step in a loop over them, from compiling to the
last step.

    python benchmarks/ablations.py  # 12 rows x 5 seeds on the embedded data, tiny pi0.5
    python benchmarks/ablations.py --steps 10 --rows 4 --seeds 2 --at-once 1 2 4
    python benchmarks/ablations.py --base runs/base --shards runs/shards \
        --config configs/sigma_so101.py

Both sides take the same batches from the loader and end with the states of all members. The loop is
what plain training does: every member reads its own batches, and every step computes its own frozen
features. Both are timed in turns, part by part, so that what else the machine does falls on both.
Building the run (base, data, first states) is left out on both sides, because it is the same. On a
CPU the ratio asked for includes compiling. On a GPU, where that is most of a short run and little
of a long one, it is that of the steps after the first. The status is 1 where it is below
--at-least. --profile shows where a GPU's time goes on either side: one that is never idle gains no
more by rows.
"""

import argparse
import itertools
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import kernel_groups  # noqa: E402
from sigma_jax import xla  # noqa: E402
from sigma_jax.ablations import stacked, stacked_trainer  # noqa: E402
from sigma_jax.ablations.setup import AblationRun  # noqa: E402
from sigma_jax.cli.command import load  # noqa: E402
from sigma_jax.training.config import RunConfig  # noqa: E402
from sigma_jax.training.devices import use_all_cores  # noqa: E402
from sigma_jax.training.grid import Grid  # noqa: E402
from sigma_jax.types import to_batch  # noqa: E402

TINY = 96  # width of the language model of assets/pi05_tiny


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--steps', type=int, default=20, help='optimiser steps of every member (20)')
    add('--rows', type=int, default=12, help='the first so many rows of --ablations (12)')
    add('--seeds', type=int, default=5, help='seeds of each row (5)')
    add(
        '--at-once',
        type=int,
        nargs='+',
        default=[0],
        help='members a device computes at a time; 0: as train.py does',
    )
    add('--loop-members', type=int, help='time the loop over so many of them and scale it up (all)')
    add('--config', default='configs/sigma_so101.py', help='of the run')
    add('--ablations', default='configs/ablations.py', help='rows')
    add('--base', help='folder of a converted pi0.5 (made from assets/ in a temporary folder)')
    add('--shards', help='folder of prepare_data.py, with the baselines of --base (the same)')
    add('--batch', type=int, help="sequences a step (the config's)")
    add('--windows', type=int, help="windows a sequence (the config's)")
    add('--turns', type=int, default=4, help='parts in which both sides are timed in turn (4)')
    add(
        '--profile',
        action='store_true',
        help="time by kernel group, of a step of all members and of one member's",
    )
    add(
        '--at-least',
        type=float,
        help='the ratio to reach (3 on a CPU; 10 on a GPU, 4 there for a wider base)',
    )
    return parser.parse_args(argv)


def prepare(folder: pathlib.Path) -> tuple[str, str]:
    """(base, shards) from assets/, as `make demo` prepares them."""
    base, shards = folder / 'base', folder / 'shards'
    convert = ['convert_weights.py', '--checkpoint=assets/pi05_tiny', f'--out={base}']
    cut = ['prepare_data.py', '--config=configs/data_so101.py', f'--out={shards}', f'--base={base}']
    for command in (convert, cut):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return str(base), str(shards)


def settings(
    flags: argparse.Namespace, base: str, shards: str
) -> tuple[RunConfig, list[stacked.Member]]:
    """The config of the run and its members."""
    config, wanted = dict(load(flags.config)), load(flags.ablations)
    config |= {'base': base, 'shards': shards, 'steps': flags.steps}
    config |= {'batch_size': flags.batch or config['batch_size']}
    config |= {'sequence_length': flags.windows or config['sequence_length']}
    rows = list(dict(wanted['rows']).items())[: flags.rows]
    grid = Grid.from_dict({'rows': rows, 'seeds': range(flags.seeds)})
    return stacked_trainer.with_grid(RunConfig.from_dict(config), grid)


class Timed:
    """Seconds of what `work` does, called again and again; the first call compiles."""

    def __init__(self, work: Callable[[], Any]):
        self.work, self.seconds, self.first = work, 0.0, 0.0

    def __call__(self) -> None:
        start = time.perf_counter()
        jax.block_until_ready(self.work())
        spent = time.perf_counter() - start
        self.first, self.seconds = self.first or spent, self.seconds + spent


def together(run: AblationRun) -> Callable[[], Any]:
    """One step of all members."""
    batches = iter(run.make_loader(0))

    def step() -> Any:
        batch = run.devices.replicate(to_batch(next(batches)))
        run.state, metrics = run.step(run.state, run.frozen, batch, run.gates)
        return run.state, metrics

    return step


def alone(run: AblationRun, starts: stacked.StackedState, steps: int) -> Callable[[], Any]:
    """All steps of the next member, round and round, on the first device; on a CPU that one uses
    all cores.
    """
    device = jax.local_devices()[0]
    step = xla.jit(run.one, donate_argnums=0)
    frozen = jax.device_put(run.frozen, device)
    numbers = itertools.cycle(range(len(run.members)))

    def member() -> Any:
        n, batches = next(numbers), iter(run.make_loader(0))
        state = jax.device_put(stacked.member_state(starts, n), device)
        gates = jax.device_put(jax.tree.map(np.float32, run.members[n].gates), device)
        for _ in range(steps):
            state, metrics = step(
                state, frozen, jax.device_put(to_batch(next(batches)), device), gates
            )
        return state, metrics

    return member


def measure(
    ours: Timed, theirs: Timed, all_members: int, flags: argparse.Namespace, console: Console
) -> dict:
    """Both sides in turns: `turns` times a share of the steps of all members, then a share of the
    members' steps.
    """
    steps, turns, members = flags.steps, flags.turns, flags.loop_members or all_members
    for turn in range(turns):
        console.print(
            f'part {turn + 1} of {turns}: one program {ours.seconds:.0f} s, loop '
            f'{theirs.seconds:.0f} s so far'
        )
        for _ in range(steps * turn // turns, steps * (turn + 1) // turns):
            ours()
        for _ in range(members * turn // turns, members * (turn + 1) // turns):
            theirs()
    # what the first call of the loop took beyond the others is compiling, which happens once
    each = (theirs.seconds - theirs.first) / max(members - 1, 1)
    loop = theirs.seconds + each * (all_members - members)
    found = {
        'together': ours.seconds,
        'loop': loop,
        'ratio': loop / ours.seconds,
        'first': ours.first,
        'each': each,
    }
    step = (ours.seconds - ours.first) / max(steps - 1, 1)
    return found | {
        'step': step,
        'later': each * all_members / (steps * step) if step else float('nan'),
    }


def by_kernel(ours: Timed, theirs: Timed, steps: int) -> Table | None:
    """Milliseconds by kernel group; None without a GPU."""
    columns = {'a step of all members': (ours, 2, 1), "a member's step": (theirs, 1, steps)}
    out = Table('ms', *columns)
    found = []
    for call, calls, parts in columns.values():
        with tempfile.TemporaryDirectory() as folder:
            profile = kernel_groups.record(call, pathlib.Path(folder), calls)
        if profile is None:
            return None
        found.append(
            {name: ms / parts for name, ms in (profile.groups | {'step': profile.step_ms}).items()}
        )
    for name in dict.fromkeys(name for groups in found for name in groups):
        out.add_row(name, *(f'{groups.get(name, 0):.2f}' for groups in found))
    return out


def report(
    flags: argparse.Namespace, config: RunConfig, members: list[stacked.Member], console: Console
) -> bool:
    """Measures and prints every `--at-once`; whether the best one reaches the ratio asked for."""
    windows = config.windows_per_step
    out = Table(
        'at once',
        'devices',
        'one program s',
        'first step',
        'a later one',
        'loop s',
        'a member',
        'ratio',
    )
    out.add_column('of later steps')
    out.title = (
        f'{len(members)} members, {flags.steps} steps of {windows} windows, compilation included'
    )
    best, wanted, asked = (
        0.0,
        flags.at_least,
        'ratio' if jax.default_backend() == 'cpu' else 'later',
    )
    for at_once in flags.at_once:
        start = time.perf_counter()
        run = AblationRun(config, members, at_once)
        console.print(
            f'built in {time.perf_counter() - start:.0f} s; {run.at_once} members at a time'
        )
        tiny = run.base.config.width <= TINY
        wanted = wanted or (3.0 if asked == 'ratio' else 10.0 if tiny else 4.0)
        ours, theirs = (
            Timed(together(run)),
            Timed(alone(run, jax.device_get(run.state), flags.steps)),
        )
        found = measure(ours, theirs, len(run.members), flags, console)
        times = [f'{found[key]:.1f}' for key in ('together', 'first', 'step', 'loop', 'each')]
        out.add_row(
            str(run.at_once),
            str(run.devices.count),
            *times,
            f'{found["ratio"]:.2f}',
            f'{found["later"]:.2f}',
        )
        best = max(best, found[asked])
        if flags.profile:
            console.print(by_kernel(ours, theirs, flags.steps) or 'no GPU to profile')
    console.print(out)
    passed = best >= (wanted or 0)
    console.print(
        f'{jax.devices()[0].device_kind}: {best:.2f} x, asked for {wanted:g} x: '
        f'{"pass" if passed else "FAIL"}'
    )
    return passed


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    flags, console = parse(argv), Console(width=120)
    use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        base, shards = flags.base, flags.shards
        if not (base and shards):
            console.print('preparing base and shards from assets/')
            base, shards = prepare(pathlib.Path(folder))
        return int(not report(flags, *settings(flags, base, shards), console))


if __name__ == '__main__':
    raise SystemExit(main())
