"""Does telepathy help? Base, shards, 12 rows x 5 seeds, plain LoRA at the same compute, one
evaluation on 100 episodes.

    python -m sigma_jax.sim --task-mix target --episodes 220 --seed 11 --out DATA/target
    python -m sigma_jax.sim --task-mix base --episodes 240 --seed 12 --out DATA/mix  # --size mid
    python experiments/telepathy.py --data DATA --out runs/telepathy --size mid --minutes 9

A stage that is finished is not repeated, one that was stopped continues. With --minutes the run
ends by itself before that time, with status 75, and the same command goes on from there: where a
GPU is lent for minutes, call it again and again. Status 0: the report is in OUT/report, its tables
and figures in OUT/results.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
from rich.console import Console

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments.summary import write_summary  # noqa: E402
from sigma_jax.cli.command import load, reports_user_errors  # noqa: E402
from sigma_jax.errors import UserError  # noqa: E402
from sigma_jax.evaluation.cost import compute  # noqa: E402
from sigma_jax.files import atomic_write  # noqa: E402
from sigma_jax.training.config import RunConfig  # noqa: E402

SEEDS = range(5)
# episodes of DATA/target
SPLITS = {'train': range(100), 'calibration': range(100, 120), 'test': range(120, 220)}
GRACE = 45  # seconds that a training may take to save its state
STOPPED = 128 + signal.SIGTERM  # status of a script that saved and ended
LATER = 75  # status of a run that ended in time and is to be continued (EX_TEMPFAIL)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is; `policy` is the config that trains the base, none where it is in
    assets/.
    """

    sigma: str
    image_size: int
    dtype: str
    steps: int
    policy: str = ''


