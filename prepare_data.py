"""Cuts a data set into shards of 16-step windows, and samples the base policy on each of them.

    python prepare_data.py --out=runs/shards --base=runs/base
    python prepare_data.py --out=runs/shards --source=DIR --config.data.stride=8
    python prepare_data.py --out=runs/shards_50 --base=runs/base --nosample --config.data.horizon=50
    python prepare_data.py --out=runs/shards --inspect --windows=20
    python prepare_data.py --out=runs/shards --export_pt=runs/pt

Stopped at any instant, the same command continues. A finished directory is left as it is. With
--nosample pictures and prompts follow the base, and nothing is sampled: for flow matching, whose
targets are the data's own. With --inspect
nothing is prepared: what the directory holds is printed, and windows of it are drawn into its
contact_sheet.png. With --export_pt they are written as the paper's shard_*.pt
(sigma_jax/data/pt/shards.py), which --source reads as well.
"""

import functools
import pathlib
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict
from rich import box
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
from rich.table import Table
from rich.text import Text

from sigma_jax.cli import run_with_config
from sigma_jax.convert.base_policy import Base, check_image_size
from sigma_jax.data.shards.contact_sheet import contact_sheet
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.export_pt import export
from sigma_jax.data.shards.meta import camera_names, source_keys
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import Result, prepare, welcome
from sigma_jax.data.shards.summary import sections
from sigma_jax.data.sources import Dataset
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write
from sigma_jax.policies import base_actions
from sigma_jax.processing import fitting
from sigma_jax.processing.spec import ProcessorConfig
from sigma_jax.settings import from_section

_OUT = flags.DEFINE_string(
    'out', None, 'folder for the shards; new, empty, or one to continue', required=True
)
_BASE = flags.DEFINE_string(
    'base', None, 'a converted pi0.5 to sample; short for --config.baselines.base'
)
_SAMPLE = flags.DEFINE_bool(
    'sample',
    True,
    'sample the base on every window; with --nosample pictures and prompts only follow it',
)
_SOURCE = flags.DEFINE_string(
    'source',
    None,
    'a LeRobot or RLDS folder, .pt shards or a hub id (owner/name@revision); short for '
    '--config.data.source',
)
_INSPECT = flags.DEFINE_bool(
    'inspect', False, 'print meta.json of finished shards and draw OUT/contact_sheet.png'
)
_WINDOWS = flags.DEFINE_integer(
    'windows', 12, 'how many windows --inspect draws, spread over splits and episodes'
)
_EXPORT = flags.DEFINE_string(
    'export_pt', None, "new folder for finished shards as the paper's shard_*.pt; needs torch"
)
SHEET = 'contact_sheet.png'


def main(config: ConfigDict) -> None:
    """Prepares the shards and prints what they hold."""
    if _INSPECT.value:
        inspect(pathlib.Path(_OUT.value), _WINDOWS.value, Console())
        return
    console = Console(stderr=True)
    if _EXPORT.value:
        export_pt(_OUT.value, _EXPORT.value, console)
        return
    if _SOURCE.value:
        config.data.source = _SOURCE.value
    if _BASE.value:
        config.baselines.base = _BASE.value
    if config.baselines.base:
        base = fitting_base(config, _SAMPLE.value)
        for note in base.notes:
            console.print(note, highlight=False, markup=False)
        follow_base(config.data, base.policy)
    accept = accept_robot(config, console) if config.baselines.base else welcome
    summarise(prepare_shards(config.data, console, accept), console)
    if config.baselines.base and _SAMPLE.value:
        sample_baselines(config.baselines, console)


def inspect(out: pathlib.Path, windows: int, console: Console) -> None:
    """Prints what meta.json says, a table a section, and draws `windows` windows into
    `out`/contact_sheet.png.
    """
    shards = open_shards(out)
    for title, rows in sections(shards.meta):
        if rows:
            console.print(section_table(title, rows))
    atomic_write(out / SHEET, contact_sheet(shards, windows))
    console.print(f'{out / SHEET}: written', highlight=False)


def export_pt(shards: str, out: str, console: Console) -> None:
    """Writes finished shards in the paper's container under a progress bar."""
    with progress_bar(console) as bar:
        task = bar.add_task('windows', total=None)
        about = export(open_shards(shards), out, progress=functools.partial(_advance, bar, task))
    console.print(f'{out}: {about.shards.total} windows', highlight=False)


