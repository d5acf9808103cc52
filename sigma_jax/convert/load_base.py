"""The base policy: its sizes, weights, statistics, and whether a robot and its shards fit it."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sigma_jax import trees
from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig, BackboneSpec
from sigma_jax.convert import assets, checkpoint
from sigma_jax.convert.openpi import training_config
from sigma_jax.convert.source import Source, open_source
from sigma_jax.data.shards.meta import Meta
from sigma_jax.errors import UserError
from sigma_jax.nn import lora
from sigma_jax.processing import fitting, normalize
from sigma_jax.processing.normalize import NormStats
from sigma_jax.processing.spec import OURS, ProcessorConfig
from sigma_jax.processing.tokenizer import Tokenizer, load_tokenizer
from sigma_jax.settings import check_choice, check_fields, from_section, section
from sigma_jax.types import PyTree

FLOATS = ('float32', 'bfloat16', 'float16', 'float64')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """How a base computes, and its sizes where no folder gives them.

    Attributes:
      dtype: of its matrix products.
      remat: what layers keep for the backward pass: None (all), 'save_products', 'save_attention',
        or the name of a `jax.checkpoint` policy.
      sizes: of a base with random weights; which class they are of says its kind.

    Raises:
      UserError: a dtype that nothing is computed in.
    """

    dtype: str = 'float32'
    remat: str | None = None
    sizes: BackboneConfig = kinds.USUAL.config()

    def __post_init__(self) -> None:
        check_choice('dtype', self.dtype, FLOATS)

    @classmethod
    def from_section(cls, settings: Any) -> 'ModelConfig':
        """From the section `model` of a config.

        Args:
          settings: its keys and values.

        Returns:
          The settings.

        Raises:
          UserError: keys that do not exist, or values of another kind.
        """
        known = section(settings, 'config.model')
        run: dict[str, Any] = {name: known[name] for name in ('dtype', 'remat') if name in known}
        check_fields(cls, run, 'config.model.')
        sizes = {name: value for name, value in known.items() if name not in (*run, 'kind')}
        return cls(**run, sizes=_sizes(kinds.find(known.get('kind', kinds.USUAL.name)), sizes))

    def to_section(self) -> dict[str, Any]:
        """What `from_section` takes."""
        spec = kinds.of(self.sizes)
        kind = {} if spec is kinds.USUAL else {'kind': spec.name}
        own = {} if self.sizes == spec.config() else spec.sizes(self.sizes)
        return {'dtype': self.dtype, 'remat': self.remat} | kind | own

    def build(self, factors: lora.LoraConfig = lora.LoraConfig()) -> BackboneConfig:
        """A model of its own sizes.

        Args:
          factors: LoRA's settings.

        Returns:
          The sizes.
        """
        return self.fit(self.sizes, factors)

    def fit(self, sizes: BackboneConfig, factors: lora.LoraConfig) -> BackboneConfig:
        """A model of given sizes that computes as these settings say.

        Args:
          sizes: of a checkpoint.
          factors: LoRA's settings.

        Returns:
          The sizes.
        """
        return dataclasses.replace(sizes, dtype=self.dtype, remat=self.remat, lora=factors)


def _sizes(spec: BackboneSpec, section: Mapping[str, Any]) -> Any:
    """Sizes of a policy to be trained from nothing."""
    parts = spec.parts
    built = {
        k: from_section(parts[k], v, f'model.{k}') if k in parts else v for k, v in section.items()
    }
    return from_section(spec.config, built, 'model')


@dataclasses.dataclass(frozen=True)
class Base:
    """The base policy: its sizes, weights (numpy), digest, statistics it was trained with, and how
    it uses them.

    Before its weights are read `params` is None, and `digest` what is recorded beside them, ''
    without a record. `source` reads them; None: they are random.
    """

    config: BackboneConfig
    params: PyTree
    digest: str
    norm_stats: NormStats | None = None
    policy: ProcessorConfig = OURS
    source: Source | None = None
    notes: tuple[str, ...] = ()  # which weights were taken, and what was assumed as no file says it

    @property
    def spec(self) -> BackboneSpec:
        """Its kind of backbone."""
        return kinds.of(self.config)

    @property
    def folder(self) -> pathlib.Path | None:
        """Where it lies; None for random weights."""
        return None if self.source is None else self.source.folder

    @property
    def shapes(self) -> PyTree:
        """Shapes and dtypes of its leaves as stored; no weight is read."""
        if self.source is None:
            return self.spec.abstract_params(self.config)
        dtypes = self.source.dtypes
        found = self.source.shapes.items()
        return trees.unflatten({p: jax.ShapeDtypeStruct(shape, dtypes[p]) for p, shape in found})


def open_base(
    folder: str, model: ModelConfig, factors: lora.LoraConfig = lora.LoraConfig()
) -> Base:
    """A base without its weights, which take half a minute to read at full size.

    Args:
      folder: of a checkpoint, in any layout, or a hub id; '' is a base with random weights.
      model: how it computes; its sizes count where `folder` is ''.
      factors: settings of the LoRA factors beside its matrices.

    Returns:
      Sizes, statistics and settings of the base, `params` None.

    Raises:
      UserError: no checkpoint there, or one that does not fit.
    """
    if not folder:
        return Base(model.build(factors), None, '')
    source = open_source(folder)
    policy_assets = assets.read(source.folder, source.format)
    sizes = model.fit(source.config, factors)
    assumed = {**source.assumed, **policy_assets.assumed}
    said = training_config.assumption_notes(assumed, sizes, policy_assets.policy.prompt_state_dim)
    notes = (*source.notes, *said)
    return Base(
        sizes, None, source.digest, policy_assets.statistics, policy_assets.policy, source, notes
    )


def read_weights(base: Base, seed: int = 0, tokenizer: str = '') -> Base:
    """`base` with its weights and their digest.

    Args:
      base: as `open_base` gives it.
      seed: of random weights, where it has no folder.
      tokenizer: which tokens are numbers, for random weights; see `init_number_embeddings`.

    Returns:
      A copy with `params` and `digest`.
    """
    if base.source is not None:
        loaded = checkpoint.load_source(base.source)
        return dataclasses.replace(base, params=loaded.params, digest=loaded.digest)
    spec = base.spec
    params = jax.jit(lambda key: spec.init_params(key, base.config))(jax.random.key(seed))
    params = jax.tree.map(np.asarray, params)
    if spec.table:
        params = init_number_embeddings(params, spec.table, load_tokenizer(tokenizer))
    return dataclasses.replace(base, params=params, digest=trees.digest(params))


def init_number_embeddings(params: PyTree, table: str, tokenizer: Tokenizer) -> PyTree:
    """A token table whose rows for 0 ... 255 start as cosines of the number, so that 127 is near
    128.

    A pre-trained language model knows the order of numbers, in which pi0.5's prompt writes the
    state; random rows would have to learn it from every (joint, number) pair on its own. Numbers of
    several tokens stay random.

    Args:
      params: random.
      table: path of the token table.
      tokenizer: whose ids the rows are.

    Returns:
      `params` with that table.
    """
    flat = trees.flatten(params)
    rows = np.array(flat[table])
    order = np.arange(rows.shape[1] // 4)
    mix = np.random.default_rng(0).normal(size=(len(order), rows.shape[1])) / (1 + order[:, None])
    for number in range(256):
        ids = tokenizer.encode(f' {number}')[1:]
        if len(ids) == 1:
            row = np.cos(np.pi * order * number / 255) @ mix
            rows[ids[0]] = row / np.linalg.norm(row)
    return trees.unflatten(flat | {table: rows})


def robot_statistics(base: Base, robot: fitting.Robot) -> NormStats | None:
    """The base's own statistics, cut to the robot's joints: openpi's have 32 entries whatever the
    robot.

    Args:
      base: its statistics.
      robot: names of states and actions.

    Returns:
      The statistics, or None where the base has none.

    Raises:
      UserError: they have fewer entries than the robot has joints.
    """
    if base.norm_stats is None:
        return None
    widths = {'state': len(robot.state_names), 'actions': len(robot.action_names)}
    return normalize.cut_to(base.norm_stats, widths, f'the statistics of {base.folder}')


def check_images(base: Base, meta: Meta) -> None:
    """Checks that the shards' images are as the base takes them.

    Args:
      base: its sizes and settings.
      meta: of the shards.

    Raises:
      UserError: another size, resize or order of cameras.
    """
    check_image_size(base, meta.image_size)
    check_resize(base.policy, meta)


def check_image_size(base: Base, side: int) -> None:
    """Checks that the base takes images of a size.

    Args:
      base: its sizes.
      side: pixels.

    Raises:
      UserError: it does not.
    """
    if side != (expected := base.config.image_size):
        raise UserError(
            f'expected images of {expected} px, which the base takes, got {side} px; '
            f'prepare the shards with --config.data.image_size={expected}'
        )


def check_resize(policy: ProcessorConfig, meta: Meta) -> None:
    """Checks that the shards' images were shrunk and their cameras ordered as the base's.

    Args:
      policy: the base's.
      meta: of the shards.

    Raises:
      UserError: they were not.
    """
    side, style = meta.image_size, meta.resize
    sizes = [None] if meta.camera_sizes is None else list(meta.camera_sizes.values())
    if style != policy.resize and any(size != (side, side) for size in sizes):
        raise UserError(
            f'expected images resized as {policy.resize!r} does, like those the base was trained '
            f'on, got {style!r} in the shards; prepare them again with '
            f'--config.data.resize={policy.resize}'
        )
    fitting.check_cameras(policy, meta.camera_names, meta.camera_keys)