SIZES = {
    'tiny': Size('configs/sigma_so101.py', 56, 'float32', 400),
    'mid': Size('configs/sigma_mid.py', 112, 'bfloat16', 1000, 'configs/pi05_mid.py'),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command, and the name under which its end is noted; those that are `parallel` may run at
    the same time.
    """

    name: str
    command: tuple[str, ...]
    parallel: bool = False


def stages(
    size: Size, data: pathlib.Path, out: pathlib.Path, quick: bool = False
) -> Iterator[Stage]:
    """All stages in order. Each is made when all but the last of those before are finished: some
    read what these wrote.

    `quick` keeps the order and cuts the work: two rows and seeds, a few steps.
    """
    images = f'--config.data.image_size={size.image_size}'
    if size.policy:
        base = out / 'policy' / 'policy'
        mix = [f'--source={data / "mix"}', f'--out={out / "mix"}', images, *POLICY_DATA]
        yield stage('mix', 'prepare_data.py', *mix)
        few = ['--config.steps=4', '--config.batch_size=4'] if quick else []
        policy = [
            f'--config={size.policy}',
            f'--workdir={out / "policy"}',
            f'--config.shards={out / "mix"}',
            *few,
        ]
        yield stage('policy', 'train.py', *policy)
    else:
        base = out / 'base'
        yield stage('base', 'convert_weights.py', '--checkpoint=assets/pi05_tiny', f'--out={base}')
    shards = out / 'shards'
    yield stage('shards', 'prepare_data.py', *target(data, shards, base, images, size.dtype, quick))
    same = [
        f'--config.base={base}',
        f'--config.shards={shards}',
        f'--config.model.dtype={size.dtype}',
    ]
    steps = 4 if quick else size.steps
    rows = 'experiments/quick_rows.py' if quick else 'configs/ablations.py'
    sigma = [f'--config={size.sigma}', *same, f'--config.steps={steps}', '--config.features=cache']
    yield stage(
        'rows', 'train.py', *sigma, f'--config.ablations={rows}', f'--workdir={out / "rows"}'
    )
    places = {'base': str(base), 'shards': str(shards)}
    tuned = equal_steps(size, places, steps)
    for seed in list(SEEDS)[: 2 if quick else None]:
        place = out / 'lora' / 'rows' / 'pi05_lora' / f'seed{seed}'
        lora = [
            '--config=configs/lora_so101.py',
            *same,
            f'--config.steps={tuned}',
            f'--config.seed={seed}',
        ]
        yield dataclasses.replace(
            stage(f'lora{seed}', 'train.py', *lora, f'--workdir={place}'), parallel=True
        )
    found = [f'--workdir={out / name}' for name in ('rows', 'lora')]
    asked = ['--stress', '--robustness', '--checks', f'--episodes_at_once={2 if quick else 20}']
    yield stage('report', 'evaluate.py', *found, *asked, f'--out={out / "report"}')


# All frames of the mix, the last ones padded: a policy must also know how a task ends.
POLICY_DATA = (
    '--config.data.stride=1',
    '--config.data.tail=pad',
    '--config.data.min_motion=0',
    '--config.data.split_fractions=(0.9,0.05,0.05)',
)


def stage(name: str, script: str, *arguments: str) -> Stage:
    """A stage that runs one of the four scripts."""
    return Stage(name, (sys.executable, script, *arguments))


def target(
    data: pathlib.Path,
    shards: pathlib.Path,
    base: pathlib.Path,
    images: str,
    dtype: str,
    quick: bool,
) -> list[str]:
    """Arguments of prepare_data.py: the target's episodes split for good, eight samples of the base
    a window.
    """
    lists = {name: tuple(of)[: 2 if quick else None] for name, of in SPLITS.items()}
    split = [f'--config.data.{name}_episodes={episodes}' for name, episodes in lists.items()]
    samples = [
        '--config.baselines.samples=8',
        f'--config.baselines.dtype={dtype}',
        '--config.baselines.batch_size=256',
    ]
    return [
        f'--source={data / "target"}',
        f'--out={shards}',
        f'--base={base}',
        images,
        *split,
        *samples,
    ]


def equal_steps(size: Size, places: dict[str, str], steps: int) -> int:
    """Steps of plain LoRA that cost as much arithmetic as `steps` steps of Sigma and its samples of
    the base.
    """
    sigma = dict(load(size.sigma)) | places | {'steps': steps}
    lora = dict(load('configs/lora_so101.py')) | places | {'steps': 1}
    both, one = (compute.of_training(RunConfig.from_dict(c)) for c in (sigma, lora))
    return max(round(both / one), 1)


def run(
    todo: Iterator[Stage], out: pathlib.Path, until: float, console: Console, at_once: int = 1
) -> bool:
    """Runs what is not finished yet, up to `at_once` stages together; False where the time was up
    before the end.

    Raises UserError where a stage fails, and where `out` holds one that another command has
    finished.
    """
    out.mkdir(parents=True, exist_ok=True)
    for group in together((one for one in todo if not finished(one, out)), at_once):
        if until - time.monotonic() < 2 * GRACE:
            return False
        console.rule(', '.join(one.name for one in group))
        ended = dict(zip(group, call([one.command for one in group], until - GRACE), strict=True))
        for one in (one for one, status in ended.items() if status == 0):
            atomic_write(note_of(one, out), ' '.join(one.command[1:]))
        for one, status in ended.items():
            if status:
                shown = ' '.join(one.command[1:])[:300]
                raise UserError(f'stage {one.name}: expected status 0, got {status} from {shown}')
        if None in ended.values():
            return False
    return True


def note_of(one: Stage, out: pathlib.Path) -> pathlib.Path:
    """The file that says that a stage is finished, and by which command."""
    return out / f'.{one.name}.done'


def finished(one: Stage, out: pathlib.Path) -> bool:
    """Whether the stage is. Raises UserError where another command has done it."""
    note, command = note_of(one, out), ' '.join(one.command[1:])
    if note.exists() and (before := note.read_text()) != command:
        raise UserError(
            f'stage {one.name}: expected what this command makes in {out}, got that of another '
            f'({before}); choose another --out'
        )
    return note.exists()


def together(todo: Iterator[Stage], at_once: int) -> Iterator[list[Stage]]:
    """Stages that run at the same time: one, or up to `at_once` in a row that may run beside each
    other.
    """
    group: list[Stage] = []
    for one in todo:
        if group and not (one.parallel and group[0].parallel and len(group) < at_once):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def call(commands: list[tuple[str, ...]], until: float) -> list[int | None]:
    """The status of each command; None where one was asked to end at `until`, and did.

    Each has a session of its own, so that what stops this process reaches it once, as SIGTERM, and
    it can save. Several share a GPU's memory as they need it: none may take most of it ahead, as
    JAX does.
    """
    shared = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'} if len(commands) > 1 else {}
    running: list[subprocess.Popen] = []
    try:
        for command in commands:
            with held_signals():
                running.append(
                    subprocess.Popen(
                        command, cwd=ROOT, start_new_session=True, env=os.environ | shared
                    )
                )
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.01))
    finally:
        late = [process for process in running if process.poll() is None]
        for process in late:
            process.terminate()
        for process in late:
            process.wait()
    ended = (-signal.SIGTERM, STOPPED)
    return [None if x in late and x.returncode in ended else x.returncode for x in running]


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """What would stop this process is answered at the end of the block: a child that is being
    started would otherwise run on without anybody who knows of it.
    """
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


def stop(number: int, _: object) -> None:
    """Ends this process on SIGTERM as `call` ends its child."""
    raise SystemExit(128 + number)


def check(size: Size, data: pathlib.Path) -> None:
    """Raises UserError where the episodes are not there."""
    for name in ('target', 'mix') if size.policy else ('target',):
        if not (data / name / 'meta' / 'info.json').is_file():
            raise UserError(
                f'expected recorded episodes at {data / name}, got none; --help says '
                'how they are made'
            )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--data',
        type=pathlib.Path,
        required=True,
        help='folder with the recorded episodes: target, mix',
    )
    add(
        '--out',
        type=pathlib.Path,
        required=True,
        help='folder for all that is made; one that is there is continued',
    )
    add(
        '--size',
        choices=SIZES,
        default='tiny',
        help='the embedded base, or a larger one that is trained first (tiny)',
    )
    add(
        '--minutes',
        type=float,
        default=float('inf'),
        help='end by itself before so much time is over (no limit)',
    )
    add(
        '--at-once',
        type=int,
        default=1,
        help='trainings of plain LoRA at a time, for a GPU with room for them (1)',
    )
    add(
        '--quick',
        action='store_true',
        help='the same stages with two rows, two seeds, a few steps and episodes',
    )
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    start, flags, console = time.monotonic(), parse(argv), Console(stderr=True)
    size, data, out = SIZES[flags.size], flags.data.resolve(), flags.out.resolve()
    check(size, data)
    if 60 * flags.minutes <= 3 * GRACE:
        raise UserError(
            f'--minutes: expected more than {3 * GRACE / 60:g}, got {flags.minutes:g}: saving '
            'takes its time'
        )
    if flags.at_once < 1:
        raise UserError(f'--at-once: expected at least 1 training, got {flags.at_once}; correct it')
    signal.signal(signal.SIGTERM, stop)
    jax.config.update('jax_platforms', 'cpu')  # this process only counts; the GPU is for the stages
    todo = stages(size, data, out, flags.quick)
    if not run(todo, out, start + 60 * flags.minutes, console, flags.at_once):
        console.print('time is up; the same command goes on from here')
        return LATER
    title = f'{flags.size}, quick' if flags.quick else flags.size
    for file in write_summary(out / 'report', out / 'results', title):
        console.print(str(file), highlight=False, soft_wrap=True)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
