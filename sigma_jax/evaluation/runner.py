"""One evaluation from training folders to files: `sigma_eval_report.json`, `report.html`,
`adapter.json`.
"""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress

from sigma_jax.data.shards.directory import Shards, open_shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation import measure
from sigma_jax.evaluation.compare import cache
from sigma_jax.evaluation.compare import run as comparison_run
from sigma_jax.evaluation.compare.runs import Training, check_held_out
from sigma_jax.evaluation.cost import compute
from sigma_jax.evaluation.measure import EvaluationConfig, evaluate
from sigma_jax.evaluation.provenance import check_log, count_test_reads, provenance
from sigma_jax.evaluation.replay import Windows
from sigma_jax.evaluation.replay_shards import (
    SPLITS,
    Decoded,
    list_batches,
    replay_split,
)
from sigma_jax.evaluation.report import page
from sigma_jax.evaluation.report.schema import check_report
from sigma_jax.evaluation.report.tables import headline
from sigma_jax.evaluation.stress import robustness, stress
from sigma_jax.evaluation.stress.perturb import every_level
from sigma_jax.evaluation.trained import Library, Trained
from sigma_jax.files import atomic_write
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder

REPORT, PAGE, ADAPTER = 'sigma_eval_report.json', 'report.html', 'adapter.json'


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate: a training folder, shards (default: those it was trained on), where to
    write, on what.

    `rows` are all trainings of a comparison, that of `workdir` among them, and `left_out` those
    that cannot take part.
    """

    workdir: pathlib.Path
    shards: pathlib.Path | None = None
    out: pathlib.Path | None = None  # default: the training folder
    splits: tuple[str, ...] = SPLITS
    episodes_at_once: int = 4
    config: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    rows: tuple[Training, ...] = ()
    left_out: tuple[str, ...] = ()
    stress: bool = False
    robustness: bool = False


def load_with(library: Library) -> Callable[[pathlib.Path, Console], Any]:
    """How a Sigma is opened, sharing with others what `library` holds.

    Args:
      library: what is shared.

    Returns:
      (workdir, console) -> an opened Sigma.
    """
    return lambda workdir, console: Trained(workdir, library)


def run(
    request: Request,
    console: Console | None = None,
    load: Callable[[pathlib.Path, Console], Any] | None = None,
) -> tuple[dict, pathlib.Path]:
    """Evaluates a training folder and writes the files.

    Args:
      request: what is asked for.
      console: for lines and bars; None: a new one.
      load: opens the checkpoint; None: a Sigma.

    Returns:
      report: JSON-ready.
      out: its folder.

    Raises:
      UserError: an unknown split, unfinished training, or shards of another base.
    """
    console = console or Console(stderr=True)
    check_splits(request.splits, request.stress)
    library, decoded = Library(), Decoded()
    trained = (load or load_with(library))(request.workdir, console)
    shards = open_shards(request.shards) if request.shards else trained.shards
    out = request.out or request.workdir
    check_baselines(shards, trained.base.digest)
    for told in check_first(request, trained.config, shards, out):
        console.print(told, highlight=False, soft_wrap=True)
    with trainer.progress_bar(console) as bar:
        splits = {}
        for name in request.splits:
            again = None if name == 'train' else decoded  # no other training replays it
            splits[name] = replay_split(
                trained, shards.split(name), request.episodes_at_once, bar, decoded=again
            )
        state = None
        if 'calibration' in splits:
            state = measure.fit_adapter(splits['calibration'], request.config.adapter)
        more = extras(request, trained, shards, splits, state, library, decoded, bar)
    facts = provenance(trained, shards) | {
        'test_reads': count_test_reads(request.workdir, request.splits)
    }
    result = evaluate(
        splits,
        request.config,
        trained.sigma_params,
        facts,
        list(shards.meta.action_names),
        state=state,
        more=more,
    )
    write(result, out, RunFolder(request.workdir).log)
    return result, out


def check_first(
    request: Request, config: RunConfig, shards: Shards, out: pathlib.Path
) -> list[str]:
    """Looks, before the work, at what can go wrong at the end of an evaluation.

    Args:
      request: what is asked for.
      config: of the training.
      shards: the data.
      out: folder of the report.

    Returns:
      What there is to report.

    Raises:
      UserError: an episode that a training learned from would judge it, nothing can be written, or
        a split has no windows.
    """
    check_writable(out)
    check_windows(request.splits, shards)
    own = (
        []
        if any(row.folder == request.workdir for row in request.rows)
        else [Training('', request.workdir, config)]
    )
    judging = [name for name in request.splits if name != 'train']
    notes = [
        check_held_out(one, shards.split(name)) for one in (*own, *request.rows) for name in judging
    ]
    return [told for told in dict.fromkeys([check_log(request.workdir), *notes]) if told]


def check_writable(out: pathlib.Path) -> None:
    """Checks that a file can be made in a folder, which is left as it was.

    Args:
      out: the folder.

    Raises:
      UserError: none can be.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(
            f'--out: expected a folder to write to, got {out}, which is none ({error.strerror}); '
            'name another'
        ) from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_windows(splits: tuple[str, ...], shards: Shards) -> None:
    """Checks that splits hold windows.

    Args:
      splits: their names.
      shards: the data.

    Raises:
      UserError: one holds none.
    """
    counts = shards.meta.windows
    if not (empty := [name for name in splits if not counts[name]]):
        return
    others = ','.join(name for name in splits if counts[name])
    advice = f'evaluate the others (--splits={others}) or prepare' if others else 'prepare'
    raise UserError(
        f'expected windows in split {empty[0]} of {shards.path}, got none; {advice} shards in a '
        'new folder with whole episodes for it (config.data.split_fractions or '
        f'config.data.{empty[0]}_episodes)'
    )


