"""Sizes and choices of the three workspaces, as one frozen value."""

import dataclasses
import math

from sigma_jax.errors import UserError

_CHOICES = {
    'vision_encoder': ('backbone', 'patch_embed'),
    'text': ('embedding', 'one_hot'),
    'feedback': ('two_pass', 'recurrent'),
    'fusion': ('pi05', 'none', 'internal'),
    'dtype': ('float32', 'bfloat16'),
}


FROM_OUTSIDE = ('d_model', 'state_dim', 'action_dim')


@dataclasses.dataclass(frozen=True)
class SigmaConfig:
    """Everything that fixes the shape and the wiring of Sigma's trainable heads (paper 3.1-3.3,
    docs/design.md, "Language workspace").

    Attributes:
      d_model: d, the width of the backbone; 0: not known yet, as in the next two.
      state_dim: p, numbers of the robot's reading.
      action_dim: a, numbers of an action.
      horizon: t, actions of a window (paper 4.1: 16).
      chunk: c, the first of them, which `chk` predicts (ours).
      d_tau: e, the width of tau (derived from the paper's Table 1).
      num_factors: K, semantic factors (ours).
      num_visual: N_v, visual tokens (ours).
      num_state: N_s, state tokens (ours).
      heads: of attention in vision and language; these blocks have the backbone's width.
      ffn_multiplier: hidden units of a block's feed-forward part, in widths; 4, with 4 vision
        blocks, exceeds 350 M parameters at d = 2048.
      vision_blocks: blocks of the vision workspace.
      state_hidden: hidden units of the state's MLP.
      vision_encoder: 'backbone', or 'patch_embed': the paper's plain PatchEmbed.
      text: 'embedding', or 'one_hot': a fixed random projection of one-hot tokens, the paper's
        training mode.
      patch_size: pixels a side of a patch, of RGB ('patch_embed') and depth.
      audio_patch: samples of a patch: 25 ms at 16 kHz.
      use_depth: whether depth views are read (paper 3.1).
      use_audio: whether audio is read (paper 3.1).
      theta_t: log gate of tau in FiLM, at the start.
      theta_mod: log gate of what FiLM adds to the visual tokens, at the start.
      theta_lang: log gate of the language modulator, at the start.
      tau_rms: of the untrained telepathy factor (paper, Table 1, row 0).
      feedback: 'two_pass' (paper 4.2), or 'recurrent': the previous window's tau and one pass.
      fusion: what the residual is added to: 'pi05', 'none' or 'internal' (docs/design.md, "Actions
        as residuals").
      action_width: width of the action workspace.
      action_heads: its heads of attention.
      num_queries: q, action queries.
      query_blocks: blocks that these pass.
      token_dim: width of an action token.
      trajectory_blocks: blocks of the trajectory branch.
      refinement_steps: K of the trajectory branch.
      noise_scale: 0, or 1: refinement starts from keyed noise.
      joint_low: lower limits of the low-level controller, raw units; None: no limit.
      joint_high: upper limits, likewise.
      joint_rate: largest change a step, likewise. A robot's first step counts from its reading of
        the joint that has the action's name: leave it out where actions are no positions.
      dtype: of the large matrix products; parameters, norms, softmax and outputs are float32.

    Raises:
      UserError: a size is not positive, a choice is unknown, or widths and head counts do not
        divide.
    """

    d_model: int = 0
    state_dim: int = 0
    action_dim: int = 0
    horizon: int = 16
    chunk: int = 8
    d_tau: int = 64
    num_factors: int = 8
    num_visual: int = 64
    num_state: int = 4
    heads: int = 8
    ffn_multiplier: int = 2
    vision_blocks: int = 2
    state_hidden: int = 512
    vision_encoder: str = 'backbone'
    text: str = 'embedding'
    patch_size: int = 14
    audio_patch: int = 400
    use_depth: bool = False
    use_audio: bool = False
    theta_t: float = 0.0
    theta_mod: float = math.log(0.1)
    theta_lang: float = math.log(0.1)
    tau_rms: float = 0.05
    feedback: str = 'two_pass'
    fusion: str = 'pi05'
    action_width: int = 512
    action_heads: int = 8
    num_queries: int = 16
    query_blocks: int = 2
    token_dim: int = 32
    trajectory_blocks: int = 4
    refinement_steps: int = 4
    noise_scale: float = 0.0
    joint_low: tuple[float, ...] | None = None
    joint_high: tuple[float, ...] | None = None
    joint_rate: tuple[float, ...] | None = None
    dtype: str = 'float32'

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f'sigma.{name}: expected one of {", ".join(allowed)}, got '
                    f'{getattr(self, name)!r}; choose one'
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.endswith('_blocks') or field.name in FROM_OUTSIDE else 1
            if field.type is int and value < least:
                raise UserError(
                    f'sigma.{field.name}: expected a whole number of at least {least}, got '
                    f'{value}; correct it'
                )
        _divides('heads', self.heads, 'd_model', self.d_model)
        _divides('action_heads', self.action_heads, 'action_width', self.action_width)
        if self.chunk > self.horizon:
            raise UserError(
                f'sigma.chunk: expected at most sigma.horizon ({self.horizon}), got {self.chunk}; '
                'lower it'
            )
        for name in ('joint_low', 'joint_high', 'joint_rate'):
            limit = getattr(self, name)
            if limit is not None and self.action_dim and len(limit) != self.action_dim:
                raise UserError(
                    f'sigma.{name}: expected one number per joint ({self.action_dim}), got '
                    f'{len(limit)}; list every joint or set it to None'
                )


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        raise UserError(
            f'sigma.{small_name}: expected a divisor of sigma.{large_name} ({large}), got {small}; '
            'choose one'
        )
