"""Many trainings on the same episodes: each is opened, replayed or sampled, reduced to errors, and
let go.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sigma_jax import __version__
from sigma_jax.data.shards.directory import Split
from sigma_jax.errors import UserError
from sigma_jax.evaluation import measure, metrics
from sigma_jax.evaluation.checks import ADAPTED, BASE
from sigma_jax.evaluation.compare import cache, contrasts
from sigma_jax.evaluation.compare.cache import Measured
from sigma_jax.evaluation.compare.contrasts import PooledMethod
from sigma_jax.evaluation.compare.runs import (
    FULL,
    NO_TAU,
    TUNED,
    Training,
    check_held_out,
    reference_run,
)
from sigma_jax.evaluation.cost import compute
from sigma_jax.evaluation.measure import EvaluationConfig, Method
from sigma_jax.evaluation.predictor import Predictor
from sigma_jax.evaluation.provenance import commit
from sigma_jax.evaluation.replay import CARRIED, TAU_OFF, NumpyBatch, ReplayedWindows, views
from sigma_jax.evaluation.replay_shards import (
    BatchCache,
    count_batches,
    in_order,
    list_batches,
    replay_split,
    whole_episodes,
)
from sigma_jax.evaluation.trained_models import ModelCache, TrainedPolicy, TrainedSigma
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.progress import Bars
from sigma_jax.types import to_batch

SAMPLES = 8  # of a fine-tuned policy, for the mean (docs/design.md, "Evaluation protocol")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is compared, on which split.

    `opened` is the Sigma of the folder `reference_run`, open already, `splits` its replays, `state`
    its adapter, where calibration episodes are evaluated too. What is measured is kept in `out`
    until the report is there.
    """

    trainings: Sequence[Training]
    reference_run: pathlib.Path
    opened: Predictor
    splits: Mapping[str, ReplayedWindows]
    state: AdapterState | None
    split: Split
    episodes_at_once: int
    config: EvaluationConfig
    model_cache: ModelCache
    bars: Bars
    out: pathlib.Path
    batch_cache: BatchCache

    @property
    def windows(self) -> ReplayedWindows:
        """Of the split, as the opened Sigma replayed them."""
        return self.splits[self.split.name]

    @functools.cached_property
    def one(self) -> NumpyBatch:
        """A batch, for its shapes."""
        return next(
            iter(list_batches(self.opened, self.split, self.episodes_at_once, self.batch_cache))
        )

    @functools.cached_property
    def sample(self) -> int:
        """Operations of a sample of the base for a window."""
        return compute.of_sample(self.opened.base.config, to_batch(self.one))


def compare_rows(inputs: Inputs) -> dict[str, Any]:
    """The report's section `comparison`: methods by row, contrasts, what each row is and costs.

    Methods that need no training come first; of the full Sigma also the adapter, fitted anew for
    each seed, and the telepathy switch; a fine-tuned policy gives one sample and the mean of
    `SAMPLES`.

    Args:
      inputs: trainings, windows and settings.

    Returns:
      For the report.

    Raises:
      UserError: a training has learned from episodes that judge it, or a row has the name of a
        method.
    """
    judging = [inputs.split]
    if inputs.state is not None:
        judging.append(inputs.split.shards.split('calibration'))
    for training in inputs.trainings:
        for split in judging:
            check_held_out(training, split)
    rows, windows = by_row(inputs.trainings), inputs.windows
    untrained = dataclasses.replace(windows, predictions={CARRIED: windows.predictions[CARRIED]})
    simple = measure.make_methods(untrained, inputs.splits.get('train'), None)
    methods = {
        name: PooledMethod([e], (), [b])
        for name, (e, b) in reduced(simple, windows).items()
        if name != CARRIED
    }
    facts = {}
    for row, of in rows.items():
        measured = [measure_once(inputs, training) for training in of]
        mine = pooled(measured, [training.seed for training in of])
        if taken := sorted(set(methods) & set(mine)):
            raise UserError(
                f'expected rows with names of their own, got {taken[0]!r}, a method; '
                'use --workdir=NAME=PATH'
            )
        methods |= mine
        facts[row] = {
            'role': of[0].role,
            'seeds': [training.seed for training in of],
            'gates': gates_of(of[0]),
        }
        facts[row]['compute'] = measured[0].cost
    return {'split': inputs.split.name} | described(inputs, rows, facts, methods)


