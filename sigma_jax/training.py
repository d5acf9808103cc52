"""The training loop: data in, steps, logs, checkpoints; resumes bit for bit (DESIGN 4)."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sigma_jax import assembly, trees
from sigma_jax.backbones.tokenizer import check_vocab, load_tokenizer
from sigma_jax.baselines import check_baselines
from sigma_jax.checkpoints import Checkpoints, parameter_count
from sigma_jax.convert import beside, checkpoint
from sigma_jax.data import normalize, pipeline
from sigma_jax.data.augment import AugmentConfig
from sigma_jax.data.meta import read_meta
from sigma_jax.data.records import relative_statistics
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write
from sigma_jax.logs import TrainLog
from sigma_jax.objective import overlay
from sigma_jax.optimizer import OptimizerConfig, make_optimizer
from sigma_jax.train_step import TrainState, init_state, make_step
from sigma_jax.types import Ablation, Frozen

PyTree = Any


class Run:
    """All parts of one run, built from its config: loader, base, objective, state, jitted step."""

    def __init__(self, config: Mapping, console: Console):
        self.config, self.console = config, console
        self.base = assembly.load_base(config)
        shards = pathlib.Path(config['shards'])
        self.meta = read_meta(shards)
        assembly.check_images(self.base, self.meta)
        own = normalize.read_norm_stats(shards / 'norm_stats.json')
        self.tokenizer = load_tokenizer(config['tokenizer'])
        check_vocab(self.tokenizer, self.base.config.vocab_size)
        wants_base = config['objective'] == 'flow_matching' and config['stats_from'] == 'base'
        base_stats = assembly.robot_statistics(self.base, self.meta) if wants_base else None
        self.relative_joints = tuple(config['relative_joints']) or self.base.policy.relative_joints
        self.policy_stats = base_stats or relative_statistics(shards, own, self.relative_joints)
        self.loader_stats = base_stats or own
        if config['objective'] == 'sigma':
            check_baselines(shards, self.base.digest)
        self.loader = self._loader(shards)
        example = assembly.to_batch(next(iter(self._loader(shards))))
        self.goal: Any = assembly.make_objective(config, self.base, example)
        frozen = Frozen(
            jax.device_put(self.base.params), assembly.frozen_stats(own, self.policy_stats, self.relative_joints)
        )
        trainable, self.frozen = assembly.make_trainable(config, self.base, self.goal, frozen, example)
        settings = dict(config['optimizer']) | {'total_steps': config['steps']}
        self.optimizer = make_optimizer(assembly.build(OptimizerConfig, settings, 'optimizer'))
        self.ablation = assembly.make_ablation(config)
        self.state = init_state(config['seed'], trainable, self.optimizer, config['ema'] is not None)
        self.step = jax.jit(make_step(self.goal, self.optimizer, config['ema']), donate_argnums=0)

    def _loader(self, shards: pathlib.Path):
        c = self.config
        return pipeline.make_loader(
            shards,
            'train',
            batch_size=c['batch_size'],
            tokenizer=self.tokenizer,
            sequence_length=c['sequence_length'],
            seed=c['seed'],
            shuffle=True,
            num_epochs=None,
            drop_remainder=True,
            baselines='pi05' if c['objective'] == 'sigma' else None,
            norm_stats=self.loader_stats,
            policy=self.base.policy,
            num_workers=c['loader']['num_workers'],
            cache=c['loader']['cache'],
            state_noise=c['state_noise'],
            augment=AugmentConfig() if c['loader'].get('augment') else None,
        )

    def shares(self, batch, key) -> dict[str, jax.Array]:
        """Gradient norm of each loss term; costs four backward passes."""
        measure = jax.jit(self.goal.alignment_share)
        return measure(self.state.trainable, self.frozen, batch, self.ablation, key, self.state.step)


def train(config: Mapping, workdir: str | pathlib.Path, console: Console | None = None) -> TrainState:
    """Trains to `config.steps`, continuing from the newest checkpoint in `workdir`.

    Raises UserError for anything wrong with config, shards, base or checkpoint, and for a loss that is not finite.
    """
    console, workdir = console or Console(), pathlib.Path(workdir)
    plain = json.loads(json.dumps(config))
    run = Run(config, console)
    workdir.mkdir(parents=True, exist_ok=True)
    with Checkpoints(workdir / 'checkpoints', config['checkpoint']['keep']) as checkpoints:
        batches = iter(run.loader)
        if (step := checkpoints.latest()) is not None:
            run.state, position = checkpoints.restore(step, run.state, plain)
            batches.set_state(position)
            console.print(f'continuing from step {step}')
        announce(run, workdir)
        atomic_write(workdir / 'config.json', json.dumps(plain, indent=1))
        with TrainLog(workdir, int(run.state.step)) as log, progress_bar(console) as progress:
            loop(run, batches, checkpoints, log, progress, plain)
    if 'params' in run.state.trainable:
        save_policy(run, workdir / 'policy')
    return run.state


def loop(run: Run, batches: Any, checkpoints: Checkpoints, log: TrainLog, progress: Progress, plain: dict) -> None:
    """Steps from `run.state.step` to `config.steps`; the only place where training has side effects."""
    config, start = run.config, int(run.state.step)
    steps, every = config['steps'], config['log']['every']
    task = progress.add_task('training', total=steps, completed=start, note='compiling')
    for n in range(start, steps):
        batch = assembly.to_batch(next(batches))
        run.state, metrics = run.step(run.state, run.frozen, batch, run.ablation)
        saves = (n + 1) % config['checkpoint']['every'] == 0 or n + 1 == steps
        if n % every == 0 or saves:  # before a checkpoint too, so that every one of them is finite
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            require_finite(values, n, batch)
        if n % every == 0 or n + 1 == steps:
            if config['objective'] == 'sigma' and config['log']['shares'] and n % config['log']['shares'] == 0:
                values |= {k: float(v) for k, v in run.shares(batch, jax.random.key(n)).items()}
            log.write(n, values)
            progress.update(task, note=f'loss {values["loss"]:.4g}')
        progress.update(task, completed=n + 1)
        if saves:
            checkpoints.save(run.state, batches.get_state(), plain)


def require_finite(values: Mapping[str, float], step: int, batch: Any) -> None:
    """Raises UserError naming step, terms and windows when a metric is not finite."""
    if bad := [name for name, value in values.items() if not np.isfinite(value)]:
        windows = sorted({(int(e), int(f)) for e, f in zip(batch.episode.ravel(), batch.frame.ravel(), strict=True)})
        raise UserError(
            f'step {step}: expected finite losses, got NaN or infinity in {bad} (episode, frame: {windows[:8]}); '
            'the last checkpoint is intact: lower optimizer rates or look at these windows, then start again'
        )


def announce(run: Run, workdir: pathlib.Path) -> None:
    """One line on what is trained, on what, where."""
    counts = ', '.join(f'{name} {n:,}' for name, n in parameter_count(run.state.trainable).items())
    frozen, c = trees.count(run.frozen.params), run.config
    windows = c['batch_size'] * c['sequence_length']
    run.console.print(
        f'{c["objective"]}: trainable {counts}; frozen {frozen:,}; {windows} windows a step; '
        f'{jax.devices()[0].device_kind}; logs and checkpoints in {workdir}'
    )


def save_policy(run: Run, out: pathlib.Path) -> None:
    """The trained policy as a converted folder, with the statistics it was trained with."""
    if out.exists():
        run.console.print(f'{out} exists and is left as it is')
        return
    trained_params = (run.state.ema or run.state.trainable)['params']
    params = jax.tree.map(np.asarray, overlay(run.frozen.params, trained_params))
    base = beside.read(run.base.folder) if run.base.folder else beside.Beside(run.base.policy)
    around = beside.trained_with(base, run.policy_stats, run.relative_joints, run.meta['camera_names'])
    trained = checkpoint.Checkpoint(params, run.base.config, 'trained here', (f'{int(run.state.step)} steps',))
    checkpoint.save(trained, out.parent, out, around=around)
    run.console.print(f'policy saved in {out}')


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar with count, elapsed and remaining time and a note."""
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn('{task.fields[note]}'), console=console) as progress:
        yield progress


