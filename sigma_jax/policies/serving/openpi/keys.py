"""A client's names for what its robot sees, and the policy's.

openpi's clients send what its configs for a robot expect, under keys of their own. Maps within an
observation count as folders: `{'images': {'up': ...}}` is `images/up`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import IMAGES, STATE, TASK, PolicySpec


@dataclasses.dataclass(frozen=True)
class KeyMap:
    """Which key of a client is which of a policy.

    Attributes:
      cameras: (a client's key, the policy's camera), in the order of the views. ('*', '*') stands
        for LeRobot's keys as they are.
      state: a client's keys, whose numbers are put one after the other.
      task: a client's key of the instruction.
      unused: keys that a client may send, and that are not looked at.
    """

    cameras: tuple[tuple[str, str], ...]
    state: tuple[str, ...]
    task: str
    unused: tuple[str, ...] = ()


ANY = ('*', '*')
SIDE = 4096  # pixels of a picture, at most; they are resized here
LIBERO = KeyMap(
    (
        ('observation/image', 'base_0_rgb'),
        ('observation/wrist_image', 'left_wrist_0_rgb'),
    ),
    ('observation/state',),
    'prompt',
)
DROID = KeyMap(
    (
        ('observation/exterior_image_1_left', 'base_0_rgb'),
        ('observation/wrist_image_left', 'left_wrist_0_rgb'),
    ),
    ('observation/joint_position', 'observation/gripper_position'),
    'prompt',
)
ALOHA = KeyMap(
    (
        ('images/cam_high', 'base_0_rgb'),
        ('images/cam_left_wrist', 'left_wrist_0_rgb'),
        ('images/cam_right_wrist', 'right_wrist_0_rgb'),
    ),
    ('state',),
    'prompt',
    ('images/cam_low',),
)
PRESETS = {
    'lerobot': KeyMap((ANY,), (STATE,), TASK),
    'libero': LIBERO,
    'droid': DROID,
    'aloha': ALOHA,
}


def parse_keys(text: str, spec: PolicySpec) -> KeyMap:
    """The map that a setting names, checked against a policy.

    Args:
      text: a preset (`lerobot`, `libero`, `droid`, `aloha`), pairs `CLIENT=POLICY`, or a preset and
        pairs that change it, by commas. POLICY is a camera, `observation.state` (several pairs with
        it are put one after the other), `task`, or nothing for what is not looked at.
      spec: what the policy takes.

    Returns:
      The map.

    Raises:
      UserError: no such preset, a pair that is none, or a camera that the policy does not have.

    Examples:
      >>> from sigma_jax.policies.serving.openpi.keys import parse_keys
      >>> text = 'libero,observation/image=up,observation/wrist_image=side'
      >>> parse_keys(text, policy.spec).cameras  # doctest: +SKIP
      (('observation/image', 'up'), ('observation/wrist_image', 'side'))
    """
    first, *rest = [part.strip() for part in text.split(',')]
    if '=' in first:
        found, rest = KeyMap((), (), ''), [first, *rest]
    elif first in PRESETS:
        found = PRESETS[first]
    else:
        raise UserError(
            f'expected keys as one of {", ".join(PRESETS)} or as pairs CLIENT=POLICY, got '
            f'{first!r}; name one'
        )
    states = tuple(part for part in rest if part.endswith(f'={STATE}'))
    if states:  # several of them are one state; a preset's is replaced
        found = dataclasses.replace(found, state=())
    for part in rest:
        found = _with_pair(found, part)
    _check(found, spec)
    return found


def _with_pair(keys: KeyMap, pair: str) -> KeyMap:
    """A map with one pair more, which replaces what its key was before."""
    theirs, equals, ours = (part.strip() for part in pair.partition('='))
    if not theirs or not equals or '=' in ours:
        raise UserError(f'expected keys as pairs CLIENT=POLICY, got {pair!r}; write observation=up')
    found = dataclasses.replace(
        keys,
        cameras=tuple(one for one in keys.cameras if one[0] != theirs),
        state=tuple(one for one in keys.state if one != theirs),
        task='' if keys.task == theirs else keys.task,
        unused=tuple(one for one in keys.unused if one != theirs),
    )
    if ours == STATE:
        return dataclasses.replace(found, state=(*found.state, theirs))
    if ours == TASK:
        return dataclasses.replace(found, task=theirs)
    if not ours:
        return dataclasses.replace(found, unused=(*found.unused, theirs))
    place = next((n for n, one in enumerate(keys.cameras) if one[0] == theirs), len(found.cameras))
    camera = theirs, ours.removeprefix(IMAGES)
    cameras = (*found.cameras[:place], camera, *found.cameras[place:])
    return dataclasses.replace(found, cameras=cameras)


def _told(keys: KeyMap) -> str:
    """A map as a setting would say it."""
    pairs = [*keys.cameras, *[(key, STATE) for key in keys.state]]
    pairs += [(keys.task, TASK)] if keys.task else []
    return ','.join(f'{theirs}={ours}' for theirs, ours in pairs)


def _check(keys: KeyMap, spec: PolicySpec) -> None:
    if not keys.cameras or not keys.state or not keys.task:
        raise UserError(
            f'expected keys for a camera, {STATE} and {TASK}, got {_told(keys) or "none"}; add '
            'CLIENT=POLICY pairs for all three'
        )
    known = set(spec.cameras)
    unknown = [
        pair for pair in keys.cameras if pair != ANY and spec.processor.view(pair[1]) not in known
    ]
    if known and unknown:
        pairs = ','.join(f'{theirs}=CAMERA' for theirs, _ in unknown)
        raise UserError(
            f'expected cameras out of {", ".join(spec.cameras)}, got '
            f'{", ".join(ours for _, ours in unknown)}; say which is which: --keys=...,{pairs}'
        )


def flatten(message: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """The leaves of nested maps, by their path.

    Args:
      message: nested.
      prefix: before each key.

    Returns:
      {'folder/key': value}.
    """
    found: dict[str, Any] = {}
    for key, value in message.items():
        inner = flatten(value, f'{prefix}{key}/') if isinstance(value, Mapping) else None
        found |= {f'{prefix}{key}': value} if inner is None else inner
    return found


def translate(seen: Mapping[str, Any], keys: KeyMap, default_task: str = '') -> dict[str, Any]:
    """An observation under the policy's keys.

    Args:
      seen: a client's, flat.
      keys: which is which.
      default_task: the instruction of an observation without one.

    Returns:
      As `policies.protocol.Policy.infer` takes it; cameras in the map's order.

    Raises:
      UserError: a key that is not in the map, a camera, state or instruction that is none.
    """
    lerobot = ANY in keys.cameras
    pairs = [(theirs, IMAGES + ours) for theirs, ours in keys.cameras if theirs in seen]
    if lerobot:
        pairs += [(key, key) for key in seen if key.startswith(IMAGES)]
    known = {theirs for theirs, _ in pairs} | {*keys.state, *keys.unused, keys.task}
    if unknown := sorted(set(seen) - known):
        raise UserError(
            f'expected keys out of {", ".join(sorted(names(keys)))}, got {_few(unknown)}; leave it '
            "out, or name it in the server's --keys"
        )
    found = {ours: _frame(theirs, seen[theirs]) for theirs, ours in pairs}
    return found | {STATE: _state(seen, keys), TASK: _task(seen, keys, default_task)}


def names(keys: KeyMap) -> tuple[str, ...]:
    """Every key that a client may send of its robot.

    Args:
      keys: the map.

    Returns:
      In order.
    """
    cameras = [IMAGES + 'NAME' if one == ANY else one[0] for one in keys.cameras]
    return (*cameras, *keys.state, keys.task)


def _frame(key: str, value: Any) -> np.ndarray:
    right = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    if not right or 3 not in (value.shape[0], value.shape[-1]):
        raise UserError(
            f'expected {key} as uint8 [height width 3] or [3 height width], got {_what(value)}; '
            'send the picture as an array'
        )
    if not 0 < min(value.shape) <= max(value.shape) <= SIDE:
        raise UserError(
            f'expected {key} with sides of 1 to {SIDE} pixels, got {_what(value)}; resize it'
        )
    return value


def _state(seen: Mapping[str, Any], keys: KeyMap) -> np.ndarray:
    """The robot's reading, float32 [p]."""
    if missing := [key for key in keys.state if key not in seen]:
        raise UserError(
            f'expected {missing[0]} in an observation, got {_few(sorted(seen)) or "nothing"}; '
            'add it'
        )
    parts = []
    for key in keys.state:
        value = seen[key]
        part = np.asarray(value) if _numbers(value) else np.zeros((0, 0))
        if part.ndim > 1 or part.dtype.kind not in 'iuf':
            raise UserError(f'expected {key} as an array of numbers, got {_what(value)}')
        with np.errstate(over='ignore'):  # what is too large becomes infinite: the policy refuses
            parts.append(np.atleast_1d(part).astype(np.float32))
    return np.concatenate(parts)


def _numbers(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    whole = isinstance(value, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in value
    )
    return plain or whole or isinstance(value, np.ndarray | np.generic)


def _task(seen: Mapping[str, Any], keys: KeyMap, default: str) -> str:
    task = seen.get(keys.task, default or None)
    if isinstance(task, str):
        return task
    got = 'none' if task is None else type(task).__name__
    raise UserError(
        f'expected {keys.task}, the instruction, as a text, got {got}; send it, or start the '
        'server with --default_prompt'
    )


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'{value.dtype} {list(value.shape)}'
    return type(value).__name__


def _few(items: list[str]) -> str:
    """Names that a client made up, at most so many letters of them."""
    text = ', '.join(items[:6]) + (f' and {len(items) - 6} more' if len(items) > 6 else '')
    return text if len(text) <= 200 else f'{text[:197]}...'
