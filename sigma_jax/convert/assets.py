"""What lies beside weights: statistics, processors, policy settings, tokenizer; read from and
written for any layout.

Every folder we write has `policy.json` and `norm_stats.json`, which say how the policy computes
whatever its origin, and besides them what the layout's own loader looks for. Files of the source go
along as they are: LeRobot's at their place in LeRobot's layout, under `lerobot/` in the others;
openpi's under `assets/` in all.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.convert.dataset_stats import HORIZON
from sigma_jax.convert.lerobot import read as lerobot_policy
from sigma_jax.convert.lerobot import restate
from sigma_jax.convert.lerobot import write as lerobot_files
from sigma_jax.convert.lerobot.read import NormStats, read_json
from sigma_jax.convert.openpi import assets as openpi_assets
from sigma_jax.convert.openpi import training_config
from sigma_jax.convert.openpi.training_config import PROMPT
from sigma_jax.convert.stats_source import NORM_STATS, asset_files, find_statistics, other_joints
from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError
from sigma_jax.processing import quantiles
from sigma_jax.processing.normalize import Statistics, norm_stats_json, read_both
from sigma_jax.processing.processor import cut_with
from sigma_jax.processing.spec import (
    LEROBOT,
    OPENPI,
    OURS,
    POLICY_FILE,
    ProcessorConfig,
    read_policy,
    to_json,
)
from sigma_jax.processing.tokenizer import NO_STATE

CARRIED = ('tokenizer.json', 'tokenizer.model')
UNDER = 'lerobot'  # where LeRobot's own files lie in other layouts
OWN = 'sigma_config.json'  # what every folder of ours has, also from before there was policy.json
STATISTICS_KEPT = (
    'the policy keeps them, as it was trained by them; for a new training prepare_data.py '
    'computes exact ones'
)
TRAINING = 'train_config.json'  # says how a policy came about, not what it is
THEIRS = (lerobot_policy.CONFIG, lerobot_policy.BEFORE, lerobot_policy.AFTER)
# LeRobot's names
SIZES = {training_config.HORIZON: 'chunk_size', training_config.STEPS: 'num_inference_steps'}
TRAIN_CONFIG = (
    "whether actions are relative, and the cameras' order, stand in openpi's training config: "
)


@dataclasses.dataclass(frozen=True)
class PolicyAssets:
    """`statistics` are scaled as `policy` says, None where not known; `files` go along, by name in
    the layout.

    `assumed` names what of `policy` no file says, and where it comes from (`training_config`);
    `config_sizes` holds sizes that LeRobot's config.json is to say, whatever it says.
    `joints_known`: a file says which joints are relative.
    """

    policy: ProcessorConfig
    statistics: NormStats | None = None
    files: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    joints_known: bool = True


def read(
    folder: str | pathlib.Path,
    format: str = '',
    stats: str | pathlib.Path | None = None,
    horizon: int = HORIZON,
) -> PolicyAssets:
    """The assets of a policy: how it sees the world, as files next to its weights say.

    Args:
      folder: of the weights, or a file of them.
      format: of the checkpoint ('lerobot', 'openpi-jax', 'openpi-pytorch'), for folders that do not
        say.
      stats: other statistics: a norm_stats.json, a folder with one, a LeRobot policy or data set.
      horizon: actions of a chunk, for statistics of relative actions.

    Returns:
      The assets.

    Raises:
      UserError: damaged files, another policy than pi0.5, statistics that the normalisation cannot
        use.
    """
    folder = pathlib.Path(folder)
    folder = folder if folder.is_dir() else folder.parent
    folder = folder.parent if folder.name == 'params' else folder
    found = _read(folder, format)
    files = {**asset_files(folder), **found.files}
    files |= {name: folder / name for name in CARRIED if (folder / name).is_file()}
    policy_assets = dataclasses.replace(found, files=files)
    if stats is not None:
        return with_statistics(policy_assets, stats, horizon)
    doubts = quantiles.doubts(found.statistics or {}, STATISTICS_KEPT)
    return dataclasses.replace(policy_assets, notes=(*found.notes, *doubts))


def with_statistics(
    policy_assets: PolicyAssets, stats: str | pathlib.Path, horizon: int = HORIZON
) -> PolicyAssets:
    """Assets with other statistics.

    Args:
      policy_assets: the assets.
      stats: as for `read`.
      horizon: as for `read`.

    Returns:
      The assets.

    Raises:
      UserError: as `read`.
    """
    policy = policy_assets.policy
    notes = [
        note
        for note in policy_assets.notes
        if 'name their source' not in note and STATISTICS_KEPT not in note
    ]
    statistics = find_statistics(
        stats, policy.scalings(), policy.relative_joints, horizon, notes.append
    )
    width, flags = len(statistics['actions'].mean), policy.relative_joints
    if policy_assets.statistics is None or len(flags) == training_config.WIDTH:
        flags = flags[:width]  # as many as the model is wide, until the robot is known
    if any(flags) and len(flags) != width:
        raise UserError(
            f'expected statistics of {len(flags)} actions, for which the policy says whether they '
            f'are relative, got {width} in {stats}; name those of its own robot'
        )
    if other := other_joints(stats, flags, width):
        if policy_assets.joints_known:
            raise UserError(
                f'{other}; name statistics of such actions, the data set to compute them from, or '
                f'mend {POLICY_FILE}'
            )
        notes.append(
            f'{other}, but nothing beside these weights says: correct relative_joints '
            f'in {POLICY_FILE}'
        )
    policy = dataclasses.replace(policy, relative_joints=flags)
    return dataclasses.replace(
        policy_assets, policy=policy, statistics=statistics, notes=tuple(notes)
    )


def trained_with(
    base: PolicyAssets,
    statistics: NormStats,
    relative_joints: Sequence[bool],
    meta: Meta,
    *,
    max_delay: int = 0,
) -> PolicyAssets:
    """How a policy trained on `base` sees the world: as its base, by the statistics and joints of
    its training, with the views and prompts of its shards.

    The base's longest prompt stays: what is padded counts for nothing, and a task that is longer
    than those of the training is none too long for the model.

    Args:
      base: assets of the base.
      statistics: of the training.
      relative_joints: of the training.
      meta: of its shards.
      max_delay: steps at a chunk's start that it was given.

    Returns:
      The assets.
    """
    policy = dataclasses.replace(
        cut_with(base.policy, meta),
        max_delay=max_delay,
        max_prompt_len=base.policy.max_prompt_len,
        relative_joints=tuple(relative_joints),
        cameras=meta.camera_names,
        rename_map=(),  # the cameras are the data's own
        state=statistics['state'].scaling,
        actions=statistics['actions'].scaling,
    )
    tokenizers = {name: path for name, path in base.files.items() if name in CARRIED}
    return PolicyAssets(policy, statistics, tokenizers)


def _read(folder: pathlib.Path, format: str) -> PolicyAssets:
    own = read_policy(folder)
    inner = folder / UNDER if (folder / UNDER).is_dir() else folder
    lerobot = lerobot_policy.read(inner) if lerobot_policy.is_here(inner) else None
    files = dict(lerobot.files) if lerobot else {}
    if own is not None:
        found = _read_own(folder, own)
        stale = (
            lerobot
            and found.statistics
            and lerobot.statistics
            and not _same_statistics(found, lerobot)
        )
        notes: tuple[str, ...] = ()
        if stale:
            notes = (
                f"{NORM_STATS} differs from LeRobot's processors beside it; {NORM_STATS} is used",
            )
        if (
            lerobot
            and lerobot_policy.BEFORE in lerobot.files
            and (other := _stale_settings(own, lerobot.policy))
        ):
            notes += (
                f"{POLICY_FILE} differs from LeRobot's processors beside it in {other}; "
                f'{POLICY_FILE} is used',
            )
        assumed = {
            k: v for k, v in training_config.recorded_assumptions(folder).items() if k == PROMPT
        }
        return dataclasses.replace(found, files=files, notes=notes, assumed=assumed)
    if lerobot:
        return PolicyAssets(lerobot.policy, lerobot.statistics, files, lerobot.notes)
    if (folder / OWN).is_file() and not asset_files(folder):
        return dataclasses.replace(_read_own(folder, OURS), joints_known=False)
    if format == 'lerobot':
        note = (
            'no config.json and processors of LeRobot: computed as LeRobot 0.5 does by '
            'default; name their source'
        )
        return dataclasses.replace(_read_own(folder, LEROBOT), notes=(note,), joints_known=False)
    return _read_openpi(folder)


def _stale_settings(own: ProcessorConfig, theirs: ProcessorConfig) -> str:
    """What LeRobot's files say otherwise, of all that they can say, in words."""

    def said(one: ProcessorConfig) -> dict[str, object]:
        last = max((number for number, flag in enumerate(one.relative_joints) if flag), default=-1)
        return {
            'relative joints': one.relative_joints[: last + 1],
            'normalisation of the state': one.state.mode,
            'normalisation of the actions': one.actions.mode,
            'a prompt with the state': one.prompt_state_dim == NO_STATE,
            'rename map': dict(one.rename_map),
        }

    mine = said(own)
    return ', '.join(name for name, value in said(theirs).items() if value != mine[name])


