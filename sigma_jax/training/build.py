"""A run put together from its config: first by shapes, then with numbers.

`build` reads configs and shapes and no weight; forecast of memory, count of arithmetic, export,
evaluation and training all start from the `Blueprint` that it gives.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sigma_jax import trees
from sigma_jax.backbones.base import BackboneConfig, BackboneSpec
from sigma_jax.convert.load_base import Base, check_images, open_base, robot_statistics
from sigma_jax.data.shards.directory import Shards, is_finished, open_shards
from sigma_jax.hub.download import is_hub_id
from sigma_jax.nn import lora, quant
from sigma_jax.objectives.sigma import init_sigma
from sigma_jax.policies.base_actions import check_baselines
from sigma_jax.processing import fitting
from sigma_jax.processing.normalize import NormStats
from sigma_jax.training.config import RunConfig
from sigma_jax.training.groups import check_groups, check_storage, split_learning
from sigma_jax.training.materialise import make_trainable
from sigma_jax.training.optimizer import make_optimizer
from sigma_jax.training.shapes import batch_shapes, scaling_shapes
from sigma_jax.types import Batch, Frozen, PyTree


@dataclasses.dataclass(frozen=True)
class RunStatistics:
    """Which statistics a run uses.

    own: those of its data, in whose units Sigma's residuals count.
    policy: those by which the policy's actions are scaled.
    loader: those by which the states in its prompts are.
    relative_joints: actions that count from the state, one flag an action, or none at all.
    """

    own: NormStats
    policy: NormStats
    loader: NormStats
    relative_joints: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A run by shapes: every leaf has a shape and a dtype, and no number.

    base: opened, its weights unread.
    batch: of one micro-batch on one device, leaves [b g ...].
    notes: what was assumed where base or shards are not there yet.
    """

    config: RunConfig
    base: Base
    batch: Batch
    objective: Any
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Any:
        """What is known of its objective; see `objectives.kinds`."""
        return self.config.kind

    @functools.cached_property
    def shards(self) -> Shards:
        """Its data.

        Raises:
          UserError: there are none.
        """
        return open_shards(self.config.shards)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the trainable leaves."""
        return make_optimizer(self.config.optimizer)

    @functools.cached_property
    def statistics(self) -> RunStatistics:
        """Those of data or base, as configured.

        Raises:
          UserError: they do not fit the robot of the data.
        """
        config, base, shards = self.config, self.base, self.shards
        own = shards.statistics
        takes_base = self.kind.trains_policy and config.stats_from == 'base'
        of_base = robot_statistics(base, shards.meta) if takes_base else None
        relative = fitting.of_shards(
            config.relative_joints, base.policy, shards.meta, base.config.action_dim
        )
        policy = of_base or shards.relative_statistics(relative)
        return RunStatistics(own, policy, of_base or own, relative)

    @functools.cached_property
    def frozen(self) -> Frozen:
        """What a step reads and never changes; without the leaves that learn."""
        params = stored(
            self.base.shapes, self.config.quant, self.objective.uses_param, self.base.spec
        )
        if 'params' in self.config.trainable:
            params = trees.unflatten(split_learning(self.base.shapes, self.config.freeze)[1])
        return Frozen(params, scaling_shapes(self.batch.actions.shape[-1]))

    @functools.cached_property
    def trainable(self) -> PyTree:
        """The leaves that learn, by group."""
        key, groups, out = jax.random.key(0), check_groups(self.config), {}
        if 'lora' in groups:
            layouts, factors = self.base.spec.layouts, self.base.config.lora
            out['lora'] = jax.eval_shape(
                lambda p: lora.init_factors(key, p, layouts, factors), self.base.shapes
            )
        if 'sigma' in groups:
            out['sigma'] = jax.eval_shape(
                lambda f, b: init_sigma(key, self.objective, f, b), self.frozen, self.batch
            )
        if 'params' in groups:
            out['params'] = trees.unflatten(split_learning(self.base.shapes, self.config.freeze)[0])
        return out

    def start(
        self, base: Base, frozen: Frozen, example: Batch, seed: int | None = None
    ) -> tuple[PyTree, Frozen]:
        """(trainable leaves, what stays frozen) with their numbers before the first step.

        Args:
          base: with its weights.
          frozen: what `materialise.store_base` and the scaling of actions make.
          example: a batch.
          seed: of what is drawn; None: the config's.

        Returns:
          trainable: the leaves by group.
          frozen: `frozen`, without those that learn.

        Raises:
          UserError: groups that the objective does not train, or factors that would never learn.
        """
        own = self.config if seed is None else dataclasses.replace(self.config, seed=seed)
        return make_trainable(own, base, self.objective, frozen, example)

    def check(self) -> None:
        """Checks that config, base and shards fit each other.

        Raises:
          UserError: images, joints, baselines, groups or storage do not.
        """
        check_images(self.base, self.shards.meta)
        _ = self.statistics
        self.check_base(self.base.digest)
        check_groups(self.config)
        check_storage(self.config)

    def check_base(self, digest: str) -> None:
        """Checks that the base's stored actions are those of this base.

        Args:
          digest: of its weights.

        Raises:
          UserError: they are another's.
        """
        if self.kind.needs_base_actions:
            check_baselines(self.shards, digest)


def build(config: RunConfig, devices: int = 1, assume: bool = False) -> Blueprint:
    """The run that a config describes, by shapes.

    Args:
      config: all its settings.
      devices: how many share a batch.
      assume: where base or shards are not there yet, let usual sizes stand for them.

    Returns:
      Its blueprint.

    Raises:
      UserError: no base or shards, a base that does not fit, or settings that make no sense.
    """
    has_shards = not assume or (config.shards and is_finished(config.shards))
    if has_shards and is_hub_id(config.base) and not pathlib.Path(config.base).exists():
        open_shards(config.shards)  # before the hub is asked for a base
    there = not (assume and config.base) or pathlib.Path(config.base).exists()
    base = open_base(config.base if there else '', config.model, config.lora)
    notes = (
        []
        if there
        else [f'no checkpoint at {config.base} yet; assumed: sizes of config.model, float32']
    )
    sequences = max(config.batch_size // (config.accumulate * devices), 1)
    horizon = config.kind.horizon(base.config, config.sigma)
    meta = open_shards(config.shards).meta if has_shards else None
    batch = batch_shapes(config, base.config.image_size, sequences, horizon, meta)
    if not has_shards:
        notes.append(
            f'no shards at {config.shards or "config.shards"} yet; assumed: '
            f'{batch.observation.images.shape[2]} cameras, 6 joints, '
            f'{batch.observation.prompt.shape[-1]} prompt and '
            f'{batch.observation.text.shape[-1]} text tokens'
        )
    objective = make_objective(config, base.config, batch)
    return Blueprint(config, base, batch, objective, tuple(notes))


def make_objective(config: RunConfig, model: BackboneConfig, batch: Batch) -> Any:
    """The objective of a config for a model and batches of these shapes.

    Args:
      config: of the run.
      model: sizes of the policy.
      batch: shapes of the data.

    Returns:
      The objective.
    """
    return objective_of(config, model, batch.observation.state.shape[-1], batch.actions.shape[-1])


def objective_of(config: RunConfig, model: BackboneConfig, state_dim: int, action_dim: int) -> Any:
    """The objective of a config for a model and a robot.

    Args:
      config: of the run.
      model: sizes of the policy.
      state_dim: numbers of a state.
      action_dim: numbers of an action.

    Returns:
      The objective.
    """
    sigma = dataclasses.replace(
        config.sigma, d_model=model.width, state_dim=state_dim, action_dim=action_dim
    )
    return config.kind.build(model, sigma, config.loss, config.curriculum, config.rtc)


def stored(
    params: PyTree, how: quant.QuantConfig, uses_param: Callable[[str], bool], spec: BackboneSpec
) -> PyTree:
    """Shapes of what `materialise.store_base` puts on the device for the leaves `params`.

    Args:
      params: leaves of the base, may be abstract.
      how: storage on the device.
      uses_param: whether a path is read.
      spec: of the backbone.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.
    """
    every = quant.abstract(params, spec.stored, how, spec.float32)
    flat = trees.flatten(every, is_leaf=lambda x: isinstance(x, quant.Quantised))
    return trees.unflatten({path: leaf for path, leaf in flat.items() if uses_param(path)})


def make_ablation(config: RunConfig) -> Any:
    """A config's gates as arrays.

    Args:
      config: of the run.

    Returns:
      The gates.
    """
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config.ablation)
