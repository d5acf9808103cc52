"""What a backbone is to the rest (docs/design.md, "Backbone"): what Sigma asks of one with its
weights bound (`Backbone`), and what is known of a kind of them (`BackboneSpec`).

Nothing outside this folder knows a particular kind: `backbones.kinds` gives the spec of a name, of
a config or of a checkpoint's names.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.backbones.names import NameTable
from sigma_jax.errors import UserError
from sigma_jax.nn.lora import LoraConfig, MatrixLayout
from sigma_jax.nn.quant import FLOAT32
from sigma_jax.processing.processor import Prompt
from sigma_jax.types import Continuation, Observation, PyTree

CONFIG_FILE = 'sigma_config.json'  # sizes, beside weights that we wrote
SET_BY_A_RUN = ('dtype', 'remat', 'lora', 'train_base')  # of a config; the rest are sizes
NOTHING = re.compile('(?!)')  # matches no path
EVERYTHING = re.compile('.*')


class Backbone(Protocol):
    """A frozen policy with its weights bound: pure functions of arrays."""

    @property
    def width(self) -> int:
        """Width of its tokens, w."""
        ...

    def encode_images(self, images: Array) -> Float[Array, 'b f w']:
        """Tokens of all views of one observation.

        Args:
          images: views, [b i h x 3].

        Returns:
          Tokens, in order of views.
        """
        ...

    def embed_text(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l w']:
        """The language model's own token embeddings.

        Args:
          tokens: ids.

        Returns:
          Embeddings.
        """
        ...

    def encode(
        self, embeddings: Float[Array, 'b s w'], mask: Bool[Array, 'b s']
    ) -> Float[Array, 'b s w']:
        """The language model over a sequence of embeddings, every valid one attending to every
        valid one.

        Args:
          embeddings: one a token.
          mask: true for valid tokens.

        Returns:
          The hidden sequence.
        """
        ...

    def sample_actions(self, key: Array, observation: Observation) -> Float[Array, 'b t a']:
        """The policy's own action chunk.

        Args:
          key: one a window, so that its sample does not depend on its batch.
          observation: [b ...].

        Returns:
          Normalised actions.
        """
        ...


class FlowBackbone(Backbone, Protocol):
    """A backbone that acts by flow matching, and can be trained so."""

    def velocity(
        self, observation: Observation, x_t: Float[Array, 'b t a'], time: Float[Array, '...']
    ) -> Float[Array, 'b t a']:
        """The velocity of the flow from actions (time 0) to noise (time 1).

        Args:
          observation: what it sees.
          x_t: t noise + (1 - t) actions, normalised.
          time: t, in [0, 1]; one a window [b], or one a step of its chunk [b t].

        Returns:
          The velocity, float32; in training its target is noise - actions.
        """
        ...

    def draw_noise(self, key: Array) -> Float[Array, 'b t a']:
        """Where `sample_actions` begins.

        Args:
          key: one a window.

        Returns:
          Standard normal numbers.
        """
        ...

    def flow_from(
        self,
        noise: Float[Array, 'b t a'],
        observation: Observation,
        bound: Continuation | None = None,
    ) -> Float[Array, 'b t a']:
        """As `sample_actions` from this noise, bound to the chunk before where there is one
        (`backbones.flow.integrate`); a window that is bound to nothing comes out the same, to
        rounding.

        Args:
          noise: time 1 of the flow.
          observation: [b ...].
          bound: to what, normalised as for this observation.

        Returns:
          Normalised actions.
        """
        ...


class BackboneConfig(Protocol):
    """What others read of a backbone's config, whatever its kind: a frozen dataclass, with fields
    that can be hashed.

    Attributes:
      width: of its tokens, w.
      depth: layers of its language model.
      image_size: side of its square images, in pixels.
      vocab_size: rows of its token table.
      action_dim: numbers of an action, padding included.
      action_horizon: actions of a chunk.
      sample_steps: steps in which a chunk is sampled.
      lora: settings of the LoRA factors beside its matrices.
      dtype: of its matrix products.
      remat: what its layers keep for the backward pass; None: all.
      train_base: whether its own weights get gradients.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def image_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    @property
    def action_horizon(self) -> int: ...

    @property
    def sample_steps(self) -> int: ...

    @property
    def lora(self) -> LoraConfig: ...

    @property
    def dtype(self) -> str: ...

    @property
    def remat(self) -> str | None: ...

    @property
    def train_base(self) -> bool: ...

    def __hash__(self) -> int: ...


Shapes = Mapping[str, tuple[int, ...]]


def no_hints(data: Mapping[str, Any]) -> dict[str, Any]:
    """Files beside the weights say nothing.

    Args:
      data: contents of one.

    Returns:
      No hints.
    """
    return {}