def _read_own(folder: pathlib.Path, policy: ProcessorConfig) -> PolicyAssets:
    file = folder / NORM_STATS
    return PolicyAssets(
        policy, read_both(file, scalings=policy.scalings()) if file.is_file() else None
    )


def _read_openpi(folder: pathlib.Path) -> PolicyAssets:
    assets = asset_files(folder)
    candidates = [folder / NORM_STATS] if (folder / NORM_STATS).is_file() else list(assets.values())
    notes = [
        TRAIN_CONFIG + f'write them into {POLICY_FILE} where they differ (relative_joints, cameras)'
    ]
    values, origin = training_config.assumed_values(folder)
    policy, assumed = dataclasses.replace(OPENPI, prompt_state_dim=values[PROMPT]), {PROMPT: origin}
    if len(candidates) == 1:
        statistics = read_both(candidates[0], scalings=policy.scalings())
        return PolicyAssets(policy, statistics, {}, tuple(notes), assumed, joints_known=False)
    names = ', '.join(path.parent.name for path in candidates)
    lack = (
        f'assets hold statistics of several robots ({names})'
        if candidates
        else 'no norm_stats.json'
    )
    return PolicyAssets(
        policy, None, {}, (*notes, f'{lack}: name their source'), assumed, joints_known=False
    )


