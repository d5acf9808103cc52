"""How a policy sees the world: normalisation, prompt, image size and padding; stored as
`policy.json` with its weights.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.processing.images import BLACK, STYLES
from sigma_jax.processing.normalize import FORMULAS, Scaling, Statistics
from sigma_jax.processing.tokenizer import NO_STATE

POLICY_FILE = 'policy.json'
OPENPI_CAMERAS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')
PROMPT_LENGTH = 200  # tokens, both originals' for pi0.5


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """What lies between camera frames, joint readings and the model, and is not in the weights.

    An absent camera needs no field: its image is masked, and a masked image reaches no other token.
    """

    relative_joints: tuple[bool, ...] = ()  # joints whose actions count from the state; (): none
    state: Scaling = Scaling()
    actions: Scaling = Scaling()
    prompt_state_dim: int | None = (
        # the prompt's state is zero-padded to it; 0: the robot's own; -1: no state; None: as shards
        # say
        None
    )
    max_prompt_len: int | None = None  # tokens; None: as shards say
    # 'openpi': Pillow's bilinear; 'lerobot': torch's, which does not smooth when shrinking
    resize: str = 'openpi'
    # beside an image that is not square, in the model's units: -1 is black
    image_padding: float = BLACK
    cameras: tuple[str, ...] = ()  # the model's views in order; (): not known
    # LeRobot's: (a data set's key, the policy's), as pairs
    rename_map: tuple[tuple[str, str], ...] = ()
    # steps of a chunk that are carried out before the next; None: all
    action_steps: int | None = None
    # steps of the chunk before that it has learned to go on from (`rtc.max_delay`); 0: none
    max_delay: int = 0

    def scalings(self) -> dict[str, Scaling]:
        """The two scalings under the names of norm_stats.json."""
        return {'state': self.state, 'actions': self.actions}

    def view(self, camera: str, key: str = '') -> str:
        """The policy's name for a data set's camera.

        A name in the rename map is the data set's, also where a view of the policy has the same
        name.

        Args:
          camera: the camera's short name.
          key: its whole name in the data set, where known.

        Returns:
          The policy's short name.

        Examples:
          >>> from sigma_jax.processing.spec import ProcessorConfig
          >>> pair = 'observation.images.up', 'observation.images.base'
          >>> policy = ProcessorConfig(rename_map=(pair,))
          >>> policy.view('up'), policy.view('wrist')
          ('base', 'wrist')
        """
        renamed = dict(self.rename_map)
        short = {_short(theirs): _short(ours) for theirs, ours in self.rename_map}
        return _short(renamed[key]) if key in renamed else short.get(camera, camera)

    def scale(self, statistics: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Statistics as this policy uses them.

        Args:
          statistics: by quantity.

        Returns:
          The same numbers; 'state' and 'actions' with the policy's scalings.
        """
        used = self.scalings()
        return {
            k: dataclasses.replace(v, scaling=used[k]) if k in used else v
            for k, v in statistics.items()
        }


def _short(key: str) -> str:
    return key.rsplit('.', 1)[-1]


OURS = ProcessorConfig()
OPENPI = ProcessorConfig(
    state=Scaling('quantile', 'openpi'),
    actions=Scaling('quantile', 'openpi'),
    prompt_state_dim=0,
    max_prompt_len=PROMPT_LENGTH,
    cameras=OPENPI_CAMERAS,
)
LEROBOT = dataclasses.replace(
    OPENPI,
    state=Scaling('quantile', 'lerobot'),
    actions=Scaling('quantile', 'lerobot'),
    resize='lerobot',
    cameras=(),
)


def to_json(policy: ProcessorConfig) -> str:
    """The text of policy.json.

    Args:
      policy: settings.

    Returns:
      JSON, which `from_json` reads.
    """
    body = dataclasses.asdict(policy) | {'rename_map': dict(policy.rename_map)}
    if not policy.max_delay:
        del body['max_delay']
    return json.dumps(body, indent=1) + '\n'


