"""Where the numbers of an evaluation come from, and how often test episodes have been read."""

import datetime
import json
import os
import pathlib
import subprocess
from typing import Any

import jax

from sigma_jax import __version__
from sigma_jax.data.shards.directory import Shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation.predictor import Predictor
from sigma_jax.policies.base_actions import check_baselines

LOG = 'evaluations.jsonl'


def check_log(workdir: pathlib.Path) -> str:
    """Looks into the log of evaluations before one works for hours.

    Args:
      workdir: the training folder.

    Returns:
      What there is to report about it, or ''.

    Raises:
      UserError: nothing can be added to it.
    """
    log = workdir / LOG
    if (log.exists() and not log.is_file()) or not os.access(
        log if log.exists() else workdir, os.W_OK
    ):
        raise UserError(
            f'expected to add a line to {log}, got no permission or no file; let this '
            'user write there'
        )
    cut = [n for n, splits in enumerate(read_log(log), start=1) if splits is None]
    lines = ', '.join(map(str, cut))
    said = f'{log}: line {lines} is damaged and counts as an evaluation that read the test split'
    return said if cut else ''


def count_test_reads(workdir: pathlib.Path, splits: tuple[str, ...]) -> int:
    """Adds this evaluation to `evaluations.jsonl`.

    A damaged line, as a full disk or a lost machine leaves one, stays as it is and counts: it may
    have read the test split.

    Args:
      workdir: the training folder.
      splits: that this one reads.

    Returns:
      How many of them have read the test split.
    """
    log = workdir / LOG
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    entry = json.dumps({'time': now, 'splits': list(splits)}) + '\n'
    before = log.read_bytes() if log.is_file() else b''
    with log.open('ab') as file:
        file.write((b'\n' if before and not before.endswith(b'\n') else b'') + entry.encode())
    return sum(one is None or 'test' in one for one in read_log(log))


def read_log(log: pathlib.Path) -> list[list[str] | None]:
    """The splits of each evaluation in the log, None where its line is damaged.

    Args:
      log: the file.

    Returns:
      One entry a line.
    """
    lines = log.read_text(errors='replace').splitlines() if log.is_file() else []
    return [_splits(line) for line in lines if line.strip()]


def _splits(line: str) -> list[str] | None:
    try:
        return [str(name) for name in json.loads(line)['splits']]
    except (ValueError, KeyError, TypeError):
        return None


def provenance(trained: Predictor, shards: Shards) -> dict[str, Any]:
    """Everything that says where the numbers come from.

    Args:
      trained: what was evaluated.
      shards: the data.

    Returns:
      For the report.
    """
    record = check_baselines(shards, '')
    return {
        'version': __version__,
        'commit': commit(),
        'jax': jax.__version__,
        'device': jax.devices()[0].device_kind,
        **trained.provenance,
        'shards_digest': shards.digest,
        'baselines': {
            'samples': record.samples,
            'seed': record.seed,
            'base_digest': record.base_digest,
        },
        'parameters': trained.parameter_counts,
        'config': trained.config.to_dict(),
    }


def commit() -> str | None:
    """The commit of the source, with '+' where it was changed since; None outside a checkout."""
    here = pathlib.Path(__file__).parent
    try:
        found = [
            subprocess.run(
                ['git', *args], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for args in (('rev-parse', 'HEAD'), ('status', '--porcelain', '--untracked-files=no'))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ('+' if found[1] else '')
