"""Evaluates a trained Sigma against its base and simple arms, and writes a report to read.

    python evaluate.py --workdir=runs/sigma
    python evaluate.py --workdir=runs/sigma --splits=train,calibration     choose without reading test

Writes sigma_eval_report.json, report.html and adapter.json. Each evaluation is entered in evaluations.jsonl of the
training folder, so that the report can say how often the test split was read.
"""

import argparse
import pathlib

from rich.console import Console

from sigma_jax import adapter, evaluation_run, report_console, report_tables
from sigma_jax.evaluation import EvaluationConfig
from sigma_jax.scripts import reports_user_errors


@reports_user_errors
def main() -> None:
    """Entry point."""
    arguments = parse()
    console = Console()
    request = evaluation_run.Request(
        arguments.workdir,
        arguments.shards,
        arguments.out,
        tuple(arguments.splits.split(',')),
        arguments.episodes_at_once,
        EvaluationConfig(adapter=adapter.preset(arguments.adapter)),
    )
    report, out = evaluation_run.run(request, Console(stderr=True))
    console.print(report_console.arms_tables(report))
    console.print(report_tables.verdict(report), highlight=False)
    for name in (evaluation_run.PAGE, evaluation_run.REPORT):
        console.print(f'{out / name}', highlight=False, soft_wrap=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', type=pathlib.Path, required=True, help='folder of a finished train.py')
    parser.add_argument('--shards', type=pathlib.Path, help='prepared shards; default: those it was trained on')
    parser.add_argument('--out', type=pathlib.Path, help='where the report goes; default: the training folder')
    parser.add_argument('--splits', default=','.join(evaluation_run.SPLITS), help='default: %(default)s')
    parser.add_argument('--adapter', default='default', help="'default' (max_scale chosen on calibration) or 'paper'")
    parser.add_argument('--episodes_at_once', type=int, default=4, help='whole episodes a batch; default: %(default)s')
    return parser.parse_args()


if __name__ == '__main__':
    main()