class Trained:
    """A trained Sigma for evaluation: `predict(batch, ablation) -> SigmaOutput`, leaves [b g ...]."""

    def __init__(self, workdir: pathlib.Path, console: Console):
        file = workdir / 'config.json'
        if not file.is_file():
            raise UserError(f'expected a training folder at {workdir}, got no config.json in it; run train.py first')
        self.config = json.loads(file.read_text())
        if self.config['objective'] != 'sigma':
            raise UserError(f"expected a run with objective 'sigma' in {workdir}, got {self.config['objective']!r}")
        run = Run(self.config, console)
        with Checkpoints(workdir / 'checkpoints') as checkpoints:
            if (step := checkpoints.latest()) is None:
                raise UserError(f'expected a checkpoint in {workdir}, got none; run train.py to its end')
            self.trainable = checkpoints.restore_trainable(step)
        self.frozen, self.base, self.meta, self.policy_stats = run.frozen, run.base, run.meta, run.policy_stats
        self.sequence_length = self.config['sequence_length']
        self.sigma_params = self.trainable['sigma']
        self.parameter_counts = parameter_count(self.trainable) | {'base': trees.count(run.frozen.params)}
        self.provenance = {'step': step, 'seed': self.config['seed'], 'base_digest': run.base.digest}
        self._forward = jax.jit(run.goal.forward)

    def predict(self, batch: Mapping[str, np.ndarray], ablation: Ablation):
        """SigmaOutput of windows [b g ...], memory carried along g and reset where the batch says."""
        gates = jax.tree.map(lambda x: np.asarray(x, np.float32), ablation)
        return jax.device_get(self._forward(self.trainable, self.frozen, assembly.to_batch(batch), gates))


def load_for_evaluation(workdir: str | pathlib.Path, console: Console | None = None) -> Trained:
    """The newest checkpoint of a training folder. Raises UserError where there is none."""
    return Trained(pathlib.Path(workdir), console or Console())
