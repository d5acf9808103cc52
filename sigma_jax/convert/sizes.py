"""A model's sizes in files beside its weights: `sigma_config.json`, and what others write."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import CONFIG_FILE, BackboneConfig, BackboneSpec
from sigma_jax.errors import UserError


def to_json(config: BackboneConfig) -> dict[str, Any]:
    """A config as plain JSON; LoRA and run-time settings are not properties of the weights and stay
    out.

    Args:
      config: sizes.

    Returns:
      For JSON.
    """
    return kinds.of(config).sizes(config)


def from_json(data: Mapping[str, Any], spec: BackboneSpec = kinds.USUAL) -> Any:
    """The inverse of `to_json`.

    Args:
      data: of `to_json`.
      spec: the kind of backbone that it is of.

    Returns:
      The sizes.
    """
    return spec.from_sizes(data)


def read_hints(folder: pathlib.Path, spec: BackboneSpec = kinds.USUAL) -> dict[str, Any]:
    """What config files say of sizes that no array shows.

    Keys: `vision_heads`, `kv_heads`, `action_horizon`, `sample_steps`. Reads our
    `sigma_config.json`, LeRobot's `config.json`, and the `config.json` of a parity fixture.

    Args:
      folder: of the checkpoint.
      spec: the kind of backbone that the weights are of.

    Returns:
      {key: number}.

    Raises:
      UserError: a damaged file.
    """
    for name in (CONFIG_FILE, 'config.json'):
        file = folder / name
        if not file.is_file():
            continue
        try:
            return spec.hints(dict(json.loads(file.read_text())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'expected the sizes of a model in {file}, got {error}; restore the file or '
                'remove it'
            ) from error
    return {}
