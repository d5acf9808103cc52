"""Many trainings on the same episodes: each is opened, replayed or sampled, reduced to errors, and let go."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from sigma_jax import metrics
from sigma_jax.adapter import AdapterState
from sigma_jax.baselines import RECORD, check_baselines
from sigma_jax.errors import UserError
from sigma_jax.evaluation import comparison, compute, measure
from sigma_jax.evaluation.checks import ADAPTED, BASE
from sigma_jax.evaluation.comparison import PooledArm
from sigma_jax.evaluation.measure import Arm, EvaluationConfig
from sigma_jax.evaluation.replay import CARRIED, TAU_OFF, Windows, views
from sigma_jax.evaluation.replay_shards import count_batches, in_order, list_batches, replay_split, whole_episodes
from sigma_jax.evaluation.trained import Library, Trained, TrainedPolicy
from sigma_jax.evaluation.trainings import FULL, NO_TAU, TUNED, Training, lead

DRAWS = 8  # of a fine-tuned policy, for the mean (DESIGN 3.8)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is compared, on which split of which shards; `opened` is the folder that is open already."""

    trainings: Sequence[Training]
    opened: pathlib.Path
    shards: pathlib.Path
    split: str
    episodes_at_once: int
    config: EvaluationConfig
    library: Library
    bar: Progress
    calibrated: bool  # whether an adapter is fitted, on calibration episodes


class Collected:
    """Errors of arms on the windows of one split, a seed at a time."""

    def __init__(self, windows: Windows):
        self.windows = windows
        self.arms: dict[str, list[tuple[int | None, metrics.Errors, np.ndarray]]] = {}

    def add(self, name: str, seed: int | None, arm: Arm) -> None:
        """One arm of one training (or, without a seed, of none)."""
        windows = self.windows
        by_step = metrics.error_by_step(np.asarray(arm.actions.traj), windows.actions, windows.action_mask)
        self.arms.setdefault(name, []).append((seed, measure.errors_of(arm, windows), by_step))

    def pooled(self) -> dict[str, PooledArm]:
        """All arms, seeds together."""
        return {name: PooledArm(*self._columns(of)) for name, of in self.arms.items()}

    @staticmethod
    def _columns(of: list) -> tuple:
        seeds, errors, by_step = zip(*of, strict=True)
        return errors, tuple(seed for seed in seeds if seed is not None), by_step


def compare_rows(
    inputs: Inputs, opened: Any, splits: Mapping[str, Windows], state: AdapterState | None
) -> dict[str, Any]:
    """The report's section `comparison`: arms by row, contrasts, what each row is and costs.

    Arms that need no training come first; of the full Sigma also the adapter, fitted anew for each seed, and the
    telepathy switch; a fine-tuned policy gives one sample and the mean of `DRAWS`.
    """
    windows = splits[inputs.split]
    collected, rows = Collected(windows), by_row(inputs.trainings)
    untrained = dataclasses.replace(windows, predictions={CARRIED: windows.predictions[CARRIED]})
    for name, arm in measure.make_arms(untrained, splits.get('train'), None).items():
        if name != CARRIED:
            collected.add(name, None, arm)
    if taken := [row for row in rows if row in collected.arms]:
        raise UserError(f'expected rows with names of their own, got {taken[0]!r}, an arm; use --workdir=NAME=PATH')
    one = next(iter(list_batches(opened, inputs.shards, inputs.split, inputs.episodes_at_once)))
    sample = compute.of_sample(opened.base.config, one)
    facts = {row: add_row(inputs, row, of, collected, opened, splits, state, one, sample) for row, of in rows.items()}
    tuned = [row for row, of in rows.items() if of[0].role == TUNED]
    sigmas = [row for row, of in rows.items() if of[0].role != TUNED]
    head = lead(list(inputs.trainings))
    full = head.row if head.role == FULL else None
    against = comparison.pairs(list(collected.arms), tuned, [row for row in sigmas if row != full], full)
    against += [(full, f'{row}_mean{DRAWS}') for row in tuned if full]
    report = comparison.compare(collected.pooled(), windows.episode, against, inputs.config.seed)
    no_tau = next((row for row in sigmas if rows[row][0].role == NO_TAU), None)
    costs = {BASE: compute.cost(base=sample)} | {row: values.pop('compute') for row, values in facts.items()}
    roles = {'full': full, 'no_tau': no_tau, 'tuned': tuned, 'ablations': [row for row in sigmas if row != full]}
    return {'split': inputs.split, 'rows': facts, **roles, **report, 'compute': costs}


