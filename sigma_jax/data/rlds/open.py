"""Opens an RLDS folder: finds the columns that the config names, and says what there is where one
is missing.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sigma_jax.data.lerobot.joints import MAX_WIDTH
from sigma_jax.data.rlds.dataset import LAST_STEPS, RldsDataset
from sigma_jax.data.rlds.records import INFO, list_split
from sigma_jax.data.rlds.schema import FEATURES, STEPS, Feature, read_features
from sigma_jax.errors import UserError

CAMERA = 'observation.images.'  # our names of cameras start as LeRobot's do


@dataclasses.dataclass(frozen=True)
class RldsSettings:
    """The `data.rlds` part of a config. Columns are paths below `steps`; several make one
    vector.
    """

    fps: float = 0.0  # RLDS does not say; there is no default that would not be wrong in silence
    split: str = 'train'
    state: str | Sequence[str] = 'observation/state'
    action: str | Sequence[str] = 'action'
    instruction: str = 'language_instruction'
    task: str = ''  # one instruction for all episodes, where the data set has none
    # {ours: theirs}; {}: all, by their last name
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # 'drop' where the action of the last step has no meaning (the RLDS specification)
    last_step: str = 'keep'


def is_rlds(path: Path) -> bool:
    """Whether a folder, or a version folder in it, holds TFDS metadata.

    Args:
      path: of a folder.

    Returns:
      Whether it is.
    """
    return (path / FEATURES).is_file() or any(path.glob(f'*/{FEATURES}'))


def open_rlds(path: str | Path, settings: RldsSettings) -> RldsDataset:
    """Opens a TFDS folder whose records are episodes.

    Args:
      path: of the folder, or of one above its version.
      settings: which columns are state, actions and cameras.

    Returns:
      The data set.

    Raises:
      UserError: no such folder, columns that are not there or do not fit, no frame rate, missing or
        damaged files.
    """
    root = _version_folder(Path(path))
    features = read_features(root)
    _check(settings)
    state, action = (
        _vector(features, name, getattr(settings, name)) for name in ('state', 'action')
    )
    cameras = _cameras(features, settings.cameras)
    task = () if settings.task else (_find(features, settings.instruction, 'text', 'instruction'),)
    return RldsDataset(
        root=root,
        version=_version(root),
        fps=float(settings.fps),
        cameras=tuple(cameras),
        state_names=_names(features, state),
        action_names=_names(features, action),
        episodes=dict(enumerate(list_split(root, settings.split))),
        columns={
            'state': state,
            'actions': action,
            'task': task,
            **{key: (one,) for key, one in cameras.items()},
        },
        widths={path: _width(features[path]) for path in (*state, *action)},
        fixed_task=settings.task,
        last_step=settings.last_step,
    )


def _version_folder(path: Path) -> Path:
    if (path / FEATURES).is_file():
        return path
    found = sorted(one.parent for one in path.glob(f'*/{FEATURES}'))
    if len(found) != 1:
        names = [one.name for one in found] or 'none'
        raise UserError(
            f'expected one folder with {FEATURES} in {path}, got {names}; name the one to read'
        )
    return found[0]


def _version(root: Path) -> str:
    try:
        info = json.loads((root / INFO).read_text())
        return f'RLDS {info["name"]} {info["version"]}'
    except (OSError, ValueError, KeyError, TypeError):  # for the record only: nothing depends on it
        return 'RLDS'


def _check(settings: RldsSettings) -> None:
    if not (
        isinstance(settings.fps, int | float) and math.isfinite(settings.fps) and settings.fps > 0
    ):
        raise UserError(
            'expected the steps a second of this RLDS data set in data.rlds.fps, got '
            f'{settings.fps!r}; its records do not say, its paper or recording software does'
        )
    if settings.last_step not in LAST_STEPS:
        raise UserError(
            f'expected data.rlds.last_step out of {LAST_STEPS}, got '
            f'{settings.last_step!r}; correct it'
        )


def _find(features: Mapping[str, Feature], name: str, kind: str, setting: str) -> str:
    """The path of a column; text may also stand beside the steps or among the observations."""
    places = [f'{STEPS}/{name}', f'{STEPS}/observation/{name}', name, f'episode_metadata/{name}']
    for path in places if kind == 'text' else places[:1]:
        if path in features and (
            features[path].kind == kind or (kind == 'text' and features[path].dtype == 'string')
        ):
            return path
    known = [path.removeprefix(f'{STEPS}/') for path, one in features.items() if one.kind == kind]
    raise UserError(
        f"expected a column '{name}' of kind {kind} (data.rlds.{setting}), got "
        f'{sorted(known) or "none"}; name one'
    )


def _vector(
    features: Mapping[str, Feature], setting: str, names: str | Sequence[str]
) -> tuple[str, ...]:
    """The paths of a vector's parts."""
    paths = tuple(
        _find(features, name, 'tensor', setting)
        for name in ([names] if isinstance(names, str) else names)
    )
    for path in paths:
        one = features[path]
        if (
            one.encoding != 'none'
            or one.dtype == 'string'
            or len(one.shape) > 1
            or min(one.shape, default=1) < 1
        ):
            raise UserError(
                f"expected plain numbers of a known width in '{path}' (data.rlds.{setting}), got "
                f'{one}; name another'
            )
    width = sum(_width(features[path]) for path in paths)
    if not 1 <= width <= MAX_WIDTH:
        raise UserError(
            f'expected data.rlds.{setting} of 1 to {MAX_WIDTH} numbers, got {width}; '
            'pi0.5 takes no more'
        )
    return paths


def _cameras(features: Mapping[str, Feature], chosen: Mapping[str, str]) -> dict[str, str]:
    """{our key: path of the record}."""
    if chosen:
        return {
            ours: _find(features, theirs, 'image', 'cameras') for ours, theirs in chosen.items()
        }
    images = [
        path
        for path, one in features.items()
        if one.kind == 'image' and path.startswith(f'{STEPS}/')
    ]
    colour = [
        path
        for path in images
        if features[path].shape[-1:] == (3,) and features[path].dtype == 'uint8'
    ]
    names = [CAMERA + path.rsplit('/', 1)[-1] for path in colour]
    if len(set(names)) < len(names):
        raise UserError(
            f'expected images of different names, got {colour}; map them in data.rlds.cameras'
        )
    return dict(zip(names, colour, strict=True))


def _width(feature: Feature) -> int:
    return feature.shape[0] if feature.shape else 1


def _names(features: Mapping[str, Feature], paths: tuple[str, ...]) -> tuple[str, ...]:
    """A name for every number: the column, and its place in it."""
    short = {path: path.removeprefix(f'{STEPS}/').replace('/', '.') for path in paths}
    return tuple(f'{short[path]}.{i}' for path in paths for i in range(_width(features[path])))
