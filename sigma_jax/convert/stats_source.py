"""Statistics of state and actions from wherever they are: norm_stats.json, a LeRobot policy, a
LeRobot data set.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence

from sigma_jax.convert import dataset_stats
from sigma_jax.convert.lerobot import read
from sigma_jax.convert.lerobot.read import NormStats
from sigma_jax.errors import UserError
from sigma_jax.processing import quantiles
from sigma_jax.processing.normalize import Scaling, read_both, statistics_from
from sigma_jax.processing.spec import read_policy

NORM_STATS = 'norm_stats.json'
EXACT = 'name the data set itself with --stats: exact ones are computed from its rows'


def find_statistics(
    path: str | pathlib.Path,
    scalings: Mapping[str, Scaling],
    relative_joints: Sequence[bool] = (),
    horizon: int = dataset_stats.HORIZON,
    note: Callable[[str], None] = lambda text: None,
) -> NormStats:
    """Statistics of a policy, from wherever they may be.

    Those of a data set are computed from its rows, of chunks of `horizon` actions where some joints
    are relative.

    Args:
      path: a norm_stats.json, a folder with one, a LeRobot policy or data set.
      scalings: how they will be used.
      relative_joints: one flag an action.
      horizon: actions of a chunk.
      note: called with what was found, and what is wrong with statistics that cannot be computed
        anew.

    Returns:
      The statistics.

    Raises:
      UserError: nothing of the kind there, several of them, or statistics without what the
        normalisation needs.
    """
    path = pathlib.Path(path)
    assets = list(asset_files(path).values())
    data = (path / 'meta' / 'info.json').is_file()
    if any(relative_joints) and not data:
        note(f'{path} must hold statistics of relative actions, as this policy has them')
    direct = [file for file in (path, path / NORM_STATS) if file.is_file()]
    if direct or len(assets) == 1:
        return _doubted(read_both((direct or assets)[0], scalings=scalings), note)
    if data:
        return dataset_stats.read(path, scalings, relative_joints, horizon, note)
    if read.is_here(path) and (found := read.read(path).statistics):
        return _doubted(
            {name: statistics_from(one.columns(), scalings[name]) for name, one in found.items()},
            note,
        )
    several = [str(file.relative_to(path)) for file in assets]
    raise UserError(
        f'expected {NORM_STATS}, a LeRobot policy with statistics or a LeRobot data set at '
        f'{path}, got {several or "none of them"}; name one of them'
    )


def other_joints(path: str | pathlib.Path, relative_joints: Sequence[bool], width: int) -> str:
    """How the policy of some statistics counts other actions from the state.

    Args:
      path: of the statistics.
      relative_joints: one flag an action.
      width: actions of the statistics.

    Returns:
      In words; '' if it does not.
    """
    theirs = _flags_of(pathlib.Path(path))
    if theirs is None:
        return ''
    mine, found = (_relative(flags, width) for flags in (relative_joints, theirs))
    if mine == found:
        return ''
    return (
        f'expected statistics of actions of which {mine}, as in this policy, got {path}, of '
        f'whose policy {found}'
    )


def _relative(flags: Sequence[bool], width: int) -> str:
    numbers = [str(number) for number, flag in enumerate(flags[:width]) if flag]
    return f'{", ".join(numbers) or "none"} are relative'


def _flags_of(path: pathlib.Path) -> tuple[bool, ...] | None:
    """Relative joints of the policy whose statistics are at `path`, None where nothing there
    says.
    """
    if path.is_file() and path.name != NORM_STATS:
        return None
    folder = path.parent if path.is_file() else path
    for home in (folder, *(one.parent for one in folder.parents if one.name == 'assets')):
        if (own := read_policy(home)) is not None:
            return own.relative_joints
    data = (folder / 'meta' / 'info.json').is_file()
    return read.read(folder).policy.relative_joints if not data and read.is_here(folder) else None


def asset_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """openpi's `assets/<asset_id>/norm_stats.json`.

    Args:
      folder: of the checkpoint.

    Returns:
      {place in the folder: path}.
    """
    found = sorted((folder / 'assets').rglob(NORM_STATS))
    return {file.relative_to(folder).as_posix(): file for file in found}


def _doubted(statistics: NormStats, note: Callable[[str], None]) -> NormStats:
    for text in quantiles.doubts(statistics, EXACT):
        note(text)
    return statistics
