"""One door to every kind of data set: LeRobot v2.1 and v3.0, RLDS, `.pt` shards; on this disk or by
hub id.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sigma_jax.data.episode import Episode
from sigma_jax.data.lerobot import dataset as lerobot
from sigma_jax.data.lerobot.joints import ACTION, STATE
from sigma_jax.data.pt.dataset import open_torch_shards
from sigma_jax.data.pt.shards import PATTERN, TorchSettings
from sigma_jax.data.rlds.open import RldsSettings, is_rlds, open_rlds
from sigma_jax.errors import UserError
from sigma_jax.hub import download
from sigma_jax.settings import check_fields, section


class Dataset(Protocol):
    """What a preparation asks of a data set; `episodes` needs only its keys and length."""

    @property
    def root(self) -> Path:
        """The folder."""

    @property
    def version(self) -> str:
        """The format."""

    @property
    def fps(self) -> float:
        """Frames a second."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of the colour cameras."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state's dimensions, raw robot units."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions' dimensions."""

    @property
    def tasks(self) -> Mapping[int, str]:
        """Instructions by their index."""

    @property
    def episodes(self) -> Mapping[int, Any]:
        """What there is, by index."""

    def read_episode(self, index: int) -> Episode:
        """An episode; its frames follow on demand.

        Args:
          index: one of `episodes`.

        Returns:
          The episode.

        Raises:
          UserError: it cannot be read.
        """


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """The parts of the `data` config that only sources read."""

    cameras: tuple[str, ...] = ()
    depth: tuple[str, ...] = ()
    camera_map: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {ours: theirs}
    state_column: str = STATE
    action_column: str = ACTION
    env_file: str = ''
    rlds: RldsSettings = RldsSettings()
    torch_shards: TorchSettings = TorchSettings()


class Renamed:
    """A data set under our camera names, and the commit it came from; everything else is the data
    set's own.

    Args:
      inner: the data set.
      theirs: {our name: the data set's}; cameras that it does not name keep theirs.
      revision: commit on the hub; '': not from there.

    Raises:
      UserError: `theirs` names cameras that are not there, or one of them twice.
    """

    def __init__(self, inner: Any, theirs: Mapping[str, str], revision: str) -> None:
        """`theirs` maps our names to the data set's; cameras that it does not name keep theirs."""
        missing = [name for name in theirs.values() if name not in inner.cameras]
        kept = [name for name in inner.cameras if name not in theirs.values()]
        twice = [name for name in theirs if name in kept]
        if missing or twice or len(set(theirs.values())) < len(theirs):
            raise UserError(
                'expected data.camera_map to map new names to different cameras out of '
                f'{list(inner.cameras)}, got {dict(theirs)}; correct it'
            )
        self.inner, self.revision = inner, revision
        self.theirs = {**theirs, **{name: name for name in kept}}
        self.cameras = tuple(self.theirs)

    def __getattr__(self, name: str) -> Any:
        """What the data set itself has."""
        return getattr(self.__dict__['inner'], name)

    def read_episode(self, index: int) -> Episode:
        """The episode, its readers under our names.

        Args:
          index: one of `episodes`.

        Returns:
          The episode.
        """
        episode = self.inner.read_episode(index)
        # depth and audio keep their names
        ours = {theirs: name for name, theirs in self.theirs.items()}
        readers = {ours.get(name, name): reader for name, reader in episode.readers.items()}
        return dataclasses.replace(episode, readers=readers)


def open_source(source: str | Path, settings: Any = None) -> Dataset:
    """Opens a data set, whatever its kind: LeRobot v2.1 or v3.0, RLDS, `.pt` shards.

    Args:
      source: a path, or a hub id (`owner/name`, `owner/name@revision`).
      settings: a mapping or an object with the entries of the `data` config; missing ones take
        their defaults.

    Returns:
      The data set; with `revision`, the commit, where it came from the hub.

    Raises:
      UserError: nothing there, nothing that is known, or damaged metadata.
    """
    known = source_settings(settings)
    path, revision = Path(source), ''
    if not path.exists() and download.is_hub_id(source):
        theirs = [known.camera_map.get(camera, camera) for camera in known.cameras]
        theirs += known.depth if theirs else ()
        fetched = download.fetch(
            str(source), 'dataset', download.dataset_files(theirs), env_file=known.env_file
        )
        path, revision = fetched.path, fetched.commit
    dataset = _open(path, known)
    return Renamed(dataset, known.camera_map, revision) if known.camera_map or revision else dataset


def _open(path: Path, settings: SourceSettings) -> Dataset:
    is_lerobot = (path / 'meta' / 'info.json').is_file() or not path.is_dir()
    if not is_lerobot and is_rlds(path):
        _refuse_columns(settings, 'data.rlds.state and data.rlds.action')
        return open_rlds(path, settings.rlds)
    if not is_lerobot and any(path.glob(PATTERN)):
        _refuse_columns(settings, 'data.torch_shards.keys')
        return open_torch_shards(path, settings.torch_shards)
    # also says what is missing
    return lerobot.open_dataset(path, settings.state_column, settings.action_column)


def _refuse_columns(settings: SourceSettings, instead: str) -> None:
    given = settings.state_column, settings.action_column
    if given != (STATE, ACTION):
        raise UserError(
            'expected data.state_column and data.action_column only for LeRobot data sets, got '
            f'{given}; use {instead}'
        )


def source_settings(settings: Any) -> SourceSettings:
    """The settings that sources need.

    Args:
      settings: a mapping or an object with the entries of the `data` config. Maps of names may be
        pairs, as a ConfigDict takes no keys with dots: (('observation.images.up', 'front'), ).

    Returns:
      Those of them; missing ones have their defaults.

    Raises:
      UserError: unknown names, values of another kind, or a map that is none.

    Examples:
      >>> from sigma_jax.data.sources import source_settings
      >>> source_settings({'camera_map': (('front', 'observation.images.up'),)}).camera_map
      {'front': 'observation.images.up'}
    """
    names = [field.name for field in dataclasses.fields(SourceSettings)]
    if settings is None or isinstance(settings, Mapping) or hasattr(settings, 'to_dict'):
        values = section(settings or {}, 'data')
        if unknown := sorted(set(values) - set(names)):
            raise UserError(
                f'data: expected some of the settings {names}, got unknown {unknown}; give a '
                'DataConfig for the others'
            )
    elif values := {name: getattr(settings, name) for name in names if hasattr(settings, name)}:
        pass
    else:
        raise UserError(
            f'data: expected a DataConfig, or some of {names} by name, got {settings!r}; give one'
        )
    for name, kind in (('rlds', RldsSettings), ('torch_shards', TorchSettings)):
        if name in values and not isinstance(values[name], kind):
            values[name] = _build(kind, section(values[name], f'data.{name}'), name)
    if 'camera_map' in values:
        values['camera_map'] = _names(values['camera_map'], 'camera_map')
    check_fields(SourceSettings, values, 'data.')
    return SourceSettings(**values)


def _build(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    fields = sorted(field.name for field in dataclasses.fields(kind))
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(
            f"expected the settings {fields} in data.{name}, got unknown '{unknown[0]}'; correct "
            'the config'
        )
    maps = {
        key: _names(values[key], f'{name}.{key}') for key in ('cameras', 'keys') if key in values
    }
    check_fields(kind, values, f'data.{name}.')
    return kind(**{**values, **maps})


def _names(value: Any, name: str) -> dict[str, str]:
    """A map of names to names, given as one or as pairs."""
    try:
        return {str(ours): str(theirs) for ours, theirs in dict(value).items()}
    except (TypeError, ValueError) as error:
        raise UserError(
            f'expected pairs (ours, theirs) in data.{name}, got {value!r}; correct the config'
        ) from error
