"""Offline replay: the model run over whole episodes, its outputs kept as flat numpy windows (paper
5; docs/design.md, "Evaluation protocol").
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sigma_jax.errors import UserError
from sigma_jax.evaluation.metrics import cosine
from sigma_jax.types import Ablation, Actions, SigmaOutput

NumpyBatch = dict[str, np.ndarray]
# leaves [b g ...] in, leaves [b g ...] out
RunWindows = Callable[[NumpyBatch, Ablation], SigmaOutput]

CARRIED, TAU_OFF, RESET = 'sigma', 'sigma_tau_off', 'sigma_reset'
RUNS = (CARRIED, TAU_OFF, RESET)
EVERYTHING = Ablation()


@dataclasses.dataclass
class Prediction:
    """One run of one model over `n` windows."""

    actions: Actions
    tau: Float[np.ndarray, 'n e']
    c_act0: Float[np.ndarray, 'n e']
    sem_align: Float[np.ndarray, 'n']


@dataclasses.dataclass
class ReplayedWindows:
    """All windows of one split, sorted by episode and frame; actions and state in raw units."""

    actions: Float[np.ndarray, 'n t a']
    action_mask: Bool[np.ndarray, 'n t']
    base: Float[np.ndarray, 'n t a']
    state: Float[np.ndarray, 'n p']
    episode: Int[np.ndarray, 'n']
    frame: Int[np.ndarray, 'n']
    predictions: dict[str, Prediction]
    # several base samples, where they were recorded
    samples: Float[np.ndarray, 'n m t a'] | None = None

    @property
    def chunk(self) -> int:
        """Steps of the `chk` branch."""
        return self.predictions[CARRIED].actions.chk.shape[1]

    def select(self, rows: Any) -> 'ReplayedWindows':
        """Some of the windows, in every array.

        Args:
          rows: indices, or a mask.

        Returns:
          Their table.
        """
        predictions = {
            name: Prediction(
                Actions(p.actions.vec[rows], p.actions.chk[rows], p.actions.traj[rows]),
                p.tau[rows],
                p.c_act0[rows],
                p.sem_align[rows],
            )
            for name, p in self.predictions.items()
        }
        arrays = {name: getattr(self, name) for name in ARRAYS}
        samples = None if self.samples is None else self.samples[rows]
        return ReplayedWindows(
            **{k: v[rows] for k, v in arrays.items()}, predictions=predictions, samples=samples
        )


ARRAYS = ('actions', 'action_mask', 'base', 'state', 'episode', 'frame')


def replay(
    batches: Iterable[NumpyBatch],
    run_windows: RunWindows,
    sequence_length: int,
    *,
    raw_state: Callable[[np.ndarray], np.ndarray] = lambda state: state,
    samples: Float[np.ndarray, 'r m t a'] | None = None,
    on_batch: Callable[[], None] = lambda: None,
    gates: Ablation = EVERYTHING,
    runs: Sequence[str] = RUNS,
) -> ReplayedWindows:
    """Runs the model up to three times over every batch: memory carried, telepathy off, memory
    reset.

    The third run starts anew every `sequence_length` windows, as training did. Padding windows are
    dropped.

    Args:
      batches: whole episodes, leaves [b g ...].
      run_windows: the model.
      sequence_length: of the training.
      raw_state: undoes the normalisation of states.
      samples: several actions of the base for every record; `batch['record']` numbers each
        window's.
      on_batch: called after each batch.
      gates: that the model was trained with.
      runs: which of the three.

    Returns:
      All windows.

    Raises:
      UserError: no valid window comes.
    """
    parts: list[ReplayedWindows] = []
    for batch in batches:
        inputs = {
            CARRIED: (batch, gates),
            TAU_OFF: (batch, dataclasses.replace(gates, tau=0.0)),
            RESET: (batch | {'reset': reset_every(batch['reset'], sequence_length)}, gates),
        }
        keep = np.asarray(batch['mask'], bool).reshape(-1)
        predictions = {
            name: predict(run_windows(*inputs[name]), batch['mask'].ndim, keep) for name in runs
        }
        arrays = {name: flatten(batch[name], batch['mask'].ndim)[keep] for name in ARRAYS}
        arrays['state'] = raw_state(arrays['state'])
        drawn = (
            None if samples is None else samples[flatten(batch['record'], batch['mask'].ndim)[keep]]
        )
        parts.append(ReplayedWindows(**arrays, predictions=predictions, samples=drawn))
        on_batch()
    if not any(len(part.episode) for part in parts):
        raise UserError(
            'replay: expected windows, got none; check that the split has episodes '
            '(prepare_data.py)'
        )
    windows = concatenate(parts)
    return windows.select(np.lexsort((windows.frame, windows.episode)))


def predict(output: SigmaOutput, axes: int, keep: Bool[np.ndarray, 'n']) -> Prediction:
    """What evaluation keeps of a forward pass, valid windows only, leading axes flattened.

    Args:
      output: of the model.
      axes: leading axes that become one.
      keep: true for valid windows.

    Returns:
      numpy.
    """

    def flat(x: Any) -> Any:
        return flatten(np.asarray(x, np.float32), axes)[keep]

    actions = Actions(flat(output.actions.vec), flat(output.actions.chk), flat(output.actions.traj))
    sem_align = cosine(flat(output.telepathy.z_pool), flat(output.text_pool))
    return Prediction(actions, flat(output.telepathy.tau), flat(output.c_act0), sem_align)


def views(trajectory: Any, chunk: int) -> Actions:
    """`Actions.from_trajectory` for numpy arrays.

    Args:
      trajectory: [n t a].
      chunk: c.

    Returns:
      The three branches.
    """
    return Actions.from_trajectory(trajectory, chunk)


def reset_every(reset: Bool[np.ndarray, 'b g'], length: int) -> Bool[np.ndarray, 'b g']:
    """Where the memory starts anew: at resets, and at every `length`-th window since the last one;
    single windows [b] are all reset.

    Args:
      reset: of the batch.
      length: of a run.

    Returns:
      One flag a window.
    """
    if reset.ndim == 1:
        return np.ones_like(reset)
    index = np.arange(reset.shape[1])
    start = np.maximum.accumulate(np.where(reset, index, 0), axis=1)
    return np.asarray(reset, bool) | ((index - start) % length == 0)


def flatten(x: np.ndarray, axes: int) -> np.ndarray:
    """[b g ...] -> [b*g ...].

    Args:
      x: any array.
      axes: that become one.

    Returns:
      The reshaped array.
    """
    return x.reshape(-1, *x.shape[axes:])


def concatenate(parts: list[ReplayedWindows]) -> ReplayedWindows:
    """One `ReplayedWindows` of several, in order.

    Args:
      parts: at least one.

    Returns:
      One table.
    """
    names = parts[0].predictions
    predictions = {
        name: concatenate_predictions([part.predictions[name] for part in parts]) for name in names
    }
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
    samples = None if parts[0].samples is None else np.concatenate([part.samples for part in parts])
    return ReplayedWindows(**arrays, predictions=predictions, samples=samples)


def pad_windows(batch: NumpyBatch, length: int) -> NumpyBatch:
    """[b g ...] -> [b length ...]: repeats the last window with mask False, so that all splits
    share one shape.

    Args:
      batch: [b g ...].
      length: of its second axis.

    Returns:
      [b length ...].
    """
    missing = length - batch['mask'].shape[1]
    if missing <= 0:
        return batch
    padded = {
        key: np.concatenate([x, np.repeat(x[:, -1:], missing, axis=1)], axis=1)
        for key, x in batch.items()
    }
    padded['mask'][:, -missing:] = False
    return padded


def concatenate_predictions(parts: list[Prediction]) -> Prediction:
    """One `Prediction` of several, in order.

    Args:
      parts: at least one.

    Returns:
      One.
    """
    branches: Any = [
        np.concatenate([getattr(p.actions, name) for p in parts]) for name in ('vec', 'chk', 'traj')
    ]
    rest = [
        np.concatenate([getattr(p, name) for p in parts]) for name in ('tau', 'c_act0', 'sem_align')
    ]
    return Prediction(Actions(*branches), *rest)
