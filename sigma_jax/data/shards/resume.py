"""A preparation that was stopped: whether a directory holds the same one, and how far it came."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma_jax.data.shards import tfds
from sigma_jax.data.shards.file_digests import file_digest, source_digest
from sigma_jax.data.shards.meta import META, SCHEMA, Meta, before, typed
from sigma_jax.data.shards.plan import SOURCE_SETTINGS, DataConfig
from sigma_jax.data.sources import source_settings
from sigma_jax.errors import UserError

SOURCE = 'source_digest'
# the settings of a preparation under way; gone when meta.json is there
UNFINISHED = 'unfinished.json'
BAD = 'bad_episodes'  # those that a preparation under way has found


def identity_of(config: DataConfig, root: Path) -> dict[str, Any]:
    """What two preparations must share to have the same result.

    Args:
      config: settings.
      root: folder of the data set.

    Returns:
      For JSON.

    Raises:
      UserError: a file that counts cannot be read, or meta.json cannot hold a setting.
    """
    digests = {SOURCE: source_digest(root, image_features(config))}
    for name in ('tokenizer', 'stats_from'):
        path = Path(getattr(config, name))
        digests[f'{name}_digest'] = (
            file_digest(path) if path.is_file() else str(getattr(config, name))
        )
    identity = {'schema': SCHEMA, **digests, **config.settings()}
    try:
        typed(identity)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'expected data settings that {META} can hold, got {error}; correct the config'
        ) from error
    return identity


def image_features(config: DataConfig) -> set[str]:
    """The data set's own names of the features whose images a preparation reads.

    Args:
      config: settings.

    Returns:
      Keys.
    """
    theirs = source_settings(config).camera_map
    return {theirs.get(name, name) for name in (*config.cameras, *config.depth)}


def finished_meta(out: Path, identity: Mapping[str, Any], root: Path | None = None) -> Meta | None:
    """What a finished preparation holds.

    Args:
      out: its folder.
      identity: of `identity_of`.
      root: folder of the data set: of what older preparations of it have recorded, all its files
        are compared.

    Returns:
      The contents of meta.json; None for a new or unfinished directory with the same settings.

    Raises:
      UserError: the folder holds something else, or not all of its files.
    """
    meta_path, unfinished_path = out / META, out / UNFINISHED
    if meta_path.is_file():
        found = read_settings(meta_path)
        _compare(found, identity, out, 'finished', root)
        meta = Meta.from_json(found, out)
        gone = [name for name in meta.files if not (out / name).is_file()]
        if gone:
            raise UserError(
                f'expected {gone[0]} in {out}, got a directory without it; delete '
                f'{out} and run again'
            )
        clean_up(out)
        return meta
    if unfinished_path.is_file():
        _compare(read_settings(unfinished_path), identity, out, 'unfinished', root)
        return None
    foreign = sorted(
        path.name for path in out.iterdir() if path.name not in (tfds.LOCK, tfds.INCOMING)
    )
    if foreign:
        raise UserError(
            f'expected a new or empty directory for --out, got {out} with {foreign[0]} in it; '
            'name another'
        )
    return None


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of ours.

    Args:
      path: of the file.

    Returns:
      Its keys and values.

    Raises:
      UserError: damaged text.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f'expected settings as JSON in {path}, got "{error}"; delete {path.parent} and run '
            'again'
        ) from error


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """What a stopped preparation leaves out: {episode: reason}."""

    bad: dict[int, str]

    @classmethod
    def read(cls, out: Path) -> 'Unfinished':
        """The notes of a preparation under way.

        Args:
          out: its folder.

        Returns:
          The notes.

        Raises:
          UserError: damaged text.
        """
        found = read_settings(out / UNFINISHED)
        return cls({int(index): reason for index, reason in found[BAD].items()})


def write_unfinished(out: Path, identity: Mapping[str, Any], bad: Mapping[int, str]) -> None:
    """Notes what a preparation under way is, and which episodes it leaves out.

    Args:
      out: its folder.
      identity: of `identity_of`.
      bad: {episode: reason}.
    """
    tfds.write_text(out / UNFINISHED, json.dumps({**identity, BAD: bad}, indent=2) + '\n')


def known_bad(out: Path) -> dict[int, str] | None:
    """The episodes that a stopped preparation left out.

    Args:
      out: its folder.

    Returns:
      {episode: reason}; None where none was stopped.
    """
    if not (out / UNFINISHED).is_file():
        return None
    return Unfinished.read(out).bad


def _compare(
    found: Mapping[str, Any], asked: Mapping[str, Any], out: Path, state: str, root: Path | None
) -> None:
    """Raises UserError where settings differ; older preparations have recorded all files of
    `root`.
    """
    for key in asked:
        if key not in found and key in SOURCE_SETTINGS:
            continue  # from before there were other sources, for which alone they count
        have = found.get(key, before(key))
        if have != asked[key] and not (
            key == SOURCE and root is not None and have == source_digest(root)
        ):
            raise UserError(
                f'expected the {state} preparation in {out} to have {key}={asked[key]}, got '
                f'{have}; name another --out, or delete this one to start over'
            )


def clean_up(out: Path) -> None:
    """Removes what only a preparation under way needs.

    Args:
      out: folder of the preparation.
    """
    (out / UNFINISHED).unlink(missing_ok=True)
    shutil.rmtree(out / tfds.INCOMING, ignore_errors=True)
