"""Trains Sigma, or pi0.5 itself, from a config, and continues where a stopped run left off.

    python train.py --config=configs/sigma_so101.py --workdir=runs/sigma
    python train.py --config=configs/sigma_so101.py --workdir=runs/quick --config.steps=100 --config.seed=1

configs/defaults.py explains every value. In the work folder: train_log.csv (the columns of the paper's Table 1),
tensorboard/, checkpoints/, config.json and, after flow matching of all weights, policy/.
"""

from absl import flags
from ml_collections import ConfigDict

from sigma_jax import training
from sigma_jax.scripts import run_with_config

WORKDIR = flags.DEFINE_string('workdir', None, 'folder for logs and checkpoints', required=True)


def main(config: ConfigDict) -> None:
    """Entry point."""
    training.train(config.to_dict(), WORKDIR.value)


if __name__ == '__main__':
    run_with_config(main, 'configs/sigma_so101.py')
