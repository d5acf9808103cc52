"""baselines.json: which policy's own actions lie beside the windows, and how it was sampled."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.settings import is_a

FILE = 'baselines.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """The contents of baselines.json; `finished` names the splits that are whole."""

    base: str = ''  # name of the policy's folder
    tokenizer: str = 'assets/tokenizer/tokenizer.json'
    samples: int = 1  # draws a window
    seed: int = 0
    dtype: str = 'float32'
    base_digest: str
    finished: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return dataclasses.asdict(self) | {'finished': list(self.finished)}

    def text(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_json(), indent=1)

    def differences(self, other: 'BaseRecord') -> list[str]:
        """Fields in which two records differ, other splits left out.

        Args:
          other: record.

        Returns:
          Names of the fields.
        """
        return [
            field.name
            for field in dataclasses.fields(BaseRecord)
            if field.name != 'finished' and getattr(self, field.name) != getattr(other, field.name)
        ]


KINDS: dict[str, Any] = {
    field.name: field.type for field in dataclasses.fields(BaseRecord) if field.name != 'finished'
}


def read_base_record(folder: Path) -> BaseRecord | None:
    """Which policy's actions were computed for some shards.

    Args:
      folder: of the shards.

    Returns:
      The record; None where there is none.

    Raises:
      UserError: a damaged file.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        found = dict(json.loads(file.read_text()))
        known = {name: found[name] for name in KINDS if name in found}
        if wrong := [name for name, value in known.items() if not is_a(KINDS[name], value)]:
            raise ValueError(f'{wrong[0]}={known[wrong[0]]!r}')
        return BaseRecord(**known, finished=tuple(map(str, found.get('finished', ()))))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'expected the record of a base policy in {file}, got "{error}"; delete '
            f'{folder}/baselines* and run prepare_data.py with --base again'
        ) from error
