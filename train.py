"""Trains Sigma, or pi0.5 itself, from a config, and continues where a stopped run left off.

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

from sigma_jax.ablations import side_by_side
from sigma_jax.cli import load, run_with_config
from sigma_jax.training import memory_check, trainer
from sigma_jax.training.compilation import keep_programs
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import use_all_cores

WORKDIR = flags.DEFINE_string('workdir', None, 'folder for logs and checkpoints', required=True)
CHECK = flags.DEFINE_bool(
    'check', False, 'only say how much memory this will need, and whether it fits'
)
CARD_GIB = flags.DEFINE_float(
    'card_gib', None, 'memory of the card that --check is for (default: the one here)'
)


def main(config: ConfigDict) -> int:
    """Entry point; returns the exit status."""
    run = RunConfig.from_dict(config.to_dict())
    if CHECK.value:
        return memory_check.check(run, CARD_GIB.value, Console(), members(run, config.ablations))
    keep_programs(run.compilation_cache)
    if run.ablations:
        use_all_cores()
        side_by_side.train(run, load(config.ablations), WORKDIR.value)
    else:
        trainer.train(run, WORKDIR.value)
    return 0


def members(config: RunConfig, ablations: str) -> int:
    """How many trainings this config is; `ablations` names a file with rows and seeds."""
    return len(side_by_side.with_grid(config, load(ablations))[1]) if ablations else 1


if __name__ == '__main__':
    run_with_config(main, 'configs/sigma_so101.py')
