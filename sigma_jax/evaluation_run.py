"""One evaluation from a training folder to files: `sigma_eval_report.json`, `report.html`, `adapter.json`."""

import dataclasses
import datetime
import hashlib
import json
import pathlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from sigma_jax import __version__, report, training
from sigma_jax.backbones.tokenizer import load_tokenizer
from sigma_jax.baselines import RECORD, check_baselines
from sigma_jax.data.meta import META, read_meta
from sigma_jax.data.normalize import denormalize, read_norm_stats
from sigma_jax.data.pipeline import make_loader
from sigma_jax.data.records import read_baselines, read_index
from sigma_jax.errors import UserError
from sigma_jax.evaluation import EvaluationConfig, evaluate
from sigma_jax.files import atomic_write
from sigma_jax.replay import NumpyBatch, Windows, pad_windows, replay

SPLITS = ('train', 'calibration', 'test')
REPORT, PAGE, ADAPTER, LOG = 'sigma_eval_report.json', 'report.html', 'adapter.json', 'evaluations.jsonl'


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate: a training folder, shards (default: those it was trained on), where to write, on what."""

    workdir: pathlib.Path
    shards: pathlib.Path | None = None
    out: pathlib.Path | None = None  # default: the training folder
    splits: tuple[str, ...] = SPLITS
    episodes_at_once: int = 4
    config: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


def run(
    request: Request,
    console: Console,
    load: Callable[[pathlib.Path, Console], Any] = training.load_for_evaluation,
) -> tuple[dict, pathlib.Path]:
    """Evaluates what `load` finds in the training folder, writes the files, returns the report and its folder.

    Raises UserError for an unknown split, unfinished training, or shards of another base.
    """
    check_splits(request.splits)
    trained = load(request.workdir, console)
    shards = request.shards or pathlib.Path(trained.config['shards'])
    out = request.out or request.workdir
    check_baselines(shards, trained.base.digest)
    meta = read_meta(shards)
    with training.progress_bar(console) as bar:
        splits = {name: replay_split(trained, shards, name, request.episodes_at_once, bar) for name in request.splits}
    reads = count_test_reads(request.workdir, request.splits)
    facts = provenance(trained, shards) | {'test_reads': reads}
    result = evaluate(splits, request.config, trained.sigma_params, facts, meta['action_names'])
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / REPORT, json.dumps(result, indent=1, allow_nan=False))
    if result['adapter']:
        atomic_write(out / ADAPTER, json.dumps(result['adapter']['state'], indent=1))
    atomic_write(out / PAGE, report.render(result, report.read_log(request.workdir / 'train_log.csv')))
    return result, out


def check_splits(splits: tuple[str, ...]) -> None:
    """Raises UserError for a split that does not exist, or none at all."""
    if unknown := [name for name in splits if name not in SPLITS] or ([''] if not splits else []):
        raise UserError(f'splits: expected some of {", ".join(SPLITS)}, got {unknown[0]!r}; change --splits')


def replay_split(trained: Any, shards: pathlib.Path, split: str, episodes_at_once: int, bar: Progress) -> Windows:
    """Every window of one split through the model, whole episodes at a time."""
    statistics = read_norm_stats(pathlib.Path(trained.config['shards']) / 'norm_stats.json')['state']
    batches = list_batches(trained, shards, split, episodes_at_once)
    episodes = len(np.unique(read_index(shards, split).episode))
    task = bar.add_task(split, total=-(-episodes // episodes_at_once), note='')
    return replay(
        batches,
        trained.predict,
        trained.sequence_length,
        lambda state: denormalize(state, statistics),
        base_samples(shards, split),
        lambda: bar.advance(task),
    )


def list_batches(trained: Any, shards: pathlib.Path, split: str, episodes_at_once: int) -> Iterator[NumpyBatch]:
    """Batches of whole episodes, all splits with the same number of windows, so that the model compiles once."""
    length = max(int(np.bincount(read_index(shards, name).episode).max(initial=0)) for name in SPLITS)
    loader = make_loader(
        shards,
        split,
        batch_size=episodes_at_once,
        tokenizer=load_tokenizer(trained.config['tokenizer']),
        sequence_length=None,
        baselines='pi05',
        norm_stats=pathlib.Path(trained.config['shards']) / 'norm_stats.json',
        policy=trained.base.policy,
    )
    return (pad_windows(batch, length) for batch in loader)


def base_samples(shards: pathlib.Path, split: str) -> np.ndarray | None:
    """All samples of the base [r m t a] where several were drawn."""
    meta = read_meta(shards)
    shape = (len(read_index(shards, split)), meta['horizon'], len(meta['action_names']))
    samples = read_baselines(shards, split, shape)
    return samples if samples.shape[1] > 1 else None


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