def no_sizes(*_: Any) -> Any:
    """The reader of sizes of a kind without public checkpoints.

    Raises:
      UserError: always.
    """
    raise UserError(
        'expected a checkpoint that convert_weights.py wrote, got arrays from elsewhere, whose '
        'sizes this kind of backbone does not know; convert it, or give its spec a reader of sizes'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class BackboneSpec:
    """All that is known of one kind of backbone. A new kind is one of these, and a line in
    `backbones.kinds`.

    Attributes:
      name: as a config's `model.kind` has it.
      config: the class of its configs, see `BackboneConfig`; without arguments: its full size.
      parts: fields of a config that are configs themselves, with their classes.
      init_params: random parameters of a key and a config, in its own tree, float32.
      bind: a `Backbone` of config, params, LoRA factors (or None) and a key for their dropout (or
        None).
      prompt: how it writes a task and a state.
      layouts: matrices that may get LoRA factors, by a pattern of their paths.
      stored: matrices that may be stored quantised, likewise.
      float32: leaves that stay float32 where the base is stored in fewer bytes.
      acting: leaves that only acting reads. Sigma never does: it corrects actions that lie beside
        the shards.
      encoding: factors through which a gradient of `encode` flows, the only ones that Sigma trains.
      table: path of its token table; '' where random weights need not know the order of numbers.
      samples: whether `sample_actions` is there.
      flows: whether it is a `FlowBackbone`.
      mark: a name that only its checkpoints have, of a tensor or a leaf.
      names: tensors of the public PyTorch checkpoint; without rules there is none.
      hints: sizes that no array gives, from the JSON beside weights.
      from_tensors: its config from the shapes of the PyTorch tensors and `hints`.
      from_leaves: its config from the shapes of its leaves and `hints`.
      quantities: (config, params, observation, inputs, cameras) -> arrays by name, which a public
        implementation's are compared with (`convert.parity`).
      public_sizes: a config's sizes under the dotted names of a parity fixture's config.json.
    """

    name: str
    config: type
    init_params: Callable[[Array, Any], PyTree]
    bind: Callable[..., Any]
    prompt: Prompt
    parts: Mapping[str, type] = dataclasses.field(default_factory=dict)
    layouts: Mapping[str, MatrixLayout] = dataclasses.field(default_factory=dict)
    stored: Mapping[str, MatrixLayout] = dataclasses.field(default_factory=dict)
    float32: re.Pattern[str] = FLOAT32
    acting: re.Pattern[str] = NOTHING
    encoding: re.Pattern[str] = EVERYTHING
    table: str = ''
    samples: bool = True
    flows: bool = False
    mark: re.Pattern[str] = NOTHING
    names: NameTable = NameTable()
    hints: Callable[[Mapping[str, Any]], dict[str, Any]] = no_hints
    from_tensors: Callable[[Shapes, Mapping[str, Any]], Any] = no_sizes
    from_leaves: Callable[[Shapes, Mapping[str, Any]], Any] = no_sizes
    quantities: Callable[..., dict[str, Array]] | None = None
    public_sizes: Callable[[Any], dict[str, int]] | None = None

    def abstract_params(self, config: BackboneConfig) -> PyTree:
        """Shapes and dtypes of the parameters, without allocating them; traced once a process.

        Args:
          config: of this kind.

        Returns:
          A tree of `jax.ShapeDtypeStruct`.
        """
        # a tree of the caller's own
        return jax.tree.map(lambda leaf: leaf, _abstract_params(self.init_params, config))

    def sizes(self, config: BackboneConfig) -> dict[str, Any]:
        """A config as plain JSON, without what a run sets: that is no property of the weights.

        Args:
          config: of this kind.

        Returns:
          Its sizes by name, those of parts nested.
        """
        every = dataclasses.asdict(config)
        return {name: value for name, value in every.items() if name not in SET_BY_A_RUN}

    def from_sizes(self, sizes: Mapping[str, Any]) -> Any:
        """The inverse of the method `sizes`.

        Args:
          sizes: by name.

        Returns:
          The config.
        """
        return build_config(self.config, self.parts, sizes)


@functools.lru_cache(maxsize=16)
def _abstract_params(init_params: Callable[[Array, Any], PyTree], config: Any) -> PyTree:
    """Kept: tracing takes long, and whoever opens a checkpoint asks several times."""
    return jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))


def build_config(config: type, parts: Mapping[str, type], sizes: Mapping[str, Any]) -> Any:
    """A config from plain JSON.

    Args:
      config: its class.
      parts: fields that are configs themselves, with their classes.
      sizes: values of the fields, nested for parts.

    Returns:
      The config.
    """
    return config(**{k: parts[k](**v) if k in parts else v for k, v in sizes.items()})
