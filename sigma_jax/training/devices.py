"""Data-parallel training: batches divided over local devices, all else on each of them
(`jax.sharding`).
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sigma_jax import xla
from sigma_jax.errors import UserError
from sigma_jax.types import PyTree

AXIS = 'batch'


class Devices:
    """Where the arrays of a run lie (`jax.sharding`).

    With one device JAX is not asked for any sharding, and programs are the same as without this
    class. With several, a jitted step is still one program over the whole batch: hard set, InfoNCE
    and means see all windows.

    Args:
      devices: of this process.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        self.count = len(devices)
        self._mesh = mesh = Mesh(np.asarray(devices), (AXIS,))
        self._replicated, self._sharded = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,))
        )

    def replicate(self, tree: PyTree) -> PyTree:
        """A tree on every device, whole.

        Args:
          tree: arrays.

        Returns:
          The tree on the devices.
        """
        return jax.device_put(tree) if self.count == 1 else jax.device_put(tree, self._replicated)

    def shard_batch(self, batch: PyTree) -> PyTree:
        """A batch with its first axis divided over the devices.

        Args:
          batch: arrays; their first axis is a multiple of the number of devices.

        Returns:
          The batch; with one device as it was.
        """
        return batch if self.count == 1 else self.shard_state(batch)

    def shard_state(self, tree: PyTree) -> PyTree:
        """As `shard_batch`, and put on the device in any case: for a state whose buffers a step may
        take over.

        Args:
          tree: arrays.

        Returns:
          The tree on the devices.
        """
        return jax.device_put(tree) if self.count == 1 else jax.device_put(tree, self._sharded)

    def jit(self, step: Callable, triton: bool = False) -> Callable:
        """A step of `training.step.make_step`, compiled.

        Args:
          step: of `make_step`; the buffers of its state are taken over (donated), and the new state
            is on every device.
          triton: whether XLA may use Triton.

        Returns:
          The compiled step.
        """
        options: dict[str, Any] = {'donate_argnums': 0, 'triton': triton}
        if self.count > 1:
            whole, rows = self._replicated, self._sharded
            options |= {
                'in_shardings': (whole, whole, rows, whole),
                'out_shardings': (whole, whole),
            }
        return xla.jit(step, **options)

    def jit_members(self, step: Callable, triton: bool = False) -> Callable:
        """A step over many states side by side, compiled: each device has its own states, all of
        them the whole batch.

        Args:
          step: takes states, frozen weights, a batch and gates; the first and last have a leading
            axis.
          triton: whether XLA may use Triton.

        Returns:
          The compiled step.
        """
        options: dict[str, Any] = {'donate_argnums': 0, 'triton': triton}
        if self.count == 1:
            return xla.jit(step, **options)
        whole, rows = PartitionSpec(), PartitionSpec(AXIS)
        inputs = (rows, whole, whole, rows)
        apart = jax.shard_map(
            step, mesh=self._mesh, in_specs=inputs, out_specs=rows, check_vma=False
        )
        return xla.jit(apart, **options)

    def check(self, batch_size: int, accumulate: int) -> None:
        """Checks that a batch can be divided evenly into micro-batches, and these over the devices.

        Args:
          batch_size: sequences of a step.
          accumulate: micro-batches of a step.

        Raises:
          UserError: it cannot.
        """
        if accumulate < 1:
            raise UserError(
                f'accumulate: expected at least 1 micro-batch a step, got {accumulate}; correct it'
            )
        if batch_size % (accumulate * self.count):
            raise UserError(
                f'batch_size: expected a multiple of {accumulate * self.count} ({accumulate} '
                f'micro-batches on {self.count} devices), got {batch_size}; change it, or '
                'accumulate, or show fewer devices (CUDA_VISIBLE_DEVICES)'
            )


def use_all_cores() -> None:
    """Where JAX runs on a CPU, makes every core a device of its own; to be called before JAX is
    asked for devices.

    Trainings of an ablation on a core each are faster than all of them on all cores
    (benchmarks/ablations.py).
    """
    if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
        jax.config.update('jax_num_cpu_devices', len(os.sched_getaffinity(0)))


def local_devices() -> Devices:
    """All devices of this machine."""
    return Devices(jax.local_devices())
