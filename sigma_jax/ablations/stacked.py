"""Ablations side by side: rows x seeds as one stacked state, one program, one trace
(docs/design.md, "Ablations").

A row is a set of gates (`types.Ablation`), which are data; a member is a row with a seed, which
gives it an initialisation and random numbers of its own. All members see the same batches in the
same order. The frozen weights, and what they make of a batch, are there once for all of them.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from sigma_jax.errors import UserError
from sigma_jax.types import Ablation, Batch, Frozen, PyTree

Step = Callable[[PyTree, Frozen, Batch, Ablation], tuple[PyTree, dict[str, Array]]]
ALIVE = -1


class Member(NamedTuple):
    """One training among the many: the name of its row, its seed, its gates."""

    row: str
    seed: int
    gates: Ablation


@struct.dataclass
class StackedState:
    """Training states of all members, every leaf with a leading axis `m`.

    `failed` is the step at which a member's loss or gradient was no number, `ALIVE` where none was.
    """

    state: PyTree
    failed: Int[Array | np.ndarray, 'm']

    @property
    def step(self) -> int:
        """Steps taken by the members that go on; not for traced states."""
        return int(np.max(jax.device_get(self.state.step)))


def cross(rows: Iterable[tuple[str, Ablation]], seeds: Iterable[int]) -> list[Member]:
    """All rows with all seeds, the seeds of a row next to each other.

    Args:
      rows: names and their gates.
      seeds: of each row.

    Returns:
      The members.
    """
    seeds = tuple(seeds)
    return [Member(name, seed, gates) for name, gates in rows for seed in seeds]


def stack(trees: Iterable[PyTree]) -> PyTree:
    """Trees of one structure -> one tree on the host, every leaf with a leading axis.

    In numpy: on a device, every shape among the hundreds of leaves would be a program to compile.

    Args:
      trees: of one structure.

    Returns:
      One tree, numpy.
    """
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(jax.device_get(tree) for tree in trees))


def stack_gates(members: Iterable[Member]) -> Ablation:
    """Gates of all members, float32 [m].

    Args:
      members: rows and seeds.

    Returns:
      The gates.
    """
    return jax.tree.map(lambda x: x.astype(np.float32), stack([member.gates for member in members]))


def start(states: Iterable[PyTree]) -> StackedState:
    """All members before their first step, on the host.

    Args:
      states: of `training.step.init_state`.

    Returns:
      The members.
    """
    state = stack(states)
    return StackedState(state, np.full(state.step.shape, ALIVE, np.int32))


def member_state(stacked: StackedState, n: int) -> PyTree:
    """The training state of one member; of members on several devices, take `jax.device_get` first.

    Args:
      stacked: all members.
      n: number of the member.

    Returns:
      Its state.
    """
    return jax.tree.map(lambda x: x[n], stacked.state)


def at_once(asked: int, members: int) -> int:
    """The largest number of members, at most `asked`, that divides all of them.

    Args:
      asked: 0 asks for all.
      members: how many there are.

    Returns:
      The number.

    Raises:
      UserError: fewer than none.
    """
    if asked < 0:
        raise UserError(
            f'ablations: expected at_once of 0 or more members, got {asked}; 0 takes '
            'what suits the device'
        )
    return max(n for n in range(1, min(asked or members, members) + 1) if members % n == 0)


def guarded(step: Step) -> Callable:
    """A step of one member, which stays at its last finite state from the first loss or gradient on
    that is no number.

    Args:
      step: of `training.step.make_step`.

    Returns:
      (state, failed, frozen, batch, gates) -> (state, failed, metrics).
    """

    def one(state, failed, frozen, batch, gates):
        new, metrics = step(state, frozen, batch, gates)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
        goes_on = finite & (failed == ALIVE)
        state_after = jax.tree.map(lambda x, y: jnp.where(goes_on, x, y), new, state)
        return state_after, jnp.where(finite | (failed != ALIVE), failed, state.step), metrics

    return one


def vmapped_step(
    step: Step, count: int, share: Callable[[Frozen, Batch], Batch] = lambda frozen, batch: batch
) -> Callable:
    """A step of all members, from that of one.

    Members are computed under `jax.vmap`, `count` at once and then the next ones, in one program:
    all at once they would outgrow a CPU's caches, or a GPU's memory.

    Args:
      step: of `training.step.make_step`.
      count: divides the number of members (`at_once`).
      share: (frozen, batch) -> batch: adds what does not depend on a member; it is computed once.

    Returns:
      `all_members(stacked, frozen, batch, gates) -> (stacked, metrics [m])`.
    """
    chunk = (
        jax.vmap(guarded(step), in_axes=(0, 0, None, None, 0))
        if count > 1
        else _alone(guarded(step))
    )

    def all_members(stacked: StackedState, frozen: Frozen, batch: Batch, gates: Ablation):
        batch = share(frozen, batch)

        def some(part):
            stacked, gates = part
            state, failed, metrics = chunk(stacked.state, stacked.failed, frozen, batch, gates)
            return StackedState(state, failed), metrics

        members = stacked.failed.shape[0]
        if count == members:
            return some((stacked, gates))
        # not a carry that is updated in place: of that, XLA copies all members at each of them
        parts = jax.tree.map(
            lambda x: x.reshape(members // count, count, *x.shape[1:]), (stacked, gates)
        )
        return jax.tree.map(lambda x: x.reshape(members, *x.shape[2:]), jax.lax.map(some, parts))

    return all_members


def _alone(one: Callable) -> Callable:
    """`jax.vmap` over an axis of length 1, without it: products of one member are those of a plain
    step.
    """

    def chunk(state, failed, frozen, batch, gates):
        state, failed, gates = jax.tree.map(lambda x: x[0], (state, failed, gates))
        return jax.tree.map(lambda x: x[None], one(state, failed, frozen, batch, gates))

    return chunk


def mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over seeds.

    Args:
      values: one a seed.

    Returns:
      mean: NaN where there are no values.
      deviation: NaN where there are none, 0 where there is one.
    """
    numbers = list(values)
    if not numbers:
        return math.nan, math.nan
    mean = math.fsum(numbers) / len(numbers)
    spread = math.fsum((x - mean) ** 2 for x in numbers) / max(len(numbers) - 1, 1)
    return mean, math.sqrt(spread)
