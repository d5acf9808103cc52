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
      config: of any kind of backbone.

    Returns:
      What `sigma_config.json` holds.
    """
    return kinds.of(config).sizes(config)


def from_json(data: Mapping[str, Any], spec: BackboneSpec = kinds.USUAL) -> Any:
    """The inverse of `to_json`.

    Args:
      data: contents of `sigma_config.json`.
      spec: the kind of backbone that it is of.

    Returns:
      The config.
    """
    return spec.from_sizes(data)


def read_hints(folder: pathlib.Path, spec: BackboneSpec = kinds.USUAL) -> dict[str, Any]:
    """What the config files beside a checkpoint say of sizes that no array tells (`spec.hints`).

    Args:
      folder: with our `sigma_config.json`, else another's `config.json`.
      spec: the kind of backbone that the weights are of.

    Returns:
      Hints for the spec's sizes.

    Raises:
      UserError: one of them is damaged.
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
