"""meta.json: what a preparation's folder holds and how it came about, every key with its type.

Preparations of all versions are read: what the older ones do not name is as it was then, keys that
are not known here stay as they are. `to_json(from_json(x))` is `x`.
"""

import collections.abc
import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.settings import is_a

META = 'meta.json'
NORM_STATS = 'norm_stats.json'
SCHEMA = 1
# keys that only some data sets have: not written where there is nothing to say
OPTIONAL: tuple[str, ...] = ('depth_names', 'depth_told', 'audio_samples', 'audio_dtype')
OPTIONAL += ('language_columns', 'language_told')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """The contents of meta.json, fields in the order of the file.

    A field without a default stands in every version's file; the others came later, and a default
    says what older preparations did.
    """

    # the data set
    source: str  # path or hub id, as it was named
    tokenizer: str
    stats_from: str = ''
    revision: str = ''  # commit on the hub
    source_version: str
    fps: float
    camera_names: tuple[str, ...]  # short names, in the order of the views
    camera_sizes: Mapping[str, tuple[int, int]] | None = None  # {name: (height, width)} of a frame
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    tasks: tuple[str, ...]  # the position is the text_id
    norm_stats: str = NORM_STATS  # name of the file with the statistics
    near_constant: Mapping[str, tuple[str, ...]]  # joints whose normalisation is clamped
    # what was kept
    splits: Mapping[str, tuple[int, ...]]  # {split: episodes}
    episode_digests: Mapping[int, str] | None = None  # {episode: what it is}; None: not recorded
    windows: Mapping[str, int]  # {split: how many}
    dropped: Mapping[str, Mapping[str, int]]  # {split: {reason: windows or episodes}}
    bad_episodes: Mapping[int, str] = dataclasses.field(default_factory=dict)  # {episode: why not}
    notes: tuple[str, ...] = ()
    depth_names: tuple[str, ...] = ()
    depth_told: Mapping[str, str] = dataclasses.field(default_factory=dict)
    audio_samples: int = 0  # a window; 0: no audio
    audio_dtype: str = ''
    language_columns: tuple[str, ...] = ()
    language_told: str = ''
    files: Mapping[str, str]  # {name: sha256}
    versions: Mapping[str, str]
    schema: int = SCHEMA
    source_digest: str
    tokenizer_digest: str
    stats_from_digest: str = ''
    # the settings, as `plan.DataConfig` explains them
    cameras: tuple[str, ...]  # the data set's features
    image_size: int
    resize: str = 'openpi'
    horizon: int
    chunk: int
    stride: int
    min_motion: float
    min_action_norm: float
    tail: str
    shard_size: int
    split_fractions: tuple[float, ...]
    split_seed: int
    train_episodes: tuple[int, ...]
    calibration_episodes: tuple[int, ...]
    test_episodes: tuple[int, ...]
    on_bad_episode: str = 'error'
    depth: tuple[str, ...] = ()
    depth_scale: float = 0.001  # metres
    audio: str = ''
    audio_rate: float = 16000
    max_prompt_len: int
    max_text_len: int
    state_dim: int
    prompt_state_dim: int
    camera_map: Any = ()  # {data set's name: name}, as a mapping or in pairs
    state_column: str = 'observation.state'
    action_column: str = 'action'
    rlds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    torch_shards: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # how a file has them: its keys in its order, and those that are not known here
    keys: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    unknown: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, found: Any, where: str | Path) -> 'Meta':
        """What a meta.json says.

        Args:
          found: the parsed file, of any version.
          where: its folder, for the message.

        Returns:
          The contents; keys that are not known are kept.

        Raises:
          UserError: another schema, an absent key, or one of another type.
        """
        try:
            if (schema := found['schema']) == SCHEMA:
                known = typed(found)
                if absent := [name for name in NAMES if name in NEEDED - known.keys()]:
                    raise ValueError(f'one without {absent[0]!r}')
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'expected a {META} of prepare_data.py in {where}, got {error}; prepare it again'
            ) from error
        if schema != SCHEMA:
            raise UserError(
                f'expected shards of schema {SCHEMA} in {where}, got {schema}; prepare them again'
            )
        unknown = {name: value for name, value in found.items() if name not in known}
        return cls(**known, keys=tuple(found), unknown=unknown)

    def to_json(self) -> dict[str, Any]:
        """As the file has it: keys in their order, rows as lists, names of episodes as texts."""
        values = {name: getattr(self, name) for name in NAMES} | dict(self.unknown)
        names = self.keys or [name for name in values if self._is_said(name, values[name])]
        return json.loads(json.dumps({name: values[name] for name in names}))

    def text(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_json(), indent=2) + '\n'

    def _is_said(self, name: str, value: Any) -> bool:
        return value is not None and bool(value or name not in OPTIONAL)

    @property
    def widths(self) -> dict[str, int]:
        """How many numbers a state and an action have, under the names of the statistics."""
        return {'state': len(self.state_names), 'actions': len(self.action_names)}

    @property
    def total(self) -> int:
        """Windows of all splits."""
        return sum(self.windows.values())

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """The data set's own key of each camera."""
        return source_keys(self.cameras, self.camera_map)


