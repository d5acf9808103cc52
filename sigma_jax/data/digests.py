"""What tells one data set from another: sha256 over its files."""

import hashlib
from pathlib import Path

from sigma_jax.errors import UserError


def source_digest(root: Path) -> str:
    """sha256 over names and contents of a data set's files, hidden ones left out."""
    digest = hashlib.sha256()
    files = [path for path in root.rglob('*') if path.is_file()]
    for path in sorted(files):
        relative = path.relative_to(root)
        if not any(part.startswith('.') for part in relative.parts):
            digest.update(f'{relative.as_posix()}\0{file_digest(path)}\n'.encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file; one that cannot be read raises UserError."""
    try:
        with path.open('rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise UserError(f'Expected to read {path}, got "{error.strerror}"; check its permissions.') from error