def described(
    inputs: Inputs,
    rows: Mapping[str, list[Training]],
    facts: dict[str, dict],
    methods: Mapping[str, PooledMethod],
) -> dict[str, Any]:
    """Roles of the rows, all contrasts that follow from them, and the costs.

    Args:
      inputs: trainings, windows and settings.
      rows: trainings by row.
      facts: what each row is.
      methods: methods by name.

    Returns:
      For the report.
    """
    finetuned = [row for row, of in rows.items() if of[0].role == TUNED]
    sigmas = [row for row, of in rows.items() if of[0].role != TUNED]
    head = reference_run(list(inputs.trainings))
    full = head.row if head.role == FULL else None
    against = contrasts.pairs(
        list(methods), finetuned, [row for row in sigmas if row != full], full
    )
    against += [(full, f'{row}_mean{SAMPLES}') for row in finetuned if full]
    report = contrasts.compare(methods, inputs.windows.episode, against, inputs.config.seed)
    no_tau = next((row for row in sigmas if rows[row][0].role == NO_TAU), None)
    costs = {BASE: compute.cost(base=inputs.sample)} | {
        row: values.pop('compute') for row, values in facts.items()
    }
    roles = {
        'full': full,
        'no_tau': no_tau,
        'tuned': finetuned,
        'ablations': [row for row in sigmas if row != full],
    }
    return {'rows': facts, **roles, **report, 'compute': costs}


def by_row(trainings: Sequence[Training]) -> dict[str, list[Training]]:
    """Trainings of each row in the order of their seeds; fine-tuned policies first, then the full
    Sigma.

    Args:
      trainings: of all rows.

    Returns:
      {row: trainings}.
    """
    order = {TUNED: 0, FULL: 1}
    rows: dict[str, list[Training]] = {}
    for training in sorted(trainings, key=lambda t: (order.get(t.role, 2), t.role != NO_TAU)):
        rows.setdefault(training.row, []).append(training)
    return {row: sorted(of, key=lambda t: t.seed) for row, of in rows.items()}


def gates_of(training: Training) -> dict[str, Any]:
    """The gates that a training's config names.

    Args:
      training: of a row.

    Returns:
      {gate: value}.
    """
    return training.config.gates


def measure_once(inputs: Inputs, training: Training) -> Measured:
    """`of_policy` or `of_sigma`, read where an interrupted evaluation of the same has kept it.

    Args:
      inputs: trainings, windows and settings.
      training: of a row.

    Returns:
      The measurement.
    """
    shards = inputs.split.shards
    key = {
        'training': [str(training.folder.resolve()), *(RunFolder(training.folder).newest or ())],
        'config': training.config.to_dict(),
        'role': training.role,
        'shards': shards.digest,
        'baselines': check_baselines(shards, '').to_json(),
        'split': inputs.split.name,
        'calibrated': inputs.state is not None,
        'evaluation': dataclasses.asdict(inputs.config),
        'source': commit() or __version__,
    }
    make = of_policy if training.role == TUNED else of_sigma
    name = f'{training.row}-seed{training.seed}'
    return cache.once(
        inputs.out, name, json.loads(json.dumps(key, default=str)), lambda: make(inputs, training)
    )


def reduced(
    methods: Mapping[str, Method], windows: ReplayedWindows
) -> dict[str, tuple[metrics.Errors, np.ndarray]]:
    """{name: (errors of every window, error by step)}.

    Args:
      methods: methods by name.
      windows: replayed.

    Returns:
      {name: (errors of every window, error by step)}.
    """
    return {
        name: (
            measure.errors_of(method, windows),
            metrics.error_by_step(
                np.asarray(method.actions.traj), windows.actions, windows.action_mask
            ),
        )
        for name, method in methods.items()
    }


