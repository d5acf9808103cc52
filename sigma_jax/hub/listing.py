"""Whether a snapshot in the hub's cache is whole: what a commit holds, noted beside it before its
files are fetched.

huggingface_hub up to 1.20 gives a folder with some of the files for the whole, and newer ones do
where an older one has filled the cache; the files that are missing, such as statistics beside
weights, would be missed by nobody.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax.files import atomic_write

FOLDER = 'sigma_jax'  # in the cache's folder of a repository, beside `snapshots`
THEIRS = 'trees'  # the library's own note, in newer versions; these have looked into it


def note(repository: Path, commit: str, sizes: Mapping[str, int]) -> None:
    """Writes down the files of a commit and their sizes.

    Args:
      repository: its folder in the cache.
      commit: of the files.
      sizes: {file: bytes}.
    """
    folder = repository / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f'{commit}.json', json.dumps(dict(sizes)))


def is_whole(hub: Any, snapshot: Path, patterns: Sequence[str]) -> bool:
    """Whether all files of a snapshot's commit are there with all their bytes.

    Args:
      hub: the module.
      snapshot: its folder in the cache.
      patterns: of the files that count.

    Returns:
      Whether they are; False where nothing says what the commit holds.
    """
    repository, commit = snapshot.parents[1], snapshot.name
    try:
        sizes = json.loads((repository / FOLDER / f'{commit}.json').read_text())
        matching = hub.utils.filter_repo_objects(sizes, allow_patterns=list(patterns))
        return all(_size(snapshot / name) == sizes[name] for name in matching)
    except (OSError, ValueError, TypeError, KeyError):
        return (repository / THEIRS / f'{commit}.json').is_file()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