def read_policy(folder: str | Path) -> ProcessorConfig | None:
    """The policy in a folder.

    Args:
      folder: of its weights. Keys that its policy.json lacks take their defaults.

    Returns:
      Its settings; None where there is no policy.json.

    Raises:
      UserError: no JSON, an unknown key, a value of another type, or one that does not exist.
    """
    file = Path(folder) / POLICY_FILE
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f'expected {{"relative_joints": [true, ...]}} in {file}, got {error}; mend the file'
        ) from error
    return from_json(data, str(file))


def from_json(data: Any, where: str) -> ProcessorConfig:
    """A policy from the contents of policy.json.

    Args:
      data: parsed JSON.
      where: it is from, for the message.

    Returns:
      Its settings.

    Raises:
      UserError: an unknown key, a value of another type, or one that does not exist.

    Examples:
      >>> import json
      >>> from sigma_jax.processing import spec
      >>> spec.from_json(json.loads(spec.to_json(spec.OPENPI)), 'here') == spec.OPENPI
      True
    """
    known = {field.name for field in dataclasses.fields(ProcessorConfig)}
    if not isinstance(data, dict) or (unknown := sorted(set(data) - known)):
        got = f'unknown keys {unknown}' if isinstance(data, dict) else f'{type(data).__name__}'
        raise UserError(f'expected some of {sorted(known)} in {where}, got {got}; mend the file')
    checked = {key: _CHECKS[key](value) for key, value in data.items()}
    if wrong := [key for key, value in checked.items() if value is _WRONG]:
        raise UserError(
            f'expected {_EXPECTED[wrong[0]]} for {wrong[0]!r} in {where}, got '
            f'{data[wrong[0]]!r}; mend it'
        )
    return ProcessorConfig(**checked)


_WRONG = object()


def _sequence(kind: type) -> Any:
    return lambda x: tuple(x) if isinstance(x, list) and all(type(i) is kind for i in x) else _WRONG


def _count(least: int) -> Any:
    return lambda x: x if x is None or (type(x) is int and x >= least) else _WRONG


def _names(value: Any) -> Any:
    if not isinstance(value, dict) or not all(
        type(name) is str for pair in value.items() for name in pair
    ):
        return _WRONG
    return tuple(value.items())


def _scaling(value: Any) -> Any:
    if not isinstance(value, dict) or not {'mode', 'formula'} <= set(value) <= {
        'mode',
        'formula',
        'epsilon',
    }:
        return _WRONG
    text = type(value['mode']) is str and type(value['formula']) is str
    known = text and value['mode'] in FORMULAS.get(value['formula'], ())
    return (
        Scaling(**value) if known and type(value.get('epsilon')) in (float, type(None)) else _WRONG
    )


_CHECKS: dict[str, Any] = {
    'relative_joints': _sequence(bool),
    'state': _scaling,
    'actions': _scaling,
    'prompt_state_dim': _count(NO_STATE),
    'max_prompt_len': _count(1),
    'resize': lambda x: x if x in STYLES else _WRONG,
    'image_padding': lambda x: float(x) if type(x) in (int, float) else _WRONG,
    'cameras': _sequence(str),
    'rename_map': _names,
    'action_steps': _count(1),
    'max_delay': lambda x: x if type(x) is int and x >= 0 else _WRONG,
}
_EXPECTED = {
    'relative_joints': 'true or false for each joint',
    'state': f'"mode" and "formula" out of {FORMULAS}',
    'actions': f'"mode" and "formula" out of {FORMULAS}',
    'prompt_state_dim': 'a number of at least 0, or -1 for a prompt without state,',
    'max_prompt_len': 'a number of at least 1',
    'resize': f'one of {STYLES}',
    'image_padding': 'a number',
    'cameras': 'names',
    'rename_map': "the policy's name for each of a data set's",
    'action_steps': 'a number of at least 1',
    'max_delay': 'a number of at least 0',
}
