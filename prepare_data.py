"""Cuts a data set into shards of 16-step windows, and samples the base policy on each of them.

    python prepare_data.py --out=runs/shards --base=runs/base
    python prepare_data.py --out=runs/shards --source=DIR --config.data.stride=8
    python prepare_data.py --out=runs/shards_50 --base=runs/base --nosample --config.data.horizon=50
    python prepare_data.py --out=runs/shards --inspect --windows=20
    python prepare_data.py --out=runs/shards --export_pt=runs/pt

Stopped at any instant, the same command continues. A finished directory is left as it is. With
--nosample images and prompts follow the base, and nothing is sampled: for flow matching, whose
targets are the data's own. With --inspect nothing is prepared: what the directory holds is printed,
and windows of it are drawn into its contact_sheet.png. With --export_pt they are written as the
paper's shard_*.pt (sigma_jax/data/pt/shards.py), which --source reads as well.
"""

import dataclasses

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

import sigma_jax as sj
from sigma_jax.cli.command import run_with_config
from sigma_jax.cli.tables import section_table
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
    'sample the base on every window; with --nosample images and prompts only follow it',
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


def main(config: ConfigDict) -> None:
    """Prepares the shards and prints what they hold."""
    if _INSPECT.value:
        inspect(_OUT.value, _WINDOWS.value, Console())
        return
    console = Console(stderr=True)
    reporter = sj.ConsoleReporter(console)
    if _EXPORT.value:
        windows = sj.export_pt(_OUT.value, _EXPORT.value, reporter=reporter)
        console.print(f'{_EXPORT.value}: {windows} windows', highlight=False)
        return
    settings = config.to_dict()
    if _SOURCE.value:
        settings['data']['source'] = _SOURCE.value
    base = from_section(sj.BaselineConfig, settings['baselines'], 'baselines')
    if _BASE.value:
        base = dataclasses.replace(base, base=_BASE.value)
    sj.prepare_data(
        sj.DataConfig.from_settings(settings['data']),
        _OUT.value,
        base=base if base.base else None,
        sample=_SAMPLE.value,
        reporter=reporter,
    )


def inspect(out: str, windows: int, console: Console) -> None:
    """Prints what meta.json says, a table a section, and where `windows` windows were drawn."""
    found = sj.inspect_shards(out, windows)
    for title, rows in found.sections:
        if rows:
            console.print(section_table(title, rows))
    console.print(f'{found.sheet}: written', highlight=False)


if __name__ == '__main__':
    run_with_config(main, 'configs/data_so101.py')
