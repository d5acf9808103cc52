"""Baselines: the frozen policy's own actions for every window, run once and stored beside the
shards.

`baselines-<split>.npz` holds `base` [m samples t a] in raw units, `baselines.json` what made it.
The noise of a window is keyed by seed, episode, frame and sample, so it depends neither on the
batch nor on the order.
"""

import dataclasses
import io
import pathlib
from collections.abc import Callable

import numpy as np

from sigma_jax.convert.load_base import (
    Base,
    ModelConfig,
    check_images,
    open_base,
    read_weights,
    robot_statistics,
)
from sigma_jax.data.loader import loader as pipeline
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import shards_processor
from sigma_jax.data.shards import tfds
from sigma_jax.data.shards.base_record import BaseRecord
from sigma_jax.data.shards.directory import Shards, Split
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write
from sigma_jax.nn.lora import LoraConfig
from sigma_jax.policies.robot import RobotSpec
from sigma_jax.policies.sampled_policy import Sampler, check_acts, make_sampler
from sigma_jax.processing import fitting
from sigma_jax.processing.normalize import NormStats
from sigma_jax.processing.tokenizer import check_vocab, load_tokenizer
from sigma_jax.types import PyTree, to_batch


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Which policy, and how it is sampled.

    Attributes:
      base: folder of a converted pi0.5; '' leaves the base's actions out.
      tokenizer: the one that the base was trained with.
      samples: draws a window; more allow the mean of several as a method.
      seed: noise is keyed by seed, episode, frame and draw.
      batch_size: windows that are sampled at a time.
      dtype: of the matrix products; 'bfloat16' on a GPU.
    """

    base: str = ''
    tokenizer: str = 'assets/tokenizer/tokenizer.json'
    samples: int = 1
    seed: int = 0
    batch_size: int = 32
    dtype: str = 'float32'

    @property
    def folder(self) -> str:
        """The base's.

        Raises:
          UserError: none is named.
        """
        if not self.base:
            raise UserError(
                'expected a converted pi0.5 as the base, got none; name its folder '
                '(convert_weights.py makes one)'
            )
        return self.base

    @property
    def model(self) -> ModelConfig:
        """How the base computes."""
        return ModelConfig(self.dtype)


def write_baselines(
    shards: Shards,
    config: BaselineConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BaseRecord:
    """Samples the policy on all splits; finished ones of the same settings are kept.

    Args:
      shards: whose windows.
      config: which policy, and how.
      progress: receives (windows done, windows in all).

    Returns:
      The record that now lies beside the shards.

    Raises:
      UserError: shards, base or tokenizer do not fit each other.
    """
    meta, policy = shards.meta, open_base(config.folder, config.model)
    check_policy(policy, config, meta.horizon)
    check_images(policy, meta)
    check_robot(policy, meta)
    if not policy.digest:
        policy = read_weights(policy)
    record = BaseRecord(
        base=pathlib.Path(config.base).name,
        tokenizer=config.tokenizer,
        samples=config.samples,
        seed=config.seed,
        dtype=config.dtype,
        base_digest=policy.digest,
    )
    record = dataclasses.replace(record, finished=_finished(shards, record))
    splits = [shards.split(name) for name in tfds.SPLITS]
    todo = [one for one in splits if one.windows and one.name not in record.finished]
    if todo and policy.params is None:  # half a minute at full size
        policy = read_weights(policy)
    total, done = meta.total, 0
    progress(0, total)  # the first batch takes a while to compile
    sample = sampler_of(RobotSpec.of(shards.meta), policy, record) if todo else None
    for split in splits:
        if sample is not None and split in todo:
            arrays = _sample_split(
                split, policy, sample, config, lambda n, d=done: progress(d + n, total)
            )
            buffer = io.BytesIO()
            np.savez(buffer, base=arrays)
            atomic_write(split.base_file, buffer.getvalue())
            record = dataclasses.replace(record, finished=(*record.finished, split.name))
            atomic_write(shards.base_record_file, record.text())
        done += split.windows
        progress(done, total)
    return record


def check_policy(policy: Base, config: BaselineConfig, horizon: int) -> None:
    """Whether the policy can be sampled for some windows.

    Args:
      policy: opened.
      config: with the tokenizer's name.
      horizon: actions of a window.

    Raises:
      UserError: it does not act, no statistics lie beside it, the tokenizer is not its own, or it
        gives fewer actions.
    """
    check_acts(policy)
    check_vocab(load_tokenizer(config.tokenizer), policy.config.vocab_size)
    if policy.config.action_horizon < horizon:
        raise UserError(
            f'expected a policy with at least {horizon} action steps, got '
            f'{policy.config.action_horizon} from {config.base}; prepare shards with a shorter '
            'horizon'
        )


def check_robot(policy: Base, robot: fitting.Robot) -> NormStats | None:
    """The policy's statistics for a robot.

    Args:
      policy: opened.
      robot: what names its joints.

    Returns:
      Statistics of the robot's width; None where the policy has none.

    Raises:
      UserError: it knows another robot: too few numbers, or relative joints that are not its own.
    """
    fitting.of_shards((), policy.policy, robot, policy.config.action_dim)
    return robot_statistics(policy, robot)


def _finished(shards: Shards, record: BaseRecord) -> tuple[str, ...]:
    """Splits that are there already; raises UserError where they were made otherwise."""
    if (old := shards.baselines) is None:
        return ()
    if differences := record.differences(old):
        raise UserError(
            f'expected the settings that {shards.base_record_file} was made with, got others '
            f'({", ".join(differences)}); '
            f'delete {shards.path}/baselines* and run again'
        )
    return tuple(name for name in old.finished if shards.split(name).base_file.is_file())


def sampler_of(
    robot: RobotSpec,
    base: Base,
    record: BaseRecord,
    *,
    samples: int = 0,
    weights: PyTree | None = None,
) -> Sampler:
    """The sampler behind the base's actions beside some shards: what it gives is what lies there.

    Args:
      robot: that of the shards.
      base: with its weights.
      record: how it is sampled.
      samples: how many of the recorded draws, from the first; 0: all.
      weights: the base's on the device; None: put there as they are stored.

    Returns:
      The sampler.

    Raises:
      UserError: a base that does not act, has no statistics, or knows another robot.
    """
    same = ModelConfig(record.dtype).fit(base.config, LoraConfig())
    return make_sampler(
        dataclasses.replace(base, config=same),
        robot,
        robot.horizon,
        seed=record.seed,
        samples=samples or record.samples,
        weights=weights,
    )


def _sample_split(
    split: Split, base: Base, sample: Sampler, config: BaselineConfig, progress
) -> np.ndarray:
    """[m samples t a] float32, raw units, in record order."""
    meta, tokenizer = split.shards.meta, load_tokenizer(config.tokenizer)
    processor = shards_processor(
        split.shards, tokenizer, sample.statistics, base.policy, base.spec.prompt
    )
    out = np.zeros(
        (split.windows, config.samples, meta.horizon, meta.widths['actions']), np.float32
    )
    for batch in pipeline.make_loader(split, processor, Order(config.batch_size)):
        number = batch['record'][:, 0]
        real = number >= 0
        drawn = sample(to_batch({key: x[:, 0] for key, x in batch.items()}))
        out[number[real]] = drawn[real]
        progress(int(number.max()) + 1)
    return out


def check_baselines(shards: Shards, base_digest: str) -> BaseRecord:
    """What made the baselines beside the shards.

    Args:
      shards: with them.
      base_digest: of the policy that they are to be of; '' is not known yet.

    Returns:
      The record.

    Raises:
      UserError: there are none, or they come from another policy.
    """
    if (record := shards.baselines) is None:
        raise UserError(
            f'expected the baselines of the base policy in {shards.path}, got none; run '
            'prepare_data.py --base=DIR'
        )
    if base_digest and (got := record.base_digest) != base_digest:
        raise UserError(
            f'expected baselines of the policy {base_digest[:12]} in {shards.path}, got those of '
            f'{got[:12]}; prepare the shards with the same --base as config.base'
        )
    return record
