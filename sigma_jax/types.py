"""Structs that cross module borders, and the glossary of axes.

One letter an axis, in every jaxtyping string, einsum and comment of the project:

    b batch               g consecutive windows    s hidden sequence      t horizon (16 actions)
    f feature tokens N_f  v visual tokens N_v      n state tokens N_s     l text tokens
    k semantic factors K  q action queries         d d_model              e width of tau, d_tau
    w backbone width      p state dim              a action dim           c chunk
    r LoRA rank           i camera views           h, x image height, width
    j depth views

Every array may carry more leading axes than its annotation shows (`g` under `lax.scan`, rows under
`vmap`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

__all__ = [
    'Ablation',
    'ActionScaling',
    'Actions',
    'Batch',
    'Carry',
    'Frozen',
    'Observation',
    'SigmaOutput',
    'Telepathy',
    'to_batch',
]

PyTree = Any


@struct.dataclass
class Observation:
    """What the policy sees at the first frame of a window, never later frames.

    Depth and audio are optional: None means no tokens, not zeros.

    Attributes:
      images: views, uint8 or float in [-1, 1].
      image_mask: true for cameras that are there.
      prompt: ids of pi0.5's own prompt (task and discretised state).
      prompt_mask: true for its real tokens.
      text: ids of the task alone, which Sigma's language workspace reads together with its state
        tokens.
      text_mask: true for its real tokens.
      state: quantile-normalised, about [-1, 1].
      depth: metres, 0 where there is no reading.
      depth_mask: true for depth views that are there; None: the cameras' mask.
      audio: samples in [-1, 1].
      features: the frozen policy's tokens of `images`, if computed before; None: Sigma computes
        them.
      text_embeddings: its embeddings of `text`, likewise.
    """

    images: UInt8[Array, 'b i h x 3'] | Float[Array, 'b i h x 3']  # uint8, or float in [-1, 1]
    image_mask: Bool[Array, 'b i']
    prompt: Int[Array, 'b l']
    prompt_mask: Bool[Array, 'b l']
    text: Int[Array, 'b l2']
    text_mask: Bool[Array, 'b l2']
    state: Float[Array, 'b p']
    depth: Float[Array, 'b j h x 1'] | None = None
    depth_mask: Bool[Array, 'b j'] | None = None
    audio: Float[Array, 'b samples'] | None = None
    features: Float[Array, 'b f w'] | None = None
    text_embeddings: Float[Array, 'b l w'] | None = None


@struct.dataclass
class Actions:
    """The paper's three action outputs, raw robot units: first step, first `c` steps, all `t`
    steps.
    """

    vec: Float[Array, 'b a']
    chk: Float[Array, 'b c a']
    traj: Float[Array, 'b t a']

    @classmethod
    def from_trajectory(cls, trajectory: Float[Array, 'b t a'], chunk: int) -> 'Actions':
        """Views of one trajectory (docs/design.md, "Actions as residuals").

        Args:
          trajectory: actions of a window, any units.
          chunk: c.

        Returns:
          `vec` is its first step, `chk` its first c steps, `traj` the whole.

        Examples:
          >>> import jax.numpy as jnp
          >>> from sigma_jax.types import Actions
          >>> actions = Actions.from_trajectory(jnp.zeros((1, 16, 6)), chunk=8)
          >>> actions.vec.shape, actions.chk.shape, actions.traj.shape
          ((1, 6), (1, 8, 6), (1, 16, 6))
        """
        return cls(vec=trajectory[..., 0, :], chk=trajectory[..., :chunk, :], traj=trajectory)


@struct.dataclass
class Batch:
    """One training or evaluation batch; under sequences every leaf is [b g ...].

    Attributes:
      observation: at the first frame of each window.
      actions: recorded, raw units.
      action_mask: true for steps before the episode's end.
      base: the frozen policy's own sample, raw units.
      reset: true where the memory must start anew (episode start, dropped window).
      mask: false on padding windows, which count nowhere.
      text_id: number of each distinct task string (InfoNCE negatives).
      episode: number of the episode.
      frame: number of the first frame.
      time: flow matching's times, where they were drawn before the batch was divided into
        micro-batches; None: the objective draws them.
      noise: flow matching's noise, likewise.
      delay: actions at a window's start that flow matching gives clean, likewise; None where it
        gives none.
      tau_override: a telepathy factor to use in place of the inferred one (stress tests); None: the
        inferred one.
    """

    observation: Observation
    actions: Float[Array, 'b t a']
    action_mask: Bool[Array, 'b t']
    base: Float[Array, 'b t a']
    reset: Bool[Array, 'b']
    mask: Bool[Array, 'b']
    text_id: Int[Array, 'b']
    episode: Int[Array, 'b']
    frame: Int[Array, 'b']
    time: Float[Array, 'b'] | None = None
    noise: Float[Array, 'b c a'] | None = None
    delay: Int[Array, 'b'] | None = None
    tau_override: Float[Array, 'b e'] | None = None


@struct.dataclass
class Continuation:
    """What a chunk is bound to while it is sampled: actions of the chunk before it that were not
    carried out yet (docs/design.md, "Chunks without a seam").

    Attributes:
      actions: normalised, as the policy would give them for this observation; the first falls on
        the first step. What is missing of the policy's steps and width counts as zeros.
      weights: how far a step is bound, from 0 (free) to 1.
      max_guidance: the largest weight of the guidance, one a window.
      mode: 'guided', 'lerobot' or 'trained'; see `backbones.flow`.
    """

    actions: Float[Array, 'b t a']
    weights: Float[Array, 'b t']
    max_guidance: Float[Array, 'b']
    mode: str = struct.field(pytree_node=False, default='guided')


@struct.dataclass
class ActionScaling:
    """How raw actions are counted, one number a joint, raw units (see `processing.actions`).

    Attributes:
      action_std: standard deviation of the training actions, the unit of Sigma's residuals.
      low: goes to -1 in the policy's own actions.
      span: `low + span` goes to 1.
      relative: 1 where the policy's actions count from the state.
      state_low: goes to -1 in the policy's own states.
      state_span: `state_low + state_span` goes to 1.
    """

    action_std: Float[Array, 'a']  # of the training actions: the unit of Sigma's residuals
    low: Float[Array, 'a']
    span: Float[Array, 'a']
    relative: Float[Array, 'a']
    state_low: Float[Array, 'a']
    state_span: Float[Array, 'a']


@struct.dataclass
class Frozen:
    """What a step reads and never changes: base weights and the statistics of the training data.

    `params` is the base policy's tree.
    """

    params: PyTree
    scaling: ActionScaling


@struct.dataclass
class Telepathy:
    """What pass 1 of the language intent workspace infers (paper 3.2)."""

    z_sem: Float[Array, 'b k d']
    z_pool: Float[Array, 'b d']
    memory: Float[Array, 'b d']  # m_t
    c_env: Float[Array, 'b d']
    c_beh: Float[Array, 'b d']
    c_text: Float[Array, 'b d']
    z_intent: Float[Array, 'b d']
    tau: Float[Array, 'b e']


@struct.dataclass
class Carry:
    """State handed from one window to the next: semantic memory m and the telepathy factor tau."""

    memory: Float[Array, 'b d']
    tau: Float[Array, 'b e']


@struct.dataclass
class SigmaOutput:
    """All that losses, adapter and metrics need of one forward pass.

    `residual` is in units of `action_std`; `actions = base + action_std * residual`
    (docs/design.md, "Actions as residuals"). `c_act0` is the action condition that never saw tau;
    `m_prev` the memory before this window; `fresh` is true where that memory had just been reset;
    `text_pool` and `vision_pool` are the pooled inputs of pass 1, for InfoNCE and `sem_align`.
    """

    actions: Actions
    residual: Actions
    telepathy: Telepathy
    m_prev: Float[Array, 'b d']
    fresh: Bool[Array, 'b']
    c_act: Float[Array, 'b e']
    c_act0: Float[Array, 'b e']
    text_pool: Float[Array, 'b d']
    vision_pool: Float[Array, 'b d']


@struct.dataclass
class Ablation:
    """Gates as data: 1 keeps a part, 0 removes it, read by `jnp.where`, so all rows share one
    trace.

    Attributes:
      tau: 0: tau = 0 in everything downstream of pass 1.
      tau_const: 1: tau is one learned vector, the same for every input.
      film: 0: v_mod = v_base.
      memory: 0: m_prev = 0 everywhere.
      residual: 0: actions = action_std * residual, without a_base.
      lora: 0: LoRA factors have no effect.
      hard: 0: no hard-sample term in TRAF.
      ramp_speed: TSAC: curriculum step = speed * optimiser step; inf: all at once.
    """

    tau: float | Float[Array, ''] = 1.0
    tau_const: float | Float[Array, ''] = 0.0
    film: float | Float[Array, ''] = 1.0
    memory: float | Float[Array, ''] = 1.0
    residual: float | Float[Array, ''] = 1.0
    lora: float | Float[Array, ''] = 1.0
    hard: float | Float[Array, ''] = 1.0
    ramp_speed: float | Float[Array, ''] = 1.0


def to_batch(arrays: Mapping[str, np.ndarray]) -> Batch:
    """The loader's dictionary as a Batch.

    Args:
      arrays: {field of Batch or Observation: [b g ...]}; without `base` it is zero.

    Returns:
      The same arrays.
    """
    names = [f.name for f in dataclasses.fields(Observation)]
    inputs: dict[str, Any] = {k: arrays[k] for k in names if k in arrays}
    rest: dict[str, Any] = {
        f.name: arrays[f.name] for f in dataclasses.fields(Batch) if f.name in arrays
    }
    return Batch(
        observation=Observation(**inputs), **{'base': np.zeros_like(arrays['actions'])} | rest
    )


def __dir__() -> list[str]:
    """The public names."""
    return __all__
