"""Statistics of state and actions from wherever they are: norm_stats.json, a LeRobot policy, a LeRobot data set."""

import pathlib
from collections.abc import Mapping

from sigma_jax.convert import lerobot_policy
from sigma_jax.convert.lerobot_policy import ACTION, STATE, NormStats, read_json
from sigma_jax.data.normalize import Scaling, read_norm_stats, statistics_from
from sigma_jax.errors import UserError

NORM_STATS = 'norm_stats.json'


def find_statistics(path: str | pathlib.Path, scalings: Mapping[str, Scaling]) -> NormStats:
    """Statistics from a norm_stats.json, a folder with one, a LeRobot policy or data set, for use by `scalings`.

    Raises:
      UserError: nothing of the kind there, several of them, or statistics without what the normalisation needs.
    """
    path = pathlib.Path(path)
    assets = list(asset_files(path).values())
    direct = [file for file in (path, path / NORM_STATS) if file.is_file()]
    if direct or len(assets) == 1:
        return read_norm_stats((direct or assets)[0], scalings=scalings)
    if (path / 'meta' / 'info.json').is_file():
        return _from_dataset(path, scalings)
    if lerobot_policy.is_here(path) and (found := lerobot_policy.read(path).statistics):
        return {name: statistics_from(one.columns(), scalings[name]) for name, one in found.items()}
    several = [str(file.relative_to(path)) for file in assets]
    raise UserError(
        f'expected {NORM_STATS}, a LeRobot policy with statistics or a LeRobot data set at {path}, got '
        f'{several or "none of them"}; name one of them'
    )


def asset_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """openpi's `assets/<asset_id>/norm_stats.json`, by their place in the folder (or beside it, where they are)."""
    found = sorted((folder / 'assets').rglob(NORM_STATS))
    return {file.relative_to(folder).as_posix(): file for file in found}


def _from_dataset(root: pathlib.Path, scalings: Mapping[str, Scaling]) -> NormStats:
    """From meta/stats.json of v3.0; v2.1 keeps statistics by episode, which have no quantiles."""
    file = root / 'meta' / 'stats.json'
    advice = f'run prepare_data.py --source={root}: its norm_stats.json has exact ones'
    if not file.is_file():
        raise UserError(f'expected meta/stats.json (format v3.0) in {root}, got none; {advice}')
    body, out = read_json(file), {}
    for name, feature in (('state', STATE), ('actions', ACTION)):
        try:
            out[name] = statistics_from(body[feature], scalings[name])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f'expected {scalings[name].mode} statistics of {feature} in {file}, got none ({error}); {advice}'
            ) from error
    return out