NAMES = tuple(f.name for f in dataclasses.fields(Meta) if f.name not in ('keys', 'unknown'))
NEEDED = {
    f.name
    for f in dataclasses.fields(Meta)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
}


def before(name: str) -> Any:
    """What a preparation that does not name a key had.

    Args:
      name: a key of meta.json.

    Returns:
      As JSON has it; None where every preparation names the key.
    """
    field = {f.name: f for f in dataclasses.fields(Meta)}[name]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    value = None if field.default is dataclasses.MISSING else field.default
    return json.loads(json.dumps(value))


def typed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Those of JSON's values that are fields of `Meta`, as the fields hold them.

    Args:
      found: the parsed file.

    Returns:
      {field: value}, rows as tuples.

    Raises:
      TypeError: a value of another type.
      ValueError: a text that is no number.
    """
    hints = typing.get_type_hints(Meta)
    return {
        name: _typed(value, hints[name], name) for name, value in found.items() if name in NAMES
    }


def _typed(value: Any, hint: Any, name: str) -> Any:
    """`value` of JSON as `hint` has it: lists become tuples, texts of numbers numbers."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is types.UnionType:
        return None if value is None else _typed(value, inner[0], name)
    if kind is tuple and isinstance(value, list | tuple):
        if inner[-1] is Ellipsis or len(value) == len(inner):
            return tuple(_typed(one, inner[0], name) for one in value)
    elif kind is collections.abc.Mapping and isinstance(value, Mapping):
        return {inner[0](key): _typed(one, inner[1], name) for key, one in value.items()}
    elif hint is Any or (kind is None and is_a(hint, value)):
        return value
    raise TypeError(f'{name}={value!r}')


def camera_names(keys: Sequence[str]) -> list[str]:
    """Short names of feature keys; keys that would collide stay whole.

    Args:
      keys: of a data set's cameras.

    Returns:
      One name a key.

    Examples:
      >>> from sigma_jax.data.shards.meta import camera_names
      >>> camera_names(['observation.images.up', 'observation.images.side'])
      ['up', 'side']
    """
    short = [key.rsplit('.', 1)[-1] for key in keys]
    return short if len(set(short)) == len(short) else [key.replace('/', '_') for key in keys]


def source_keys(cameras: Sequence[str], camera_map: Any) -> tuple[str, ...]:
    """The data set's own keys of cameras that were renamed.

    Args:
      cameras: names of ours, or keys.
      camera_map: {our name: key} or pairs, as in `data.camera_map`.

    Returns:
      One key a camera.
    """
    keys = dict(camera_map or {})
    return tuple(str(keys.get(name, name)) for name in cameras)
