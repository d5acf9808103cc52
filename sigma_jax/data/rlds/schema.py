"""What features.json says about the steps of an RLDS data set; no class named in the file is ever
imported.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError

FEATURES = 'features.json'
STEPS = 'steps'


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of the records: `kind` is 'tensor', 'image' or 'text', `shape` that of one
    step.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str


def read_features(root: Path) -> dict[str, Feature]:
    """The columns of a record.

    Args:
      root: folder with features.json.

    Returns:
      {path such as 'steps/observation/image': feature}.

    Raises:
      UserError: no features.json, damaged, or one without steps.
    """
    path = root / FEATURES
    if not path.is_file():
        raise UserError(
            f'expected {path}, got nothing there; this is no RLDS data set, or a copy '
            'of part of one'
        )
    try:
        found = dict(_flatten(json.loads(path.read_text()), ''))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'expected the features of TFDS in {path}, got "{error}"; copy the data set again'
        ) from error
    if not any(key.startswith(f'{STEPS}/') for key in found):
        raise UserError(
            f"expected a feature '{STEPS}' in {path}, got {sorted(found)}; this is a data set of "
            'TFDS, but its records are no episodes as RLDS has them'
        )
    return found


def _flatten(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Feature]]:
    """Walks down dictionaries and sequences; features of other kinds are left out, as nothing can
    ask for them.
    """
    if 'featuresDict' in node:
        for name, inner in node['featuresDict'].get('features', {}).items():
            yield from _flatten(inner, f'{path}/{name}' if path else name)
    elif 'sequence' in node and path == STEPS:
        yield from _flatten(node['sequence']['feature'], path)
    elif 'text' in node:
        yield path, Feature('text', (), 'string', 'none')
    else:
        for kind in ('tensor', 'image'):
            if kind in node:
                yield path, _feature(kind, node[kind])


def _feature(kind: str, node: Mapping[str, Any]) -> Feature:
    shape = tuple(int(size) for size in node.get('shape', {}).get('dimensions', ()))
    encoding = node.get('encodingFormat' if kind == 'image' else 'encoding') or 'none'
    return Feature(kind, shape, str(node.get('dtype', '')), str(encoding))
