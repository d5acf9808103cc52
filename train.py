r"""Trains Sigma, or pi0.5 itself, from a config, and continues where a stopped run left off.

    python train.py --config=configs/sigma_so101.py --workdir=runs/sigma
    python train.py --config=configs/sigma_so101.py --workdir=runs/quick --config.steps=100 \
        --config.seed=1
    python train.py --config=configs/sigma_so101.py --config.ablations=configs/ablations.py \
        --workdir=runs/ablations

The same command with --check says how much memory it will need, and whether that fits the GPU here
or, with --check --card_gib=24, any other; the status is 1 where it does not.

configs/defaults.py explains every value. In the work folder: train_log.csv (the columns of the
paper's Table 1), tensorboard/, checkpoints/, config.json and, after flow matching of all weights,
policy/. With ablations: all rows and seeds in one program, and at the end such a folder for each,
rows/ROW/seedK/.
"""

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

import sigma_jax as sj
from sigma_jax.cli.command import load, run_with_config
from sigma_jax.cli.tables import ablation_table, show_forecast

WORKDIR = flags.DEFINE_string('workdir', None, 'folder for logs and checkpoints', required=True)
CHECK = flags.DEFINE_bool(
    'check', False, 'only say how much memory this will need, and whether it fits'
)
CARD_GIB = flags.DEFINE_float(
    'card_gib', None, 'memory of the card that --check is for (default: the one here)'
)


def main(config: ConfigDict) -> int:
    """Entry point; returns the exit status."""
    run, console = sj.RunConfig.from_dict(config.to_dict()), Console()
    rows = load(config.ablations) if config.ablations else None
    grid = None if rows is None else sj.Grid.from_dict(rows, run.ablation)
    reporter = sj.ConsoleReporter(console)
    if CHECK.value:
        forecast = sj.forecast(run, card_gib=CARD_GIB.value, grid=grid)
        show_forecast(forecast, console)
        return 0 if forecast.fits else 1
    if grid is None:
        sj.train(run, WORKDIR.value, reporter=reporter)
    else:
        result = sj.train_ablations(run, grid, WORKDIR.value, reporter=reporter)
        console.print(ablation_table(result.losses))
    return 0


if __name__ == '__main__':
    run_with_config(main, 'configs/sigma_so101.py')