def write(
    folder: str | pathlib.Path,
    layout: str,
    policy_assets: PolicyAssets,
    config: BackboneConfig,
    dtype: str = 'float32',
) -> tuple[str, ...]:
    """Writes assets.

    Args:
      folder: where to.
      layout: 'jax', 'lerobot' or 'openpi-pytorch'.
      policy_assets: the assets.
      config: sizes of the policy.
      dtype: 'float32' or 'bfloat16', that of the weights, which LeRobot's and openpi's config.json
        name.

    Returns:
      Notes on what is not known, or what the layout cannot say.
    """
    folder = pathlib.Path(folder)
    (folder / POLICY_FILE).write_text(to_json(policy_assets.policy))
    if policy_assets.statistics is not None:
        (folder / NORM_STATS).write_text(norm_stats_json(policy_assets.statistics))
    lerobot, more = _write_lerobot(folder, layout, policy_assets, config, dtype)
    assets, others = _write_openpi(folder, layout, policy_assets)
    notes = [*policy_assets.notes, *more, *others]
    if layout == 'openpi-pytorch':
        (folder / 'config.json').write_text(
            json.dumps(_openpi_config(cast(lerobot_files.Experts, config), dtype), indent=2)
        )
    tokenizers = {name: path for name, path in policy_assets.files.items() if name in CARRIED}
    _copy(folder, layout, {**assets, **tokenizers, **lerobot})
    _tell_sizes(
        (folder if layout == 'lerobot' else folder / UNDER) / lerobot_policy.CONFIG,
        policy_assets.config_sizes,
    )
    if layout == 'lerobot':
        settings = read_json(folder / lerobot_policy.CONFIG)
        if settings.get('dtype') != dtype:
            (folder / lerobot_policy.CONFIG).write_text(
                json.dumps(settings | {'dtype': dtype}, indent=4)
            )
    return tuple(notes)


