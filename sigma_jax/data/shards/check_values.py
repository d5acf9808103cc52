"""Values of `config.data` that no data set can make good."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.processing.tokenizer import NO_STATE


def check_values(config: Any, states: int) -> None:
    """Checks that the values of a config mean something.

    Args:
      config: `plan.DataConfig`.
      states: numbers of a state of the data set.

    Raises:
      UserError: one does not.
    """
    for name in ('min_motion', 'min_action_norm'):
        if np.isnan(value := getattr(config, name)):
            raise UserError(
                f'expected a number for data.{name}, got {value}; set it to 0 to keep every window'
            )
    for name in ('cameras', 'depth'):
        check_different(f'data.{name}', getattr(config, name))
    if config.split_seed < 0:
        raise UserError(
            f'expected data.split_seed of at least 0, got {config.split_seed}; correct the config'
        )
    if config.prompt_state_dim < NO_STATE:
        raise UserError(
            f'expected data.prompt_state_dim of at least {NO_STATE} (a prompt without state), got '
            f'{config.prompt_state_dim}; correct the config'
        )
    if 0 < config.prompt_state_dim < states:
        raise UserError(
            f'expected data.prompt_state_dim of at least {states}, as many as a state of these '
            f'data has, got {config.prompt_state_dim}; set it to 0 to write the state as it is, '
            f'or to {NO_STATE} to leave it out'
        )


def check_different(setting: str, names: Sequence[str]) -> None:
    """Checks that a setting names nothing twice.

    Args:
      setting: its name, for messages.
      names: its value.

    Raises:
      UserError: it does.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"expected different names in {setting}, got '{twice[0]}' twice; name each once"
        )
