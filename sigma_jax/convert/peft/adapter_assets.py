"""How a policy with an adapter merged in sees the world: as the adapter was trained, where its
folder says.

An adapter is trained by the statistics, relative joints, cameras and prompt that stand beside it,
not by its base's: LeRobot saves both processors there, and so does this project's `export`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from sigma_jax.convert import assets, sizes
from sigma_jax.convert.assets import PolicyAssets
from sigma_jax.convert.dataset_stats import HORIZON
from sigma_jax.convert.lerobot import read
from sigma_jax.convert.lerobot.read import NormStats
from sigma_jax.convert.peft import config as peft_config
from sigma_jax.convert.peft.record import EXPORT, ExportRecord
from sigma_jax.convert.source import Source
from sigma_jax.convert.stats_source import NORM_STATS, asset_files
from sigma_jax.errors import UserError
from sigma_jax.hub.download import local_path
from sigma_jax.processing.normalize import Scaling, read_both, statistics_from
from sigma_jax.processing.spec import POLICY_FILE, ProcessorConfig

INSIDE = ('', 'pretrained_model', 'adapter')  # LeRobot's step of a training, an export of ours
SAID = {
    'relative_joints': 'relative joints', 'cameras': 'cameras', 'rename_map': 'rename map',
    'state': 'normalisation of the state', 'actions': 'normalisation of the actions',
    'prompt_state_dim': "the prompt's state", 'max_prompt_len': "the prompt's length",
    'resize': 'resizing', 'image_padding': 'padding of images', 'action_steps': 'action steps',
    'max_delay': 'steps that it goes on from',
}  # fmt: skip


def home(adapter: str | pathlib.Path) -> pathlib.Path:
    """The folder with adapter_config.json: the one named, or the one within it that has it.

    Args:
      adapter: a path or hub id.

    Returns:
      The folder.

    Raises:
      UserError: a file of an adapter, or a run with several steps; names the right folder.
    """
    folder = local_path(adapter)
    if folder.is_file():
        raise UserError(
            f'expected the folder of an adapter, got the file {folder}; name '
            f'--adapter={folder.parent}'
        )
    steps = sorted(folder.glob(f'checkpoints/*/pretrained_model/{peft_config.CONFIG}'))
    if steps and not (folder / peft_config.CONFIG).is_file():
        raise UserError(
            f'expected the folder of an adapter, got the run {folder} with {len(steps)} steps; '
            f'name one of them: --adapter={steps[-1].parent}'
        )
    found = [folder / name for name in INSIDE if (folder / name / peft_config.CONFIG).is_file()]
    return found[0] if found else folder


def merged(
    base: PolicyAssets,
    folder: pathlib.Path,
    stats: str | pathlib.Path | None = None,
    horizon: int = HORIZON,
) -> PolicyAssets:
    """The assets of a base with an adapter merged in; one note says whose they are and what
    differs.

    Args:
      base: its assets.
      folder: of the adapter.
      stats: other statistics, which then count; None: the adapter's or base's.
      horizon: as in `assets.read`.

    Returns:
      The assets.

    Raises:
      UserError: damaged files, an adapter of another policy than pi0.5, or settings whose
        statistics are not known.
    """
    found = _found(base, folder, None if stats is None else str(stats))
    if stats is not None:
        return assets.with_statistics(found, stats, horizon)
    if found.statistics is None and base.statistics is not None:
        return dataclasses.replace(found, statistics=_rescaled(base, found.policy, folder))
    return found


def sized(source: Source, folder: pathlib.Path) -> tuple[Source, tuple[str, ...]]:
    """A base with the action horizon and sample steps of an adapter's config.json.

    Args:
      source: the base.
      folder: of the adapter.

    Returns:
      source: with those sizes.
      notes: one on each change.

    Raises:
      UserError: a horizon or number of steps that is no whole number of at least 1.
    """
    hints = {
        k: v for k, v in sizes.read_hints(folder).items() if k in ('action_horizon', 'sample_steps')
    }
    changed = {k: v for k, v in hints.items() if v != getattr(source.config, k)}
    if wrong := [k for k, v in changed.items() if type(v) is not int or v < 1]:
        raise UserError(
            f'expected {wrong[0]} of at least 1 in {folder / "config.json"}, got '
            f'{changed[wrong[0]]!r}; mend it'
        )
    notes = tuple(
        f'{k} is {v}, as in {folder.name}; {getattr(source.config, k)} in the base'
        for k, v in changed.items()
    )
    assumed = {name: origin for name, origin in source.assumed.items() if name not in hints}
    config = dataclasses.replace(source.config, **changed)
    return dataclasses.replace(source, config=config, assumed=assumed), notes


def _found(base: PolicyAssets, folder: pathlib.Path, stats: str | None) -> PolicyAssets:
    if (folder / POLICY_FILE).is_file() or read.is_here(folder):
        found = assets.read(folder, 'lerobot')
        policy = dataclasses.replace(
            found.policy, cameras=found.policy.cameras or base.policy.cameras
        )
        statistics = found.statistics or _of_export(folder, policy)
        theirs = {
            name: path
            for name, path in found.files.items()
            if name != assets.TRAINING and '/' not in name
        }
        kind = 'processors' if (folder / read.BEFORE).is_file() else read.CONFIG
        source = POLICY_FILE if (folder / POLICY_FILE).is_file() else f"LeRobot's {kind}"
        found = dataclasses.replace(found, policy=policy, statistics=statistics, files=theirs)
        return _with_notes(base, found, f'{source} beside the adapter', stats)
    openpi_files = [*asset_files(folder).values()]
    direct = [file for file in (folder / NORM_STATS,) if file.is_file()] or openpi_files
    if len(direct) > 1:
        names = ', '.join(str(file.relative_to(folder)) for file in direct)
        raise UserError(
            f'expected statistics of one robot beside the adapter in {folder}, got {names}; name '
            'one: --stats'
        )
    if direct:
        statistics = read_both(direct[0], scalings=base.policy.scalings())
        found = dataclasses.replace(base, statistics=statistics, files={}, notes=())
        return _with_notes(
            base, found, f'{direct[0].relative_to(folder)} beside the adapter', stats
        )
    if (exported := _from_record(base, folder)) is not None:
        return _with_notes(base, exported, f'the export around {folder.name}', stats)
    whose = (
        "statistics and settings are the base's; if the adapter was trained by others, name "
        'them with --stats'
    )
    if stats is not None:
        whose = f"settings are the base's, statistics those of {stats}, as given"
    note = f'{folder} holds no processors, {POLICY_FILE} or {NORM_STATS}: {whose}'
    return dataclasses.replace(base, notes=(*base.notes, note))


def _from_record(base: PolicyAssets, folder: pathlib.Path) -> PolicyAssets | None:
    """From an export of ours that has nothing in the adapter's own folder: its record and
    statistics lie above.
    """
    file = folder.parent / EXPORT
    if not file.is_file() or not (folder.parent / NORM_STATS).is_file():
        return None
    record = ExportRecord.read(folder.parent)
    if not record.trains_policy:
        return None  # Sigma's statistics are its heads'; the policy under them keeps its own
    own = (
        base.policy.scalings()
        if record.base_statistics
        else dict.fromkeys(('state', 'actions'), Scaling())
    )
    statistics = read_both(folder.parent / NORM_STATS, scalings=own)
    flags = record.relative_joints or base.policy.relative_joints
    width = len(statistics['actions'].mean)
    policy = dataclasses.replace(
        base.policy, relative_joints=flags[:width], state=own['state'], actions=own['actions']
    )
    return PolicyAssets(policy, statistics, assumed=base.assumed)


def _of_export(folder: pathlib.Path, policy: ProcessorConfig) -> NormStats | None:
    """Statistics that lie one folder up, where an export of ours keeps them."""
    file = folder.parent / NORM_STATS
    exported = (folder.parent / EXPORT).is_file() and file.is_file()
    return read_both(file, scalings=policy.scalings()) if exported else None


def _with_notes(
    base: PolicyAssets, found: PolicyAssets, source: str, stats: str | None
) -> PolicyAssets:
    """`found` with the base's tokenizer, and with the note that says where it is from and what
    differs.

    `stats` is what a caller named, whose statistics count.
    """
    differences = [
        text
        for name, text in SAID.items()
        if getattr(base.policy, name) != getattr(found.policy, name)
    ]
    own, whose = stats is None and found.statistics is not None, ''
    if own:
        differences[:0] = _other_numbers(base.statistics, found.statistics or {})
    elif stats is not None:
        whose = f'statistics are from {stats}, as given; '
    elif base.statistics is not None:
        whose = (
            "statistics are the base's, as none lie beside the adapter: if it was trained by "
            'others, name them '
        )
        whose += 'with --stats; '
    what = f'{"statistics, " if own else ""}relative joints, cameras and prompt'
    note = f'{whose}{what} are from {source}, as it was trained with them; ' + (
        f'the base differs in: {", ".join(differences)}'
        if differences
        else "they are also the base's"
    )
    tokenizers = {name: path for name, path in base.files.items() if name in assets.CARRIED}
    kept = tuple(text for text in found.notes if not (whose and read.LACK in text))
    return dataclasses.replace(found, files=tokenizers | dict(found.files), notes=(note, *kept))


def _other_numbers(base: NormStats | None, own: Mapping) -> list[str]:
    if base is None:
        return ['statistics (it has none)']
    return [
        f'statistics of {name}'
        for name, one in own.items()
        if {k: x.tolist() for k, x in one.columns().items()}
        != {k: x.tolist() for k, x in base[name].columns().items()}
    ]


def _rescaled(base: PolicyAssets, policy: ProcessorConfig, folder: pathlib.Path) -> NormStats:
    """The base's numbers as the adapter's settings use them. Raises UserError where they are of
    something else.
    """
    advice = 'name those of its training with --stats'
    if any(policy.relative_joints) != any(base.policy.relative_joints):
        raise UserError(
            f'expected statistics beside the adapter in {folder}, whose actions are '
            f"{'relative' if any(policy.relative_joints) else 'absolute'}, unlike the base's, got "
            f'none; {advice}'
        )
    try:
        return {
            name: statistics_from(one.columns(), policy.scalings()[name])
            for name, one in (base.statistics or {}).items()
        }
    except KeyError as error:
        raise UserError(
            f'expected statistics beside the adapter in {folder}, got none, and none of the base '
            f'with {error}; {advice}'
        ) from error
