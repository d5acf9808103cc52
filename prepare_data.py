"""Cuts a LeRobot data set into shards of 16-step windows, and samples the base policy on each of them.

    python prepare_data.py --out=runs/shards --base=runs/base
    python prepare_data.py --out=runs/shards --source=DIR --config.data.stride=8

Stopped at any instant, the same command continues. A finished directory is left as it is.
"""

import functools

from absl import flags
from ml_collections import ConfigDict
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
from sigma_jax.policy import Policy
from sigma_jax.scripts import run_with_config

_OUT = flags.DEFINE_string('out', None, 'folder for the shards; new, empty, or one to continue', required=True)
_BASE = flags.DEFINE_string('base', None, 'a converted pi0.5 to sample; short for --config.baselines.base')
_SOURCE = flags.DEFINE_string('source', None, 'a LeRobot v2.1 or v3.0 folder; short for --config.data.source')


def main(config: ConfigDict) -> None:
    """Prepares the shards and prints what they hold."""
    console = Console(stderr=True)
    if _SOURCE.value:
        config.data.source = _SOURCE.value
    if _BASE.value:
        config.baselines.base = _BASE.value
    if config.baselines.base:
        follow_base(config.data, assembly.base_policy(config.baselines.base))
    summarise(prepare_shards(config.data, console), console)
    if config.baselines.base:
        sample_baselines(config.baselines, console)


def follow_base(settings: ConfigDict, policy: Policy) -> None:
    """Resizes pictures and writes states into prompts as the base does, where the config leaves it open."""
    settings.resize = settings.resize or policy.resize
    settings.prompt_state_dim = settings.prompt_state_dim or policy.prompt_state_dim or 0


def prepare_shards(settings: ConfigDict, console: Console) -> Result:
    """Runs `prepare` under a progress bar with an estimate of the time left."""
    with progress_bar(console) as bar:
        task = bar.add_task('windows', total=None)
        return prepare(DataConfig.from_settings(settings.to_dict()), _OUT.value, functools.partial(_advance, bar, task))


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def sample_baselines(settings: ConfigDict, console: Console) -> None:
    """Runs the base policy on every window under a progress bar."""
    with progress_bar(console) as bar:
        task = bar.add_task('baselines', total=None)
        write_baselines(
            _OUT.value,
            assembly.build(BaselineConfig, settings.to_dict(), 'baselines'),
            functools.partial(_advance, bar, task),
        )


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
    run_with_config(main, 'configs/data_so101.py')
