"""What LeRobot's client says, checked and in our words: who it is, and what its robot sees."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sigma_jax.errors import UserError, few
from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.policies.serving.lerobot.answers import MOST_TIMESTEP
from sigma_jax.policies.serving.lerobot.unpickling import (
    ARRAY,
    OBSERVATION,
    SETUP,
    Built,
    read_pickle,
)

MOST_CHUNK = 10_000  # actions a chunk; more is no number of actions
LETTERS = 4000  # of a text, at most
CAMERAS = 16  # of a robot, at most
SIDE = 4096  # pixels of an image, at most
USUAL_SIDE = 2048  # of one that a program is compiled with before any has come, at most
_USUAL = (480, 640, 3)
_PLAIN = (bool, int, float, str, bytes, type(None))


@dataclasses.dataclass(frozen=True)
class Setup:
    """A client's `RemotePolicyConfig`.

    Attributes:
      joints: what its state is made of, in order.
      cameras: {its name of a camera: the policy's key of that frame}.
      chunk: actions that it wants at once, at most.
      asked: kind, path and device of the policy that it asked for; logged, never loaded.
      shapes: of its cameras' images, by its names; for `example` alone.
    """

    joints: tuple[str, ...]
    cameras: Mapping[str, str]
    chunk: int
    asked: tuple[str, str, str]
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict, compare=False)

    def example(self) -> dict[str, Any]:
        """What a policy compiles its program for: a black observation of this robot."""
        frames = {
            key: np.zeros(self.shapes.get(name, _USUAL), np.uint8)
            for name, key in self.cameras.items()
        }
        return {**frames, STATE: np.zeros(len(self.joints), np.float32), TASK: 'wait'}

    def lacking(self, seen: 'Seen') -> list[str]:
        """What an observation does not have of this client's robot.

        Args:
          seen: the observation.

        Returns:
          Names of joints and cameras, and `task`.
        """
        return [name for name in (*self.joints, *self.cameras, TASK) if name not in seen.readings]

    def state(self, seen: 'Seen') -> np.ndarray:
        """The state of an observation.

        Args:
          seen: the observation, which lacks nothing.

        Returns:
          The joints in their order, float32 [p].

        Raises:
          UserError: a joint that is no finite number.
        """
        readings = [seen.readings[name] for name in self.joints]
        for name, value in zip(self.joints, readings, strict=True):
            if type(value) not in (int, float) or not abs(value) < 3e38:  # NaN is not less either
                raise _wrong('observation', f'a number of {name}', value)
        return np.array(readings, np.float32)

    def observation(self, seen: 'Seen') -> dict[str, Any]:
        """An observation under the policy's names.

        Args:
          seen: the observation.

        Returns:
          As `policies.protocol.Policy.infer` takes it.

        Raises:
          UserError: it lacks something, or something in it is of another kind.
        """
        if lacking := self.lacking(seen):
            raise UserError(
                f'expected {few(lacking, ", ")} in an observation, got '
                f'{few(seen.readings, ", ", 8)[:500]}; send what the robot named at the start'
            )
        frames = {key: _frame(name, seen.readings[name]) for name, key in self.cameras.items()}
        task = seen.readings[TASK]
        if type(task) is not str:
            raise _wrong('observation', 'a text as its task', task)
        return {**frames, STATE: self.state(seen), TASK: task}


@dataclasses.dataclass(frozen=True)
class Seen:
    """A client's `TimedObservation`.

    Attributes:
      timestamp: seconds, by the client's clock.
      timestep: of the last action that was carried out.
      must_go: whether the client has no action left, and none has come since it said so.
      readings: the robot's own keys: joints, cameras, the task.
    """

    timestamp: float
    timestep: int
    must_go: bool
    readings: Mapping[str, Any]


def read_setup(data: bytes) -> Setup:
    """Reads who a client is.

    Args:
      data: the pickle in its PolicySetup.

    Returns:
      The setup.

    Raises:
      UserError: it is none, or that of a robot without joints or cameras.
    """
    optional = ('rename_map',)
    asked = ('policy_type', 'pretrained_name_or_path', 'device')
    fields = _fields(data, SETUP, (*asked, 'lerobot_features', 'actions_per_chunk'), optional)
    chunk, renamed = fields['actions_per_chunk'], fields.get('rename_map', {})
    if type(chunk) is not int or not 0 < chunk <= MOST_CHUNK:
        raise _wrong(SETUP, f'1 to {MOST_CHUNK:,} as actions_per_chunk', chunk)
    if type(renamed) is not dict or not all(map(_is_name, renamed.values())):
        raise _wrong(SETUP, 'texts by texts as rename_map', renamed)
    wanted = tuple(fields[name] for name in asked)
    if not all(map(_is_name, wanted)):
        raise _wrong(SETUP, f'texts as {", ".join(asked)}', wanted)
    joints, shapes = _robot(fields['lerobot_features'])
    keys = {name: renamed.get(IMAGES + name, IMAGES + name) for name in shapes}
    return Setup(joints, keys, chunk, wanted, shapes)


def read_seen(data: bytes) -> Seen:
    """Reads what a robot sees.

    Args:
      data: the pickle in its Observation, put together.

    Returns:
      The observation, arrays as numpy's.

    Raises:
      UserError: it is none.
    """
    fields = _fields(data, OBSERVATION, ('timestamp', 'timestep', 'observation'), ('must_go',))
    timestamp, timestep, readings = (fields[n] for n in ('timestamp', 'timestep', 'observation'))
    must_go = fields.get('must_go', False)
    if type(timestamp) not in (int, float) or not math.isfinite(timestamp):
        raise _wrong(OBSERVATION, 'seconds as timestamp', timestamp)
    if type(timestep) is not int or not 0 <= timestep <= MOST_TIMESTEP - MOST_CHUNK:
        raise _wrong(OBSERVATION, 'a number of steps as timestep', timestep)
    if type(must_go) is not bool:
        raise _wrong(OBSERVATION, 'True or False as must_go', must_go)
    if type(readings) is not dict:
        raise _wrong(OBSERVATION, 'a dictionary as observation', readings)
    return Seen(timestamp, timestep, must_go, {key: _plain(key, x) for key, x in readings.items()})


def setup_of_joints(joints: tuple[str, ...], seen: Seen) -> Setup:
    """The setup of a client that has not said who it is.

    Args:
      joints: what the policy's state is made of; a robot gives its readings in any order.
      seen: what it sees: every image is one of a camera.

    Returns:
      The setup.
    """
    images = [
        name
        for name, frame in seen.readings.items()
        if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    ]
    return Setup(joints, {name: IMAGES + name for name in images}, MOST_CHUNK, ('', '', ''))


def _fields(
    data: bytes, name: str, needed: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of an object that must be all that a pickle holds."""
    found = read_pickle(data)
    if not isinstance(found, Built) or found.name != name or found.value is None:
        raise _wrong('message', f'a {name}', found)
    names = set(found.value)
    if not set(needed) <= names <= {*needed, *optional}:
        raise UserError(
            f'expected {", ".join(needed)} in a {name}, got {few(sorted(names), ", ", 8)[:500]}; '
            'use the client of LeRobot 0.6'
        )
    return found.value


def _robot(features: Any) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Names of a robot's joints, shapes of its cameras for colour by name; depth is left out."""
    if type(features) is not dict or not all(type(one) is dict for one in features.values()):
        raise _wrong(SETUP, 'dictionaries as lerobot_features', features)
    joints = features.get(STATE, {}).get('names')
    if type(joints) is not list or not joints or not all(map(_is_name, joints)):
        raise _wrong(SETUP, f'names of joints in {STATE}', joints)
    if len(set(joints)) < len(joints):
        raise _wrong(SETUP, f'names of joints that differ in {STATE}', few(joints, ', ')[:500])
    cameras = {
        key.removeprefix(IMAGES): _shape(one)
        for key, one in features.items()
        if key.startswith(IMAGES) and not _is_depth(one)
    }
    if not 0 < len(cameras) <= CAMERAS:
        raise UserError(
            f'expected 1 to {CAMERAS} cameras in lerobot_features, got '
            f'{few(features, ", ", 8)[:500]}; give the robot others: --robot.cameras'
        )
    return tuple(joints), cameras


def _shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Of a camera's images, where it says one that can be."""
    shape = feature.get('shape')
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    fits = len(sizes) == 3 and all(type(n) is int and 0 < n <= USUAL_SIDE for n in sizes)
    return sizes if fits and sizes[-1] == 3 else _USUAL


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = feature.get('info')
    return type(about) is dict and about.get('is_depth_map') is True


def _is_name(text: Any) -> bool:
    return type(text) is str and len(text) <= LETTERS


def _plain(key: str, value: Any) -> Any:
    """A reading: plain, an array, or a flat list of plain ones, as some robots give beside."""
    if isinstance(value, Built) and value.name == ARRAY and value.value is not None:
        return value.value.item() if value.value.ndim == 0 else value.value
    flat = value if type(value) in (list, tuple) else [value]
    if not all(type(one) in _PLAIN for one in flat):
        raise _wrong('observation', f'a number, text or array as {key[:80]}', value)
    return value


def _frame(name: str, frame: Any) -> np.ndarray:
    fits = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    fits = fits and 0 < min(frame.shape) <= max(frame.shape) <= SIDE
    if not fits or 3 not in (frame.shape[2], frame.shape[0]):
        what = f'an image, uint8 [height width 3] of at most {SIDE} pixels a side,'
        raise _wrong('observation', f'{what} as {name[:80]}', frame)
    return frame


def _wrong(where: str, expected: str, found: Any) -> UserError:
    """An error that shows a value where it is short, and else its kind."""
    if isinstance(found, np.ndarray):
        shown = f'{found.dtype} {list(found.shape)}'
    elif type(found) in _PLAIN:
        shown = repr(found)[:80]
    else:
        shown = found.name if isinstance(found, Built) else type(found).__name__
    return UserError(
        f'expected {expected} in the {where}, got {shown}; look at what the robot gives'
    )