def extras(
    request: Request,
    trained: Any,
    shards: Shards,
    splits: dict[str, Windows],
    state: AdapterState | None,
    library: Library,
    decoded: Decoded,
    bar: Progress,
) -> dict[str, Any]:
    """What was asked for in addition to the evaluation of one checkpoint; of the headline split.

    Args:
      request: what is asked for.
      trained: a Sigma.
      shards: the data.
      splits: replayed windows.
      state: the fitted adapter; None: none.
      library: what is shared.
      decoded: keeps batches.
      bar: for progress.

    Returns:
      {key of the report: section}.
    """
    split = shards.split(headline(splits))

    def batches():
        return list_batches(trained, split, request.episodes_at_once, decoded)

    more: dict[str, Any] = {}
    if isinstance(trained, Trained) and not request.rows:
        more['compute'] = compute.single(trained, next(iter(batches())))
    if request.stress and state is not None:
        task = bar.add_task('stress', total=None, note='')
        found = stress.report(
            splits[split.name], stress.every_stress(splits[split.name], batches, trained), state
        )
        more['stress'] = {'split': split.name} | found
        bar.update(task, total=1, completed=1)
    if request.robustness:
        base, task = (
            robustness.BasePolicy(shards, trained.base, trained.frozen.params),
            bar.add_task('robustness', total=9, note=''),
        )

        def pairs():
            bases = base.batches(split, request.episodes_at_once, decoded)
            return zip(batches(), bases, strict=True)

        rows = robustness.table(
            splits[split.name],
            pairs,
            trained,
            base.sample,
            state,
            shards.meta.stride,
            lambda: bar.advance(task),
        )
        sampled = len(every_level()) * len(splits[split.name].episode)
        more['robustness'] = {'split': split.name, 'base_samples': sampled, 'rows': rows}
    if request.rows:
        inputs = comparison_run.Inputs(
            trainings=request.rows,
            lead=request.workdir,
            opened=trained,
            splits=splits,
            state=state,
            split=split,
            episodes_at_once=request.episodes_at_once,
            config=request.config,
            library=library,
            bar=bar,
            out=request.out or request.workdir,
            decoded=decoded,
        )
        more['comparison'] = comparison_run.compare_rows(inputs) | {
            'left_out': list(request.left_out)
        }
    return more


def write(result: dict, out: pathlib.Path, log: pathlib.Path) -> None:
    """Writes the three files of a report, made whole before the first is written; the report only
    as its schema has it.

    Args:
      result: the report.
      out: its folder.
      log: of the training.
    """
    check_report(result)
    files = {REPORT: json.dumps(result, indent=1, allow_nan=False)}
    if result['adapter']:
        files[ADAPTER] = json.dumps(result['adapter']['state'], indent=1)
    files[PAGE] = page.render(result, page.read_log(log))
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic_write(out / name, text)
    cache.clear(out)


def check_splits(splits: tuple[str, ...], stress: bool = False) -> None:
    """Checks the names of splits.

    Args:
      splits: asked for.
      stress: whether there are stress tests, which need the adapter and so calibration.

    Raises:
      UserError: one does not exist, there is none, or stress tests without an adapter.
    """
    if unknown := [name for name in splits if name not in SPLITS] or ([''] if not splits else []):
        raise UserError(
            f'splits: expected some of {", ".join(SPLITS)}, got {unknown[0]!r}; change --splits'
        )
    if stress and 'calibration' not in splits:
        raise UserError(
            "--stress: expected 'calibration' among the splits, to fit the adapter on, got "
            f'{",".join(splits)}; add it to --splits'
        )