def _write_lerobot(
    folder: pathlib.Path,
    layout: str,
    policy_assets: PolicyAssets,
    config: BackboneConfig,
    dtype: str,
) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Writes LeRobot's files where those at hand say something else; returns files to go along as
    they are, and notes.

    Other layouts carry LeRobot's files under `lerobot/`, where a later conversion, or LeRobot
    itself, finds them.
    """
    theirs = {
        name: path
        for name, path in policy_assets.files.items()
        if '/' not in name and name not in CARRIED
    }
    home = folder if layout == 'lerobot' else folder / UNDER
    if _same_lerobot(policy_assets) or (
        layout != 'lerobot' and not _contradicts(policy_assets, theirs)
    ):
        return theirs, _unsaid(policy_assets) if layout == 'lerobot' else []
    home.mkdir(exist_ok=True)
    model = cast(lerobot_files.Experts, config)
    notes = lerobot_files.write(home, policy_assets.policy, policy_assets.statistics, model, dtype)
    if policy_assets.statistics is not None and _same_but_numbers(policy_assets):
        for file in home.glob('policy_*.safetensors'):
            file.unlink()
        restate.restate(home, theirs, policy_assets.statistics)
        notes = _unsaid(policy_assets)
    rest = {name: path for name, path in theirs.items() if name == TRAINING}
    return rest, notes if layout == 'lerobot' else []


def _unsaid(policy_assets: PolicyAssets) -> list[str]:
    """What LeRobot's files, which go along as they are, do not say: the prompt's state, where it is
    another.
    """
    theirs = lerobot_policy.read(policy_assets.files[lerobot_policy.CONFIG].parent).policy
    if (policy_assets.policy.prompt_state_dim or 0) == (theirs.prompt_state_dim or 0):
        return []
    return lerobot_files.prompt_notes(policy_assets.policy, policy_assets.statistics)


def _contradicts(policy_assets: PolicyAssets, theirs: Mapping[str, pathlib.Path]) -> bool:
    """Whether LeRobot's files, whole or not, say something else than `policy_assets`."""
    if not any(name in theirs for name in THEIRS):
        return False
    found = lerobot_policy.read(next(iter(theirs.values())).parent)
    if _other_settings(policy_assets.policy, found.policy):
        return True
    if policy_assets.statistics is None or found.statistics is None:
        return policy_assets.statistics is not None and any(
            name.endswith('.safetensors') for name in theirs
        )
    return not _same_statistics(policy_assets, found)


def _other_settings(mine: ProcessorConfig, theirs: ProcessorConfig) -> bool:
    if any(
        getattr(mine, name) != getattr(theirs, name)
        for name in ('state', 'actions', 'relative_joints')
    ):
        return True
    if (mine.prompt_state_dim == NO_STATE) != (theirs.prompt_state_dim == NO_STATE):
        return True
    return dict(mine.rename_map) != dict(theirs.rename_map)


def sized(policy_assets: PolicyAssets, config: BackboneConfig) -> PolicyAssets:
    """Assets whose LeRobot config.json has the policy's sizes; a note says so where it had others.

    Args:
      policy_assets: the assets.
      config: sizes of the policy.

    Returns:
      The assets.
    """
    file, config_sizes, notes = (
        policy_assets.files.get(lerobot_policy.CONFIG),
        dict(policy_assets.config_sizes),
        [],
    )
    settings = read_json(file) if file else {}
    for name, theirs in SIZES.items():
        mine = getattr(config, name)
        if name not in config_sizes and theirs in settings and settings[theirs] != mine:
            config_sizes[name] = mine
            notes.append(
                f"{theirs} is {settings[theirs]} in LeRobot's {lerobot_policy.CONFIG}; "
                f"{OWN}'s {mine} is used"
            )
    return dataclasses.replace(
        policy_assets, config_sizes=config_sizes, notes=(*policy_assets.notes, *notes)
    )


