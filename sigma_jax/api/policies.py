"""Whatever acts, as a policy: a base, a fine-tuned one, a Sigma around its base."""

import dataclasses
import pathlib
from collections.abc import Mapping

from sigma_jax import xla
from sigma_jax.convert.load_base import Base, read_weights
from sigma_jax.errors import UserError
from sigma_jax.hub.download import local_path
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.policies import load, sampling
from sigma_jax.policies.acting import ActingPolicy, Actor
from sigma_jax.policies.base_actions import sampler_of
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.policies.draws import check_seed
from sigma_jax.policies.sampled_policy import BaseActor, Sampler, stored_weights
from sigma_jax.policies.sigma import SigmaActor, TrainedParts
from sigma_jax.processing.actions import action_scaling
from sigma_jax.processing.fitting import Robot
from sigma_jax.processing.processor import of_shards
from sigma_jax.processing.tokenizer import check_vocab, load_tokenizer
from sigma_jax.training.acting import MERGED, Acting, is_weights, of_export, of_run
from sigma_jax.training.acting_record import RECORD
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.materialise import store_base
from sigma_jax.types import Frozen


def load_policy(
    source: str | pathlib.Path,
    *,
    base: str | pathlib.Path = '',
    tokenizer: str = '',
    robot: Robot | int | None = None,
    seed: int = 0,
    dtype: str = 'float32',
    storage: QuantConfig = QuantConfig(),
    cameras: Mapping[str, str] | None = None,
    adapter: bool = True,
    limited: bool = True,
    chunking: ChunkingConfig | None = None,
) -> ActingPolicy:
    """Whatever acts, opened for acting on one robot or many.

    Args:
      source: a folder or a hub id: weights in any layout (a base, or a policy exported whole); or a
        training, of Sigma or of the policy by flow matching: its folder or its export. A training
        says the rest itself, and needs no shards.
      base: of a training: its base, where it does not lie in the export; '' is where the training
        had it.
      tokenizer: of weights: file, folder or hub id; '' takes the one beside them.
      robot: of weights: what names its joints (a data set, `sj.Joints`), or how many it has; None
        takes as many as the statistics beside them have, which openpi pads to the model's width.
        The meta of shards: it is asked as their windows were, and does to the bit what lies beside
        them.
      seed: of the noise.
      dtype: of weights: of matrix products.
      storage: of weights: in what form they lie on the device; `sj.QuantConfig('bfloat16')`, say.
      cameras: the policy's names of those that the robot calls otherwise: {robot's: policy's}.
      adapter: of a Sigma: whether the adapter weighs its residual, where one was fitted.
      limited: of a Sigma: whether its motor commands keep to the limits of its config.
      chunking: how a chunk goes on from the one before, where `infer` is given what is left
        of it; None: each call says.

    Returns:
      The policy, with its weights on the device. `warm_up` or the first `infer` compiles it.

    Raises:
      UserError: nothing there, nothing that acts, a base where none applies, no statistics or
        tokenizer beside it, or a robot or camera that it does not know; or one that has not learned
        to go on so.

    Examples:
      >>> policy = load_policy('demo_run/sigma')  # doctest: +SKIP
      >>> policy.infer(env.observe())['actions'].shape  # doctest: +SKIP
      (16, 6)
    """
    if not isinstance(source, str | pathlib.Path) or not str(source):
        raise UserError(f'expected the folder of a policy, got {source!r}; name one')
    if not isinstance(storage, QuantConfig):
        raise UserError(
            f'storage: expected a QuantConfig, got {storage!r}; sigma_jax.nn.quant has it, and its '
            'kinds'
        )
    check_seed(seed)
    folder = RunFolder(local_path(source))
    if folder.config_file.is_file() and folder.steps:
        found = of_run(folder, base=str(base))
    elif (folder.path / RECORD).is_file() and not is_weights(folder.path):
        found = of_export(folder.path, str(base))
    else:
        if base:
            raise UserError(
                f'expected base= of a training alone, got {base} for the weights in {folder.path}, '
                'which are whole; leave it out'
            )
        weights = folder.path / MERGED if is_weights(folder.path) else folder.path
        actor = load.actor_of_weights(
            weights, tokenizer=tokenizer, robot=robot, seed=seed, dtype=dtype, storage=storage
        )
        return ActingPolicy(actor, cameras, chunking)
    if not adapter:
        found = dataclasses.replace(found, adapter=None)
    return ActingPolicy(actor_of(found, seed, limited), cameras, chunking)


def actor_of(found: Acting, seed: int = 0, limited: bool = True) -> Actor:
    """What acts, with its weights.

    Args:
      found: of a run or an export.
      seed: of the noise of a policy that was fine-tuned; a Sigma's base draws as beside the shards.
      limited: of a Sigma: whether motor commands keep to the limits of its config.

    Returns:
      A base after flow matching, or a Sigma around its base.

    Raises:
      UserError: a base that does not fit.
    """
    config, objective, statistics = found.config, found.objective, found.statistics
    base = read_weights(found.base, config.seed, found.tokenizer)
    check_digest(base, found.sampled.base_digest)
    scaling = action_scaling(statistics.own, statistics.policy, statistics.relative_joints)
    frozen = Frozen(store_base(config, base, objective), scaling)
    if config.kind.trains_policy:
        sample = sampling.sample_finetuned(objective.config, seed, 1, found.robot.horizon)
        weights = found.trainable, frozen.params
        learned = dataclasses.replace(base.policy, max_delay=config.rtc.max_delay)
        base = dataclasses.replace(base, policy=learned)
        return _sampling(found, base, Sampler(statistics.loader, xla.jit(sample), weights, scaling))
    weights = stored_weights(base, config.quant, frozen.params)
    sampler = sampler_of(found.robot, base, found.sampled, samples=1, weights=weights)
    parts = TrainedParts(
        objective=objective,
        trainable=found.trainable,
        frozen=frozen,
        statistics=statistics.own,
        gates=config.ablation,
        robot=found.robot,
        adapter=found.adapter,
    )
    return SigmaActor(_sampling(found, base, sampler), parts, limited)


def _sampling(found: Acting, base: Base, sampler: Sampler) -> BaseActor:
    """The base for the robot of the training, asked as its windows were."""
    words, spec = load_tokenizer(found.tokenizer), base.spec
    check_vocab(words, base.config.vocab_size)
    reads_text = not found.config.kind.trains_policy
    processor = of_shards(
        base.policy, sampler.statistics, words, found.robot, spec.prompt, reads_text=reads_text
    )
    return BaseActor(base, processor, sampler, found.robot.horizon)


def check_digest(base: Base, digest: str) -> None:
    """Checks that a base is the one that was trained around.

    Args:
      base: with its weights.
      digest: of the base of the training; '': not recorded.

    Raises:
      UserError: it is another.
    """
    if digest and base.digest != digest:
        raise UserError(
            f'expected the base that was trained around (digest {digest[:12]}), got '
            f'{base.digest[:12]} in {base.folder}; name it with base='
        )
