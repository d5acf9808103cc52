"""Large files of the hub, byte by byte: a cut transfer goes on where it stopped, also in a later
run.

huggingface_hub 2 throws a file cut short away and starts it anew. So large files are fetched here
first, into its cache and under the names that it looks for (`blobs/<etag>`, `.incomplete` on the
way); it then finds them there. Files that the hub offers through Xet are left to the library, which
transfers them in chunks, and so are small files.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sigma_jax.hub.client import Patience, network_errors, reason

LARGE = 4 * 2**20  # bytes, below which starting anew costs nothing (ours)
_ETAG = re.compile(r'[0-9a-zA-Z_-]{16,128}')
_SHA256 = re.compile(r'[0-9a-f]{64}')


@dataclasses.dataclass(frozen=True)
class Revision:
    """A commit of a repository: `owner/name`, and whether it is a 'model' or a 'dataset'."""

    repo: str
    kind: str
    commit: str


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One file on its way: `name` in the repository, where it comes from, its size in bytes and its
    checksum or id.
    """

    name: str
    url: str
    size: int
    etag: str
    part: Path


def repository(hub: Any, repo: str, kind: str) -> Path:
    """The library's folder of a repository in its cache.

    Args:
      hub: the module.
      repo: `owner/name`.
      kind: 'model' or 'dataset'.

    Returns:
      The folder.
    """
    return Path(hub.constants.HF_HUB_CACHE).expanduser() / '--'.join((f'{kind}s', *repo.split('/')))


def fetch_large(
    hub: Any, at: Revision, files: Sequence[str], token: str | None, patience: Patience
) -> None:
    """Brings large files into the library's cache.

    Args:
      hub: the module.
      at: which commit of which repository.
      files: their names.
      token: or None.
      patience: with the hub.

    Raises:
      UserError: the hub does not answer, or sends other bytes than it names, however often it is
        asked.
    """
    folder = repository(hub, at.repo, at.kind)
    for name in files:
        url = hub.hf_hub_url(at.repo, name, repo_type=at.kind, revision=at.commit)
        about = hub.get_hf_file_metadata(url, token=token)
        through_xet = about.xet_file_data is not None and hub.file_download.is_xet_available()
        if through_xet or not about.size or not _ETAG.fullmatch(about.etag or ''):
            continue
        with _locked(hub, folder.parent / '.locks' / folder.name / f'{about.etag}.lock'):
            whole = folder / 'blobs' / about.etag
            if not whole.exists():
                whole.parent.mkdir(parents=True, exist_ok=True)
                part = whole.with_name(f'{about.etag}.incomplete')
                _complete(hub, Transfer(name, url, about.size, about.etag, part), token, patience)
                os.replace(part, whole)


@contextlib.contextmanager
def _locked(hub: Any, path: Path) -> Iterator[None]:
    """Holds the library's own lock of a file, against other processes that fetch it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with hub.utils.WeakFileLock(path):
        yield


def _complete(hub: Any, file: Transfer, token: str | None, patience: Patience) -> None:
    """Appends to the part until it is whole; failures are counted from the last byte that came."""
    failures, most = 0, -1
    with hub.utils.tqdm(total=file.size, unit='B', unit_scale=True, desc=file.name) as bar:
        while not _is_whole(file):
            failures_of = network_errors(hub.get_session())
            why = 'fewer or other bytes than it names'
            try:
                _append(hub, file, token, bar)
            except failures_of as error:
                why = reason(error)
            have = _size(file.part)
            if have >= file.size and _is_whole(file):
                return
            failures = 1 if have > most else failures + 1
            most = max(most, have)
            patience.pause(file.name, why, failures)


def _append(hub: Any, file: Transfer, token: str | None, bar: Any) -> None:
    """Asks for what is missing and writes what comes. A token does not follow a redirect to another
    host.
    """
    have = _size(file.part)
    headers = (
        {'Accept-Encoding': 'identity', 'Range': f'bytes={have}-'}
        if have
        else {'Accept-Encoding': 'identity'}
    )
    headers = {**hub.utils.build_hf_headers(token=token), **headers}
    with hub.get_session().stream(
        'GET', file.url, headers=headers, follow_redirects=True
    ) as answer:
        answer.raise_for_status()
        resumed = answer.status_code == 206
        # a server that knows no ranges sends everything again
        with file.part.open('ab' if resumed else 'wb') as part:
            bar.n = have if resumed else 0
            for chunk in answer.iter_bytes():
                part.write(chunk)
                bar.update(len(chunk))


def _is_whole(file: Transfer) -> bool:
    """Whether the part has all bytes; one that is too long, or differs from its checksum, is
    removed.
    """
    have = _size(file.part)
    if have < file.size:
        return False
    if have == file.size and _matches(file):
        return True
    file.part.unlink(missing_ok=True)
    return False


def _matches(file: Transfer) -> bool:
    """Compares with the checksum; the hub gives one for the files of large-file storage only."""
    if not _SHA256.fullmatch(file.etag):
        return True
    with file.part.open('rb') as part:
        return hashlib.file_digest(part, 'sha256').hexdigest() == file.etag


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
