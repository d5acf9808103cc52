"""Trains Sigma, or pi0.5 itself, from a config, and continues where a stopped run left off.

    python train.py --config=configs/sigma_so101.py --workdir=runs/sigma
    python train.py --config=configs/sigma_so101.py --workdir=runs/quick --config.steps=100 --config.seed=1

configs/defaults.py explains every value. In the work folder: train_log.csv (the columns of the paper's Table 1),
tensorboard/, checkpoints/, config.json and, after flow matching of all weights, policy/.
"""

from absl import app, flags
from ml_collections import config_flags

from sigma_jax import training
from sigma_jax.scripts import reports_user_errors

CONFIG = config_flags.DEFINE_config_file('config', 'configs/sigma_so101.py', 'experiment, one of configs/*.py')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder for logs and checkpoints', required=True)


@reports_user_errors
def main(argv: list[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; options start with --')
    training.train(CONFIG.value.to_dict(), WORKDIR.value)


if __name__ == '__main__':
    app.run(main)
