"""A robot as the data of a training showed it: what acting has to know of shards."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError

ANEW = 'export the run again, or run train.py with its settings and workdir, which writes it anew'


@dataclasses.dataclass(frozen=True)
class RobotSpec:
    """Cameras, joints and lengths of the windows that a policy was trained on.

    Attributes:
      camera_names: short names, in the order of the views.
      camera_keys: what the data set itself calls them.
      image_size: side of the model's images, pixels.
      state_names: of the entries of a state, raw units.
      action_names: of the entries of an action, raw units.
      fps: frames a second.
      stride: frames from one window to the next, the clock of Sigma's memory.
      horizon: actions of a window.
      prompt_state_dim: numbers of a state in its prompt.
      max_prompt_len: tokens of a prompt.
      max_text_len: tokens of a task alone.
    """

    camera_names: tuple[str, ...]
    camera_keys: tuple[str, ...]
    image_size: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: float
    stride: int
    horizon: int
    prompt_state_dim: int
    max_prompt_len: int
    max_text_len: int

    @classmethod
    def of(cls, meta: Meta) -> 'RobotSpec':
        """The robot of some shards.

        Args:
          meta: what they say.

        Returns:
          The robot.
        """
        return cls(**{name: getattr(meta, name) for name in NAMES})

    @classmethod
    def from_json(cls, found: Any, where: str) -> 'RobotSpec':
        """What a file says.

        Args:
          found: the parsed part of it.
          where: the file, for the message.

        Returns:
          The robot.

        Raises:
          UserError: a field is absent or of another type.
        """
        try:
            missing = [name for name in NAMES if name not in found]
            if missing or not isinstance(found, Mapping):
                raise ValueError(f'one without {missing}')
            return cls(**{name: _typed(name, found[name]) for name in NAMES})
        except (TypeError, ValueError) as error:
            raise UserError(
                f'expected the robot of a policy in {where}, got {error}; {ANEW}'
            ) from error

    def positions(self, state: Float[np.ndarray, ' p']) -> Float[np.ndarray, ' a']:
        """Where the joints are that the actions move.

        Args:
          state: the robot's reading, raw units.

        Returns:
          One number an action: the entry of the state that has its name; NaN where none has.
        """
        read = dict(zip(self.state_names, state, strict=True))
        return np.array([read.get(name, np.nan) for name in self.action_names], np.float32)

    def to_json(self) -> dict[str, Any]:
        """Its fields, as JSON holds them."""
        return dataclasses.asdict(self)


NAMES = tuple(field.name for field in dataclasses.fields(RobotSpec))
_TYPES = {field.name: field.type for field in dataclasses.fields(RobotSpec)}


def _typed(name: str, value: Any) -> Any:
    if _TYPES[name] == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
            raise ValueError(f'{name} {value!r}, no list of names')
        return tuple(value)
    whole = _TYPES[name] is int
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f'{name} {value!r}, no number')
    return value
