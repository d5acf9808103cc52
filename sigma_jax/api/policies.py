"""Whatever acts, as a policy: a base, a fine-tuned one, a Sigma around its base."""

import json
import pathlib
from typing import Any

from sigma_jax import xla
from sigma_jax.convert.base_policy import Base, read_weights
from sigma_jax.data.loader.windows import shards_processor
from sigma_jax.errors import UserError
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.policies import base_actions, load, sampling
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.sampled import BaseActor, Sampler, stored_weights
from sigma_jax.policies.sigma import SigmaActor, TrainedParts
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.fitting import Robot
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.sigma import adapter as inference_adapter
from sigma_jax.sigma.adapter import AdapterState
from sigma_jax.training.build import Blueprint, build
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.materialise import store_base
from sigma_jax.types import Frozen, PyTree

ADAPTER = 'adapter.json'  # beside a run, where it was evaluated


def load_policy(
    source: str | pathlib.Path,
    *,
    tokenizer: str = '',
    robot: Robot | int | None = None,
    seed: int = 0,
    dtype: str = 'float32',
    storage: QuantConfig = QuantConfig(),
    adapter: bool = True,
    limited: bool = True,
) -> ActingPolicy:
    """Whatever acts, opened for acting on one robot or many.

    Args:
      source: a folder of weights in any layout or a hub id (a base, or a policy exported whole); or
        the folder of a training: of Sigma, or of the policy by flow matching. A training says the
        rest itself.
      tokenizer: of weights: file, folder or hub id; '' takes the one beside them.
      robot: of weights: what names its joints (a data set, the meta of shards, `load.Joints`), or
        how many it has; None takes as many as the statistics beside them have.
      seed: of the noise.
      dtype: of weights: of matrix products.
      storage: of weights: in what form they lie on the device.
      adapter: of a Sigma: whether the adapter weighs its residual, where one was fitted.
      limited: of a Sigma: whether its motor commands keep to the limits of its config.

    Returns:
      The policy.

    Raises:
      UserError: nothing there, nothing that acts, or a robot that it does not know.
    """
    folder = RunFolder(pathlib.Path(source))
    if not folder.config_file.is_file() or not folder.steps:
        return load.load_policy(
            source, tokenizer=tokenizer, robot=robot, seed=seed, dtype=dtype, storage=storage
        )
    _, trainable = folder.trainable()
    plan = build(folder.config())
    base = read_weights(plan.base, plan.config.seed, plan.config.tokenizer)
    if plan.kind.trains_policy:
        return ActingPolicy(fine_tuned(plan, base, trainable, seed))
    state = _adapter(folder.path) if adapter else None
    return ActingPolicy(sigma(plan, base, trainable, state, limited))


def fine_tuned(plan: Blueprint, base: Base, trainable: PyTree, seed: int) -> BaseActor:
    """A policy after flow matching.

    Args:
      plan: of the run.
      base: with its weights.
      trainable: its leaves.
      seed: of the noise.

    Returns:
      What acts.
    """
    meta, found = plan.shards.meta, plan.statistics
    scaling = action_scaling(found.own, found.policy, found.relative_joints)
    bind = sampling.bind_finetuned(plan.objective.config)
    run = sampling.make_sampler(bind, seed, 1, meta.horizon)
    weights = trainable, store_base(plan.config, base, plan.objective)
    sampler = Sampler(found.loader, xla.jit(run), weights, scaling)
    return BaseActor(base, _processor(plan, base, found.loader), sampler, meta.horizon)


def sigma(
    plan: Blueprint, base: Base, trainable: PyTree, adapter: AdapterState | None, limited: bool
) -> SigmaActor:
    """A Sigma around its base, which draws as it did beside the shards.

    Args:
      plan: of the run.
      base: with its weights.
      trainable: its leaves.
      adapter: weighs the residual; None: it counts whole.
      limited: whether motor commands keep to the limits of the config.

    Returns:
      What acts.
    """
    shards, config, found = plan.shards, plan.config, plan.statistics
    frozen = store_base(config, base, plan.objective)
    record = base_actions.check_baselines(shards, base.digest)
    sampler = base_actions.sampler_of(
        shards, base, record, samples=1, weights=stored_weights(base, config.quant, frozen)
    )
    processor = _processor(plan, base, sampler.statistics)
    scaling = action_scaling(found.own, found.policy, found.relative_joints)
    parts = TrainedParts(
        plan.objective, trainable, Frozen(frozen, scaling), found.own, config.ablation, adapter
    )
    return SigmaActor(BaseActor(base, processor, sampler, shards.meta.horizon), parts, limited)


def _processor(plan: Blueprint, base: Base, statistics: Any) -> Any:
    tokenizer = load_tokenizer(plan.config.tokenizer)
    return shards_processor(plan.shards, tokenizer, statistics, base.policy, base.spec.prompt)


def _adapter(folder: pathlib.Path) -> AdapterState | None:
    """The adapter beside a run, where it was evaluated on calibration episodes."""
    file = folder / ADAPTER
    if not file.is_file():
        return None
    try:
        return inference_adapter.from_dict(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'expected an adapter in {file}, got {error}; run evaluate.py again, or act without it'
        ) from error
