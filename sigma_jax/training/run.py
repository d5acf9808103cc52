"""The parts of a run, built from its config: base, data, objective, frozen leaves, state and
step.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from sigma_jax import xla
from sigma_jax.convert.base_policy import check_images, describe_base, load_base, robot_statistics
from sigma_jax.data.loader import loader
from sigma_jax.data.loader.augment import AugmentConfig
from sigma_jax.data.loader.feature_cache import Features
from sigma_jax.data.shards.meta import read_meta
from sigma_jax.data.shards.records import relative_statistics
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.processing import fitting, normalize
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.tokenizer import check_vocab, load_tokenizer
from sigma_jax.settings import from_section
from sigma_jax.training import build, feature_cache
from sigma_jax.training.devices import Devices, local_devices
from sigma_jax.training.optimizer import OptimizerConfig, make_optimizer
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import Frozen, to_batch


class Parts:
    """What training and evaluation share: base, statistics, objective and frozen leaves, and an
    example of the data.

    The base's weights are read last: whatever is wrong with the rest is told at once.
    """

    def __init__(self, config: Mapping, devices: Devices):
        self.config, self.devices = config, devices
        self.features: Features | None = None
        self.base = describe_base(config)
        self.shards = pathlib.Path(config['shards'])
        self.meta = read_meta(self.shards)
        check_images(self.base, self.meta)
        own = normalize.read_norm_stats(self.shards / 'norm_stats.json')
        self.tokenizer = load_tokenizer(config['tokenizer'])
        check_vocab(self.tokenizer, self.base.config.vocab_size)
        wants_base = config['objective'] == 'flow_matching' and config['stats_from'] == 'base'
        base_stats = robot_statistics(self.base, self.meta) if wants_base else None
        widest = self.base.config.action_dim
        self.relative_joints = fitting.of_shards(
            config['relative_joints'], self.base.policy, self.meta, widest
        )
        self.policy_stats = base_stats or relative_statistics(
            self.shards, own, self.relative_joints
        )
        self.loader_stats = base_stats or own
        if config['objective'] == 'sigma':
            check_baselines(self.shards, self.base.digest)
        self.example = to_batch(next(iter(self.make_loader(num_workers=0))))
        self.goal: Any = build.make_objective(config, self.base, self.example)
        build.check_groups(config)
        self.base = load_base(config)
        if config['objective'] == 'sigma':
            check_baselines(self.shards, self.base.digest)
        scaling = action_scaling(own, self.policy_stats, self.relative_joints)
        self.frozen = devices.everywhere(
            Frozen(build.store_base(config, self.base, self.goal), scaling)
        )

    def add_features(self, progress: Callable[[int, int], None]) -> None:
        """From here on loaders give the frozen features too; those that are not on disk are
        computed first.

        `progress` is told (windows done, windows in all) while that goes on.
        """
        encode = functools.partial(xla.jit(self.goal.encode_frozen), self.frozen)
        made_by = feature_cache.identity(self.config, self.base, self.shards)
        windows = self.meta['windows']['train']
        self.features = feature_cache.prepare(
            made_by, self.shards, 'train', windows, encode, self.in_order, progress
        )

    def in_order(self, batch_size: int):
        """Every training window once, in record order, leaves [b 1 ...]."""
        given: dict[str, Any] = {'norm_stats': self.loader_stats, 'policy': self.base.policy}
        return loader.make_loader(
            self.shards, 'train', batch_size=batch_size, tokenizer=self.tokenizer, **given
        )

    def make_loader(self, num_workers: int):
        """Training batches without end, from the first one on."""
        c = self.config
        return loader.make_loader(
            self.shards,
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
            num_workers=num_workers,
            cache=c['loader']['cache'],
            state_noise=c['state_noise'],
            augment=AugmentConfig() if c['loader'].get('augment') else None,
            features=self.features,
        )


class Run(Parts):
    """A training run: beside its parts the loader, the state before the first step, and the
    compiled step.

    Raises UserError for anything wrong with config, shards or base.
    """

    def __init__(self, config: Mapping, devices: Devices | None = None):
        devices = devices or local_devices()
        accumulate = config.get('accumulate', 1)
        devices.check(config['batch_size'], accumulate)
        settings = dict(config['optimizer']) | {'total_steps': config['steps']}
        optimizer = make_optimizer(from_section(OptimizerConfig, settings, 'optimizer'))
        self.ablation = build.make_ablation(config)
        super().__init__(config, devices)
        self.loader = self.make_loader(config['loader']['num_workers'])
        trainable, self.frozen = build.make_trainable(
            config, self.base, self.goal, self.frozen, self.example
        )
        self.frozen = devices.everywhere(self.frozen)
        self.state = devices.everywhere(
            init_state(config['seed'], trainable, optimizer, config['ema'] is not None)
        )
        self.step = devices.jit(
            make_step(self.goal, optimizer, config['ema'], accumulate), config.get('triton', False)
        )

    def add_features(self, progress: Callable[[int, int], None]) -> None:
        """See `Parts.add_features`."""
        super().add_features(progress)
        self.loader = self.make_loader(self.config['loader']['num_workers'])

    def shares(self, batch, key) -> dict[str, jax.Array]:
        """Gradient norm of each loss term; costs four backward passes."""
        measure = xla.jit(self.goal.alignment_share)
        return measure(
            self.state.trainable, self.frozen, batch, self.ablation, key, self.state.step
        )
