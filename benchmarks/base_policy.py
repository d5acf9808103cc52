r"""Is a base a real policy? Its error beside holding still and the mean action, per split of shards
with baselines.

    python prepare_data.py --config=configs/data_so101.py --source=assets/so101_mix \
        --out=runs/mix_eval --base=runs/base
    python benchmarks/base_policy.py --shards=runs/mix_eval
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from sigma_jax.cli.command import reports_user_errors
from sigma_jax.data.shards.directory import Split, open_shards
from sigma_jax.evaluation import metrics, simple_baselines
from sigma_jax.types import Actions


def read_split(split: Split) -> dict[str, np.ndarray]:
    """State, actions, mask and the base's first sample of every window, raw units."""
    records = split.records()
    windows = [records.numbers(n) for n in range(len(records))]
    return {
        'state': np.stack([state for state, _ in windows]),
        'actions': np.stack([actions for _, actions in windows]),
        'mask': np.stack([records[n].action_mask for n in range(len(records))]) > 0,
        'base': split.base_actions()[:, 0],
    }


@reports_user_errors
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--shards', required=True, help='folder of prepare_data.py, run with --base'
    )
    flags = parser.parse_args()
    shards = open_shards(flags.shards)
    chunk = shards.meta.chunk
    splits = {name: read_split(shards.split(name)) for name in ('train', 'calibration', 'test')}
    mean = simple_baselines.mean_action(splits['train']['actions'], splits['train']['mask'])
    table = Table(
        'split',
        'windows',
        'method',
        'mse_vec',
        'mse_chk',
        'mse_trj',
        title=f'{flags.shards}, raw units',
    )
    for split, data in splits.items():
        shape = data['actions'].shape
        hold = simple_baselines.hold(data['state'], shape[1], shape[2])
        for name, predicted in {
            'hold': hold,
            'mean': np.broadcast_to(mean, shape),
            'pi05': data['base'],
        }.items():
            actions = Actions.from_trajectory(predicted, chunk)  # type: ignore[arg-type]
            errors = metrics.window_errors(actions, data['actions'], data['mask'])
            values = [f'{np.mean(error):.2f}' for error in errors.values()]
            table.add_row(split, str(shape[0]), name, *values)
    Console().print(table)


if __name__ == '__main__':
    main()
