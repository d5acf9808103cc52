"""LeRobot's own files with other statistics: everything else in them stays as it was, names and
custom steps too.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sigma_jax.convert import small_file
from sigma_jax.convert.lerobot import write
from sigma_jax.convert.lerobot.read import (
    ACTION,
    AFTER,
    BEFORE,
    CONFIG,
    STATE,
    NormStats,
    read_json,
)

NORMALIZERS = ('normalizer_processor', 'unnormalizer_processor')


def restate(out: pathlib.Path, files: Mapping[str, pathlib.Path], statistics: NormStats) -> None:
    """Writes `files` (config.json and both pipelines, by name) to `out` with `statistics` in every
    step that has some.

    Statistics of images, and all else that a state file holds, are kept.

    Args:
      out: the folder.
      files: config.json and both pipelines, by name.
      statistics: of 'state' and 'actions'.
    """
    widths = {STATE: len(statistics['state'].mean), ACTION: len(statistics['actions'].mean)}
    config = read_json(files[CONFIG])
    for key in ('input_features', 'output_features'):
        _widen(config.get(key) or {}, widths)
    (out / CONFIG).write_text(json.dumps(config, indent=4))
    for name in (BEFORE, AFTER):
        body = read_json(files[name])
        for number, step in enumerate(body['steps']):
            if step.get('registry_name') in NORMALIZERS:
                _widen(step.get('config', {}).get('features') or {}, widths)
                whose = f'{body.get("name", name[:-5])}_step_{number}'
                default = f'{whose}_{step["registry_name"]}.safetensors'
                state = step.setdefault('state_file', default)
                save_file(_tensors(files.get(state), statistics), out / state)
        (out / name).write_text(json.dumps(body, indent=2))


def _widen(features: dict[str, Any], widths: Mapping[str, int]) -> None:
    for key, width in widths.items():
        if key in features:
            features[key]['shape'] = [width]


def _tensors(file: pathlib.Path | None, statistics: NormStats) -> dict[str, np.ndarray]:
    """What a state file holds, with other statistics of state and action."""
    old = small_file.read(file)[0] if file else {}
    kept = {key: x for key, x in old.items() if key.rsplit('.', 1)[0] not in (STATE, ACTION)}
    return kept | write.tensors(statistics)
