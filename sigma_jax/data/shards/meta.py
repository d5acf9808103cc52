"""meta.json: what a shard directory holds and how it came about."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError

META = 'meta.json'
SCHEMA = 1


def read_meta(shards_dir: str | Path) -> dict[str, Any]:
    """Returns the contents of meta.json.

    Raises:
      UserError: no finished shard directory, a damaged file, or one of another schema.
    """
    path = Path(shards_dir) / META
    if not path.is_file():
        raise UserError(
            f'Expected finished shards in {shards_dir}, got no {META}; run prepare_data.py '
            f'--out={shards_dir}.'
        )
    try:
        meta = json.loads(path.read_text())
        schema = meta['schema']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'Expected a {META} of prepare_data.py in {shards_dir}, got {error}; prepare it again.'
        ) from error
    if schema != SCHEMA:
        raise UserError(
            f'Expected shards of schema {SCHEMA} in {shards_dir}, got {schema}; prepare them again.'
        )
    return meta


def camera_names(keys: Sequence[str]) -> list[str]:
    """Short names of feature keys: 'observation.images.up' -> 'up'; keys that would collide stay
    whole.
    """
    short = [key.rsplit('.', 1)[-1] for key in keys]
    return short if len(set(short)) == len(short) else [key.replace('/', '_') for key in keys]