def _tell_sizes(file: pathlib.Path, config_sizes: Mapping[str, int]) -> None:
    """Puts sizes that were given into LeRobot's config.json, where there is one."""
    if not config_sizes or not file.is_file():
        return
    settings = read_json(file)
    new = settings | {SIZES[name]: value for name, value in config_sizes.items()}
    if training_config.HORIZON in config_sizes and 'n_action_steps' in settings:
        new['n_action_steps'] = min(
            settings['n_action_steps'], config_sizes[training_config.HORIZON]
        )
    file.write_text(json.dumps(new, indent=4))


def _same_but_numbers(policy_assets: PolicyAssets) -> bool:
    """Whether LeRobot's files are all at hand, and nothing but the statistics in them is to
    change.
    """
    if any(name not in policy_assets.files for name in THEIRS):
        return False
    return not _other_settings(
        policy_assets.policy,
        lerobot_policy.read(policy_assets.files[lerobot_policy.CONFIG].parent).policy,
    )


def _copy(folder: pathlib.Path, layout: str, files: Mapping[str, pathlib.Path]) -> None:
    """The source's files, none of those that are there already."""
    for name, path in files.items():
        theirs = '/' not in name and name not in CARRIED
        out = folder / UNDER / name if theirs and layout != 'lerobot' else folder / name
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out)
            if name == lerobot_policy.CONFIG and theirs:
                _whole(out)


def _whole(file: pathlib.Path) -> None:
    """Merged weights are no adapter any more, whatever the adapter's config.json said."""
    settings = read_json(file)
    if settings.get('use_peft'):
        file.write_text(
            json.dumps(settings | {'use_peft': False, 'pretrained_path': None}, indent=4)
        )


def _same_lerobot(policy_assets: PolicyAssets) -> bool:
    """Whether LeRobot's own files are at hand and still say what `policy_assets` says."""
    if any(name not in policy_assets.files for name in THEIRS):
        return False
    found = lerobot_policy.read(policy_assets.files[lerobot_policy.CONFIG].parent)
    if _other_settings(policy_assets.policy, found.policy):
        return False
    if policy_assets.statistics is None or found.statistics is None:
        return policy_assets.statistics is found.statistics
    return _same_statistics(policy_assets, found)


def _same_statistics(policy_assets: PolicyAssets, found: lerobot_policy.LeRobotAssets) -> bool:
    """Whether LeRobot's files hold, in float32, the numbers that would be written for it."""
    ours, theirs = policy_assets.statistics or {}, found.statistics or {}
    return all(_same(lerobot_files.guarded(ours[name]), one) for name, one in theirs.items())


def _same(one: Statistics, other: Statistics) -> bool:
    mine, theirs = one.columns(), other.columns()
    return all(
        key in mine and np.array_equal(mine[key].astype(np.float32), x) for key, x in theirs.items()
    )


def _write_openpi(
    folder: pathlib.Path, layout: str, policy_assets: PolicyAssets
) -> tuple[Mapping[str, pathlib.Path], list[str]]:
    """`assets/<id>/norm_stats.json`, which openpi reads; another mode than quantiles is written as
    quantiles.

    Returns the assets of the source that go along, and notes.
    """
    theirs = {
        name: path
        for name, path in policy_assets.files.items()
        if name.startswith(openpi_assets.ASSETS)
    }
    assets = openpi_assets.current(theirs, policy_assets.statistics, required=layout != 'lerobot')
    notes = list(assets.notes)
    if not assets.place:
        return assets.kept, notes
    out = folder / assets.place
    out.parent.mkdir(parents=True)
    out.write_text(assets.text)
    if any(one.scaling.mode != 'quantile' for one in (policy_assets.statistics or {}).values()):
        notes.append(
            f'{pathlib.PurePath(assets.place).parent} has the normalisation as '
            'quantiles, which openpi uses'
        )
    if any(policy_assets.policy.relative_joints):
        notes.append("actions are relative: openpi's training config must say so (DeltaActions)")
    return assets.kept, notes


def _openpi_config(config: lerobot_files.Experts, dtype: str) -> dict[str, object]:
    return {
        'action_dim': config.action_dim,
        'action_horizon': config.action_horizon,
        'paligemma_variant': lerobot_files.variant(config.language, 'gemma_2b'),
        'action_expert_variant': lerobot_files.variant(config.expert, 'gemma_300m'),
        'precision': dtype,
    }
