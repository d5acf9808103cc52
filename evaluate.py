"""Evaluates trained Sigmas against their base, simple methods and each other, and writes a report
to read.

    python evaluate.py --workdir=runs/sigma
    python evaluate.py --workdir=runs/sigma --splits=train,calibration  # leaves test unread
    python evaluate.py --workdir=runs/sigma --stress --robustness --checks
    python evaluate.py --workdir=runs/ablations  # rows/<row>/seed<k>/, methods by row
    python evaluate.py --workdir=runs/ablations --workdir=pi05_lora=runs/lora0 --out=runs/comparison

Writes sigma_eval_report.json, report.html and adapter.json. Each evaluation is entered in
evaluations.jsonl of the training folder (of several: that of full Sigma with the lowest seed), so
that the report can say how often the test split was read.
"""

import argparse
import pathlib
from typing import Any

from rich.console import Console

import sigma_jax as sj
from sigma_jax.cli.command import reports_user_errors
from sigma_jax.cli.report import show
from sigma_jax.evaluation.replay_shards import SPLITS


@reports_user_errors
def main() -> None:
    """Entry point."""
    arguments = parse()
    console = Console()
    reporter = sj.ConsoleReporter(Console(stderr=True), soft_wrap=True)
    found = sj.evaluate(**settings(arguments), reporter=reporter)
    show(found.report, console, arguments.checks)
    for path in (found.page, found.report_file):
        console.print(f'{path}', highlight=False, soft_wrap=True)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `sj.evaluate` takes of the command line."""
    asked = {name: value for name, value in vars(arguments).items() if name != 'checks'}
    return asked | {'splits': tuple(arguments.splits.split(','))}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--workdir',
        action='append',
        required=True,
        help='folder of a finished train.py, or of rows; several compare',
    )
    add('--shards', type=pathlib.Path, help='prepared shards; default: those it was trained on')
    add('--out', type=pathlib.Path, help='where the report goes; default: the training folder')
    add('--splits', default=','.join(SPLITS), help='default: %(default)s')
    add(
        '--adapter',
        default='default',
        help="'default' (max_scale chosen on calibration) or 'paper'",
    )
    add(
        '--episodes_at_once',
        type=int,
        default=4,
        help='whole episodes a batch; default: %(default)s',
    )
    add('--checks', action='store_true', help='print CHECK A and CHECK B of the paper')
    add(
        '--stress',
        action='store_true',
        help='stress tests of the adapter; four more replays of the last split',
    )
    add(
        '--robustness',
        action='store_true',
        help='nine perturbations; each samples the base on every window anew',
    )
    return parser.parse_args()


if __name__ == '__main__':
    main()
