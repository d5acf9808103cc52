"""The parts of a run with their numbers: base, data, frozen leaves, state and compiled step."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from sigma_jax import xla
from sigma_jax.convert.load_base import read_weights
from sigma_jax.data.loader import loader
from sigma_jax.data.loader.augment import AugmentConfig
from sigma_jax.data.loader.batches import Batches
from sigma_jax.data.loader.cached_features import Features
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import Contents, shards_processor
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.tokenizer import check_vocab, load_tokenizer
from sigma_jax.training import feature_cache
from sigma_jax.training.build import Blueprint, build, make_ablation
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices, local_devices
from sigma_jax.training.materialise import store_base
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import Batch, Frozen, to_batch


class Parts:
    """What training and evaluation share: base, statistics, objective and frozen leaves, and an
    example of the data.

    The base's weights are read last: whatever is wrong with the rest is reported at once.

    Args:
      config: of the run.
      devices: where its arrays lie.
    """

    def __init__(self, config: RunConfig, devices: Devices):
        self.config, self.devices = config, devices
        self.features: Features | None = None
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.blueprint: Blueprint = build(config)
        self.shards = self.blueprint.shards
        check_vocab(self.tokenizer, self.blueprint.base.config.vocab_size)
        self.blueprint.check()
        self.statistics = self.blueprint.statistics
        self.base = self.blueprint.base
        self.processor = shards_processor(
            self.shards,
            self.tokenizer,
            self.statistics.loader,
            self.base.policy,
            self.base.spec.prompt,
        )
        self.example = to_batch(next(iter(self.make_loader(num_workers=0))))
        self.objective: Any = self.blueprint.objective
        self.base = read_weights(self.base, config.seed, config.tokenizer)
        self.blueprint.check_base(self.base.digest)
        s = self.statistics
        scaling = action_scaling(s.own, s.policy, s.relative_joints)
        weights = store_base(config, self.base, self.objective)
        self.frozen = devices.replicate(Frozen(weights, scaling))

    def add_features(self, progress: Callable[[int, int], None]) -> None:
        """From here on loaders give the frozen features too; those that are not on disk are
        computed first.

        Args:
          progress: called with (windows done, windows in all).
        """
        encode = functools.partial(xla.jit(self.objective.encode_frozen), self.frozen)
        fingerprint = feature_cache.identity(self.config, self.base, self.shards)
        train = self.shards.split('train')
        self.features = feature_cache.prepare(fingerprint, train, encode, self.in_order, progress)

    def in_order(self, batch_size: int) -> Batches:
        """Every training window once, in record order, leaves [b 1 ...].

        Args:
          batch_size: windows of a batch.

        Returns:
          An iterator of batches.
        """
        return loader.make_loader(self.shards.split('train'), self.processor, Order(batch_size))

    def make_loader(self, num_workers: int) -> Batches:
        """Training batches without end, from the first one on.

        Args:
          num_workers: decoding processes.

        Returns:
          An iterator of batches.
        """
        c = self.config
        order = Order(
            batch_size=c.batch_size,
            sequence_length=c.sequence_length,
            seed=c.seed,
            shuffle=True,
            num_epochs=None,
            drop_remainder=True,
        )
        contents = Contents(
            baselines='pi05' if c.kind.needs_base_actions else None,
            cache=c.loader.cache,
            state_noise=c.state_noise,
            augment=AugmentConfig() if c.loader.augment else None,
            features=self.features,
        )
        train = self.shards.split('train')
        return loader.make_loader(train, self.processor, order, contents, num_workers)


class Run(Parts):
    """A training run: its parts, the loader, the state before the first step, and the compiled
    step.

    Args:
      config: of the run.
      devices: where its arrays lie; None: all of this machine.

    Raises:
      UserError: anything wrong with config, shards or base.
    """

    def __init__(self, config: RunConfig, devices: Devices | None = None):
        devices = devices or local_devices()
        devices.check(config.batch_size, config.accumulate)
        self.ablation = make_ablation(config)
        super().__init__(config, devices)
        optimizer = self.blueprint.optimizer
        self.loader = self.make_loader(config.loader.num_workers)
        trainable, self.frozen = self.blueprint.start(self.base, self.frozen, self.example)
        self.frozen = devices.replicate(self.frozen)
        keeps_average = config.ema is not None
        self.state = devices.replicate(init_state(config.seed, trainable, optimizer, keeps_average))
        step = make_step(self.objective, optimizer, config.ema, config.accumulate)
        self.step = devices.jit(step, config.triton)

    def add_features(self, progress: Callable[[int, int], None]) -> None:
        """See `Parts.add_features`.

        Args:
          progress: called with (windows done, windows in all).
        """
        super().add_features(progress)
        self.loader = self.make_loader(self.config.loader.num_workers)

    def gradient_norms(self, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Gradient norm of each loss term; costs four backward passes.

        Args:
          batch: to measure on.
          key: seed.

        Returns:
          {name: number}.
        """
        measure = xla.jit(self.objective.gradient_norms)
        return measure(
            self.state.trainable, self.frozen, batch, self.ablation, key, self.state.step
        )