def pooled(measured: Sequence[Measured], seeds: Sequence[int]) -> dict[str, PooledMethod]:
    """The methods of a row, its seeds together.

    Args:
      measured: one a seed.
      seeds: in that order.

    Returns:
      {method: its errors}.
    """
    return {
        name: PooledMethod(
            [one.methods[name][0] for one in measured],
            tuple(seeds),
            [one.methods[name][1] for one in measured],
        )
        for name in measured[0].methods
    }


def of_policy(inputs: Inputs, training: Training) -> Measured:
    """A fine-tuned policy: one sample, and the mean of all.

    Args:
      inputs: trainings, windows and settings.
      training: of a policy.

    Returns:
      The measurement.
    """
    shards = inputs.split.shards
    seed = check_baselines(shards, '').seed
    policy = TrainedPolicy(training.folder, inputs.model_cache, SAMPLES, seed)
    check_baselines(shards, policy.base.digest)
    batches = whole_episodes(
        inputs.split,
        inputs.episodes_at_once,
        policy.config.tokenizer,
        policy.statistics,
        policy.base.policy,
        batch_cache=inputs.batch_cache,
        prompt=policy.base.spec.prompt,
    )
    total = count_batches(inputs.split, inputs.episodes_at_once)
    bar = inputs.bars.add(f'{training.row} {training.seed}', total=total)

    def drawn():
        for batch in batches:
            yield batch, policy.sample(batch)
            bar.advance()

    samples, episode, frame = in_order(drawn())
    windows = inputs.windows
    assert np.array_equal(episode, windows.episode) and np.array_equal(frame, windows.frame)
    of = {training.row: samples[:, 0], f'{training.row}_mean{SAMPLES}': samples.mean(axis=1)}
    methods = {name: Method(views(trajectory, windows.chunk)) for name, trajectory in of.items()}
    return Measured(
        reduced(methods, windows),
        compute.cost(policy.parameter_counts, policy.config, inputs.sample),
    )


def of_sigma(inputs: Inputs, training: Training) -> Measured:
    """A Sigma's own method; of a full one also the adapter and the switch.

    Args:
      inputs: trainings, windows and settings.
      training: of a Sigma.

    Returns:
      The measurement.
    """
    same = training.folder == inputs.reference_run
    trained: Predictor = (
        inputs.opened if same else TrainedSigma(training.folder, inputs.model_cache)
    )
    shards = inputs.split.shards
    check_baselines(shards, trained.base.digest)
    whole = training.role == FULL
    runs = (CARRIED, TAU_OFF) if whole else (CARRIED,)

    def replay(split: str, runs: Sequence[str]) -> ReplayedWindows:
        name = f'{training.row} {training.seed}'
        where = (shards.split(split), inputs.episodes_at_once, inputs.bars)
        return replay_split(trained, *where, runs=runs, name=name, batch_cache=inputs.batch_cache)

    windows, state = (
        (inputs.windows, inputs.state) if same else (replay(inputs.split.name, runs), None)
    )
    if whole and not same and inputs.state is not None:
        state = measure.fit_adapter(replay('calibration', (CARRIED,)), inputs.config.adapter)
    names = {CARRIED: training.row}
    if whole:
        names |= {CARRIED + ADAPTED: training.row + ADAPTED, TAU_OFF: f'{training.row}_tau_off'}
    made = measure.make_methods(windows, None, state)
    methods = {name: made[method] for method, name in names.items() if method in made}
    needs_base = None if training.config.ablation.residual == 0 else inputs.sample
    own = trained.flops(inputs.one)
    return Measured(
        reduced(methods, windows),
        compute.cost(trained.parameter_counts, trained.config, own, needs_base),
    )