def section_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """Names and values under a title; texts are taken literally."""
    table = Table(
        title=title,
        title_justify='left',
        title_style='bold',
        box=box.SIMPLE,
        show_header=False,
        padding=0,
    )
    table.add_column(no_wrap=True, style='cyan')
    table.add_column(overflow='fold')
    for name, value in rows:
        table.add_row(Text(f'{name}  '), Text(value))
    return table


def fitting_base(config: ConfigDict, sampled: bool = True) -> Base:
    """The base, its weights unread. Raises UserError where it does not fit these windows, to be
    `sampled` on them.
    """
    settings = from_section(base_actions.BaselineConfig, config.baselines.to_dict(), 'baselines')
    base = base_actions.describe_policy(settings)
    if sampled:
        base_actions.check_policy(base, settings, config.data.horizon)
    check_image_size(base, config.data.image_size)
    keys = config.data.cameras
    theirs = source_keys(keys, config.data.get('camera_map', ()))
    fitting.check_cameras(base.policy, camera_names(keys), theirs)
    return base


def accept_robot(config: ConfigDict, console: Console) -> Callable[[Dataset], None]:
    """Says, before a data set is cut, where its robot is not the base's; to be sampled, it has to
    be.
    """
    base = base_actions.describe_policy(
        from_section(base_actions.BaselineConfig, config.baselines.to_dict(), 'baselines')
    )

    def accept(dataset: Dataset) -> None:
        try:
            base_actions.check_robot(base, dataset)
        except UserError as error:
            if _SAMPLE.value:
                raise
            console.print(f"another robot than the base's: {error}", highlight=False, markup=False)

    return accept


def follow_base(settings: ConfigDict, policy: ProcessorConfig) -> None:
    """Resizes pictures and writes states into prompts as the base does, where the config leaves it
    open.
    """
    settings.resize = settings.resize or policy.resize
    settings.prompt_state_dim = settings.prompt_state_dim or policy.prompt_state_dim or 0


def prepare_shards(
    settings: ConfigDict, console: Console, accept: Callable[[Dataset], None] = welcome
) -> Result:
    """Runs `prepare` under a progress bar with an estimate of the time left."""
    with progress_bar(console) as bar:
        windows = bar.add_task('windows', total=None)
        checked = bar.add_task(
            'episodes checked', total=None, visible=settings.on_bad_episode == 'skip'
        )
        done, tried = (functools.partial(_advance, bar, task) for task in (windows, checked))
        return prepare(
            DataConfig.from_settings(settings.to_dict()), _OUT.value, done, tried, accept
        )


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def sample_baselines(settings: ConfigDict, console: Console) -> None:
    """Runs the base policy on every window under a progress bar."""
    with progress_bar(console) as bar:
        task = bar.add_task('baselines', total=None)
        base_actions.write_baselines(
            open_shards(_OUT.value),
            from_section(base_actions.BaselineConfig, settings.to_dict(), 'baselines'),
            functools.partial(_advance, bar, task),
        )


def progress_bar(console: Console) -> Progress:
    """Count, elapsed time and an estimate of the time left."""
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, TimeRemainingColumn(), console=console)


def summarise(result: Result, console: Console) -> None:
    """Prints windows kept and dropped per split, and joints whose normalisation was clamped."""
    meta = result.meta
    state = 'already complete, nothing to do' if result.was_complete else 'written'
    console.print(f'{_OUT.value}: {state}', highlight=False)
    for split, count in meta.windows.items():
        reasons = ', '.join(
            f'{number} {reason}' for reason, number in meta.dropped[split].items() if number
        )
        episodes = len(meta.splits[split])
        console.print(
            f'  {split}: {count} windows of {episodes} episodes; dropped: {reasons or "none"}',
            highlight=False,
        )
    for index, reason in meta.bad_episodes.items():
        console.print(f'  episode {index} left out: {reason}', highlight=False, markup=False)
    for note in meta.notes:
        console.print(f'  {note}', highlight=False, markup=False)
    for quantity, names in meta.near_constant.items():
        if names:
            console.print(
                f'  {quantity} hardly moves in {", ".join(names)}: normalisation clamped',
                highlight=False,
            )


if __name__ == '__main__':
    run_with_config(main, 'configs/data_so101.py')
