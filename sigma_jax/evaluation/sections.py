"""Sections of a report beside the errors of one checkpoint; each of the headline split."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sigma_jax.data.shards.directory import Shards, Split
from sigma_jax.evaluation.compare import run as comparison_run
from sigma_jax.evaluation.cost import compute
from sigma_jax.evaluation.predictor import Predictor
from sigma_jax.evaluation.replay import NumpyBatch, ReplayedWindows
from sigma_jax.evaluation.replay_shards import BatchCache, list_batches
from sigma_jax.evaluation.report.tables import headline
from sigma_jax.evaluation.request import Request
from sigma_jax.evaluation.stress import robustness, stress
from sigma_jax.evaluation.stress.perturb import every_level
from sigma_jax.evaluation.trained_models import ModelCache
from sigma_jax.policies.sampled_policy import stored_weights
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training.progress import Bars
from sigma_jax.types import to_batch


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A trained Sigma and its replays of all splits asked for.

    `state` is its adapter, where calibration episodes were replayed; `model_cache` and
    `batch_cache` hold what further trainings and replays share.
    """

    request: Request
    trained: Predictor
    shards: Shards
    splits: Mapping[str, ReplayedWindows]
    state: AdapterState | None
    model_cache: ModelCache
    batch_cache: BatchCache

    @property
    def split(self) -> Split:
        """The one that the sections are of."""
        return self.shards.split(headline(self.splits))

    @property
    def windows(self) -> ReplayedWindows:
        """Its replay."""
        return self.splits[self.split.name]

    def batches(self) -> Iterator[NumpyBatch]:
        """Its windows again, whole episodes at a time, as Sigma sees them."""
        at_once = self.request.episodes_at_once
        return list_batches(self.trained, self.split, at_once, self.batch_cache)


def sections(replayed: Replayed, bars: Bars) -> dict[str, Any]:
    """What the request asks for, by its key in the report.

    Args:
      replayed: a trained Sigma and its replays.
      bars: where bars are shown.

    Returns:
      {'compute', 'stress', 'robustness' or 'comparison': the section}.
    """
    request = replayed.request
    found: dict[str, Any] = {}
    if not request.rows:
        found |= costs(replayed)
    if request.stress and replayed.state is not None:
        found['stress'] = stressed(replayed, replayed.state, bars)
    if request.robustness:
        found['robustness'] = perturbed(replayed, bars)
    if request.rows:
        found['comparison'] = compared(replayed, bars)
    return found


def costs(replayed: Replayed) -> dict[str, Any]:
    """What the base and Sigma cost, where Sigma's arithmetic is known.

    Args:
      replayed: a trained Sigma and its replays.

    Returns:
      {'compute': parameters and operations of both}, or {}.
    """
    trained, batch = replayed.trained, next(replayed.batches())
    if (own := trained.flops(batch)) is None:
        return {}
    sample = compute.of_sample(trained.base.config, to_batch(batch))
    sigma = compute.cost(trained.parameter_counts, trained.config, own, sample)
    return {'compute': {'pi05': compute.cost(base=sample), 'sigma': sigma}}


def stressed(replayed: Replayed, state: AdapterState, bars: Bars) -> dict[str, Any]:
    """The adapter when Sigma goes wrong.

    Args:
      replayed: a trained Sigma and its replays.
      state: its adapter.
      bars: where its bar is shown.

    Returns:
      The section `stress`.
    """
    bar, clean = bars.add('stress'), replayed.windows
    every = stress.every_stress(clean, replayed.batches, replayed.trained)
    found = {'split': replayed.split.name} | stress.report(clean, every, state)
    bar.update(1, total=1)
    return found


def perturbed(replayed: Replayed, bars: Bars) -> dict[str, Any]:
    """All methods under noise, black images and a late state, the base sampled anew on each.

    Args:
      replayed: a trained Sigma and its replays.
      bars: where its bar is shown.

    Returns:
      The section `robustness`.
    """
    shards, split, trained = replayed.shards, replayed.split, replayed.trained
    storage = trained.config.quant
    weights = stored_weights(trained.base, storage, trained.frozen.params)
    base = robustness.BasePolicy(shards, trained.base, weights)
    bar = bars.add('robustness', total=9)

    def pairs() -> Iterable[tuple[NumpyBatch, NumpyBatch]]:
        bases = base.batches(split, replayed.request.episodes_at_once, replayed.batch_cache)
        return zip(replayed.batches(), bases, strict=True)

    clean = replayed.windows
    if storage.kind != 'stored':  # the base on the clean windows as on the others
        again = robustness.perturbed(pairs(), lambda batch: batch, base.sample)
        clean = robustness.replayed(again, trained)
    rows = robustness.table(
        clean,
        pairs,
        trained,
        base.sample,
        replayed.state,
        shards.meta.stride,
        on_level=bar.advance,
    )
    sampled = len(every_level()) * len(replayed.windows.episode)
    return {'split': split.name, 'base_samples': sampled, 'rows': rows}


def compared(replayed: Replayed, bars: Bars) -> dict[str, Any]:
    """All trainings of the request against each other.

    Args:
      replayed: a trained Sigma and its replays.
      bars: where a bar for each training is shown.

    Returns:
      The section `comparison`.
    """
    request = replayed.request
    inputs = comparison_run.Inputs(
        trainings=request.rows,
        reference_run=request.workdir,
        opened=replayed.trained,
        splits=replayed.splits,
        state=replayed.state,
        split=replayed.split,
        episodes_at_once=request.episodes_at_once,
        config=request.config,
        model_cache=replayed.model_cache,
        bars=bars,
        out=request.folder,
        batch_cache=replayed.batch_cache,
    )
    return comparison_run.compare_rows(inputs) | {'left_out': list(request.left_out)}
