"""A data set opened, cut into shards of windows, sampled by the base policy, looked into."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sigma_jax.convert.load_base import Base, check_image_size, open_base
from sigma_jax.data import sources
from sigma_jax.data.shards import export_pt as torch_shards
from sigma_jax.data.shards.contact_sheet import contact_sheet
from sigma_jax.data.shards.directory import Shards, open_shards
from sigma_jax.data.shards.meta import Meta, camera_names, source_keys
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import Result, prepare, welcome
from sigma_jax.data.shards.summary import Section, sections
from sigma_jax.data.sources import Dataset
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write
from sigma_jax.policies import base_actions
from sigma_jax.policies.base_actions import BaselineConfig
from sigma_jax.processing import fitting
from sigma_jax.processing.spec import ProcessorConfig
from sigma_jax.training.progress import SILENT, Reporter

SHEET = 'contact_sheet.png'


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What `prepare_data` has made.

    Attributes:
      shards: the finished folder as an object.
      was_complete: whether it was there already, so that nothing had to be cut.
      notes: what was noticed of the base and of the data set's robot.
    """

    shards: Shards
    was_complete: bool
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect_shards` has found.

    Attributes:
      shards: the folder.
      sections: everything in its meta.json as (title, [(name, value)]).
      sheet: the picture of some windows that was written.
    """

    shards: Shards
    sections: tuple[Section, ...]
    sheet: pathlib.Path


def open_dataset(source: str | pathlib.Path, settings: Any = None) -> Dataset:
    """Opens a data set of any kind: LeRobot v2.1 or v3.0, RLDS, `.pt` shards.

    Args:
      source: its folder, or a hub id (`owner/name`, `owner/name@revision`).
      settings: a `DataConfig`, or a mapping with some of its entries: cameras, names of columns.

    Returns:
      An object with `episodes`, `cameras`, `fps`, `state_names`, `action_names`, `tasks`, and
      `read_episode(index)`; no video is decoded yet.

    Raises:
      UserError: nothing there, nothing that is known, or damaged metadata.

    Examples:
      >>> import sigma_jax as sj
      >>> dataset = sj.open_dataset('assets/so101_pickplace')
      >>> len(dataset.episodes), dataset.fps, dataset.cameras
      (55, 30.0, ('observation.images.up', 'observation.images.side'))
      >>> dataset.read_episode(0).state.shape  # [n d], raw robot units
      (171, 6)
    """
    return sources.open_source(source, settings)


def prepare_data(
    config: DataConfig | Mapping,
    out: str | pathlib.Path,
    *,
    base: BaselineConfig | str | pathlib.Path | None = None,
    sample: bool = True,
    reporter: Reporter = SILENT,
) -> Preparation:
    """Cuts a data set into shards of windows, and samples the base policy on each of them.

    A call that was stopped goes on where it was; what is finished stays, bitwise the same as
    without the stop.

    Args:
      config: which data set, and how it is cut; a dictionary of all settings does too.
      out: folder for the shards; new, empty, or one to continue.
      base: the converted pi0.5 whose resizing and prompts the windows follow where `config`
        leaves them open; its folder, or how it is sampled too.
      sample: store the base's own actions for every window as well, on which Sigma's are
        residuals.
      reporter: receives notes, a summary, and windows done.

    Returns:
      The finished shards.

    Raises:
      UserError: bad source or settings, a base that does not fit the windows or the robot, another
        writer, a full disk, or a folder that holds something else.
    """
    config = DataConfig.of(config)
    known = base if isinstance(base, BaselineConfig) or base is None else _by_folder(base)
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        reporter.say(note)

    accept: Callable[[Dataset], None] = welcome
    if known is not None:
        policy = open_base(known.folder, known.model)
        check_base(config, policy, known, sampled=sample)
        for note in policy.notes:
            say(note)
        config = follow_base(config, policy.policy)
        accept = _accept_robot(policy, sample, say)
    result = _cut(config, out, accept, reporter)
    for line in summary(pathlib.Path(out), result):
        reporter.say(line)
    shards = open_shards(out)
    if known is not None and sample:
        with reporter.bars() as bars:
            base_actions.write_baselines(shards, known, bars.add('baselines').update)
    return Preparation(shards, result.was_complete, tuple(notes))


def _by_folder(base: Any) -> BaselineConfig:
    if not isinstance(base, str | pathlib.Path):
        raise UserError(
            f'base: expected the folder of a converted pi0.5, or a BaselineConfig, got {base!r}; '
            'give one, or None'
        )
    return BaselineConfig(base=str(base))


def _cut(
    config: DataConfig,
    out: str | pathlib.Path,
    accept: Callable[[Dataset], None],
    reporter: Reporter,
) -> Result:
    """Runs `prepare`, reporting windows done, and episodes where every one is tried first."""
    with reporter.bars() as bars:
        windows = bars.add('windows')
        tried = bars.add('episodes checked') if config.on_bad_episode == 'skip' else SILENT
        return prepare(config, out, windows.update, tried.update, accept)


def check_base(
    config: DataConfig, base: Base, baseline: BaselineConfig, *, sampled: bool = True
) -> None:
    """Checks that a base fits the windows.

    Args:
      config: of the windows.
      base: opened.
      baseline: how it is sampled.
      sampled: whether it is to be sampled.

    Raises:
      UserError: it does not fit.
    """
    if sampled:
        base_actions.check_policy(base, baseline, config.horizon)
    check_image_size(base, config.image_size)
    theirs = source_keys(config.cameras, config.camera_map)
    fitting.check_cameras(base.policy, camera_names(config.cameras), theirs)


def follow_base(config: DataConfig, policy: ProcessorConfig) -> DataConfig:
    """The config with resizing and prompts as the base has them, where it leaves them open.

    Args:
      config: of the windows.
      policy: the base's.

    Returns:
      The config.
    """
    return dataclasses.replace(
        config,
        resize=config.resize or policy.resize,
        prompt_state_dim=config.prompt_state_dim or policy.prompt_state_dim or 0,
    )


def _accept_robot(
    base: Base, sampled: bool, say: Callable[[str], None]
) -> Callable[[Dataset], None]:
    """Says, before a data set is cut, where its robot is not the base's; to be sampled, it has to
    be.
    """

    def accept(dataset: Dataset) -> None:
        try:
            base_actions.check_robot(base, dataset)
        except UserError as error:
            if sampled:
                raise
            say(f"another robot than the base's: {error}")

    return accept


def summary(out: pathlib.Path, result: Result) -> Iterator[str]:
    """What was prepared: windows kept and dropped per split, episodes left out, joints whose
    normalisation was clamped.

    Args:
      out: the folder.
      result: of `prepare`.

    Returns:
      An iterator of lines.
    """
    meta: Meta = result.meta
    state = 'already complete, nothing to do' if result.was_complete else 'written'
    yield f'{out}: {state}'
    for split, count in meta.windows.items():
        reasons = ', '.join(
            f'{number} {reason}' for reason, number in meta.dropped[split].items() if number
        )
        episodes = len(meta.splits[split])
        yield f'  {split}: {count} windows of {episodes} episodes; dropped: {reasons or "none"}'
    for index, reason in meta.bad_episodes.items():
        yield f'  episode {index} left out: {reason}'
    for note in meta.notes:
        yield f'  {note}'
    for quantity, names in meta.near_constant.items():
        if names:
            yield f'  {quantity} hardly moves in {", ".join(names)}: normalisation clamped'


def inspect_shards(shards: str | pathlib.Path, windows: int = 12) -> Inspection:
    """Reads what a finished preparation holds, and draws some of its windows.

    Args:
      shards: its folder, into which contact_sheet.png is written.
      windows: how many are drawn, spread over splits and episodes.

    Returns:
      Everything that meta.json says, in sections, and where the picture is.

    Raises:
      UserError: no finished shards there, damaged ones, or fewer than one window wanted.
    """
    found = open_shards(shards)
    sheet = found.path / SHEET
    atomic_write(sheet, contact_sheet(found, windows))
    return Inspection(found, tuple(sections(found.meta)), sheet)


def export_pt(
    shards: str | pathlib.Path, out: str | pathlib.Path, *, reporter: Reporter = SILENT
) -> int:
    """Writes finished shards in the paper's container, shard_*.pt; needs torch.

    Args:
      shards: folder of a finished preparation.
      out: folder to write; must not exist.
      reporter: receives windows done.

    Returns:
      How many windows were written.

    Raises:
      UserError: damaged shards, `out` exists, no torch, or no room.
    """
    with reporter.bars() as bars:
        about = torch_shards.export(open_shards(shards), out, progress=bars.add('windows').update)
    return about.shards.total
