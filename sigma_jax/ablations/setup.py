"""The parts of an ablation: those of one run, with all members side by side in one state and one
compiled step.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax

from sigma_jax.ablations import stacked
from sigma_jax.ablations.stacked import Member
from sigma_jax.errors import UserError
from sigma_jax.training import memory, memory_check
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.run import Parts
from sigma_jax.training.step import TrainState, init_state, make_step
from sigma_jax.types import Batch, Frozen

# members whose intermediate results a core's caches can take; measured (benchmarks/ablations.py)
CPU_AT_ONCE = 1


class AblationRun(Parts):
    """Base, data and frozen leaves as of one run; `state` holds all members, `step` moves them by
    one batch.

    Every seed has an initialisation and random numbers of its own; the order of batches is that of
    `config.seed`. Members are divided over as many local devices as divide their number; each
    device computes `at_once` of its own at a time (0: what suits the device).

    Args:
      config: of the whole ablation.
      members: rows and seeds.
      at_once: members that a device computes at a time; 0: what suits the device.

    Raises:
      UserError: anything wrong with config, shards or base.
    """

    def __init__(self, config: RunConfig, members: Sequence[Member], at_once: int = 0):
        check(config)
        # each device sees the whole batch
        share_members(1).check(config.batch_size, config.accumulate)
        super().__init__(config, share_members(len(members)))
        self.members = list(members)
        self.loader = self.make_loader(config.loader.num_workers)
        optimizer = self.blueprint.optimizer
        states = {
            seed: jax.device_get(self._start(seed, optimizer))
            for seed in {member.seed for member in members}
        }
        self.state = self.devices.shard_state(
            stacked.start([states[member.seed] for member in members])
        )
        self.gates = self.devices.shard_state(stacked.stack_gates(members))
        each = len(members) // self.devices.count
        self.at_once = stacked.at_once(at_once or suits(config, each), each)
        # of one member
        self.one = make_step(self.objective, optimizer, config.ema, config.accumulate)
        together = stacked.vmapped_step(self.one, self.at_once, self._share)
        self.step = self.devices.jit_members(together, config.triton)

    def _start(self, seed: int, optimizer) -> TrainState:
        """The state of a run with this seed before its first step."""
        trainable, self.frozen = self.blueprint.start(self.base, self.frozen, self.example, seed)
        return init_state(seed, trainable, optimizer, self.config.ema is not None)

    def _share(self, frozen: Frozen, batch: Batch) -> Batch:
        """The batch with what the frozen policy makes of it, where it was not read from disk."""
        observation = self.objective.encode_frozen(frozen, batch.observation)
        return dataclasses.replace(batch, observation=observation)

    def add_features(self, progress: Callable[[int, int], None]) -> None:
        """See `Parts.add_features`.

        Args:
          progress: called with (windows done, windows in all).
        """
        super().add_features(progress)
        self.loader = self.make_loader(self.config.loader.num_workers)


def suits(config: RunConfig, members: int) -> int:
    """Members that a device of this kind computes best at a time: on a GPU as many as `fitting`
    finds room for.

    Args:
      config: of the run.
      members: on this device.

    Returns:
      How many.
    """
    if jax.default_backend() == 'cpu':
        return CPU_AT_ONCE
    job, _ = memory_check.make_job(config)
    return fitting(memory.forecast(job), members, memory_check.find_card(None).usable)


def fitting(parts: Mapping[str, int], members: int, usable: int) -> int:
    """How many members to take at a time, by the forecast of one's step.

    The states of all lie on the device, and again while new ones are made of old. Of the room left
    only half is used for what comes and goes, where more than one member is in it: a forecast is no
    promise, and a GPU that is full of work gains nothing by more of it.

    Args:
      parts: {part: bytes} of `memory.forecast`.
      members: on this device.
      usable: bytes of the GPU.

    Returns:
      How many.

    Raises:
      UserError: not even one has room.
    """
    state = parts['trainable leaves'] + parts['moments'] + parts['running average']
    passing = (
        parts['gradients'] + parts['kept activations'] + parts['largest layer'] + parts['reserve']
    )
    left = usable - parts['frozen base'] - parts['batch'] - 2 * members * state
    if left < passing:
        needed = (usable - left + passing) / memory_check.GIB
        raise UserError(
            f'expected room for the states of {members} trainings and one step, about '
            f'{needed:.1f} GiB, got {usable / memory_check.GIB:.1f}; train fewer rows or seeds at '
            'once (config.ablations)'
        )
    return max(left // (2 * passing), 1)


def check(config: RunConfig) -> None:
    """Checks that a config's gates change something.

    Args:
      config: of the run.

    Raises:
      UserError: they would change nothing.
    """
    if config.kind.trains_policy:
        raise UserError(
            "config.ablations: expected objective 'sigma', whose parts the gates switch, got "
            f"{config.objective!r}; leave config.ablations out or set config.objective='sigma'"
        )
    if config.log.shares:
        raise UserError(
            f'config.ablations: expected log.shares=0, got {config.log.shares}: shares of '
            'the gradient are measured in a run of its own'
        )


def share_members(members: int) -> Devices:
    """The local devices among which members can be divided evenly.

    Args:
      members: how many.

    Returns:
      As many devices as possible.
    """
    found = jax.local_devices()
    return Devices(found[: max(n for n in range(1, len(found) + 1) if members % n == 0)])
