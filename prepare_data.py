"""Cuts a LeRobot data set into shards of 16-step windows: prepare_data.py --out=DIR [--config.data.stride=8 ...].

Stopped at any instant, the same command continues. A finished directory is left as it is.
"""

import functools
import sys

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sigma_jax import assembly
from sigma_jax.baselines import BaselineConfig, write_baselines
from sigma_jax.data.plan import DataConfig
from sigma_jax.data.prepare import Result, prepare
from sigma_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/data_so101.py', 'What to prepare; override with --config.data.NAME=VALUE.'
)
_OUT = flags.DEFINE_string('out', None, 'Directory for the shards; new, empty, or one to continue.', required=True)
_BASE = flags.DEFINE_string(
    'base', None, 'Short for --config.baselines.base: a converted pi0.5, sampled on every window.'
)
_SOURCE = flags.DEFINE_string('source', None, 'Short for --config.data.source: a LeRobot v2.1 or v3.0 directory.')


def main(_: list[str]) -> None:
    """Prepares the shards and prints what they hold; exits with 2 on a user's error."""
    console = Console(stderr=True)
    try:
        summarise(prepare_shards(console), console)
        if _BASE.value or _CONFIG.value.baselines.base:
            sample_baselines(console)
    except UserError as error:
        console.print(str(error), style='red', markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print('Stopped; the same command continues where it was.', style='yellow')
        sys.exit(130)


def prepare_shards(console: Console) -> Result:
    """Runs `prepare` on the flags' config under a progress bar with an estimate of the time left."""
    settings = _CONFIG.value.data.to_dict()
    if _SOURCE.value:
        settings['source'] = _SOURCE.value
    with progress_bar(console) as bar:
        task = bar.add_task('windows', total=None)
        return prepare(DataConfig.from_settings(settings), _OUT.value, functools.partial(_advance, bar, task))


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def sample_baselines(console: Console) -> None:
    """Runs the base policy on every window under a progress bar."""
    settings = _CONFIG.value.baselines.to_dict()
    if _BASE.value:
        settings['base'] = _BASE.value
    with progress_bar(console) as bar:
        task = bar.add_task('baselines', total=None)
        config = assembly.build(BaselineConfig, settings, 'baselines')
        write_baselines(_OUT.value, config, lambda done, all: bar.update(task, completed=done, total=all))


def progress_bar(console: Console) -> Progress:
    """Count, elapsed time and an estimate of the time left."""
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def summarise(result: Result, console: Console) -> None:
    """Prints windows kept and dropped per split, and joints whose normalisation was clamped."""
    meta = result.meta
    state = 'already complete, nothing to do' if result.was_complete else 'written'
    console.print(f'{_OUT.value}: {state}', highlight=False)
    for split, count in meta['windows'].items():
        reasons = ', '.join(f'{number} {reason}' for reason, number in meta['dropped'][split].items() if number)
        episodes = len(meta['splits'][split])
        console.print(
            f'  {split}: {count} windows of {episodes} episodes; dropped: {reasons or "none"}', highlight=False
        )
    for quantity, names in meta['near_constant'].items():
        if names:
            console.print(f'  {quantity} hardly moves in {", ".join(names)}: normalisation clamped', highlight=False)


if __name__ == '__main__':
    app.run(main)
