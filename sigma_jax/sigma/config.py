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

    Raises:
      UserError: a size is not positive, a choice is unknown, or widths and head counts do not
        divide.
    """

    # of backbone and data; 0: not known yet
    d_model: int = 0  # d: the width of the backbone
    state_dim: int = 0  # p
    action_dim: int = 0  # a
    horizon: int = 16  # t
    chunk: int = 8  # c
    d_tau: int = 64  # e (derived from the paper's Table 1)
    num_factors: int = 8  # K
    num_visual: int = 64  # N_v
    num_state: int = 4  # N_s
    # vision and language, at the backbone's width
    heads: int = 8
    ffn_multiplier: int = 2  # 4, with 4 vision blocks, exceeds 350 M parameters at d = 2048
    vision_blocks: int = 2
    state_hidden: int = 512
    vision_encoder: str = 'backbone'  # 'patch_embed': the paper's plain PatchEmbed
    # 'one_hot': a fixed random projection of one-hot tokens, the paper's training mode
    text: str = 'embedding'
    patch_size: int = 14  # pixels, RGB ('patch_embed') and depth
    audio_patch: int = 400  # samples: 25 ms at 16 kHz
    use_depth: bool = False
    use_audio: bool = False
    theta_t: float = 0.0  # log gates
    theta_mod: float = math.log(0.1)
    theta_lang: float = math.log(0.1)
    tau_rms: float = 0.05  # of the untrained telepathy factor (paper, Table 1, row 0)
    feedback: str = 'two_pass'
    # action
    fusion: str = 'pi05'
    action_width: int = 512
    action_heads: int = 8
    num_queries: int = 16  # q
    query_blocks: int = 2
    token_dim: int = 32
    trajectory_blocks: int = 4
    refinement_steps: int = 4  # K of the trajectory branch
    noise_scale: float = 0.0  # 1: refinement starts from keyed noise
    # low-level controller, raw units; None: no limit
    joint_low: tuple[float, ...] | None = None
    joint_high: tuple[float, ...] | None = None
    joint_rate: tuple[float, ...] | None = None  # per step
    # of the large matrix products; parameters, norms, softmax and outputs are float32
    dtype: str = 'float32'

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f'sigma.{name} is {getattr(self, name)!r}; choose one of {", ".join(allowed)}'
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.endswith('_blocks') or field.name in FROM_OUTSIDE else 1
            if field.type is int and value < least:
                raise UserError(
                    f'sigma.{field.name} must be positive, got {value}; give a whole '
                    'number of at least 1'
                )
        _divides('heads', self.heads, 'd_model', self.d_model)
        _divides('action_heads', self.action_heads, 'action_width', self.action_width)
        if self.chunk > self.horizon:
            raise UserError(
                f'sigma.chunk must not exceed sigma.horizon ({self.horizon}), got {self.chunk}; '
                'lower sigma.chunk'
            )
        for name in ('joint_low', 'joint_high', 'joint_rate'):
            limit = getattr(self, name)
            if limit is not None and self.action_dim and len(limit) != self.action_dim:
                raise UserError(
                    f'sigma.{name} must hold one number per joint ({self.action_dim}), got '
                    f'{len(limit)}; list every joint or set it to None'
                )


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        raise UserError(
            f'sigma.{small_name} must divide sigma.{large_name} ({large}), got {small}; choose a '
            f'divisor of {large}'
        )
