"""One evaluation from training folders to files: `sigma_eval_report.json`, `report.html`,
`adapter.json`.
"""

import contextlib
import json
import pathlib
import tempfile

from sigma_jax.data.shards.directory import Shards, open_shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation import measure
from sigma_jax.evaluation.compare import cache
from sigma_jax.evaluation.compare.runs import Training, check_held_out
from sigma_jax.evaluation.measure import evaluate
from sigma_jax.evaluation.predictor import Predictor
from sigma_jax.evaluation.provenance import check_log, count_test_reads, provenance
from sigma_jax.evaluation.replay_shards import BatchCache, replay_split
from sigma_jax.evaluation.report import page
from sigma_jax.evaluation.report.schema import check_report
from sigma_jax.evaluation.request import Request, check_splits
from sigma_jax.evaluation.sections import Replayed, sections
from sigma_jax.evaluation.trained_models import ModelCache, TrainedSigma
from sigma_jax.files import atomic_write
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.training.config import RunConfig
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.progress import SILENT, Reporter

REPORT, PAGE, ADAPTER = 'sigma_eval_report.json', 'report.html', 'adapter.json'


def run(request: Request, reporter: Reporter = SILENT) -> tuple[dict, pathlib.Path]:
    """Evaluates a training folder, writes the files, returns the report and its folder.

    Args:
      request: what to evaluate.
      reporter: receives what is odd, and how far it is.

    Returns:
      The report as JSON has it, and the folder of its files.

    Raises:
      UserError: an unknown split, an unfinished training, or shards of another base.
    """
    check_splits(request.splits, request.stress)
    model_cache = ModelCache()
    return evaluate_one(request, TrainedSigma(request.workdir, model_cache), reporter, model_cache)


def evaluate_one(
    request: Request,
    trained: Predictor,
    reporter: Reporter = SILENT,
    model_cache: ModelCache | None = None,
) -> tuple[dict, pathlib.Path]:
    """`run` with the Sigma of the training folder open already.

    Args:
      request: what to evaluate.
      trained: the Sigma.
      reporter: receives what is odd, and how far it is.
      model_cache: what further trainings of a comparison share with it.

    Returns:
      As `run`.
    """
    check_splits(request.splits, request.stress)
    batch_cache = BatchCache()
    shards = open_shards(request.shards) if request.shards else trained.shards
    check_baselines(shards, trained.base.digest)
    for said in check_first(request, trained.config, shards, request.folder):
        reporter.say(said)
    with reporter.bars() as bars:
        splits = {}
        for name in request.splits:
            again = None if name == 'train' else batch_cache  # no other training replays it
            splits[name] = replay_split(
                trained, shards.split(name), request.episodes_at_once, bars, batch_cache=again
            )
        state = None
        if 'calibration' in splits:
            state = measure.fit_adapter(splits['calibration'], request.config.adapter)
        shared = model_cache or ModelCache()
        replayed = Replayed(request, trained, shards, splits, state, shared, batch_cache)
        more = sections(replayed, bars)
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
    write(result, request.folder, RunFolder(request.workdir).log)
    return result, request.folder


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
    return [said for said in dict.fromkeys([check_log(request.workdir), *notes]) if said]


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
