"""What tells one data set from another: sha256 over its files."""

import hashlib
from collections.abc import Collection
from pathlib import Path, PurePath

from sigma_jax.errors import UserError


def source_digest(root: Path, image_features: Collection[str] | None = None) -> str:
    """sha256 over names and contents of a data set's files, hidden ones left out.

    With `image_features` only over files of a LeRobot data set that a preparation reads: a camera
    that is fetched later, or a new README, makes no other data set of it.

    Args:
      root: of the data set.
      image_features: features whose images are read; None: all files count.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    files = [path for path in root.rglob('*') if path.is_file()]
    known = image_features if (root / 'meta' / 'info.json').is_file() else None
    for path in sorted(files):
        relative = path.relative_to(root)
        if not any(part.startswith('.') for part in relative.parts) and is_read(relative, known):
            digest.update(f'{relative.as_posix()}\0{file_digest(path)}\n'.encode())
    return digest.hexdigest()


def is_read(relative: PurePath, image_features: Collection[str] | None) -> bool:
    """Whether a preparation reads a file of a LeRobot data set.

    Args:
      relative: path of the file within the data set.
      image_features: features whose images are read; None: all files are.

    Returns:
      Whether it does.
    """
    if image_features is None or relative.parts[0] in ('meta', 'data'):
        return True
    return relative.parts[0] == 'videos' and any(part in image_features for part in relative.parts)


def file_digest(path: Path) -> str:
    """sha256 of a file.

    Args:
      path: of the file.

    Returns:
      64 hexadecimal digits.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with path.open('rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise UserError(
            f'expected to read {path}, got "{error.strerror}"; check its permissions'
        ) from error
