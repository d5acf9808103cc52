"""Which columns of a LeRobot data set make the state and the actions, and what their entries are
called.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma_jax.data.lerobot.schema import Features
from sigma_jax.data.shards.check_values import check_different
from sigma_jax.errors import UserError

MAX_WIDTH = 32  # pi0.5's action and state width
STATE, ACTION = 'observation.state', 'action'  # LeRobot's own names
# settings, their defaults, and how such columns tend to be called
FLAGS = {'state_column': (STATE, 'state'), 'action_column': (ACTION, 'action')}
COUNTED = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')
_NUMBERS = ('float', 'int', 'uint', 'bool')


def columns_of(setting: str) -> tuple[str, ...]:
    """Names in a setting: one, or several with commas between them, whose numbers follow each
    other.

    Args:
      setting: such as 'observation.arm,observation.gripper'.

    Returns:
      The names.
    """
    return tuple(part.strip() for part in setting.split(',') if part.strip())


def joint_names(
    features: Features, columns: tuple[str, ...], setting: str, root: Path
) -> tuple[str, ...]:
    """Names of the entries of a vector, made up where the data set has none.

    Args:
      features: of info.json.
      columns: that make the vector.
      setting: that named them, for messages.
      root: of the data set, for messages.

    Returns:
      One name an entry.

    Raises:
      UserError: no such feature, one named twice, or a vector that is not 1 to 32 wide.
    """
    missing = [key for key in columns if key not in features]
    if missing or not columns:
        expected = f"a feature '{missing[0]}'" if missing else f'a feature named by data.{setting}'
        advice = _advice(features, setting)
        raise UserError(
            f'expected {expected} in {root}/meta/info.json, got {sorted(features)}; {advice}'
        )
    widths = [column_width(features, key, root) for key in columns]
    if sum(widths) > MAX_WIDTH:
        raise UserError(
            f'expected 1 to {MAX_WIDTH} numbers in data.{setting} of {root}, got {sum(widths)} in '
            f'{list(columns)}; name fewer columns'
        )
    check_different(f'data.{setting}', columns)
    return tuple(
        name
        for key, width in zip(columns, widths, strict=True)
        for name in _names(features[key], key, width)
    )


def column_width(features: Features, key: str, root: Path) -> int:
    """How many numbers a row of a column has.

    Args:
      features: of info.json.
      key: of the column.
      root: of the data set, for messages.

    Returns:
      1 to 32.

    Raises:
      UserError: it is no vector, or of another width.
    """
    shape = features[key].get('shape')
    if (
        not isinstance(shape, list)
        or len(shape) != 1
        or type(shape[0]) is not int
        or not 1 <= shape[0] <= MAX_WIDTH
    ):
        raise UserError(
            f"expected '{key}' of shape [1] to [{MAX_WIDTH}] in {root}/meta/info.json, got "
            f'{shape!r}; pi0.5 takes no other'
        )
    return shape[0]


def _names(feature: Mapping[str, Any], key: str, width: int) -> list[str]:
    names = _flat_names(feature.get('names'))
    return names if len(names) == width else [f'{key}.{i}' for i in range(width)]


def _flat_names(names: Any) -> list[str]:
    """Some recordings group the joints: {'motors': [...]}."""
    groups = list(names.values()) if isinstance(names, dict) else [names]
    return [str(name) for group in groups if isinstance(group, list) for name in group]


def _advice(features: Features, setting: str) -> str:
    """The flags that name the columns of this data set; both, as whoever renames one mostly renames
    the other.
    """
    vectors = [key for key, value in features.items() if _is_vector(key, value)]
    said = []
    for flag, (own, word) in FLAGS.items():
        likely = _likely(vectors, word)
        if flag == setting or (likely and own not in features):
            said.append(f'--config.data.{flag}={",".join(likely) or "NAME"}')
    return f'where its columns have other names, add {" ".join(said)} to the command'


def _is_vector(key: str, value: Mapping[str, Any]) -> bool:
    shape = value.get('shape')
    numbers = str(value.get('dtype')).startswith(_NUMBERS)
    return key not in COUNTED and numbers and isinstance(shape, list | tuple) and len(shape) == 1


def _likely(vectors: list[str], word: str) -> list[str]:
    """Columns called so, else columns that have the word in their names, else (for states)
    positions of parts.
    """
    last = {key: key.replace('/', '.').rsplit('.', 1)[-1] for key in vectors}
    exact = [key for key, name in last.items() if name in (word, f'{word}s')]
    named = [key for key in vectors if word in key]
    parts = (
        [key for key in vectors if 'position' in key and 'action' not in key]
        if word == 'state'
        else []
    )
    return exact[:1] or named[:1] or parts
