"""Checkpoints by hub id: `lerobot/pi05_base`, `lerobot/pi05_base@main`."""

import pathlib
import re

from sigma_jax.errors import UserError

WANTED = ('*.json', '*.safetensors', 'params/**', 'assets/**', 'tokenizer.*')  # no pickles, no pictures
HUB_ID = re.compile(r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?')


def local_path(name: str | pathlib.Path) -> pathlib.Path:
    """The path itself where it exists; else the folder into which a hub id's files are fetched (and kept there).

    Raises UserError for what is neither, without the extra `hf`, and where the hub gives nothing.
    """
    path, match = pathlib.Path(name), HUB_ID.fullmatch(str(name))
    if path.exists():
        return path
    if not match or path.parent.is_dir() or path.suffix:
        raise UserError(f'expected a checkpoint at {path}, got no such file or folder, nor a hub id; check the path')
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f'expected {path} to exist, or huggingface_hub to fetch it, got neither; check the path or '
            "pip install 'sigma_jax[hf]'"
        ) from error
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(match[1], revision=match[2], allow_patterns=list(WANTED)))
    except Exception as error:  # network, authorisation and missing-file errors have no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f'expected {path} on the hub, got "{reason}"; check the id and its licence, log in, or name a local path'
        ) from error
