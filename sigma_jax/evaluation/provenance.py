"""Where the numbers of an evaluation come from, and how often test episodes have been read."""

import datetime
import hashlib
import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from sigma_jax import __version__
from sigma_jax.baselines import RECORD
from sigma_jax.data.meta import META

LOG = 'evaluations.jsonl'


def count_test_reads(workdir: pathlib.Path, splits: tuple[str, ...]) -> int:
    """Adds this evaluation to `workdir/evaluations.jsonl`; returns how many of them have read the test split."""
    log = workdir / LOG
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    with log.open('a') as file:
        file.write(json.dumps({'time': now, 'splits': list(splits)}) + '\n')
    return sum('test' in json.loads(line)['splits'] for line in log.read_text().splitlines())


def provenance(trained: Any, shards: pathlib.Path) -> dict[str, Any]:
    """Everything that says where the numbers come from."""
    record: Mapping[str, Any] = json.loads((shards / RECORD).read_text())
    return {
        'version': __version__,
        'commit': commit(),
        'jax': jax.__version__,
        'device': jax.devices()[0].device_kind,
        **trained.provenance,
        'shards_digest': hashlib.sha256((shards / META).read_bytes()).hexdigest(),
        'baselines': {key: record[key] for key in ('samples', 'seed', 'base_digest') if key in record},
        'parameters': trained.parameter_counts,
        'config': trained.config,
    }


def commit() -> str | None:
    """The commit of the source, with '+' where it was changed since; None outside a checkout."""
    here = pathlib.Path(__file__).parent
    try:
        found = [
            subprocess.run(['git', *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for args in (('rev-parse', 'HEAD'), ('status', '--porcelain', '--untracked-files=no'))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ('+' if found[1] else '')
