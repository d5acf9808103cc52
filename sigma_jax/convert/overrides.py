"""Horizon, steps of sampling and the prompt's state as a caller gives them, over what is written or
assumed.
"""

import dataclasses

from sigma_jax.convert.assets import PolicyAssets
from sigma_jax.convert.openpi.training_config import HORIZON, PROMPT, STEPS, prompt_text
from sigma_jax.convert.source import Source
from sigma_jax.errors import UserError
from sigma_jax.processing.tokenizer import NO_STATE

PROMPTS = ('robot', 'none', 'padded')

MOST = 1000  # twenty times pi0.5's horizon, a hundred times its steps: nobody means more


@dataclasses.dataclass(frozen=True)
class Overrides:
    """None: not given. `prompt_state` is 'robot' (its own joints), 'none', or 'padded' to the
    model's width.
    """

    action_horizon: int | None = None
    sample_steps: int | None = None
    prompt_state: str | None = None

    def __post_init__(self) -> None:
        for name in (HORIZON, STEPS):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UserError(
                    f'expected --{name} of at least 1, got {value}; give what the '
                    'policy was trained with'
                )
            if value is not None and value > MOST:
                raise UserError(
                    f'expected --{name} of up to {MOST}, got {value}; give what the policy was '
                    'trained with'
                )
        if self.prompt_state is not None and self.prompt_state not in PROMPTS:
            raise UserError(
                f'expected --{PROMPT} among {", ".join(PROMPTS)}, got '
                f'{self.prompt_state!r}; choose one'
            )

    def names(self) -> list[str]:
        """What is given."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        ]


def apply_overrides(
    source: Source, policy_assets: PolicyAssets, overrides: Overrides
) -> tuple[Source, PolicyAssets]:
    """Both with what is given; where a file says otherwise, a note says which was taken.

    Args:
      source: opened.
      policy_assets: its assets.
      overrides: settings of the command line.

    Returns:
      source: with the settings.
      policy_assets: with the settings.
    """
    sizes = {
        name: getattr(overrides, name)
        for name in (HORIZON, STEPS)
        if getattr(overrides, name) is not None
    }
    config = dataclasses.replace(source.config, **sizes)
    policy, notes = policy_assets.policy, list(policy_assets.notes)
    if overrides.prompt_state is not None:
        width = {'robot': 0, 'none': NO_STATE, 'padded': config.action_dim}[overrides.prompt_state]
        if PROMPT not in policy_assets.assumed and (policy.prompt_state_dim or 0) != width:
            notes.append(
                f'{prompt_text(width)}, as given; written is {prompt_text(policy.prompt_state_dim)}'
            )
        policy = dataclasses.replace(policy, prompt_state_dim=width)
    for name, value in sizes.items():
        if name not in source.assumed and value != getattr(source.config, name):
            notes.append(f'{name} {value}, as given; written is {getattr(source.config, name)}')
    if policy.action_steps is not None:  # no more than there are
        policy = dataclasses.replace(
            policy, action_steps=min(policy.action_steps, config.action_horizon)
        )
    left = {
        name: origin for name, origin in source.assumed.items() if name not in overrides.names()
    }
    known = {
        name: origin
        for name, origin in policy_assets.assumed.items()
        if name not in overrides.names()
    }
    policy_assets = dataclasses.replace(
        policy_assets, policy=policy, notes=tuple(notes), assumed=known, config_sizes=sizes
    )
    return dataclasses.replace(source, config=config, assumed=left), policy_assets