def by_row(trainings: Sequence[Training]) -> dict[str, list[Training]]:
    """Trainings of each row in the order of their seeds; fine-tuned policies first, then the full Sigma."""
    order = {TUNED: 0, FULL: 1}
    rows: dict[str, list[Training]] = {}
    for training in sorted(trainings, key=lambda t: (order.get(t.role, 2), t.role != NO_TAU)):
        rows.setdefault(training.row, []).append(training)
    return {row: sorted(of, key=lambda t: t.seed) for row, of in rows.items()}


def add_row(inputs, row, of, collected, opened, splits, state, one, sample) -> dict[str, Any]:
    """Replays or samples every seed of a row; returns what it is and costs."""
    gates = of[0].config.get('ablation', {})
    facts: dict[str, Any] = {'role': of[0].role, 'seeds': [t.seed for t in of], 'gates': gates}
    for training in of:
        if training.role == TUNED:
            policy = TrainedPolicy(training.folder, inputs.library, DRAWS, base_seed(inputs.shards))
            add_policy(inputs, training, policy, collected)
            facts['compute'] = compute.cost(policy.parameter_counts, policy.config, sample)
        else:
            same = training.folder == inputs.opened
            trained = opened if same else Trained(training.folder, inputs.library)
            check_baselines(inputs.shards, trained.base.digest)
            add_sigma(inputs, training, trained, collected, (splits, state) if same else None)
            own = compute.of_sigma(trained, one)
            needs_base = None if gates.get('residual', 1.0) == 0 else sample
            facts['compute'] = compute.cost(trained.parameter_counts, trained.config, own, needs_base)
    return facts


def add_policy(inputs: Inputs, training: Training, policy: TrainedPolicy, collected: Collected) -> None:
    """One sample and the mean of all."""
    batches = whole_episodes(
        inputs.shards,
        inputs.split,
        inputs.episodes_at_once,
        policy.config['tokenizer'],
        policy.statistics,
        policy.base.policy,
    )
    total = count_batches(inputs.shards, inputs.split, inputs.episodes_at_once)
    task = inputs.bar.add_task(f'{training.row} {training.seed}', total=total, note='')

    def drawn():
        for batch in batches:
            yield batch, policy.sample(batch)
            inputs.bar.advance(task)

    samples, episode, frame = in_order(drawn())
    windows = collected.windows
    assert np.array_equal(episode, windows.episode) and np.array_equal(frame, windows.frame)
    for name, trajectory in ((training.row, samples[:, 0]), (f'{training.row}_mean{DRAWS}', samples.mean(axis=1))):
        collected.add(name, training.seed, Arm(views(trajectory, windows.chunk)))


def add_sigma(
    inputs: Inputs, training: Training, trained: Trained, collected: Collected, replayed: tuple | None
) -> None:
    """The row's own arm; for the full Sigma also the adapter and the switch."""
    whole = training.role == FULL
    runs = (CARRIED, TAU_OFF) if whole else (CARRIED,)
    what = f'{training.row} {training.seed}'

    def replay(split: str, runs: Sequence[str]) -> Windows:
        return replay_split(trained, inputs.shards, split, inputs.episodes_at_once, inputs.bar, runs, what)

    if replayed is not None:
        splits, state = replayed
        windows = splits[inputs.split]
    else:
        windows, state = replay(inputs.split, runs), None
        if whole and inputs.calibrated:
            state = measure.fit_adapter(replay('calibration', (CARRIED,)), inputs.config.adapter)
    names = {CARRIED: training.row}
    if whole:
        names |= {CARRIED + ADAPTED: training.row + ADAPTED, TAU_OFF: f'{training.row}_tau_off'}
    arms = measure.make_arms(windows, None, state)
    for arm, name in names.items():
        if arm in arms:
            collected.add(name, training.seed, arms[arm])


def base_seed(shards: pathlib.Path) -> int:
    """The seed that the base was sampled with."""
    return json.loads((shards / RECORD).read_text())['seed']
