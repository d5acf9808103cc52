"""Which episodes a training has learned from: by what they are, whatever number or folder they have
elsewhere.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from sigma_jax.data.episode import Episode
from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write

# in a training folder, and beside the weights of a policy that was trained here
FILE = 'episodes.json'


def episode_digest(episode: Episode) -> str:
    """Digest of an episode's states and actions: a camera more, another number, format or task text
    changes nothing.

    Args:
      episode: its columns.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for values in (episode.state, episode.actions):
        array = np.ascontiguousarray(values, '<f4')
        digest.update(f'{array.shape}\0'.encode() + array.tobytes())
    return digest.hexdigest()[:32]


def of_split(meta: Meta, split: str) -> dict[str, int] | None:
    """The episodes of a split of prepared shards.

    Args:
      meta: what the shards say.
      split: its name.

    Returns:
      {digest: episode}; None where their preparation recorded none.
    """
    known = meta.episode_digests
    return None if known is None else {known[index]: index for index in meta.splits[split]}


def note(workdir: Path, meta: Meta, base: str | Path = '') -> None:
    """Adds the train episodes of some shards, and those that a policy has learned from, to a
    folder's record.

    A folder that went on with other shards has learned from both. Nothing is written where nothing
    is known.

    Args:
      workdir: of the training.
      meta: what the shards say.
      base: the policy; '': none.
    """
    found = of_split(meta, 'train')
    if found is None:
        return
    record = {digest: str(index) for digest, index in found.items()}
    before = [
        of
        for folder in ([workdir, Path(base)] if base else [workdir])
        if (of := read(folder)) is not None
    ]
    merged = {digest: name for one in [*before, record] for digest, name in one.items()}
    atomic_write(workdir / FILE, json.dumps({'train': merged}, indent=1))


def read(folder: Path) -> dict[str, str] | None:
    """The episodes that a training has learned from.

    Args:
      folder: of the training.

    Returns:
      {digest: name}; None where it recorded none.

    Raises:
      UserError: the record is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return {
            str(digest): str(name)
            for digest, name in dict(json.loads(file.read_text())['train']).items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'expected the episodes of a training in {file}, got "{error}"; restore the file, or '
            'remove it to go by the shards that its config names'
        ) from error
