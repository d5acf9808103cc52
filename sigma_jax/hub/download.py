"""Checkpoints and data sets by hub id: `lerobot/pi05_base`, `lerobot/svla_so101_pickplace@v3.0`.

A token comes from HF_TOKEN, or from a line `HF_TOKEN=...` of an env file, as in the paper's
`load_sigma_env` (4.1); it is in no message. What has been fetched stays in huggingface_hub's cache
(HF_HOME); HF_HUB_OFFLINE=1 uses only that.
"""

import dataclasses
import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.hub import listing
from sigma_jax.hub.client import Patience, network_errors, patient_client, reason
from sigma_jax.hub.scrub import scrub
from sigma_jax.hub.transfer import LARGE, Revision, fetch_large, repository

# no pickles, no images
CHECKPOINT = (
    '*.json',
    '*.safetensors',
    'params/**',
    'base/params/**',  # of an export with its base
    'assets/**',
    'tokenizer.*',
    '*/tokenizer.*',
    'checkpoints/step_*',  # of a training
)
TABLES = ('meta/*.json', 'meta/*.jsonl', 'meta/*.parquet', 'data/*.parquet')  # `*` crosses folders
RECORDS = (
    '*features.json',
    '*dataset_info.json',
    '*.tfrecord-*',
    '*.array_record-*',
    '*shard_*.pt',
    'meta.json',
)
HUB_ID = re.compile(r'([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w][\w./-]*))?')
ENV_FILES = ('.env', 'sigma.env')  # the second is the paper's
_COMMIT = re.compile(r'[0-9a-f]{40}')
_TOKEN = re.compile(r'[\w.-]+')
_LINE = re.compile(r'\s*(?:export\s+)?HF_TOKEN\s*=\s*(.*?)\s*')
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A folder in the cache, and what it is: the hub id and the commit."""

    path: Path
    repo: str
    commit: str


def local_path(name: str | os.PathLike[str]) -> Path:
    """A checkpoint's path on this disk; what is not here is fetched, and kept.

    Args:
      name: a path, or a hub id.

    Returns:
      The path itself, or the folder of the fetched files.

    Raises:
      UserError: it is neither, the extra `hf` is missing, or the hub gives nothing.
    """
    if not isinstance(name, str | os.PathLike):
        raise UserError(f'expected a path or a hub id, got {name!r}; name one')
    path = Path(name)
    if path.exists():
        return path
    if not is_hub_id(name):
        raise UserError(
            f'expected a checkpoint at {path}, got no such file or folder, nor a hub '
            'id; check the path'
        )
    try:
        return fetch(str(name)).path
    except UserError as error:
        raise UserError(
            f'expected a checkpoint at {path}, got no such file or folder here, and as a hub id: '
            f'{error}'
        ) from error


def is_hub_id(name: str | os.PathLike[str]) -> bool:
    """Whether a name that is no path reads as `owner/name` or `owner/name@revision`.

    Args:
      name: any.

    Returns:
      Whether it does.
    """
    match = HUB_ID.fullmatch(str(name))
    looks_like_a_file = Path(str(name).partition('@')[0]).suffix in (
        '.json',
        '.safetensors',
        '.pt',
        '.model',
    )
    return bool(match) and not Path(name).parent.is_dir() and not looks_like_a_file


def dataset_files(cameras: Sequence[str] = ()) -> tuple[str, ...]:
    """What is needed of a data set: tables, records, and videos.

    Args:
      cameras: whose videos; none named: all.

    Returns:
      Glob patterns.
    """
    keys = [glob.escape(camera) for camera in cameras] or ['*']
    return (
        TABLES + RECORDS + tuple(f'videos/{place}{key}/*' for key in keys for place in ('', '*/'))
    )


def fetch(
    name: str,
    kind: str = 'model',
    files: Sequence[str] = CHECKPOINT,
    *,
    env_file: str | os.PathLike[str] = '',
    patience: Patience = Patience(),
) -> Fetched:
    """Fetches files of a repository, as far as they are not in the cache already.

    Args:
      name: `owner/name` or `owner/name@revision`.
      kind: 'model' or 'dataset'.
      files: glob patterns.
      env_file: with a token; '': where it is looked for, see `read_token`.
      patience: with the hub.

    Returns:
      The folder and the commit.

    Raises:
      UserError: not a hub id, no such repository or revision, a licence to accept, no connection
        and no earlier copy.
    """
    match = HUB_ID.fullmatch(name)
    if not match:
        raise UserError(
            "expected a hub id such as 'owner/name' or 'owner/name@revision', got "
            f"'{name}'; correct it"
        )
    hub, token = _library(name), read_token(env_file)
    secrets = (token, hub.get_token())  # the library finds by itself what a log-in has left
    repo, revision = match[1], match[2]
    request = {
        'repo_id': repo,
        'repo_type': kind,
        'revision': revision,
        'allow_patterns': list(files),
    }
    cached = _cached(hub, request)
    if cached and (_COMMIT.fullmatch(revision or '') or _is_offline(hub)):
        return Fetched(cached, repo, cached.name)
    if _is_offline(hub):
        raise UserError(
            f'expected {name} among the files fetched before, as HF_HUB_OFFLINE forbids to ask '
            'the hub, got none, not all of them, or nothing that says so; run the same command '
            'once without HF_HUB_OFFLINE, or name a local path'
        )
    if cached:  # a laptop without a network shall not wait for minutes to use what it has
        patience = dataclasses.replace(patience, tries=min(patience.tries, 2))
    try:
        with patient_client(hub, patience, secrets):
            path = _download(hub, request, token, patience)
        return Fetched(path, repo, path.name)
    except Exception as error:  # network, authorisation and missing-file errors have no common base
        said = scrub(reason(error) if not isinstance(error, UserError) else str(error), secrets)
        if cached and _is_connection(hub, error):
            _LOG.warning('%s: %s; using the copy fetched before, %s', name, said, cached)
            return Fetched(cached, repo, cached.name)
        raise UserError(
            f'expected {name} on the hub, got "{said}"; check the id and its licence, log in, or '
            'name a local path'
        ) from None


def read_token(env_file: str | os.PathLike[str] = '') -> str | None:
    """The token for the hub: HF_TOKEN from the environment, else from a file.

    Args:
      env_file: the file; '': .env or sigma.env in the working directory.

    Returns:
      The token; None leaves the choice to huggingface_hub, which knows who has logged in.

    Raises:
      UserError: a file that is named but not there, or a token that is none; messages do not show
        it.
    """
    token, where = os.environ.get('HF_TOKEN', '').strip(), 'the environment'
    if not token:
        paths = (
            [Path(env_file)]
            if env_file
            else [Path(name) for name in ENV_FILES if Path(name).is_file()]
        )
        if env_file and not paths[0].is_file():
            raise UserError(f'expected an env file at {env_file}, got no such file; check the path')
        for path in paths:
            lines = path.read_text(errors='replace').splitlines()
            found = [match[1].strip('\'"') for line in lines if (match := _LINE.fullmatch(line))]
            token, where = (found[-1], str(path)) if found and not token else (token, where)
    if token and not _TOKEN.fullmatch(token):
        raise UserError(
            f'expected HF_TOKEN in {where} to be one word of letters and digits, got something '
            'else; copy it again'
        )
    return token or None


def _library(name: str) -> Any:
    try:
        import huggingface_hub.file_download  # brings what the package itself loads only when asked
    except ImportError as error:
        raise UserError(
            f'expected {name} to exist, or huggingface_hub to fetch it, got neither; check the '
            "path or pip install 'sigma_jax[hf]'"
        ) from error
    return huggingface_hub


def _cached(hub: Any, request: dict[str, Any]) -> Path | None:
    """The folder of an earlier fetch, where all of it is there."""
    try:
        path = Path(hub.snapshot_download(**request, local_files_only=True))
    except Exception:  # nothing kept, or not all of it: both are no errors here
        return None
    return path if listing.is_whole(hub, path, request['allow_patterns']) else None


def _is_offline(hub: Any) -> bool:
    return bool(hub.constants.HF_HUB_OFFLINE)


def _download(hub: Any, request: dict[str, Any], token: str | None, patience: Patience) -> Path:
    """Large files first, which go on where they stopped; the library does the rest and lays out the
    folder.
    """
    repo, kind = request['repo_id'], request['repo_type']
    api = hub.HfApi(token=token)
    commit = api.repo_info(repo, repo_type=kind, revision=request['revision']).sha
    tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind)
    sizes = {entry.path: entry.size for entry in tree if getattr(entry, 'size', None) is not None}
    names = list(hub.utils.filter_repo_objects(sizes, allow_patterns=request['allow_patterns']))
    if not names:
        raise UserError(
            f'expected files like {request["allow_patterns"]} in {repo}, got {sorted(sizes)[:8]}'
        )
    listing.note(repository(hub, repo, kind), commit, sizes)
    large = [name for name in names if sizes[name] >= LARGE]
    fetch_large(hub, Revision(repo, kind, commit), large, token, patience)
    path = _snapshot(hub, request, token, patience)
    if path.name == commit and not listing.is_whole(hub, path, request['allow_patterns']):
        raise UserError(
            f'expected {len(names)} files of {repo} in {path}, got some of them; run the same '
            'command again'
        )
    return path


def _snapshot(hub: Any, request: dict[str, Any], token: str | None, patience: Patience) -> Path:
    """The library's own download; a small file that was cut short starts anew."""
    failures = 0
    while True:
        failures_of: tuple[type[Exception], ...] = (*network_errors(hub.get_session()), OSError)
        try:
            return Path(hub.snapshot_download(**request, token=token))
        except failures_of as error:
            if isinstance(error, OSError) and 'Consistency check failed' not in str(error):
                raise
            failures += 1
            patience.pause(request['repo_id'], reason(error), failures)


def _is_connection(hub: Any, error: BaseException) -> bool:
    """Whether the hub could not be reached, as against an answer that says no."""
    return isinstance(error, (UserError, *network_errors(hub.get_session())))
