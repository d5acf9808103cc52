"""Command line of the generator: python -m sigma_jax.sim --task-mix target --episodes 40 --seed 0
--out DIR.
"""

import argparse
import sys

from rich.console import Console

from sigma_jax.cli.reporter import ConsoleReporter
from sigma_jax.errors import UserError


def main() -> int:
    """Records a data set; returns the exit status."""
    arguments = _parser().parse_args()
    try:
        from sigma_jax.data.video.encode import VideoSettings
        from sigma_jax.sim.record import Demonstration, RecordingPlan, record

        video = VideoSettings(arguments.codec, arguments.crf, arguments.gop)
        plan = RecordingPlan(
            arguments.task_mix,
            arguments.episodes,
            arguments.seed,
            arguments.height,
            arguments.width,
            video,
        )
        with ConsoleReporter(Console(stderr=True)).bars() as bars:
            bar = bars.add('recording', total=plan.episodes)
            attempts: list[int] = []

            def advance(demonstration: Demonstration) -> None:
                attempts.append(demonstration.attempts)
                bar.update(len(attempts), note=demonstration.task)

            folder = record(plan, arguments.out, arguments.workers, advance)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
    print(
        f'{plan.episodes} episodes after {sum(attempts)} attempts, {size / 1e6:.2f} MB, in {folder}'
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m sigma_jax.sim',
        description='Record scripted SO-101 demonstrations in MuJoCo as a LeRobot v3.0 data set.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--task-mix',
        default='target',
        help="'target' (one task) or 'base' (five other tasks in turn)",
    )
    parser.add_argument(
        '--episodes', type=int, default=40, help='number of successful episodes to record'
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='the data set depends on nothing but this and the other options',
    )
    parser.add_argument('--out', required=True, help='folder to create; an existing one is refused')
    parser.add_argument('--workers', type=int, default=1, help='processes that simulate and render')
    parser.add_argument('--height', type=int, default=120, help='image height, pixels, even')
    parser.add_argument('--width', type=int, default=160, help='image width, pixels, even')
    parser.add_argument('--codec', default='av1', help="'av1' or 'h264'")
    parser.add_argument(
        '--crf', type=int, default=45, help='constant rate factor: higher is smaller and blurrier'
    )
    parser.add_argument('--gop', type=int, default=60, help='frames between key frames')
    return parser


if __name__ == '__main__':
    sys.exit(main())
